//! What a control node has heard from cache nodes, and how the leader comes to know it.
//!
//! A leader's knowledge ends with its term: a follower tells each leader of each term everything once more.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tidegate_control_state::State;
use tidegate_control_types::fleet::Fleet;
use tidegate_control_types::{NodeName, NodeReport, WallTime};

/// Acknowledgements and reports that a follower hands on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Relayed {
    pub acks: Vec<(NodeName, Acked)>,
    pub reports: Vec<(NodeName, NodeReport)>,
    /// Nodes that have ended, with the index of the removal that they were told of.
    pub ended: Vec<(NodeName, u64)>,
}

/// What a node of one enrolment has applied: after a removal another may have its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Acked {
    pub enrolled: u64,
    pub index: u64,
}

#[derive(Debug, Default)]
pub struct Heard {
    /// The newest acknowledgement of each node.
    acks: BTreeMap<NodeName, Acked>,
    /// Not handed on yet.
    reports: BTreeMap<NodeName, NodeReport>,
    ended: BTreeMap<NodeName, u64>,
    /// Leader and term that have been told `told`.
    whom: (u64, u64),
    told: BTreeMap<NodeName, Acked>,
}

impl Heard {
    pub fn acked(&mut self, node: &NodeName, acked: Acked) {
        let last = self.acks.entry(node.clone()).or_default();
        *last = (*last).max(acked);
    }

    pub fn reported(&mut self, node: &NodeName, report: NodeReport) {
        self.reports.insert(node.clone(), report);
    }

    /// A node that was removed at index `removal` answers nothing any more.
    pub fn ended(&mut self, node: &NodeName, removal: u64) {
        self.ended.insert(node.clone(), removal);
    }

    pub fn forget(&mut self, node: &NodeName) {
        self.acks.remove(node);
        self.ended.remove(node);
    }

    /// On the leader itself: all that was heard goes into its own view. True where an acknowledgement was news.
    pub fn tell(&mut self, state: &State, fleet: &mut Fleet, now: WallTime) -> bool {
        self.acks.retain(|node, acked| state.may_be(node.as_str(), acked.enrolled));
        for (node, report) in std::mem::take(&mut self.reports) {
            fleet.reported(&node, report, now);
        }
        self.ended.iter().for_each(|(node, removal)| fleet.ended(node, *removal));
        self.acks.iter().filter(|(node, acked)| fleet.acked(node, acked.index, now)).count() > 0
    }

    /// On a follower: what `leader` does not know yet in `term`; `None` where that is nothing.
    pub fn news(&mut self, state: &State, leader: u64, term: u64) -> Option<Relayed> {
        self.ended.retain(|node, removal| removal_of(state, node) == Some(*removal));
        if self.whom != (leader, term) {
            self.whom = (leader, term);
            self.told.clear();
        }
        self.acks.retain(|node, acked| state.may_be(node.as_str(), acked.enrolled));
        let acks: Vec<_> = self.acks.iter().filter(|(n, i)| self.told.get(*n) != Some(i)).map(|(n, i)| (n.clone(), *i)).collect();
        let reports: Vec<_> = std::mem::take(&mut self.reports).into_iter().collect();
        // Few, and told until they are forgotten.
        let ended: Vec<_> = self.ended.iter().map(|(n, i)| (n.clone(), *i)).collect();
        (!acks.is_empty() || !reports.is_empty() || !ended.is_empty()).then_some(Relayed { acks, reports, ended })
    }

    /// The leader of `term` has taken `acks`.
    pub fn delivered(&mut self, leader: u64, term: u64, acks: Vec<(NodeName, Acked)>) {
        if self.whom == (leader, term) {
            self.told.extend(acks);
        }
    }
}

/// The index at which a node was removed, where it is still remembered.
#[must_use]
pub fn removal_of(state: &State, node: &NodeName) -> Option<u64> {
    state.node(node.as_str())?.removed.map(|r| r.index)
}

impl Relayed {
    /// Into the view of the leader that got it. True where an acknowledgement was news.
    pub fn tell(self, state: &State, fleet: &mut Fleet, now: WallTime) -> bool {
        for (node, report) in self.reports {
            fleet.reported(&node, report, now);
        }
        self.ended.iter().for_each(|(node, removal)| fleet.ended(node, *removal));
        let of_now = self.acks.iter().filter(|(node, acked)| state.may_be(node.as_str(), acked.enrolled));
        of_now.filter(|(node, acked)| fleet.acked(node, acked.index, now)).count() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_control_types::BootTime;

    #[test]
    fn a_leader_is_told_once_a_term_and_again_in_the_next() {
        let node: NodeName = "e1".parse().unwrap();
        let (mut heard, state) = (Heard::default(), State::nothing_yet());
        let seven = Acked { enrolled: 5, index: 7 };
        heard.acked(&node, seven);
        let first = heard.news(&state, 1, 3).unwrap();
        assert_eq!(first.acks, [(node.clone(), seven)]);
        heard.delivered(1, 3, first.acks);
        assert_eq!(heard.news(&state, 1, 3), None);
        assert_eq!(heard.news(&state, 1, 5).unwrap().acks, [(node.clone(), seven)], "the same leader, elected anew, knows nothing");
        heard.delivered(1, 3, vec![(node.clone(), seven)]);
        assert!(heard.news(&state, 1, 5).is_some(), "what was delivered in an earlier term does not count");
    }

    #[test]
    fn what_a_node_said_is_not_taken_for_what_the_next_of_its_name_says() {
        let node: NodeName = "e1".parse().unwrap();
        let mut state = State::nothing_yet();
        state.applied = 9;
        let (mut heard, mut fleet) = (Heard::default(), Fleet::new(state.founding.lease, BootTime::default()));
        // Of one that was forgotten before index 9, and of one whose enrolment is not applied here yet.
        for (enrolled, is_news) in [(3, false), (12, true)] {
            heard.acked(&node, Acked { enrolled, index: u64::MAX });
            let relayed = Relayed { acks: vec![(node.clone(), Acked { enrolled, index: u64::MAX })], ..Relayed::default() };
            assert_eq!(relayed.tell(&state, &mut fleet, WallTime(0)), is_news);
            assert_eq!(heard.news(&state, 1, 3).is_some(), is_news);
        }
    }
}
