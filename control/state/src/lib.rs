//! The replicated state machine. Pure: the same entries in the same order make the same state on every voter; the
//! time of a change is the one that the leader wrote into its entry.

#![forbid(unsafe_code)]

mod apply;
mod placement;
mod purges;
mod sealed;
mod sites;

pub use apply::{Applied, Refusal, Sealed};
pub use placement::Placement;
pub use purges::PurgeRecord;
pub use sites::{SiteRecord, SiteVersion};

use purges::Purges;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use tidegate_control_types::authority::{Authority, Issuers};
use tidegate_control_types::certificate::{Challenge, OrderRecord, SealedAccount, SealedCertificate};
use tidegate_control_types::command::{Founding, SealedDnsKey, SealedTicketKey};
use tidegate_control_types::event::SiteState;
use tidegate_control_types::planted::Bug;
use tidegate_control_types::sealed::ClusterKeys;
use tidegate_control_types::site::WhenDetached;
use tidegate_control_types::token::{JoinRecord, TokenRecord};
use tidegate_control_types::{Incarnation, LeaseTerms, NodeName, NodeState, PurgeOrder, Revision, Selector, SiteName, WallTime};

/// Limits of one cluster; what goes over them is refused with a clear answer.
pub const MOST_SITES: usize = 100_000;
pub const MOST_NODES: usize = 10_000;
pub const MOST_TOKENS: usize = 10_000;
pub const MOST_ZONES: usize = 100;
pub const MOST_TXT: usize = 10_000;
pub const MOST_CERTIFICATES: usize = 100_000;
pub const MOST_ACCOUNTS: usize = 100;
/// Of tickets that were given before the last change of their key, no older ones are taken.
const MOST_TICKET_KEYS: usize = 2;
pub const MOST_AUDIT: usize = 10_000;
/// Of purges a node is told so much at once, the newest; it revalidates what it stored before the others.
const MOST_MISSED_BYTES: usize = 16 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub founding: Founding,
    /// Index of the last entry applied.
    pub applied: u64,
    /// The greatest time that an entry carried.
    pub now: WallTime,
    sites: BTreeMap<SiteName, SiteRecord>,
    /// Index of the newest change of which site has which hosts.
    hosts_changed: u64,
    /// Where this log began, if from a backup; 0 otherwise.
    restored_at: u64,
    /// Per site name, also of removed sites: from which index on it was which. Never shorter than what a node may hold.
    detached: BTreeMap<SiteName, Vec<(u64, Option<WhenDetached>)>>,
    nodes: BTreeMap<NodeName, NodeRecord>,
    tokens: BTreeMap<String, TokenRecord>,
    joins: BTreeMap<String, JoinRecord>,
    pub cluster_keys: ClusterKeys,
    pub authority: Authority,
    certificates: BTreeMap<String, (u64, SealedCertificate)>,
    dns_keys: BTreeMap<String, SealedDnsKey>,
    /// The newest last.
    ticket_keys: Vec<SealedTicketKey>,
    txt: BTreeMap<String, Vec<String>>,
    /// By the authority's directory.
    accounts: BTreeMap<String, SealedAccount>,
    orders: BTreeMap<SiteName, OrderRecord>,
    challenges: BTreeMap<SiteName, Vec<Challenge>>,
    members: BTreeMap<u64, (NodeName, String)>,
    /// The greatest id that a member ever had: none is given twice.
    greatest_member: u64,
    purges: Purges,
    audit: VecDeque<AuditRecord>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub state: NodeState,
    /// Index of its newest state.
    pub revision: u64,
    pub removed: Option<Removal>,
}

/// How an enrolment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolment {
    Stands,
    /// At this index; it may not know yet.
    Removed(u64),
    /// Removed and forgotten: the name may be another's.
    Over,
    /// Of a later index than has been applied here.
    Ahead,
}

/// A removed node counts until it can no longer answer anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    pub index: u64,
    /// The operator vouches that its process is gone.
    pub dead: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    pub index: u64,
    pub at: WallTime,
    pub by: String,
    pub what: String,
}

/// What a watcher at an earlier revision missed, before certificates are unsealed for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Missed {
    pub floor: u64,
    pub sites: Vec<SiteState>,
    pub site_names: Vec<SiteName>,
    pub certificates: Vec<SealedCertificate>,
    pub dns_keys: Vec<SealedDnsKey>,
    pub ticket_keys: Vec<SealedTicketKey>,
    pub txt: Vec<(String, Vec<String>)>,
    pub challenges: Vec<(SiteName, Vec<Challenge>)>,
    pub nodes: Vec<NodeState>,
    pub issuers: Issuers,
    pub purges: Vec<(u64, Vec<PurgeOrder>)>,
}

