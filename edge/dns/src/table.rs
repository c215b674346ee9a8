//! What all answers are made of.

use hickory_proto::rr::Name;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// The network, as far as DNS is concerned, at one moment.
#[derive(Clone, Debug)]
pub struct Table {
    pub zone: Name,
    /// Of the SOA record: grows with the log.
    pub serial: u32,
    pub name_servers: Vec<NameServer>,
    /// Each site, with the revision that an edge must have applied to serve it as it is now.
    pub sites: BTreeMap<String, u64>,
    pub edges: Vec<Edge>,
    /// Certificate authorities that may issue for names in the zone; none named: any may.
    pub caa: Vec<String>,
    /// Whether sites have HTTPS records, after which clients try nothing but https.
    pub https: bool,
    /// Of answers that name edges.
    pub ttl: Duration,
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
    /// Those that are not lost; all, where all are.
    pub addresses: Vec<IpAddr>,
    /// It holds a lease, as far as this table knows.
    pub attached: bool,
    pub drained: bool,
    /// Clients get through to one of its addresses at least, as far as this node's own probes tell.
    pub reachable: bool,
    /// The revision through which it has applied the log.
    pub applied: u64,
    /// Its share of the sites among the edges of its region, above 0.
    pub capacity: f64,
    /// Which part of their clients' networks it lets in, above 0: 1, unless it is busy.
    pub room: f64,
}
