//! Whole runs: a plan from a seed, its end, and a shorter plan that fails the same way.

use crate::api::{Answer, Call};
use crate::checker::Stats;
use crate::net::{Host, SECOND};
use crate::origin::Health;
use crate::plan::{Action, Plan};
use crate::world::{Kind, World};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tidegate_control_types::planted::{Bug, plant};

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub seed: u64,
    pub violation: Option<String>,
    pub stats: Stats,
    /// Of all that happened, in order.
    pub hash: u64,
    pub story: Vec<String>,
}

/// Within this much true time after the last fault every purge is true and every node attached.
const RECOVERS_WITHIN: u64 = 30 * SECOND;

/// Lets a plan happen. A panic of the code that it runs is a violation like any other.
#[must_use]
pub fn replay(plan: &Plan, told: bool) -> Ended {
    let mut world = World::new(&plan.setup, told);
    let ran = catch_unwind(AssertUnwindSafe(|| {
        for (at, action) in &plan.actions {
            world.act_at(*at, action.clone());
        }
        world.run_until(plan.until);
        if world.problem.is_none() {
            world.recover();
        }
    }));
    if let Err(panic) = ran {
        let why = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        world.must(Err(format!("panic: {}", why.unwrap_or_default())));
    }
    let stats = world.checker.stats;
    let (violation, hash, story) = (world.problem.take(), world.story.hash, world.story.told.take().unwrap_or_default());
    Ended { seed: plan.setup.seed, violation, stats, hash, story }
}

/// With a bug planted in the code that it runs.
#[must_use]
pub fn replay_with(bug: Option<Bug>, plan: &Plan, told: bool) -> Ended {
    plant(bug);
    let ended = replay(plan, told);
    plant(None);
    ended
}

/// One seed, from plan to end.
#[must_use]
pub fn run(seed: u64) -> Ended {
    replay(&Plan::random(seed), false)
}

#[must_use]
pub fn run_with(bug: Option<Bug>, seed: u64) -> Ended {
    replay_with(bug, &Plan::random(seed), false)
}

/// A shorter plan that still fails, found by leaving out what is not needed. `most`: tries.
#[must_use]
pub fn shrink(plan: &Plan, most: usize) -> Plan {
    shrink_with(None, plan, most)
}

#[must_use]
pub fn shrink_with(bug: Option<Bug>, plan: &Plan, most: usize) -> Plan {
    let mut best = plan.clone();
    let mut size = best.actions.len() / 2;
    let mut tries = 0;
    while size > 0 {
        let (mut at, mut shorter) = (0, false);
        while at < best.actions.len() {
            if tries >= most {
                return best;
            }
            tries += 1;
            let mut less = best.clone();
            less.actions.drain(at..(at + size).min(best.actions.len()));
            if replay_with(bug, &less, false).violation.is_some() {
                best = less;
                shorter = true;
            } else {
                at += size;
            }
        }
        if !shorter || size > 1 {
            size /= 2;
        }
    }
    best
}

impl World {
    /// Faults end: whatever is down comes back, and within a bound all is as it should be.
    pub fn recover(&mut self) {
        self.origin.health = Health::Well;
        self.origin.takes_ms = 5;
        self.act_at(self.now(), Action::HealAll);
        for host in (0..self.machines.len()).map(Host) {
            for action in [Action::Disk(host, None), Action::SavesFail(host, false), Action::Resume(host), Action::Start(host)] {
                self.act_at(self.now(), action);
            }
        }
        let mut asked = std::collections::BTreeMap::new();
        let well = self.run_while(RECOVERS_WITHIN, |world| {
            let Some(leader) = world.leader() else { return false };
            for index in world.checker.promises.open() {
                let waits = asked.get(&index).and_then(|id| world.api.calls.get(id)).is_some_and(|c: &Call| c.answer.is_none());
                if !waits {
                    asked.insert(index, world.call(leader, Call::receipt(index, 2000)));
                }
            }
            world.bury(leader);
            world.checker.promises.open().is_empty() && world.strays().is_empty()
        });
        if self.problem.is_none() && !well {
            let open = self.checker.promises.open();
            let answers: Vec<_> =
                asked.values().filter_map(|id| self.api.calls.get(id)?.answer.clone()).filter(|a| !matches!(a, Answer::True(_))).collect();
            let why = format!(
                "liveness: {} after the last fault purges {open:?} are not true everywhere, not attached are {:?}; {:?}",
                crate::checker::time(RECOVERS_WITHIN),
                self.strays(),
                answers.last()
            );
            self.must(Err(why));
        }
        let lost = self.checker.nothing_lost();
        self.must(lost);
    }

    /// Nodes that should be attached and are not.
    fn strays(&self) -> Vec<String> {
        let stray = |(n, m): (usize, &crate::world::Machine)| match &m.kind {
            Kind::Cache(c) if !c.removed && !c.scrapped && !self.is_attached(Host(n)) => Some(m.name.clone()),
            _ => None,
        };
        self.machines.iter().enumerate().filter_map(stray).collect()
    }

    /// The operator vouches that the processes of nodes that were removed are gone, once they are; after a restore also of
    /// those that the backup does not know to be removed.
    fn bury(&mut self, leader: Host) {
        let Some(control) = self.control(leader) else { return };
        let state = control.shared.state.read();
        let known: Vec<_> =
            state.nodes().filter(|n| n.removed.is_none_or(|r| !r.dead)).map(|n| (n.state.name.to_string(), n.removed.is_some())).collect();
        drop(state);
        for (name, removed) in known {
            let gone = |c: &crate::cache::CacheHost| c.running.is_none() && (removed || c.removed || c.scrapped);
            if self.host_named(&name).is_some_and(|h| matches!(&self.machines[h.0].kind, Kind::Cache(c) if gone(c))) {
                self.call(leader, Call::remove(&name, true));
            }
        }
    }

    /// Waits until the network is up: a leader, and every cache node attached.
    pub fn settle_down(&mut self) {
        let up = self.run_while(20 * SECOND, |w| w.leader().is_some() && w.strays().is_empty());
        assert!(up || self.problem.is_some(), "the network does not come up: leader {:?}, not attached {:?}", self.leader(), self.strays());
    }
}