impl State {
    /// The state of a cluster that was just founded, at `index`.
    #[must_use]
    pub fn new(founding: Founding, index: u64) -> Self {
        Self {
            founding,
            applied: index,
            now: WallTime(0),
            sites: BTreeMap::new(),
            hosts_changed: 0,
            restored_at: 0,
            detached: BTreeMap::new(),
            nodes: BTreeMap::new(),
            tokens: BTreeMap::new(),
            joins: BTreeMap::new(),
            cluster_keys: ClusterKeys::default(),
            authority: Authority::default(),
            certificates: BTreeMap::new(),
            dns_keys: BTreeMap::new(),
            ticket_keys: Vec::new(),
            txt: BTreeMap::new(),
            accounts: BTreeMap::new(),
            orders: BTreeMap::new(),
            challenges: BTreeMap::new(),
            members: BTreeMap::new(),
            greatest_member: 0,
            purges: Purges::starting_at(index),
            audit: VecDeque::new(),
        }
    }

    /// What a control node holds that waits for its leader to send it the state.
    #[must_use]
    pub fn nothing_yet() -> Self {
        let founding =
            Founding { cluster: String::new(), incarnation: Incarnation(0), zone: None, lease: LeaseTerms::default(), root: Vec::new() };
        Self::new(founding, 0)
    }

    /// The state of a backup as the beginning of another log, without control nodes. After the backup was made, sites may
    /// have been made or told to serve on nodes that are cut off now: until a node has acknowledged something of the new log,
    /// it may serve whatever there is. `random` sets this log apart from any other.
    #[must_use]
    pub fn restored(mut self, random: u64) -> Self {
        let index = self.applied + 1;
        self.founding.incarnation = Incarnation::new(self.founding.incarnation.generation() + 1, random);
        (self.applied, self.hosts_changed, self.restored_at) = (index, index, index);
        self.purges = self.purges.restarted_at(index);
        self.members.clear();
        self.nodes.retain(|_, n| n.state.role.follows());
        self
    }

    /// Whether a node that knows the network as of `since` may know more of it than this log does.
    fn knows_more(&self, since: u64) -> bool {
        since < self.restored_at && !Bug::RestoreTrustsTheBackup.is_planted()
    }

