//! When a purge is true: the rule of `types::fleet` over all registered cache nodes.

use crate::raft::Leadership;
use tidegate_control_state::{PurgeRecord, State};
use tidegate_control_types::BootTime;
use tidegate_control_types::fleet::{Member, NodeVerdict};
use tidegate_control_types::node::NodeState;

/// Where a purge stands, node by node.
pub struct Assessment<'a> {
    pub nodes: Vec<(&'a NodeState, NodeVerdict)>,
}

impl Assessment<'_> {
    /// Nothing can be answered with what it names, if this node still leads: a ReadIndex begun after this has to say so.
    #[must_use]
    pub fn is_true(&self) -> bool {
        self.nodes.iter().all(|(_, v)| matches!(v, NodeVerdict::Applied | NodeVerdict::Silent))
    }

    /// Waiting longer changes nothing: only nodes that are cut off and serve on their own are missing.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        !self.is_true() && !self.nodes.iter().any(|(_, v)| matches!(v, NodeVerdict::Waiting { .. }))
    }

    /// When the passing of time alone may change it.
    #[must_use]
    pub fn changes_at(&self) -> Option<BootTime> {
        self.nodes.iter().filter_map(|(_, v)| if let NodeVerdict::Waiting { until } = v { Some(*until) } else { None }).min()
    }
}

/// Assesses the purge at `index` as of `now`.
#[must_use]
pub fn assess<'a>(state: &'a State, leadership: &Leadership, index: u64, record: &PurgeRecord, now: BootTime) -> Assessment<'a> {
    // A purge that an earlier leader committed was committed before now at the latest, and by then its wait is long over.
    let committed = leadership.purges.get(&index).copied().unwrap_or_else(|| leadership.fleet.elected());
    let nodes = state.nodes().filter(|n| n.state.role.caches()).map(|node| {
        let dead = node.removed.is_some_and(|r| r.dead);
        let member = Member { name: &node.state.name, since: node.state.since, dead };
        let verdict = leadership.fleet.verdict(member, index, committed, now, |since| state.may_serve_detached(&record.orders, since));
        (&node.state, verdict)
    });
    Assessment { nodes: nodes.collect() }
}

/// Removed nodes that can no longer answer anything: their lease is over, and they are dead or serve no site on their own.
#[must_use]
pub fn forgettable(state: &State, leadership: &Leadership, now: BootTime) -> Vec<tidegate_control_types::NodeName> {
    let everything = [tidegate_control_types::PurgeOrder { site: None, selector: tidegate_control_types::Selector::All, soft: false }];
    let done = state.nodes().filter(|n| {
        let Some(removal) = n.removed else { return false };
        let member = Member { name: &n.state.name, since: n.state.since, dead: removal.dead };
        let verdict = leadership
            .fleet
            .verdict(member, u64::MAX, leadership.fleet.elected(), now, |since| state.may_serve_detached(&everything, since));
        verdict == NodeVerdict::Silent
    });
    done.map(|n| n.state.name.clone()).collect()
}
