//! The table as it is now, made of what the control plane tells: the log's sites and nodes, and how the edges stand.
//!
//! A node that is cut off goes on with what it heard last. One that was started so has heard nothing of how the edges stand: it takes
//! them all for cut off, and so sends clients to any of them that is not drained.

use crate::loads::Loads;
use crate::networks::Networks;
use crate::probe::Probes;
use crate::settings::ZoneSettings;
use crate::sign::Signer;
use crate::table::{Edge, NameServer, Site, Table};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use tidegate_control_types::certificate::ChallengeAnswer;
use tidegate_control_types::{BootTime, DnsKey, EdgeStanding, NodeName, Role, SiteName, SiteState};
use tidegate_node::network::Network;
use tokio::sync::Notify;

pub struct Current {
    zone: ZoneSettings,
    heard: Mutex<Heard>,
    /// `None` until there is a network.
    table: RwLock<Option<Arc<Table>>>,
    /// With what its zone is signed, and the key that this was made of.
    signer: RwLock<Option<(Arc<Signer>, DnsKey)>>,
    networks: RwLock<Arc<Networks>>,
    is_told: Notify,
}

#[derive(Default)]
struct Heard {
    network: Option<Arc<Network>>,
    /// The leader has told how the edges stand, or that it does not know.
    told: bool,
    standings: BTreeMap<NodeName, EdgeStanding>,
    loads: Loads,
    probes: Probes,
    /// The sites' revisions when it told last: a newer one counts only from the next time on, or the first edge to have it would be sent all
    /// clients there are.
    settled: BTreeMap<SiteName, u64>,
}

impl Current {
    #[must_use]
    pub fn new(zone: ZoneSettings, networks: Arc<Networks>) -> Arc<Self> {
        Arc::new(Self {
            zone,
            heard: Mutex::default(),
            table: RwLock::new(None),
            signer: RwLock::new(None),
            networks: RwLock::new(networks),
            is_told: Notify::new(),
        })
    }

    #[must_use]
    pub fn table(&self) -> Option<Arc<Table>> {
        self.table.read().clone()
    }

    #[must_use]
    pub fn signer(&self) -> Option<Arc<Signer>> {
        self.signer.read().as_ref().map(|(signer, _)| Arc::clone(signer))
    }

    #[must_use]
    pub fn networks(&self) -> Arc<Networks> {
        Arc::clone(&self.networks.read())
    }

    pub fn take_networks(&self, networks: Arc<Networks>) {
        // The old ones are dropped when nobody waits for it.
        let _old = std::mem::replace(&mut *self.networks.write(), networks);
    }

    fn take_key(&self, network: &Network) {
        let zone = self.zone.name.to_lowercase().to_ascii();
        let key = network.dns_keys.get(zone.trim_end_matches('.'));
        if self.signer.read().as_ref().map(|(_, key)| key) == key {
            return;
        }
        let signer = key.and_then(|k| Some((Arc::new(Signer::new(&self.zone.name, &k.key)?), k.clone())));
        if key.is_some() && signer.is_none() {
            tracing::error!(zone, "the key of the zone is of no use: it is not signed");
        }
        *self.signer.write() = signer;
    }

    pub fn network(&self, network: &Arc<Network>) {
        self.take_key(network);
        let mut heard = self.heard.lock();
        heard.network = Some(Arc::clone(network));
        self.publish(&heard);
    }

    /// Told at `now`.
    pub fn standings(&self, standings: Vec<EdgeStanding>, now: BootTime) {
        let mut heard = self.heard.lock();
        heard.told = true;
        self.is_told.notify_waiters();
        if standings.is_empty() {
            // A new leader does not know yet: what was heard of the one before counts.
            return;
        }
        heard.loads.reported(&standings, now);
        heard.standings = standings.into_iter().map(|s| (s.node.clone(), s)).collect();
        self.publish(&heard);
        heard.settled =
            heard.network.as_ref().map(|n| n.sites.values().map(|s| (s.spec.name.clone(), s.revision)).collect()).unwrap_or_default();
    }

    /// The addresses of edges that may be sent clients.
    pub fn probed(&self) -> Vec<IpAddr> {
        let heard = self.heard.lock();
        let edges = heard.network.iter().flat_map(|n| n.nodes.values()).filter(|n| n.role == Role::Edge && !n.drained);
        edges.flat_map(|n| n.advertise.iter().copied()).collect()
    }

    /// Takes in what was found of them; `true`: something changed. What was heard of the edges' loads long before `now` counts no more.
    pub fn probes(&self, now: BootTime, take: impl FnOnce(&mut Probes) -> bool) {
        let mut heard = self.heard.lock();
        if heard.loads.forget(now) | take(&mut heard.probes) {
            self.publish(&heard);
        }
    }

    /// Until the leader has told how the edges stand.
    pub async fn told(&self) {
        let mut told = std::pin::pin!(self.is_told.notified());
        told.as_mut().enable();
        if !self.heard.lock().told {
            told.await;
        }
    }

    fn publish(&self, heard: &Heard) {
        if let Some(network) = &heard.network {
            *self.table.write() = Some(Arc::new(table(&self.zone, network, heard)));
        }
    }
}

