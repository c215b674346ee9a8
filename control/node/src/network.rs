//! What a cache node knows of the network: its last good configuration, kept on disk so that it starts and serves
//! without any control node.

use crate::NodeError;
use crate::identity::write_file;
use crate::watch::Saved;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tidegate_certs::SealingKey;
use tidegate_control_types::authority::Issuers;
use tidegate_control_types::certificate::Challenge;
use tidegate_control_types::planted::Bug;
use tidegate_control_types::{
    CatchUp, Certificate, DnsKey, Event, NodeName, NodeState, Revision, SiteName, SiteState, TicketKey, WallTime, wire,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    pub revision: Revision,
    /// When this node last heard from the control plane.
    pub heard: WallTime,
    /// Shared maps: a step that is purges alone copies none of them.
    pub sites: Arc<BTreeMap<SiteName, Arc<SiteState>>>,
    pub certificates: Arc<BTreeMap<String, Arc<Certificate>>>,
    /// By zone.
    pub dns_keys: Arc<BTreeMap<String, DnsKey>>,
    /// Of session tickets, the newest last.
    pub ticket_keys: Arc<Vec<TicketKey>>,
    /// TXT records, by name.
    pub txt: Arc<BTreeMap<String, Vec<String>>>,
    /// Of authorities, that are open.
    pub challenges: Arc<BTreeMap<SiteName, Vec<Challenge>>>,
    pub nodes: Arc<BTreeMap<NodeName, NodeState>>,
    /// Of nodes' certificates.
    pub issuers: Arc<Issuers>,
}

/// One step from revision to revision, for each worker to apply in order.
pub struct Update {
    /// Where it leads to.
    pub revision: Revision,
    /// Under another incarnation than before, or the first of all: what a worker knew of purges is void.
    pub fresh: bool,
    /// What the node missed while it was away: its certificates, keys and nodes are in `network`, and in no entry.
    pub missed: bool,
    /// Purges up to this index may be missing (0: none are).
    pub floor: u64,
    /// Entries of the log with what they changed.
    pub entries: Vec<(u64, Vec<Event>)>,
    /// The network after it.
    pub network: Arc<Network>,
}

impl Update {
    /// Whether it holds more than purges, and so has to be on disk before it is acknowledged: a node that restarts must
    /// not serve by rules that the control plane believes gone.
    #[must_use]
    pub fn changes_configuration(&self) -> bool {
        self.fresh
            || self.missed
            || self.floor > 0
            || self.entries.iter().flat_map(|(_, events)| events).any(|e| !matches!(e, Event::Purged(_)))
    }
}

const CONTEXT: &str = "network";

impl Network {
    fn empty(revision: Revision) -> Self {
        Self {
            revision,
            heard: WallTime(0),
            sites: Arc::default(),
            certificates: Arc::default(),
            dns_keys: Arc::default(),
            ticket_keys: Arc::default(),
            txt: Arc::default(),
            challenges: Arc::default(),
            nodes: Arc::default(),
            issuers: Arc::default(),
        }
    }

    /// The step that a worker starts with after a restart: it remembers no purges.
    #[must_use]
    pub fn restart(self: &Arc<Self>) -> Update {
        let sites = self.sites.values().map(|s| Event::Site(Box::new((**s).clone()))).collect();
        let index = self.revision.index;
        Update {
            revision: self.revision,
            fresh: true,
            missed: false,
            floor: index,
            entries: vec![(index, sites)],
            network: Arc::clone(self),
        }
    }

