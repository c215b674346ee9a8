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
    pub acks: Vec<(NodeName, u64)>,
    pub reports: Vec<(NodeName, NodeReport)>,
    /// Nodes that have ended, with the index of the removal that they were told of.
    pub ended: Vec<(NodeName, u64)>,
}

#[derive(Debug, Default)]
pub struct Heard {
    /// The newest acknowledgement of each node.
    acks: BTreeMap<NodeName, u64>,
    /// Not handed on yet.
    reports: BTreeMap<NodeName, NodeReport>,
    ended: BTreeMap<NodeName, u64>,
    /// Leader and term that have been told `told`.
    whom: (u64, u64),
    told: BTreeMap<NodeName, u64>,
}

impl Heard {
    /// A node has applied all through `index`.
    pub fn acked(&mut self, node: &NodeName, index: u64) {
        let last = self.acks.entry(node.clone()).or_default();
        *last = (*last).max(index);
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
    pub fn tell(&mut self, fleet: &mut Fleet, now: WallTime) -> bool {
        for (node, report) in std::mem::take(&mut self.reports) {
            fleet.reported(&node, report, now);
        }
        self.ended.iter().for_each(|(node, removal)| fleet.ended(node, *removal));
        self.acks.iter().filter(|(node, index)| fleet.acked(node, **index, now)).count() > 0
    }

    /// On a follower: what `leader` does not know yet in `term`; `None` where that is nothing.
    pub fn news(&mut self, state: &State, leader: u64, term: u64) -> Option<Relayed> {
        self.ended.retain(|node, removal| removal_of(state, node) == Some(*removal));
        if self.whom != (leader, term) {
            self.whom = (leader, term);
            self.told.clear();
        }
        let acks: Vec<_> = self.acks.iter().filter(|(n, i)| self.told.get(*n) != Some(i)).map(|(n, i)| (n.clone(), *i)).collect();
        let reports: Vec<_> = std::mem::take(&mut self.reports).into_iter().collect();
        // Few, and told until they are forgotten.
        let ended: Vec<_> = self.ended.iter().map(|(n, i)| (n.clone(), *i)).collect();
        (!acks.is_empty() || !reports.is_empty() || !ended.is_empty()).then_some(Relayed { acks, reports, ended })
    }

    /// The leader of `term` has taken `acks`.
    pub fn delivered(&mut self, leader: u64, term: u64, acks: Vec<(NodeName, u64)>) {
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
    pub fn tell(self, fleet: &mut Fleet, now: WallTime) -> bool {
        for (node, report) in self.reports {
            fleet.reported(&node, report, now);
        }
        self.ended.iter().for_each(|(node, removal)| fleet.ended(node, *removal));
        self.acks.iter().filter(|(node, index)| fleet.acked(node, *index, now)).count() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_is_told_once_a_term_and_again_in_the_next() {
        let node: NodeName = "e1".parse().unwrap();
        let (mut heard, state) = (Heard::default(), State::nothing_yet());
        heard.acked(&node, 7);
        let first = heard.news(&state, 1, 3).unwrap();
        assert_eq!(first.acks, [(node.clone(), 7)]);
        heard.delivered(1, 3, first.acks);
        assert_eq!(heard.news(&state, 1, 3), None);
        assert_eq!(heard.news(&state, 1, 5).unwrap().acks, [(node.clone(), 7)], "the same leader, elected anew, knows nothing");
        heard.delivered(1, 3, vec![(node.clone(), 7)]);
        assert!(heard.news(&state, 1, 5).is_some(), "what was delivered in an earlier term does not count");
    }
}
