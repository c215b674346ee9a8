//! A cache node's side of the watch stream, pure: what it hears comes in, what it must do and say comes out. `watch`
//! carries it over a connection.
//!
//! The order that holds the purge promise: a step is applied by every worker, and is on disk where it changed the
//! configuration, before [`Follower::applied`] makes the acknowledgement; the lease counts from [`Follower::ask`].

use crate::VERSION;
use crate::network::{Network, Update};
use std::sync::Arc;
use std::time::Duration;
use tidegate_control_types::explain::Asked;
use tidegate_control_types::lease::NodeLease;
use tidegate_control_types::planted::Bug;
use tidegate_control_types::{BootTime, EdgeStanding, FromNode, ToNode, WallTime};

/// Until the first grant says how long a lease lasts.
const FIRST_ASK_AGAIN: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct Follower {
    lease: NodeLease,
    network: Option<Arc<Network>>,
    /// What a connection is good for begins with its catch-up.
    caught_up: bool,
    /// It holds what an earlier life stored, and has not been told yet of the purges that may name it.
    forgetful: bool,
    ask_again_after: Option<Duration>,
}

/// What a message asks of the node.
pub enum Heard {
    /// The lease may last longer: publish it.
    Lease,
    /// To be applied by every worker, in this order.
    Step(Arc<Update>),
    /// The operator removed this node.
    Removed { removal: u64 },
    /// To be answered when that can be.
    Explain { number: u64, question: Box<Asked> },
    /// How the edges stand.
    Standings(Vec<EdgeStanding>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfTurn {
    #[error("entries came before the catch-up")]
    Entries,
    #[error("it belongs to the network as it was before a restore: it has to be stopped, and to join anew")]
    Past,
}

impl Follower {
    /// Begins with what an earlier life of this node saved; the step, if there is one, is to be applied before anything
    /// else. `stored`: the node may hold what an earlier life stored.
    #[must_use]
    pub fn resume(saved: Option<Arc<Network>>, stored: bool) -> (Self, Option<Arc<Update>>) {
        let mut follower = Self { forgetful: stored, ..Self::default() };
        let step = saved.map(|saved| {
            follower.lease.applied(saved.revision.index);
            follower.network = Some(Arc::clone(&saved));
            Arc::new(saved.restart())
        });
        (follower, step)
    }

    /// A connection to a control node begins: what to say first.
    pub fn connected(&mut self) -> FromNode {
        self.lease.reconnected();
        self.caught_up = false;
        let applied = self.network.as_ref().map(|n| n.revision);
        let purges_after = match applied {
            _ if self.forgetful && !Bug::RestartWithoutPurges.is_planted() => 0,
            Some(revision) => revision.index,
            None => u64::MAX,
        };
        FromNode::Hello { applied, purges_after, version: VERSION.into() }
    }

    /// A message came. A step has to be taken before the next message is heard; after either, [`Follower::until`] is to be
    /// published.
    ///
    /// # Errors
    /// The control node does not keep to the order; the connection is of no use.
    pub fn hear(&mut self, message: ToNode, heard: WallTime) -> Result<Heard, OutOfTurn> {
        let update = match message {
            ToNode::Explain { number, question } => return Ok(Heard::Explain { number, question }),
            ToNode::Standings(standings) => return Ok(Heard::Standings(standings)),
            ToNode::Removed { removal } => {
                self.lease = NodeLease::default();
                return Ok(Heard::Removed { removal });
            }
            ToNode::Lease { asking, grant } => {
                self.ask_again_after = Some(grant.ask_again_after().max(Duration::from_millis(1)));
                self.lease.granted(asking, grant);
                return Ok(Heard::Lease);
            }
            ToNode::CatchUp { revision, missed } => {
                let mine = self.network.as_ref().map_or(0, |n| n.revision.incarnation.generation());
                if revision.incarnation.generation() < mine {
                    return Err(OutOfTurn::Past);
                }
                self.caught_up = true;
                let all_purges = std::mem::take(&mut self.forgetful);
                Network::caught_up(self.network.as_deref(), revision, *missed, all_purges, heard)
            }
            ToNode::Entries { through, entries } => match self.network.as_ref().filter(|_| self.caught_up) {
                Some(network) => network.followed(through, entries, heard),
                None => return Err(OutOfTurn::Entries),
            },
        };
        if update.fresh {
            // Under another log nothing that was granted or applied before means anything.
            self.lease = NodeLease::default();
        }
        Ok(Heard::Step(Arc::new(update)))
    }

    /// Every worker has applied `update`, and it is saved where [`Update::changes_configuration`]. Returns what to say.
    pub fn applied(&mut self, update: &Update) -> FromNode {
        self.network = Some(Arc::clone(&update.network));
        self.lease.applied(update.revision.index);
        FromNode::Ack { index: update.revision.index }
    }

    /// Asks for a lease at `now`, once this connection has caught up.
    pub fn ask(&mut self, now: BootTime) -> Option<FromNode> {
        self.caught_up.then(|| FromNode::AskLease { asking: self.lease.ask(now) })
    }

    #[must_use]
    pub fn ask_again_after(&self) -> Duration {
        self.ask_again_after.unwrap_or(FIRST_ASK_AGAIN)
    }

    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        self.caught_up
    }

    /// The node is attached before this moment.
    #[must_use]
    pub fn until(&self) -> Option<BootTime> {
        self.lease.until()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_control_types::lease::Grant;
    use tidegate_control_types::{CatchUp, Incarnation, Revision};

    fn at(secs: u64) -> BootTime {
        BootTime::from_nanos(secs * 1_000_000_000)
    }

    fn catch_up(incarnation: u64, index: u64) -> ToNode {
        ToNode::CatchUp { revision: Revision::new(Incarnation(incarnation), index), missed: Box::new(CatchUp::default()) }
    }

    fn step(f: &mut Follower, message: ToNode) -> FromNode {
        match f.hear(message, WallTime(0)) {
            Ok(Heard::Step(update)) => f.applied(&update),
            _ => panic!("no step"),
        }
    }

    #[test]
    fn another_log_ends_the_lease_before_its_first_step_is_applied() {
        let (mut f, nothing) = Follower::resume(None, false);
        assert!(nothing.is_none());
        f.connected();
        assert_eq!(f.ask(at(0)), None, "not before the catch-up");
        assert_eq!(step(&mut f, catch_up(1, 9)), FromNode::Ack { index: 9 });
        let Some(FromNode::AskLease { asking }) = f.ask(at(0)) else { panic!() };
        let grant = Grant { read_index: 9, duration: Duration::from_secs(5) };
        assert!(matches!(f.hear(ToNode::Lease { asking, grant }, WallTime(0)), Ok(Heard::Lease)));
        assert_eq!(f.until(), Some(at(5)));
        f.connected();
        assert!(matches!(f.hear(catch_up(2, 3), WallTime(0)), Ok(Heard::Step(_))));
        assert_eq!(f.until(), None);
    }

    #[test]
    fn entries_without_a_catch_up_are_refused() {
        let (mut f, _) = Follower::resume(None, false);
        f.connected();
        step(&mut f, catch_up(1, 1));
        f.connected();
        assert!(matches!(f.hear(ToNode::Entries { through: 2, entries: vec![] }, WallTime(0)), Err(OutOfTurn::Entries)));
    }

    #[test]
    fn a_network_from_before_a_restore_is_not_followed_again() {
        let (mut f, _) = Follower::resume(None, false);
        let log = |generation, random| Incarnation::new(generation, random).0;
        f.connected();
        step(&mut f, catch_up(log(0, 5), 9));
        f.connected();
        step(&mut f, catch_up(log(1, 7), 3));
        f.connected();
        assert!(matches!(f.hear(catch_up(log(0, 5), 20), WallTime(0)), Err(OutOfTurn::Past)));
    }
}
