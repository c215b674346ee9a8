//! What all answers are made of.

use hickory_proto::rr::Name;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// The network, as far as DNS is concerned, at one moment.
#[derive(Clone, Debug)]
pub struct Table {
    pub zone: Name,
    /// Of the SOA record: grows with the log.
    pub serial: u32,
    pub name_servers: Vec<NameServer>,
    pub sites: BTreeMap<String, Site>,
    pub edges: Vec<Edge>,
    /// Certificate authorities that may issue for names in the zone; none named: any may.
    pub caa: Vec<String>,
    /// TXT records, by name: in lower case, without a dot at its end.
    pub txt: Arc<BTreeMap<String, Vec<String>>>,
    /// Whether sites have HTTPS records, after which clients try nothing but https.
    pub https: bool,
    /// Of answers that name edges.
    pub ttl: Duration,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// That an edge must have applied to serve it as it is now.
    pub revision: u64,
    /// Whose edges serve it; none named: all do.
    pub regions: Vec<String>,
}

impl Site {
    #[must_use]
    pub fn is_served_by(&self, edge: &Edge) -> bool {
        self.regions.is_empty() || self.regions.contains(&edge.region)
    }
}

/// A node that answers for the zone: `<name>.ns.<zone>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameServer {
    pub name: String,
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Edge {
    pub name: String,
    pub region: String,
    pub addresses: Vec<IpAddr>,
    /// Those of them that clients do not get through to, as far as this node's own probes tell.
    pub lost: Vec<IpAddr>,
    /// It holds a lease, as far as this table knows.
    pub attached: bool,
    pub drained: bool,
    /// The revision through which it has applied the log.
    pub applied: u64,
    /// Its share of the sites among the edges of its region, above 0.
    pub capacity: f64,
    /// Which part of their clients' networks it lets in, above 0: 1, unless it is busy.
    pub room: f64,
}

impl Edge {
    /// What clients are told of those addresses that `wanted` takes: without those that are lost, unless all are.
    pub fn named(&self, wanted: impl Fn(&IpAddr) -> bool) -> Vec<IpAddr> {
        let wanted: Vec<IpAddr> = self.addresses.iter().copied().filter(|ip| wanted(ip)).collect();
        let found: Vec<IpAddr> = wanted.iter().copied().filter(|ip| !self.lost.contains(ip)).collect();
        if found.is_empty() { wanted } else { found }
    }

    /// Whether clients that want such addresses do not get through; whoever wants others is none of them.
    #[must_use]
    pub fn is_lost(&self, wanted: impl Fn(&IpAddr) -> bool) -> bool {
        let any = self.addresses.iter().any(&wanted);
        let mut these = self.addresses.iter().filter(|ip| !any || wanted(ip)).peekable();
        these.peek().is_some() && these.all(|ip| self.lost.contains(ip))
    }
}
