//! Leases: how a cache node knows that it has heard of every purge that was answered.
//!
//! A node asks; only the leader grants, after a quorum has confirmed it since the asking arrived. The grant
//! names the log index that was committed by then: the node is attached once it has applied that index, from
//! when it *asked* for the grant's duration. The leader counts the same lease from when it *answered*, plus
//! a margin for drifting clocks. The terms are the network's, made when it was founded, so that a new leader counts what
//! its predecessor granted. So, by one and the same true time:
//!
//! Invariant: what a node believes of its lease's end <= what the leader believes of it.

use crate::planted::Bug;
use crate::time::BootTime;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseTerms {
    /// How long a node may count on a grant, from when it asked.
    pub duration: Duration,
    /// What the leader adds for clocks that run at different speeds while a lease lasts.
    pub drift_margin: Duration,
}

impl Default for LeaseTerms {
    fn default() -> Self {
        Self { duration: Duration::from_secs(5), drift_margin: Duration::from_millis(100) }
    }
}

impl LeaseTerms {
    /// The end of a lease as the leader that answers at `answered` has to count it.
    #[must_use]
    pub fn counted_until(self, answered: BootTime) -> BootTime {
        if Bug::LeaseWithoutDriftMargin.is_planted() {
            return answered + self.duration;
        }
        answered + self.duration + self.drift_margin
    }
}

/// A leader's answer to one asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The node is attached once it has applied all through this index.
    pub read_index: u64,
    /// From when the node asked.
    pub duration: Duration,
}

impl Grant {
    /// A node asks this often, so that two lost grants do not detach it.
    #[must_use]
    pub fn ask_again_after(self) -> Duration {
        self.duration / 4
    }
}

/// The node's side. Whoever holds it publishes [`NodeLease::until`] to the workers, who compare it with the
/// clock after each request's head has come in.
#[derive(Debug, Default)]
pub struct NodeLease {
    next: u64,
    /// Asked, not answered. Bounded: an older asking is worth less than any newer one.
    asked: VecDeque<(u64, BootTime)>,
    /// Answered, but the index it names is not applied yet; with its end.
    granted: VecDeque<(u64, BootTime)>,
    applied: u64,
    until: Option<BootTime>,
}

const MOST_ASKED: usize = 16;

impl NodeLease {
    /// Starts an asking at `now`; the number goes with it and comes back in the grant.
    pub fn ask(&mut self, now: BootTime) -> u64 {
        self.next += 1;
        if self.asked.len() == MOST_ASKED {
            self.asked.pop_front();
        }
        self.asked.push_back((self.next, now));
        self.next
    }

    /// Another connection, possibly to another control node: what was asked before will not be answered, and an
    /// index granted under another incarnation must not be waited for.
    pub fn reconnected(&mut self) {
        self.asked.clear();
        self.granted.clear();
    }

    /// A grant came. An asking that is not remembered (answered twice, from an earlier connection) grants nothing.
    pub fn granted(&mut self, asking: u64, grant: Grant) {
        let Some(at) = self.asked.iter().position(|(n, _)| *n == asking) else { return };
        if let Some((_, mut asked_at)) = self.asked.remove(at) {
            if Bug::LeaseFromLatestAsking.is_planted() {
                asked_at = self.asked.back().map_or(asked_at, |(_, at)| *at);
            }
            self.granted.push_back((grant.read_index, asked_at + grant.duration));
            self.settle();
        }
    }

    /// Every worker has applied all up to `index`.
    pub fn applied(&mut self, index: u64) {
        self.applied = index;
        self.settle();
    }

    fn settle(&mut self) {
        let (applied, until) = (self.applied, &mut self.until);
        self.granted.retain(|(read_index, end)| {
            if *read_index > applied && !Bug::LeaseBeforeItsIndex.is_planted() {
                return true;
            }
            *until = (*until).max(Some(*end));
            false
        });
    }

    /// The node is attached before this moment, and detached from it on.
    #[must_use]
    pub fn until(&self) -> Option<BootTime> {
        self.until
    }
}

/// The end of a node's lease, published to its workers.
#[derive(Debug, Default)]
pub struct LeaseEnd {
    nanos: AtomicU64,
    held: AtomicBool,
    removed: AtomicBool,
}

impl LeaseEnd {
    /// `now` is read after the request's head has come in.
    #[must_use]
    pub fn attached(&self, now: BootTime) -> bool {
        now.as_nanos() < self.nanos.load(Ordering::Acquire)
    }

    pub fn publish(&self, until: Option<BootTime>) {
        self.nanos.store(until.map_or(0, BootTime::as_nanos), Ordering::Release);
        if until.is_some() {
            self.held.store(true, Ordering::Release);
        }
    }

    /// Whether there was a lease in this life of the process. Before, the node may have forgotten purges that an earlier life
    /// of it has acknowledged.
    #[must_use]
    pub fn was_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    /// The node is no longer part of the network: no request that comes from now on is answered.
    pub fn end(&self) {
        self.removed.store(true, Ordering::Release);
        self.publish(None);
    }

    /// To be asked where the node is not attached.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> BootTime {
        BootTime::from_nanos(ms * 1_000_000)
    }

    fn grant(read_index: u64) -> Grant {
        Grant { read_index, duration: LeaseTerms::default().duration }
    }

    #[test]
    fn a_lease_counts_from_the_asking_and_only_once_the_index_is_applied() {
        let mut lease = NodeLease::default();
        let asking = lease.ask(at(1000));
        lease.granted(asking, grant(7));
        assert_eq!(lease.until(), None, "granted before the purge at 7 was applied");
        lease.applied(6);
        assert_eq!(lease.until(), None);
        lease.applied(7);
        assert_eq!(lease.until(), Some(at(6000)));
    }

    #[test]
    fn an_asking_is_answered_once_and_not_across_connections() {
        let mut lease = NodeLease::default();
        lease.applied(9);
        let first = lease.ask(at(0));
        lease.granted(first, grant(1));
        assert_eq!(lease.until(), Some(at(5000)));
        let second = lease.ask(at(2000));
        lease.reconnected();
        lease.granted(second, grant(1));
        lease.granted(first, grant(1));
        assert_eq!(lease.until(), Some(at(5000)));
    }

    #[test]
    fn a_lease_lasts_as_long_as_its_grant_says() {
        let mut lease = NodeLease::default();
        lease.applied(1);
        let asking = lease.ask(at(100));
        lease.granted(asking, Grant { read_index: 1, duration: Duration::from_millis(700) });
        assert_eq!(lease.until(), Some(at(800)));
    }

    #[test]
    fn a_late_grant_never_shortens_a_lease() {
        let mut lease = NodeLease::default();
        let (a, b) = (lease.ask(at(0)), lease.ask(at(1000)));
        lease.applied(5);
        lease.granted(b, grant(5));
        lease.granted(a, grant(3));
        assert_eq!(lease.until(), Some(at(6000)));
    }

    #[test]
    fn the_leader_counts_longer_than_the_node() {
        let terms = LeaseTerms::default();
        let (asked, answered) = (at(100), at(130));
        assert!(asked + terms.duration < terms.counted_until(answered));
    }
}
