//! The leader's view of the cache nodes, and the rule by which a purge is answered.
//!
//! Soft state: a new leader starts with an empty one, in which every registered node is taken to hold a lease
//! until a full lease after the election. What it learns only ever makes its answers less cautious.

use crate::lease::LeaseTerms;
use crate::name::NodeName;
use crate::node::NodeReport;
use crate::planted::Bug;
use crate::time::{BootTime, WallTime};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// A detached node that revalidates may use what it validated for this long, so it counts as silent only later.
pub const REVALIDATE_WITHIN: Duration = Duration::from_secs(1);

/// Acknowledgements whose time is remembered for receipts, per node.
const MOST_ACKED: usize = 10_000;

#[derive(Debug, Default)]
struct Standing {
    acked: u64,
    /// Ascending (index, when this leader heard of it).
    history: VecDeque<(u64, WallTime)>,
    lease_until: Option<BootTime>,
    /// It said that it has ended, told of the removal at this index.
    ended: Option<u64>,
    report: Option<(NodeReport, WallTime)>,
}

#[derive(Debug)]
pub struct Fleet {
    terms: LeaseTerms,
    elected: BootTime,
    nodes: BTreeMap<NodeName, Standing>,
}

/// What stands between a purge and its `200`, node by node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeVerdict {
    /// Acknowledged.
    Applied,
    /// Certainly detached, and serves nothing of the site on its own.
    Silent,
    /// It holds a lease, or may: it will acknowledge, or be silent from `until` on.
    Waiting { until: BootTime },
    /// Detached, and serves the site on its own (`when_detached = "serve"`): only its return ends this.
    MayServe,
}

/// A registered cache node as the rule needs it.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    pub name: &'a NodeName,
    /// The revision at which it enrolled.
    pub since: u64,
    /// The index at which it was removed.
    pub removed: Option<u64>,
    /// Removed, and the operator vouches that its process is gone.
    pub dead: bool,
}

impl Fleet {
    #[must_use]
    pub fn new(terms: LeaseTerms, elected: BootTime) -> Self {
        Self { terms, elected, nodes: BTreeMap::new() }
    }

    /// When this leader was elected.
    #[must_use]
    pub fn elected(&self) -> BootTime {
        self.elected
    }

    /// A node has applied all up to `index`. True where that is news.
    pub fn acked(&mut self, node: &NodeName, index: u64, now: WallTime) -> bool {
        let s = self.nodes.entry(node.clone()).or_default();
        if index <= s.acked {
            return false;
        }
        s.acked = index;
        if s.history.len() == MOST_ACKED {
            s.history.pop_front();
        }
        s.history.push_back((index, now));
        true
    }

    /// The leader answers an asking of `node` at `answered`.
    pub fn lease_granted(&mut self, node: &NodeName, answered: BootTime) {
        let until = self.terms.counted_until(answered);
        let s = self.nodes.entry(node.clone()).or_default();
        s.lease_until = s.lease_until.max(Some(until));
    }

    /// A node that was removed at index `removal` says that it answers nothing any more.
    pub fn ended(&mut self, node: &NodeName, removal: u64) {
        self.nodes.entry(node.clone()).or_default().ended = Some(removal);
    }

    pub fn reported(&mut self, node: &NodeName, report: NodeReport, now: WallTime) {
        self.nodes.entry(node.clone()).or_default().report = Some((report, now));
    }

    pub fn forget(&mut self, node: &NodeName) {
        self.nodes.remove(node);
    }

    #[must_use]
    pub fn report(&self, node: &NodeName) -> Option<&(NodeReport, WallTime)> {
        self.nodes.get(node)?.report.as_ref()
    }

    #[must_use]
    pub fn acked_index(&self, node: &NodeName) -> Option<u64> {
        self.nodes.get(node).map(|s| s.acked).filter(|i| *i > 0)
    }