    /// The step that a catch-up makes from `old` (or from nothing). `all_purges`: it holds all purges that the control plane
    /// remembers, and begins the ledger anew.
    #[must_use]
    pub fn caught_up(old: Option<&Self>, revision: Revision, missed: CatchUp, all_purges: bool, heard: WallTime) -> Update {
        let same = old.filter(|o| o.revision.incarnation == revision.incarnation);
        // The indices of another log say nothing of what this one's purges name.
        let all_purges = all_purges && (old.is_none() || same.is_some());
        let mut new = same.cloned().unwrap_or_else(|| Self::empty(revision));
        let gone = new.sites.keys().filter(|n| !missed.site_names.contains(n)).cloned().map(Event::SiteRemoved);
        let mut first: Vec<Event> = gone.chain(missed.sites.into_iter().map(|s| Event::Site(Box::new(s)))).collect();
        first.iter().for_each(|e| new.apply(e));
        if all_purges {
            first.extend(new.sites.values().map(|s| Event::Site(Box::new((**s).clone()))));
        }
        let index = revision.index;
        let purges = missed.purges.into_iter().map(|(i, orders)| (i, vec![Event::Purged(orders)]));
        // Sites first: a purge of a site that is not known yet would be lost.
        let entries: Vec<_> = std::iter::once((index, first)).chain(purges).collect();
        new.certificates = Arc::new(missed.certificates.into_iter().map(|c| (c.name.clone(), Arc::new(c))).collect());
        new.dns_keys = Arc::new(missed.dns_keys.into_iter().map(|k| (k.zone.clone(), k)).collect());
        new.ticket_keys = Arc::new(missed.ticket_keys);
        new.txt = Arc::new(missed.txt.into_iter().collect());
        new.challenges = Arc::new(missed.challenges.into_iter().collect());
        new.nodes = Arc::new(missed.nodes.into_iter().map(|n| (n.name.clone(), n)).collect());
        new.issuers = Arc::new(missed.issuers);
        (new.revision, new.heard) = (revision, heard);
        // Who begins with this log and holds nothing is told of none of its earlier purges. It may hold what it fetched because
        // another node, which knew this log already, demanded something of it.
        let told = all_purges || same.is_some() || Bug::FreshLogWithoutFloor.is_planted();
        let floor = if told { missed.floor } else { index };
        Update { revision, fresh: all_purges || same.is_none(), missed: true, floor, entries, network: Arc::new(new) }
    }

    /// The step that entries of the log make; those at or before this revision are left out.
    #[must_use]
    pub fn followed(self: &Arc<Self>, through: u64, mut entries: Vec<(u64, Vec<Event>)>, heard: WallTime) -> Update {
        entries.retain(|(index, _)| *index > self.revision.index);
        let revision = Revision::new(self.revision.incarnation, through.max(self.revision.index));
        let mut new = (**self).clone();
        entries.iter().flat_map(|(_, events)| events).for_each(|e| new.apply(e));
        (new.revision, new.heard) = (revision, heard);
        Update { revision, fresh: false, missed: false, floor: 0, entries, network: Arc::new(new) }
    }

    fn apply(&mut self, event: &Event) {
        match event {
            Event::Site(site) => {
                Arc::make_mut(&mut self.sites).insert(site.spec.name.clone(), Arc::new((**site).clone()));
            }
            Event::SiteRemoved(name) => {
                Arc::make_mut(&mut self.sites).remove(name);
            }
            Event::Purged(_) => {}
            Event::Certificate(c) => {
                Arc::make_mut(&mut self.certificates).insert(c.name.clone(), Arc::new(c.clone()));
            }
            Event::CertificateRemoved(name) => {
                Arc::make_mut(&mut self.certificates).remove(name);
            }
            Event::DnsKey(key) => {
                Arc::make_mut(&mut self.dns_keys).insert(key.zone.clone(), key.clone());
            }
            Event::Txt { name, values } if values.is_empty() => {
                Arc::make_mut(&mut self.txt).remove(name);
            }
            Event::Txt { name, values } => {
                Arc::make_mut(&mut self.txt).insert(name.clone(), values.clone());
            }
            Event::Challenges { site, challenges } if challenges.is_empty() => {
                Arc::make_mut(&mut self.challenges).remove(site);
            }
            Event::Challenges { site, challenges } => {
                Arc::make_mut(&mut self.challenges).insert(site.clone(), challenges.clone());
            }
            Event::Issuers(issuers) => self.issuers = Arc::new(issuers.clone()),
            Event::TicketKeys(keys) => self.ticket_keys = Arc::new(keys.clone()),
            Event::DnsKeyRemoved(zone) => {
                Arc::make_mut(&mut self.dns_keys).remove(zone);
            }
            Event::Node(node) => {
                Arc::make_mut(&mut self.nodes).insert(node.name.clone(), node.clone());
            }
            Event::NodeRemoved(name) => {
                Arc::make_mut(&mut self.nodes).remove(name);
            }
        }
    }
}

