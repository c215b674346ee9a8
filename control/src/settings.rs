//! The settings of a control node.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tidegate_control_types::settings::{Section, duration, number, parsed, string};
use tidegate_control_types::{LeaseTerms, NodeName};
use tidegate_node::NodeError;
use tidegate_node::listen::everywhere;
use tidegate_node::settings::{control_url, label, path, read_file};

#[derive(Clone, Debug)]
pub struct ControlSettings {
    pub name: NodeName,
    pub region: String,
    pub data: PathBuf,
    /// Seals this node's own key; outside of `data`.
    pub node_key: PathBuf,
    /// Seals the CA's and the sites' keys in the log; the same on every control node, outside of `data`.
    pub cluster_key: PathBuf,
    /// Where other nodes connect to, by mutual TLS.
    pub listen: Vec<SocketAddr>,
    /// What other nodes are told to connect to (host:port); the first of `listen` where it is missing.
    pub address: Option<String>,
    /// The HTTP API in clear.
    pub api: Vec<SocketAddr>,
    /// The HTTP API over TLS, with a certificate of the network's CA for `api_names`.
    pub api_https: Vec<SocketAddr>,
    pub api_names: Vec<String>,
    /// Other control nodes: asked when this one joins.
    pub peers: Vec<String>,
    pub join_token_file: Option<PathBuf>,
    pub admin: SocketAddr,
    /// DNS zone of the network: a site's CNAME target is `<site>.<zone>`.
    pub zone: Option<String>,
    /// For sites' hosts; the system's where there are none.
    pub name_servers: Vec<SocketAddr>,
    pub raft: RaftSettings,
}

#[derive(Clone, Copy, Debug)]
pub struct RaftSettings {
    pub tick: Duration,
    /// An election begins after this many ticks, and up to twice as many, without a leader.
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
    /// For `control init`; the network keeps what it was founded with.
    pub lease: Option<LeaseTerms>,
    pub snapshot_every: u64,
}

impl Default for RaftSettings {
    fn default() -> Self {
        Self { tick: Duration::from_millis(50), election_ticks: 16, heartbeat_ticks: 2, lease: None, snapshot_every: 10_000 }
    }
}

impl ControlSettings {
    /// # Errors
    /// All mistakes of the file.
    pub fn from_file(file: &Path) -> Result<Self, NodeError> {
        read_file(file, Self::read)
    }

    fn read(s: &Section<'_>) -> Option<Self> {
        let name = s.required("name", "\"control-1\"", parsed);
        let region = s.required("region", "\"eu-central\"", label);
        let data = s.or("data", PathBuf::from("/var/lib/tidegate"), path);
        let node_key = s.or("node_key", PathBuf::from("/etc/tidegate/node.key"), path);
        let cluster_key = s.or("cluster_key", PathBuf::from("/etc/tidegate/cluster.key"), path);
        for (key, file) in [("node_key", &node_key), ("cluster_key", &cluster_key)] {
            if file.starts_with(&data) {
                s.wrong(key, "lies inside of data: whoever copies the data folder must not get the key with it");
            }
        }
        let mut listen = s.list("listen", parsed);
        if !s.has("listen") {
            listen = everywhere(7443);
        }
        let mut address = s.optional("address", control_url);
        if address.is_none() && listen.first().is_none_or(|a| a.ip().is_unspecified()) {
            s.wrong("address", "is missing: listen names no single address that other nodes could connect to; for example: address = \"https://c1.example.net:7443\"");
        }
        address = address.or_else(|| listen.first().map(ToString::to_string));
        let api: Vec<SocketAddr> = if s.has("api") { s.list("api", parsed) } else { vec![SocketAddr::from(([127, 0, 0, 1], 9080))] };
        if let Some(open) = api.iter().find(|a| !a.ip().is_loopback()) {
            s.wrong("api", format!("{open} is not loopback, and tokens would cross the network in clear; use api_https there"));
        }
        let api_https = s.list("api_https", parsed);
        let api_names = s.list("api_names", string);
        if !api_https.is_empty() && api_names.is_empty() {
            s.wrong("api_https", "needs api_names, the names that its certificate is for; for example: api_names = [\"c1.example.net\"]");
        }
        let peers = s.list("peers", control_url);
        let join_token_file = s.optional("join_token_file", path);
        let admin = s.or("admin", SocketAddr::from(([127, 0, 0, 1], 9081)), parsed);
        let zone = s.optional("zone", string);
        let name_servers = s.list("name_servers", parsed);
        let raft = raft(&s.table("raft"));
        Some(Self {
            name: name?,
            region: region?,
            data,
            node_key,
            cluster_key,
            listen,
            address,
            api,
            api_https,
            api_names,
            peers,
            join_token_file,
            admin,
            zone,
            name_servers,
            raft,
        })
    }
}

fn raft(s: &Section<'_>) -> RaftSettings {
    let d = RaftSettings::default();
    let ms = Duration::from_millis;
    let ticks = |key, default: usize, least, most| s.or(key, default, |v| Ok(usize::try_from(number(least, most)(v)?).unwrap_or(default)));
    let terms = LeaseTerms::default();
    let lease = LeaseTerms {
        duration: s.or("lease", terms.duration, duration(ms(500), Duration::from_secs(300))),
        drift_margin: s.or("drift_margin", terms.drift_margin, duration(ms(10), Duration::from_secs(10))),
    };
    let settings = RaftSettings {
        tick: s.or("tick", d.tick, duration(ms(10), ms(5000))),
        election_ticks: ticks("election_ticks", d.election_ticks, 5, 100),
        heartbeat_ticks: ticks("heartbeat_ticks", d.heartbeat_ticks, 1, 20),
        lease: (s.has("lease") || s.has("drift_margin")).then_some(lease),
        snapshot_every: s.or("snapshot_every", d.snapshot_every, number(100, 10_000_000)),
    };
    if settings.heartbeat_ticks * 3 > settings.election_ticks {
        s.wrong("heartbeat_ticks", "should be at most a third of election_ticks, or elections begin while the leader lives");
    }
    settings
}
