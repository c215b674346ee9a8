//! The settings of a node that answers for the zone.

use crate::maxmind;
use crate::networks::Networks;
use crate::places::{Place, PlacedRegion};
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
    /// Where clients are; the file is read at start and at SIGHUP.
    pub networks: Option<PathBuf>,
    /// Where the edges of each region are, for a file that says where clients are on the globe.
    pub regions: Vec<PlacedRegion>,
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

fn degrees(most: f64) -> impl Fn(&DeValue<'_>) -> Result<f64, String> {
    move |v| {
        let decimal = |i: &toml::de::DeInteger<'_>| i.radix() == 10;
        let text = v.as_float().map(|f| f.as_str()).or_else(|| v.as_integer().filter(|i| decimal(i)).map(|i| i.as_str()));
        let degrees = text.and_then(|t| t.replace('_', "").parse::<f64>().ok());
        degrees.filter(|d| d.abs() <= most).ok_or_else(|| format!("should be degrees from -{most} to {most}"))
    }
}

fn region(s: &Section<'_>) -> Option<PlacedRegion> {
    let name = s.required("name", "\"eu-central\"", string);
    let latitude = s.required("latitude", "50.1", degrees(90.0));
    let longitude = s.required("longitude", "8.7", degrees(180.0));
    Some(PlacedRegion { name: name?, place: Place { latitude: latitude?, longitude: longitude? } })
}

/// Whether a file of networks is one in MaxMind's format.
fn is_maxmind(file: &Path) -> bool {
    file.extension().is_some_and(|e| e.eq_ignore_ascii_case("mmdb"))
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
        let regions = s.tables("regions");
        match (!regions.is_empty(), networks.as_deref().is_some_and(is_maxmind)) {
            (false, true) => s.wrong("networks", "is a MaxMind file, which says where clients are: say where your regions are, for each: [[regions]] with name = \"eu-central\", latitude = 50.1, longitude = 8.7"),
            (true, false) => s.wrong("regions", "is for a MaxMind file, networks = \"....mmdb\": any other names the regions itself"),
            _ => {}
        }
        let regions: Vec<PlacedRegion> = regions.iter().filter_map(region).collect();
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
            regions,
            workers,
        })
    }

    /// # Errors
    /// The file of networks cannot be read, or is none.
    pub fn read_networks(&self) -> Result<Arc<Networks>, NodeError> {
        let Some(file) = &self.networks else { return Ok(Arc::default()) };
        let wrong = |e: String| NodeError::file(file, std::io::Error::other(e));
        let length = std::fs::metadata(file).map_err(|e| NodeError::file(file, e))?.len();
        if length > MOST_NETWORKS_BYTES {
            return Err(wrong(format!("it is longer than {MOST_NETWORKS_BYTES} bytes")));
        }
        let bytes = std::fs::read(file).map_err(|e| NodeError::file(file, e))?;
        let networks = if is_maxmind(file) {
            maxmind::read(bytes, &self.regions).map_err(wrong)?
        } else {
            let text = String::from_utf8(bytes).map_err(|_| wrong("it is no text in UTF-8".into()))?;
            text.parse().map_err(|e: crate::NotNetworks| wrong(e.to_string()))?
        };
        Ok(Arc::new(networks))
    }
}