    /// When `node` acknowledged `index`, as far as this leader knows.
    #[must_use]
    pub fn acked_at(&self, node: &NodeName, index: u64) -> Option<WallTime> {
        let history = &self.nodes.get(node)?.history;
        history.get(history.partition_point(|(i, _)| *i < index)).map(|(_, t)| *t)
    }

    /// Whether every node that lives has had the time to ask this leader for a lease: before, one that has not is not known to be gone.
    #[must_use]
    pub fn knows_all(&self, now: BootTime) -> bool {
        now >= self.terms.counted_until(self.elected)
    }

    /// The latest moment at which `node` may believe that it holds a lease.
    #[must_use]
    pub fn lease_until(&self, node: &NodeName) -> BootTime {
        // A predecessor may have granted one just before this leader was elected.
        let inherited = if Bug::NewLeaderAssumesNoLease.is_planted() { self.elected } else { self.terms.counted_until(self.elected) };
        self.nodes.get(node).and_then(|s| s.lease_until).map_or(inherited, |own| own.max(inherited))
    }

    #[must_use]
    pub fn attached(&self, node: &NodeName, now: BootTime) -> bool {
        self.nodes.get(node).and_then(|s| s.lease_until).is_some_and(|until| now < until)
    }

    /// Whether `member` was removed and can answer nothing any more, whatever is purged from now on. `may_answer(since)` says
    /// whether any site let a node answer on its own, if only by asking its origin, in any version since that revision: a
    /// node that was never told goes on so for as long as its process lives.
    pub fn is_over(&self, member: Member<'_>, now: BootTime, may_answer: impl Fn(u64) -> bool) -> bool {
        if self.has_ended(member) {
            return true;
        }
        let since = self.acked_index(member.name).unwrap_or(member.since);
        member.removed.is_some() && now >= self.lease_until(member.name) && (member.dead || !may_answer(since))
    }

    fn has_ended(&self, member: Member<'_>) -> bool {
        member.removed.is_some() && self.nodes.get(member.name).is_some_and(|s| s.ended == member.removed)
    }