/// The last good configuration in a file of the data folder, sealed under the node key.
pub struct SavedFile {
    path: PathBuf,
    node_key: SealingKey,
}

impl SavedFile {
    #[must_use]
    pub fn new(data: &Path, node_key: SealingKey) -> Self {
        Self { path: data.join("network"), node_key }
    }
}

impl Saved for SavedFile {
    fn load(&self) -> Result<Option<Network>, NodeError> {
        let sealed = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(NodeError::file(&self.path, e)),
        };
        let bytes = self.node_key.open(CONTEXT, &sealed)?;
        wire::decode(&bytes).map(Some).map_err(|error| NodeError::Damaged { path: self.path.display().to_string(), error })
    }

    fn end(&self) -> Result<(), NodeError> {
        write_file(&self.path.with_file_name("removed"), b"the control plane removed this node\n")
    }

    fn has_ended(&self) -> bool {
        // What cannot be looked at may be there.
        self.path.with_file_name("removed").try_exists().unwrap_or(true)
    }

    fn save(&self, network: &Network) -> Result<(), NodeError> {
        write_file(&self.path, &self.node_key.seal(CONTEXT, &wire::encode(network))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_control_types::{Incarnation, site_file};

    fn site(name: &str, revision: u64) -> SiteState {
        let text = format!("name = \"{name}\"\nhosts = [\"{name}.example\"]\n[origin]\nservers = [{{ url = \"http://o\" }}]\n");
        SiteState { spec: site_file::read("t", &text).unwrap(), revision, created: revision, keys_since: revision, unshown: Vec::new() }
    }

    fn at(incarnation: u64, index: u64) -> Revision {
        Revision::new(Incarnation(incarnation), index)
    }

    #[test]
    fn a_catch_up_removes_what_is_gone_and_another_incarnation_starts_afresh() {
        let names = |n: &[&str]| n.iter().map(|n| n.parse().unwrap()).collect::<Vec<SiteName>>();
        let first = CatchUp { sites: vec![site("a", 2), site("b", 3)], site_names: names(&["a", "b"]), ..CatchUp::default() };
        let u = Network::caught_up(None, at(1, 5), first, false, WallTime(0));
        assert!(u.fresh && u.network.sites.len() == 2);
        let next = CatchUp { site_names: names(&["b"]), ..CatchUp::default() };
        let v = Network::caught_up(Some(&u.network), at(1, 9), next.clone(), false, WallTime(0));
        assert!(!v.fresh && v.network.sites.len() == 1);
        assert_eq!(v.entries[0].1, [Event::SiteRemoved("a".parse().unwrap())]);
        let w = Network::caught_up(Some(&u.network), at(2, 3), CatchUp { sites: vec![site("b", 2)], ..next }, false, WallTime(0));
        assert!(w.fresh && w.revision == at(2, 3));
    }

    #[test]
    fn a_catch_up_counts_as_a_change_whatever_was_missed() {
        let u = Network::caught_up(None, at(1, 5), CatchUp::default(), false, WallTime(0));
        let key = DnsKey { zone: "cdn.test".into(), public: vec![1], key: vec![2].into() };
        let v = Network::caught_up(Some(&u.network), at(1, 9), CatchUp { dns_keys: vec![key], ..CatchUp::default() }, false, WallTime(0));
        assert!(v.changes_configuration() && !v.fresh && v.network.dns_keys.contains_key("cdn.test"));
        let w = v.network.followed(10, vec![(10, vec![Event::DnsKeyRemoved("cdn.test".into())])], WallTime(0));
        assert!(w.changes_configuration() && w.network.dns_keys.is_empty());
    }

    #[test]
    fn entries_that_were_applied_already_are_left_out() {
        let u = Network::caught_up(None, at(1, 5), CatchUp::default(), false, WallTime(0));
        let v = u.network.followed(7, vec![(5, vec![Event::Purged(vec![])]), (7, vec![Event::Site(Box::new(site("c", 7)))])], WallTime(0));
        assert_eq!((v.entries.len(), v.revision.index, v.network.sites.len()), (1, 7, 1));
        assert!(v.changes_configuration());
    }
}
