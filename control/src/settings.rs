//! The settings of a control node.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tidegate_control_types::settings::{Section, boolean, duration, number, parsed, string};
use tidegate_control_types::{LeaseTerms, NodeName};
use tidegate_node::NodeError;
use tidegate_node::listen::everywhere;
use tidegate_node::settings::{control_url, label, path, read_file};
use toml::de::DeValue;

#[derive(Clone, Debug)]
pub struct ControlSettings {
    pub name: NodeName,
    pub region: String,
    pub data: PathBuf,
    /// Seals this node's own key; outside of `data`.
    pub node_key: PathBuf,
    /// Where the keys are that seal secrets in the log; the same on every control node.
    pub cluster_key: ClusterKeySource,
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
    /// Who makes the certificates of sites that want one the world trusts; without it the network's own CA does.
    pub acme: Option<AcmeSettings>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterKeySource {
    /// Outside of the data folder.
    File(PathBuf),
    /// A program with its arguments that prints them, from a key store.
    Command(Vec<String>),
}

impl ClusterKeySource {
    /// Where to keep `name`, which is no secret, beside what nodes keep outside of their data.
    #[must_use]
    pub fn beside(&self, node_key: &Path, name: &str) -> PathBuf {
        match self {
            Self::File(path) => path.with_file_name(name),
            Self::Command(_) => node_key.with_file_name(name),
        }
    }
}

/// An authority (RFC 8555), and the account there; the same on every control node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmeSettings {
    /// URL of its directory.
    pub directory: String,
    /// The authorities, in PEM, of which its own certificate has to be; the system's where there is none.
    pub ca: Option<PathBuf>,
    /// URLs, as mailto:admin@example.net.
    pub contact: Vec<String>,
    pub external_account: Option<ExternalAccount>,
    /// By which a name that is no wildcard is proven, the first first; the next ones after a failure.
    pub challenges: Vec<ChallengeKind>,
    /// The kind of certificate, where the authority has several.
    pub profile: Option<String>,
    /// After a first failure; twice as long after each further one.
    pub retry: Duration,
}

/// Section 7.3.4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalAccount {
    pub key_id: String,
    /// The key in base64url, as the authority gave it.
    pub hmac_key_file: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChallengeKind {
    Http01,
    TlsAlpn01,
    Dns01,
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
        let key_file = s.or("cluster_key", PathBuf::from("/etc/tidegate/cluster.key"), path);
        let command = s.list("cluster_key_command", string);
        if s.has("cluster_key_command") && (s.has("cluster_key") || command.is_empty()) {
            s.wrong("cluster_key_command", "names a program with its arguments, and takes the place of cluster_key");
        }
        for (key, file) in [("node_key", &node_key), ("cluster_key", &key_file)] {
            if file.starts_with(&data) {
                s.wrong(key, "lies inside of data: whoever copies the data folder must not get the key with it");
            }
        }
        let cluster_key = if command.is_empty() { ClusterKeySource::File(key_file) } else { ClusterKeySource::Command(command) };
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
        let acme = s.has("acme").then(|| acme(&s.table("acme")));
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
            acme: acme.flatten(),
        })
    }
}

/// Limits of authorities are hours and days.
const RETRY: Duration = Duration::from_secs(60);

fn acme(s: &Section<'_>) -> Option<AcmeSettings> {
    let https = |v: &DeValue<'_>| {
        let text = string(v)?;
        let host = text.strip_prefix("https://").and_then(|rest| rest.split('/').next());
        host.filter(|h| !h.is_empty()).ok_or_else(|| format!("{text:?} is no https URL"))?;
        Ok(text)
    };
    let directory = s.required("directory", "\"https://acme-v02.api.letsencrypt.org/directory\"", https);
    let ca = s.optional("ca", path);
    let contact = s.list("contact", |v| {
        let text = string(v)?;
        if text.starts_with("mailto:") && text.contains('@') {
            Ok(text)
        } else {
            Err(format!("{text:?} is no contact, as \"mailto:admin@example.net\" is one"))
        }
    });
    if !s.or("agree_to_terms", false, boolean) {
        s.wrong("agree_to_terms", "has to be true: read the authority's terms of service, then write agree_to_terms = true");
    }
    let external_account = s.has("external_account").then(|| {
        let e = s.table("external_account");
        let key_id = e.required("key_id", "\"kid-1\"", string);
        let hmac_key_file = e.required("hmac_key_file", "\"/etc/tidegate/eab.key\"", path);
        Some(ExternalAccount { key_id: key_id?, hmac_key_file: hmac_key_file? })
    });
    let kinds = [("http-01", ChallengeKind::Http01), ("tls-alpn-01", ChallengeKind::TlsAlpn01), ("dns-01", ChallengeKind::Dns01)];
    let kind = move |v: &DeValue<'_>| {
        let text = string(v)?;
        let found = kinds.iter().find(|(name, _)| *name == text).map(|(_, kind)| *kind);
        found.ok_or_else(|| format!("{text:?} is none of \"http-01\", \"tls-alpn-01\" and \"dns-01\""))
    };
    let mut challenges = s.list("challenges", kind);
    if challenges.is_empty() {
        challenges = vec![ChallengeKind::Http01, ChallengeKind::TlsAlpn01];
    }
    let profile = s.optional("profile", string);
    let retry = s.or("retry", RETRY, duration(Duration::from_secs(1), Duration::from_secs(3600)));
    Some(AcmeSettings { directory: directory?, ca, contact, external_account: external_account.flatten(), challenges, profile, retry })
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