    /// Where `member` stands with a purge at `index`, committed at `committed`. `may_serve(since)` says whether the
    /// purged site was `serve` in any version since that revision.
    pub fn verdict(
        &self,
        member: Member<'_>,
        index: u64,
        committed: BootTime,
        now: BootTime,
        may_serve: impl Fn(u64) -> bool,
    ) -> NodeVerdict {
        let acked = self.acked_index(member.name);
        if acked.is_some_and(|a| a >= index) {
            return NodeVerdict::Applied;
        }
        if self.has_ended(member) {
            return NodeVerdict::Silent;
        }
        let lease_until = self.lease_until(member.name);
        let mut silent_from = lease_until.max(committed) + REVALIDATE_WITHIN + self.terms.drift_margin;
        if Bug::SilentWithoutTheSecond.is_planted() {
            silent_from = lease_until.max(committed);
        }
        let may_serve = !member.dead && !Bug::DetachedCountsAsSilent.is_planted() && may_serve(acked.unwrap_or(member.since));
        match (now < lease_until, may_serve) {
            (true, _) => NodeVerdict::Waiting { until: silent_from },
            (false, true) => NodeVerdict::MayServe,
            (false, false) if now < silent_from => NodeVerdict::Waiting { until: silent_from },
            (false, false) => NodeVerdict::Silent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> NodeName {
        "fra-1".parse().unwrap()
    }

    fn at(ms: u64) -> BootTime {
        BootTime::from_nanos(ms * 1_000_000)
    }

    fn check(fleet: &Fleet, now: u64, may_serve: bool) -> NodeVerdict {
        let name = name();
        fleet.verdict(Member { name: &name, since: 1, removed: None, dead: false }, 10, at(20_000), at(now), |_| may_serve)
    }

    #[test]
    fn a_new_leader_assumes_a_lease_for_a_full_lease() {
        let fleet = Fleet::new(LeaseTerms::default(), at(18_000));
        assert!(matches!(check(&fleet, 20_000, false), NodeVerdict::Waiting { .. }));
        assert!(matches!(check(&fleet, 23_099, true), NodeVerdict::Waiting { .. }), "it may hold a lease: not yet detached");
        assert_eq!(check(&fleet, 23_100, true), NodeVerdict::MayServe);
    }

    #[test]
    fn a_new_leader_does_not_know_yet_who_is_gone() {
        let fleet = Fleet::new(LeaseTerms::default(), at(18_000));
        assert!(!fleet.knows_all(at(23_099)) && fleet.knows_all(at(23_100)));
    }

    #[test]
    fn silence_begins_a_second_and_a_margin_after_the_later_of_lease_end_and_commit() {
        let fleet = Fleet::new(LeaseTerms::default(), at(0));
        assert!(matches!(check(&fleet, 21_099, false), NodeVerdict::Waiting { .. }));
        assert_eq!(check(&fleet, 21_100, false), NodeVerdict::Silent);
        let mut fleet = Fleet::new(LeaseTerms::default(), at(0));
        fleet.lease_granted(&name(), at(19_000));
        assert!(matches!(check(&fleet, 24_100 + 1_099, false), NodeVerdict::Waiting { .. }));
        assert_eq!(check(&fleet, 24_100 + 1_100, false), NodeVerdict::Silent);
    }

    #[test]
    fn an_acknowledgement_of_the_purge_or_of_anything_later_is_enough() {
        let mut fleet = Fleet::new(LeaseTerms::default(), at(0));
        fleet.acked(&name(), 9, WallTime(5));
        assert_eq!(check(&fleet, 30_000, true), NodeVerdict::MayServe);
        fleet.acked(&name(), 11, WallTime(7));
        assert_eq!(check(&fleet, 30_000, true), NodeVerdict::Applied);
        assert_eq!(fleet.acked_at(&name(), 10), Some(WallTime(7)));
        assert_eq!(fleet.acked_at(&name(), 12), None);
    }

    #[test]
    fn versions_are_asked_for_since_the_last_acknowledgement() {
        let mut fleet = Fleet::new(LeaseTerms::default(), at(0));
        let name = name();
        let member = Member { name: &name, since: 3, removed: None, dead: false };
        let asked = |f: &Fleet, m| {
            let seen = std::cell::Cell::new(0);
            f.verdict(m, 10, at(0), at(60_000), |since| {
                seen.set(since);
                false
            });
            seen.get()
        };
        assert_eq!(asked(&fleet, member), 3);
        fleet.acked(&name, 7, WallTime(0));
        assert_eq!(asked(&fleet, member), 7);
        assert_eq!(fleet.verdict(Member { dead: true, ..member }, 10, at(0), at(60_000), |_| true), NodeVerdict::Silent);
    }

    #[test]
    fn a_removed_node_is_over_once_it_said_so_of_this_removal_or_can_answer_nothing_alone() {
        let name = name();
        let mut fleet = Fleet::new(LeaseTerms::default(), at(0));
        let member = Member { name: &name, since: 3, removed: Some(20), dead: false };
        assert!(!fleet.is_over(member, at(60_000), |_| true), "it may ask its origin, and answer for a second");
        assert!(fleet.is_over(member, at(60_000), |_| false));
        assert!(!fleet.is_over(member, at(1000), |_| false), "its lease may last");
        assert!(fleet.is_over(Member { dead: true, ..member }, at(60_000), |_| true));
        fleet.ended(&name, 9);
        assert!(!fleet.is_over(member, at(60_000), |_| true), "that was an earlier node of this name");
        fleet.ended(&name, 20);
        assert!(fleet.is_over(member, at(1000), |_| true));
        assert!(!fleet.is_over(Member { removed: None, ..member }, at(60_000), |_| true));
    }
}