    /// Keeps at most this many receipts: a network that is founded so forgets sooner what nodes that are away have missed.
    #[must_use]
    pub fn keeping_receipts(mut self, most: usize) -> Self {
        self.purges.keep_at_most(most);
        self
    }

    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision::new(self.founding.incarnation, self.applied)
    }

    #[must_use]
    pub fn site(&self, name: &str) -> Option<&SiteRecord> {
        self.sites.get(name)
    }

    pub fn sites(&self) -> impl Iterator<Item = &SiteRecord> {
        self.sites.values()
    }

    /// The site that answers for `host`: by its exact name, else by the longest wildcard, else by `*`.
    #[must_use]
    pub fn site_of_host(&self, host: &str) -> Option<&SiteRecord> {
        sites::most_exact(self.sites.values(), host)
    }

    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeRecord> {
        self.nodes.get(name)
    }

    /// The newest time that an entry came with.
    #[must_use]
    pub fn now(&self) -> WallTime {
        self.now
    }

    /// Whether the node of this name is the one that enrolled at index `since`, as far as this state knows.
    #[must_use]
    pub fn may_be(&self, name: &str, since: u64) -> bool {
        self.nodes.get(name).is_some_and(|n| n.state.since == since) || since > self.applied
    }

    /// How a node stands that shows a certificate of the enrolment at index `since`.
    #[must_use]
    pub fn enrolment(&self, (name, role, region): (&str, &str, &str), since: u64) -> Enrolment {
        match self.nodes.get(name) {
            // What it is stands here; its certificate has to say the same.
            Some(n) if n.state.since == since && n.state.role.as_str() == role && n.state.region == region => {
                n.removed.map_or(Enrolment::Stands, |r| Enrolment::Removed(r.index))
            }
            _ if since <= self.applied => Enrolment::Over,
            _ => Enrolment::Ahead,
        }
    }

    pub fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values()
    }

    #[must_use]
    pub fn token(&self, id: &str) -> Option<&TokenRecord> {
        self.tokens.get(id)
    }

    pub fn tokens(&self) -> impl Iterator<Item = &TokenRecord> {
        self.tokens.values()
    }

    #[must_use]
    pub fn join(&self, id: &str) -> Option<&JoinRecord> {
        self.joins.get(id)
    }

    pub fn joins(&self) -> impl Iterator<Item = &JoinRecord> {
        self.joins.values()
    }

    pub fn certificates(&self) -> impl Iterator<Item = &SealedCertificate> {
        self.certificates.values().map(|(_, c)| c)
    }

    #[must_use]
    pub fn certificate(&self, name: &str) -> Option<&SealedCertificate> {
        self.certificates.get(name).map(|(_, c)| c)
    }

    #[must_use]
    pub fn account(&self, authority: &str) -> Option<&SealedAccount> {
        self.accounts.get(authority)
    }

    #[must_use]
    pub fn order(&self, site: &str) -> Option<&OrderRecord> {
        self.orders.get(site)
    }

    pub fn orders(&self) -> impl Iterator<Item = &OrderRecord> {
        self.orders.values()
    }

    #[must_use]
    pub fn challenges(&self, site: &str) -> &[Challenge] {
        self.challenges.get(site).map_or(&[], Vec::as_slice)
    }

    /// With what edges seal session tickets, the newest last.
    #[must_use]
    pub fn ticket_keys(&self) -> &[SealedTicketKey] {
        &self.ticket_keys
    }

    #[must_use]
    pub fn dns_key(&self, zone: &str) -> Option<&SealedDnsKey> {
        self.dns_keys.get(zone)
    }

    /// The TXT records of the network's zones, by name.
    #[must_use]
    pub fn txt(&self) -> &BTreeMap<String, Vec<String>> {
        &self.txt
    }

    pub fn members(&self) -> impl Iterator<Item = (u64, &NodeName, &str)> {
        self.members.iter().map(|(id, (name, address))| (*id, name, address.as_str()))
    }

    /// For a new one.
    #[must_use]
    pub fn next_member(&self) -> u64 {
        self.greatest_member + 1
    }

    pub fn audit(&self) -> impl DoubleEndedIterator<Item = &AuditRecord> {
        self.audit.iter()
    }

    /// The purge at `index`, while its receipt is kept.
    ///
    /// # Errors
    /// `true` where there may have been one that is forgotten, `false` where there was none.
    pub fn purge(&self, index: u64) -> Result<&PurgeRecord, bool> {
        self.purges.get(index).ok_or(index <= self.purges.forgotten_through() && index > 0)
    }

    /// Whether a node that knows the network as of any revision from `since` on would answer on its own, cut off, with
    /// what `orders` name.
    #[must_use]
    pub fn may_serve_detached(&self, orders: &[PurgeOrder], since: u64) -> bool {
        let serves = |history: &Vec<(u64, Option<WhenDetached>)>| {
            let mut first = history.partition_point(|(index, _)| *index <= since).saturating_sub(1);
            if Bug::OnlyTheNewestVersionCounts.is_planted() {
                first = history.len().saturating_sub(1);
            }
            history.get(first..).unwrap_or_default().iter().any(|(_, w)| *w == Some(WhenDetached::Serve))
        };
        self.knows_more(since)
            || orders.iter().any(|order| match (&order.site, &order.selector) {
                // Its host may have been another site's in what the node knows: then any site that served counts.
                (Some(_), selector) if selector.host().is_some() && self.hosts_changed > since => self.detached.values().any(serves),
                (Some(site), _) => self.detached.get(site).is_some_and(serves),
                (None, Selector::All) => self.detached.values().any(serves),
                (None, _) => true,
            })
    }

    /// Whether such a node would answer anything at all, cut off, if only after asking an origin.
    #[must_use]
    pub fn may_answer_detached(&self, since: u64) -> bool {
        let answers = |history: &Vec<(u64, Option<WhenDetached>)>| {
            let first = history.partition_point(|(index, _)| *index <= since).saturating_sub(1);
            let known = history.get(first..).unwrap_or_default();
            known.iter().any(|(_, w)| matches!(w, Some(WhenDetached::Serve | WhenDetached::Revalidate)))
        };
        self.knows_more(since) || self.detached.values().any(answers)
    }

    /// What a node that has applied all through `applied` (0: nothing) has missed, with the purges after `purges_after`.
    #[must_use]
    pub fn missed_since(&self, applied: u64, purges_after: u64) -> Missed {
        let forgotten = self.purges.forgotten_through();
        let mut floor = if purges_after < forgotten { forgotten } else { 0 };
        let (mut purges, mut bytes) = (Vec::new(), 0);
        for (index, orders) in self.purges.since(purges_after).rev().filter(|_| !Bug::CatchUpWithoutPurges.is_planted()) {
            bytes += orders.iter().map(PurgeOrder::weight).sum::<usize>();
            if bytes > MOST_MISSED_BYTES {
                // It is told of the newest.
                floor = index;
                break;
            }
            purges.push((index, orders));
        }
        purges.reverse();
        Missed {
            floor: if Bug::CatchUpWithoutFloor.is_planted() { 0 } else { floor },
            sites: self.sites.values().filter(|s| s.changed() > applied).map(SiteRecord::state).collect(),
            site_names: self.sites.keys().cloned().collect(),
            certificates: self.certificates.values().map(|(_, c)| c.clone()).collect(),
            dns_keys: self.dns_keys.values().cloned().collect(),
            ticket_keys: self.ticket_keys.clone(),
            txt: self.txt.iter().map(|(name, values)| (name.clone(), values.clone())).collect(),
            challenges: self.challenges.iter().map(|(site, open)| (site.clone(), open.clone())).collect(),
            nodes: self.nodes.values().filter(|n| n.removed.is_none()).map(|n| n.state.clone()).collect(),
            issuers: self.authority.issuers(),
            purges,
        }
    }
}

#[cfg(test)]
mod tests;