fn table(zone: &ZoneSettings, network: &Network, heard: &Heard) -> Table {
    let of_role = |role| network.nodes.values().filter(move |n| n.role == role && !n.advertise.is_empty());
    let edge = |n: &tidegate_control_types::NodeState| {
        let standing = heard.standings.get(&n.name);
        Edge {
            name: n.name.to_string(),
            region: n.region.clone(),
            lost: heard.probes.lost(&n.advertise),
            addresses: n.advertise.clone(),
            attached: standing.is_some_and(|s| s.attached),
            drained: n.drained,
            applied: standing.map_or(0, |s| s.applied),
            capacity: heard.loads.capacity(&n.name),
            room: heard.loads.room(&n.name),
        }
    };
    // Of a site that was made anew since, nothing earlier will do.
    let wanted = |s: &SiteState| heard.settled.get(&s.spec.name).copied().filter(|r| *r >= s.created).unwrap_or(s.revision);
    Table {
        zone: zone.name.clone(),
        // It wraps around, as serials do (RFC 1982).
        serial: u32::try_from(network.revision.index & u64::from(u32::MAX)).unwrap_or(0),
        name_servers: of_role(Role::Dns).map(|n| NameServer { name: n.name.to_string(), addresses: n.advertise.clone() }).collect(),
        sites: network
            .sites
            .values()
            .map(|s| (s.spec.name.to_string(), Site { revision: wanted(s), regions: s.spec.regions.clone() }))
            .collect(),
        edges: of_role(Role::Edge).map(edge).collect(),
        caa: zone.caa.clone(),
        txt: with_challenges(zone, network),
        https: zone.https_records,
        ttl: zone.ttl,
    }
}

/// The TXT records of the log, and with them the answers to authorities that want to see one.
fn with_challenges(zone: &ZoneSettings, network: &Network) -> Arc<BTreeMap<String, Vec<String>>> {
    let mut all = Arc::clone(&network.txt);
    let zone = zone.name.to_lowercase().to_ascii();
    for (site, challenge) in network.challenges.iter().flat_map(|(site, open)| open.iter().map(move |c| (site, c))) {
        if let ChallengeAnswer::Dns01 { value } = &challenge.answer {
            let name = format!("_acme-challenge.{site}.{}", zone.trim_end_matches('.'));
            let values = Arc::make_mut(&mut all).entry(name).or_default();
            if !values.contains(value) {
                values.push(value.clone());
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tidegate_control_types::{Incarnation, NodeState, Revision, WallTime, site_file};

    fn network(site_revision: u64) -> Arc<Network> {
        let text = "name = \"shop\"\nhosts = [\"h.example\"]\n[origin]\nservers = [{ url = \"http://o.example\" }]\n";
        let spec = site_file::read("s.toml", text).unwrap();
        let site = SiteState { spec, revision: site_revision, created: 3, keys_since: 3, unshown: Vec::new() };
        let edge = |n: &str| NodeState {
            name: n.parse().unwrap(),
            role: Role::Edge,
            region: "eu".into(),
            address: None,
            advertise: vec!["192.0.2.1".parse().unwrap()],
            drained: false,
            since: 1,
        };
        let nodes = ["e1", "e2"].map(|n| (n.parse().unwrap(), edge(n)));
        Arc::new(Network {
            revision: Revision::new(Incarnation(7), site_revision),
            heard: WallTime(0),
            sites: Arc::new([(site.spec.name.clone(), Arc::new(site))].into()),
            certificates: Arc::default(),
            dns_keys: Arc::default(),
            ticket_keys: Arc::default(),
            issuers: Arc::default(),
            txt: Arc::default(),
            challenges: Arc::default(),
            nodes: Arc::new(nodes.into()),
        })
    }

    #[test]
    fn the_first_edge_to_have_a_new_version_is_not_sent_everybody() {
        let zone = ZoneSettings { name: "cdn.test".parse().unwrap(), ttl: Duration::from_secs(5), caa: Vec::new(), https_records: false };
        let current = Current::new(zone, Arc::default());
        let tell = |e1, e2| {
            let standing =
                |n: &str, applied| EdgeStanding { node: n.parse().unwrap(), attached: applied > 0, applied, load_permille: 0, capacity: 1 };
            current.standings(vec![standing("e1", e1), standing("e2", e2)], BootTime::default());
        };
        let named = || {
            let table = current.table().unwrap();
            let client = crate::steer::Client { near: &[], network: 0 };
            crate::steer::choose(&table, "shop", client, |_| true).edges.iter().map(|e| e.name.clone()).collect::<Vec<_>>()
        };
        let is_both = || named().len() == 2;
        current.network(&network(5));
        assert!(is_both(), "nothing is known of either");
        tell(5, 5);
        current.network(&network(9));
        assert!(is_both(), "nobody can have it yet");
        tell(9, 5);
        assert!(is_both(), "the other may have it by now");
        tell(9, 5);
        assert_eq!(named(), ["e1"]);
        tell(0, 9);
        assert_eq!(named(), ["e2"]);
        // A new leader does not know yet.
        current.standings(Vec::new(), BootTime::default());
        assert_eq!(named(), ["e2"]);
    }
}
