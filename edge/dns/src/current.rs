//! The table as it is now, made of what the control plane tells: the log's sites and nodes, and how the edges stand.
//!
//! A node that is cut off goes on with what it heard last. One that was started so has heard nothing of how the edges stand: it takes
//! them all for cut off, and so sends clients to any of them that is not drained.

use crate::settings::ZoneSettings;
use crate::table::{Edge, NameServer, Table};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;
use tidegate_control_types::{EdgeStanding, NodeName, Role};
use tidegate_node::network::Network;

pub struct Current {
    zone: ZoneSettings,
    heard: Mutex<Heard>,
    /// `None` until there is a network.
    table: RwLock<Option<Arc<Table>>>,
}

#[derive(Default)]
struct Heard {
    network: Option<Arc<Network>>,
    standings: BTreeMap<NodeName, EdgeStanding>,
}

impl Current {
    #[must_use]
    pub fn new(zone: ZoneSettings) -> Arc<Self> {
        Arc::new(Self { zone, heard: Mutex::default(), table: RwLock::new(None) })
    }

    #[must_use]
    pub fn table(&self) -> Option<Arc<Table>> {
        self.table.read().clone()
    }

    pub fn network(&self, network: &Arc<Network>) {
        let mut heard = self.heard.lock();
        heard.network = Some(Arc::clone(network));
        self.publish(&heard);
    }

    pub fn standings(&self, standings: Vec<EdgeStanding>) {
        let standings = standings.into_iter().map(|s| (s.node.clone(), s)).collect();
        let mut heard = self.heard.lock();
        if heard.standings != standings {
            heard.standings = standings;
            self.publish(&heard);
        }
    }

    fn publish(&self, heard: &Heard) {
        if let Some(network) = &heard.network {
            *self.table.write() = Some(Arc::new(table(&self.zone, network, &heard.standings)));
        }
    }
}

fn table(zone: &ZoneSettings, network: &Network, standings: &BTreeMap<NodeName, EdgeStanding>) -> Table {
    let of_role = |role| network.nodes.values().filter(move |n| n.role == role && !n.advertise.is_empty());
    let edge = |n: &tidegate_control_types::NodeState| {
        let standing = standings.get(&n.name);
        Edge {
            name: n.name.to_string(),
            region: n.region.clone(),
            addresses: n.advertise.clone(),
            attached: standing.is_some_and(|s| s.attached),
            drained: n.drained,
            applied: standing.map_or(0, |s| s.applied),
            weight: 1.0,
        }
    };
    Table {
        zone: zone.name.clone(),
        // It wraps around, as serials do (RFC 1982).
        serial: u32::try_from(network.revision.index & u64::from(u32::MAX)).unwrap_or(0),
        name_servers: of_role(Role::Dns).map(|n| NameServer { name: n.name.to_string(), addresses: n.advertise.clone() }).collect(),
        sites: network.sites.values().map(|s| (s.spec.name.to_string(), s.revision)).collect(),
        edges: of_role(Role::Edge).map(edge).collect(),
        caa: zone.caa.clone(),
        ttl: zone.ttl,
    }
}
