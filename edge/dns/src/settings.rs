//! The settings of a node that answers for the zone.

use crate::networks::Networks;
use crate::probe::ProbeSettings;
use hickory_proto::rr::Name;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tidegate_control_types::settings::{Section, boolean, duration, number, parsed, string};
use tidegate_node::listen::everywhere;
use tidegate_node::settings::{NodeSettings, path, read_file};
use tidegate_node::{NodeError, workers};
use toml::de::DeValue;

/// Of answers that name edges: with the lease it bounds for how long a lost edge is still asked.
const TTL: Duration = Duration::from_secs(20);
/// Large resolvers ask for many of their clients, each with a subnet of its own.
const RATE_LIMIT: u32 = 200;
/// Three failures on end are within a lease.
const PROBE_EVERY: Duration = Duration::from_secs(1);
const MOST_NETWORKS_BYTES: u64 = 256 << 20;

#[derive(Clone, Debug)]
pub struct DnsSettings {
    pub node: NodeSettings,
    /// Where it answers, over UDP and TCP.
    pub listen: Vec<SocketAddr>,
    pub zone: ZoneSettings,
    /// Where clients are; the file is read at start.
    pub networks: Option<PathBuf>,
    pub workers: usize,
    pub probe: ProbeSettings,
    /// Of the same answer in a second to the same network over UDP; 0: any number.
    pub rate_limit: u32,
}

#[derive(Clone, Debug)]
pub struct ZoneSettings {
    pub name: Name,
    pub ttl: Duration,
    pub caa: Vec<String>,
    /// Whether sites have HTTPS records. Not before their certificates are ones that everybody trusts: who reads such a record goes
    /// to https alone (RFC 9460 section 9.5).
    pub https_records: bool,
}

fn zone(v: &DeValue<'_>) -> Result<Name, String> {
    let text = string(v)?;
    let name = Name::from_ascii(&text).ok().filter(|n| n.num_labels() > 0 && !n.is_wildcard());
    let mut name = name.ok_or_else(|| format!("{text:?} is no zone, as \"cdn.example.net\" is one"))?.to_lowercase();
    name.set_fqdn(true);
    Ok(name)
}

fn authority(v: &DeValue<'_>) -> Result<String, String> {
    let text = string(v)?;
    Name::from_ascii(&text).map_err(|_| format!("{text:?} is no name of a certificate authority, as \"letsencrypt.org\" is one"))?;
    Ok(text)
}

fn probe(s: &Section<'_>) -> ProbeSettings {
    ProbeSettings {
        port: s.or("port", 443, |v| number(1, 65_535)(v).map(|n| u16::try_from(n).unwrap_or(443))),
        interval: s.or("interval", PROBE_EVERY, duration(Duration::ZERO, Duration::from_secs(60))),
    }
}

impl DnsSettings {
    /// # Errors
    /// All mistakes of the file.
    pub fn from_file(file: &Path) -> Result<Self, NodeError> {
        read_file(file, Self::read)
    }

    fn read(s: &Section<'_>) -> Option<Self> {
        let node = NodeSettings::read(s);
        for unused in ["disk", "name_servers"] {
            if s.has(unused) {
                s.wrong(unused, "is for edges and shields: this node stores nothing and resolves nothing");
            }
        }
        if node.as_ref().is_some_and(|n| n.advertise.is_empty()) {
            s.wrong("advertise", "is missing: the addresses at which resolvers reach this node, for example: advertise = [\"192.0.2.53\"]");
        }
        let mut listen: Vec<SocketAddr> = s.list("listen", parsed);
        if !s.has("listen") {
            listen = everywhere(53);
        }
        let name = s.required("zone", "\"cdn.example.net\"", zone);
        let ttl = s.or("ttl", TTL, duration(Duration::from_secs(1), Duration::from_secs(3600)));
        let mut caa = s.list("caa", authority);
        caa.sort();
        caa.dedup();
        let https_records = s.or("https_records", false, boolean);
        let networks = s.optional("networks", path);
        let workers = s.or("workers", workers::cores(), |v| match v.as_str() {
            Some("cores") => Ok(workers::cores()),
            _ => number(1, 1024)(v).map(|n| usize::try_from(n).unwrap_or(1)).map_err(|e| format!("{e}, or \"cores\"")),
        });
        let rate_limit = s.or("rate_limit", RATE_LIMIT, |v| number(0, 1_000_000)(v).map(|n| u32::try_from(n).unwrap_or(u32::MAX)));
        let probe = probe(&s.table("probe"));
        Some(Self {
            probe,
            rate_limit,
            node: node?,
            listen,
            zone: ZoneSettings { name: name?, ttl, caa, https_records },
            networks,
            workers,
        })
    }

    /// # Errors
    /// The file of networks cannot be read, or a line of it is none.
    pub fn read_networks(&self) -> Result<Arc<Networks>, NodeError> {
        let Some(file) = &self.networks else { return Ok(Arc::default()) };
        let length = std::fs::metadata(file).map_err(|e| NodeError::file(file, e))?.len();
        if length > MOST_NETWORKS_BYTES {
            return Err(NodeError::file(file, std::io::Error::other(format!("it is longer than {MOST_NETWORKS_BYTES} bytes"))));
        }
        let text = std::fs::read_to_string(file).map_err(|e| NodeError::file(file, e))?;
        let networks = text.parse().map_err(|e: crate::NotNetworks| NodeError::file(file, std::io::Error::other(e)))?;
        Ok(Arc::new(networks))
    }
}
