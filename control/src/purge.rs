//! When a purge is true: the rule of `types::fleet` over all registered cache nodes, and a caller's wait for it. Pure.

use crate::raft::Leadership;
use tidegate_control_state::{NodeRecord, PurgeRecord, State};
use tidegate_control_types::api::{Receipt, ReceiptNode};
use tidegate_control_types::fleet::{Member, NodeVerdict};
use tidegate_control_types::node::NodeState;
use tidegate_control_types::planted::Bug;
use tidegate_control_types::purge::PurgeType;
use tidegate_control_types::{BootTime, NodeName, Revision, Selector};

/// A caller's wait for the purge at `index`, until `deadline` at the latest.
#[derive(Clone, Debug)]
pub struct Waiting {
    pub index: u64,
    pub record: PurgeRecord,
    pub deadline: BootTime,
}

/// What a caller's wait has come to.
#[derive(Clone, Debug)]
pub enum Look {
    /// It is true if this node still leads: a ReadIndex that begins now says so, since another leader may have granted a
    /// lease that this one does not count. Then the receipt is the answer.
    Confirm(Receipt),
    /// The wait is over, or cannot help: not yet true everywhere.
    NotYet(Receipt),
    /// To be looked at again when something changed, and at this moment.
    Wait { until: BootTime },
}

impl Waiting {
    /// Looks at how things stand on a node that leads.
    #[must_use]
    pub fn look(&self, state: &State, leadership: &Leadership, now: BootTime) -> Look {
        let assessment = assess(state, leadership, self.index, &self.record, now);
        let receipt = || {
            let node = |(node, verdict): &(&NodeState, NodeVerdict)| ReceiptNode {
                name: node.name.to_string(),
                role: node.role.to_string(),
                region: node.region.clone(),
                state: match verdict {
                    NodeVerdict::Applied => "applied",
                    NodeVerdict::Silent => "silent",
                    NodeVerdict::Waiting { .. } => "waiting",
                    NodeVerdict::MayServe => "may_serve",
                }
                .into(),
                applied_at: leadership.fleet.acked_at(&node.name, self.index).map(|t| t.0),
            };
            let nodes = assessment.nodes.iter().map(node).collect();
            describe(&self.record, Revision::new(state.founding.incarnation, self.index), assessment.is_true(), nodes)
        };
        if assessment.is_true() {
            return Look::Confirm(receipt());
        }
        if assessment.is_stuck() || now >= self.deadline {
            return Look::NotYet(receipt());
        }
        Look::Wait { until: assessment.changes_at().map_or(self.deadline, |at| at.min(self.deadline)) }
    }
}

fn describe(record: &PurgeRecord, revision: Revision, done: bool, nodes: Vec<ReceiptNode>) -> Receipt {
    let first = record.orders.first();
    let (kind, text): (_, fn(&Selector) -> Option<String>) = match first.map(|o| &o.selector) {
        Some(Selector::Url { .. }) => {
            (PurgeType::Url, |s| if let Selector::Url { host, target } = s { Some(format!("{host}{target}")) } else { None })
        }
        Some(Selector::Tag { .. }) => (PurgeType::Tag, |s| if let Selector::Tag { tag } = s { Some(tag.clone()) } else { None }),
        Some(Selector::Prefix { .. }) => {
            (PurgeType::Prefix, |s| if let Selector::Prefix { host, path } = s { Some(format!("{host}{path}")) } else { None })
        }
        Some(Selector::Host { .. }) => (PurgeType::Host, |s| s.host().map(str::to_owned)),
        Some(Selector::Site) => (PurgeType::Site, |_| None),
        Some(Selector::All) | None => (PurgeType::All, |_| None),
    };
    Receipt {
        revision: revision.to_string(),
        index: revision.index,
        r#type: kind,
        site: first.and_then(|o| o.site.as_ref()).map(ToString::to_string),
        selectors: record.orders.iter().filter_map(|o| text(&o.selector)).collect(),
        soft: first.is_some_and(|o| o.soft),
        by: record.by.clone(),
        at: record.at.0,
        done,
        nodes,
    }
}

/// Where a purge stands, node by node.
struct Assessment<'a> {
    nodes: Vec<(&'a NodeState, NodeVerdict)>,
}

impl Assessment<'_> {
    /// Nothing can be answered with what it names, if this node still leads.
    fn is_true(&self) -> bool {
        self.nodes.iter().all(|(_, v)| matches!(v, NodeVerdict::Applied | NodeVerdict::Silent))
    }

    /// Waiting longer changes nothing: only nodes that are cut off and serve on their own are missing.
    fn is_stuck(&self) -> bool {
        !self.is_true() && !self.nodes.iter().any(|(_, v)| matches!(v, NodeVerdict::Waiting { .. }))
    }

    /// When the passing of time alone may change it.
    fn changes_at(&self) -> Option<BootTime> {
        self.nodes.iter().filter_map(|(_, v)| if let NodeVerdict::Waiting { until } = v { Some(*until) } else { None }).min()
    }
}

/// Assesses the purge at `index` as of `now`.
fn assess<'a>(state: &'a State, leadership: &Leadership, index: u64, record: &PurgeRecord, now: BootTime) -> Assessment<'a> {
    // A purge that an earlier leader committed was committed before now at the latest, and by then its wait is long over.
    let committed = leadership.purges.get(&index).copied().unwrap_or_else(|| leadership.fleet.elected());
    let counts = |n: &&NodeRecord| n.state.role.caches() && !(Bug::RemovedCountsAsGone.is_planted() && n.removed.is_some());
    let nodes = state.nodes().filter(counts).map(|node| {
        let member = member(node);
        let verdict = leadership.fleet.verdict(member, index, committed, now, |since| state.may_serve_detached(&record.orders, since));
        (&node.state, verdict)
    });
    Assessment { nodes: nodes.collect() }
}

fn member(node: &NodeRecord) -> Member<'_> {
    let dead = node.removed.is_some_and(|r| r.dead);
    Member { name: &node.state.name, since: node.state.since, removed: node.removed.map(|r| r.index), dead }
}

/// Removed nodes that can no longer answer anything, each with the index of its removal.
#[must_use]
pub fn forgettable(state: &State, leadership: &Leadership, now: BootTime) -> Vec<(NodeName, u64)> {
    let over = |n: &&NodeRecord| leadership.fleet.is_over(member(n), now, |since| state.may_answer_detached(since));
    state.nodes().filter(over).filter_map(|n| Some((n.state.name.clone(), n.removed?.index))).collect()
}
