//! A site: whose requests it answers, where its content comes from, and how it is kept. Made only by
//! [`crate::site_file`], which checks it.

use crate::name::{CertificateName, SiteName};
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteSpec {
    pub name: SiteName,
    pub hosts: Vec<HostPattern>,
    pub origin: OriginSpec,
    pub cache: CacheSpec,
    pub compression: CompressionSpec,
    pub tls: TlsSpec,
    /// Whose edges answer for it, and hold its private key; none named: all do.
    pub regions: Vec<String>,
}

impl SiteSpec {
    #[must_use]
    pub fn is_served_in(&self, region: &str) -> bool {
        self.regions.is_empty() || self.regions.iter().any(|r| r == region)
    }

    #[must_use]
    pub fn serves(&self, host: &str) -> bool {
        self.hosts.iter().any(|p| p.matches(host))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HostPattern {
    Exact(String),
    /// `*.example.com`: any one or more labels before `.example.com`. Holds `example.com`.
    Under(String),
    /// `*`: every host that no other site serves.
    Any,
}

impl HostPattern {
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(h) => h == host,
            Self::Under(base) => host.strip_suffix(base.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            Self::Any => true,
        }
    }

    /// # Errors
    /// What would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let lower = text.to_ascii_lowercase();
        let (name, wild) = match lower.strip_prefix("*.") {
            Some(base) => (base, true),
            None => (lower.as_str(), false),
        };
        if !is_host(name) {
            return Err(format!("{text:?} is not a host: a DNS name such as \"www.example.com\", or \"*.example.com\" for all below it"));
        }
        Ok(if wild { Self::Under(name.into()) } else { Self::Exact(name.into()) })
    }
}

/// A DNS name (no port, no dot at its end) or an IP address as it stands in a Host field.
#[must_use]
pub fn is_host(name: &str) -> bool {
    if let Some(v6) = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
        return v6.parse::<std::net::Ipv6Addr>().is_ok();
    }
    name.len() <= 253
        && name.split('.').all(|l| {
            (1..=63).contains(&l.len())
                && !l.starts_with('-')
                && !l.ends_with('-')
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(h) => f.write_str(h),
            Self::Under(h) => write!(f, "*.{h}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// By what a host shows whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shown {
    /// Its CNAME record leads to the site's own name in the zone.
    Cname,
    /// A TXT record at `_tidegate.<host>` says that name.
    Txt,
    /// An admin has said so.
    Vouched,
    No,
}

/// That a host is a site's, and no other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    pub shown: Shown,
    pub since: WallTime,
    /// It has not shown so since then.
    pub lost: Option<WallTime>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OriginSpec {
    pub servers: Vec<OriginServer>,
    pub host: OriginHost,
    pub balance: Balance,
    pub connect_timeout: Duration,
    pub first_byte_timeout: Duration,
    pub idle_timeout: Duration,
    /// Deadline for a request without a body: then the client gets an error, even if attempts are left.
    pub total_timeout: Duration,
    /// A kept connection is not used for further requests after so long.
    pub max_connection_age: Duration,
    pub retries: u32,
    pub ejection: EjectionSpec,
    pub health: Option<HealthSpec>,
    pub tls: OriginTls,
    pub allow_private: bool,
    /// Whether edges tell the origin about the client in X-Forwarded-For, -Proto and -Host.
    pub forwarded: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OriginServer {
    pub https: bool,
    /// A DNS name or an address (IPv6 in brackets).
    pub host: String,
    pub port: u16,
    pub weight: u32,
    pub backup: bool,
}

impl fmt::Display for OriginServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", if self.https { "https" } else { "http" }, self.host, self.port)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OriginHost {
    /// The client's own Host.
    Keep,
    Name(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    RoundRobin,
    LeastRequests,
    Hash,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthSpec {
    pub path: String,
    pub interval: Duration,
    pub expect: Vec<u16>,
    pub down_after: u32,
    pub up_after: u32,
}

/// When a server that requests fail on is left alone for a while, where others can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EjectionSpec {
    /// Statuses that count as failures, beside connections that fail and answers that do not come.
    pub statuses: Vec<u16>,
    /// Failures in a row.
    pub after: u32,
    pub time: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OriginTls {
    pub verify: bool,
    /// PEM of the authority to trust instead of the system's.
    pub ca: Option<String>,
    /// The name to ask for and to check, where it is not the server's host.
    pub server_name: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheSpec {
    pub query: QueryRule,
    /// `None`: heuristic (RFC 9111 section 4.2.2).
    pub default_ttl: Option<Duration>,
    /// Percent by which a lifetime is shortened at most, each by another part of it.
    pub ttl_jitter: u8,
    pub stale_while_revalidate: Duration,
    pub stale_if_error: Duration,
    /// Time after expiry in which a stale response is served while the origin cannot be reached or does not answer.
    pub stale_if_unreachable: Duration,
    /// Time that a request waits for the origin while a stale response is at hand.
    pub stale_wait: Duration,
    pub when_detached: WhenDetached,
    pub client_reload: ClientReload,
    /// A response that is to be stored and whose readers have all gone is fetched to its end where this many bytes are missing at
    /// most, and for so long.
    pub finish_size: u64,
    pub finish_time: Duration,
    /// Bytes.
    pub max_object: u64,
}

/// Effect of a client's own Cache-Control (`no-cache`, `max-age`, `min-fresh`) and Pragma.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientReload {
    /// The origin is asked again, once for all clients that want it at the same time.
    Revalidate,
    /// No effect: a fresh stored response is served.
    Ignore,
}

/// What edges code for clients that accept it (RFC 9110 section 8.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompressionSpec {
    pub enabled: bool,
    /// Media types in lower case; one may begin or end in `*`.
    pub types: Vec<String>,
    /// Bytes: shorter bodies are left as they are.
    pub min_size: u64,
}

/// Which parameters of the query are part of the key, and sent to the origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueryRule {
    All,
    None,
    Keep(Vec<String>),
    /// A name may end in `*`.
    Drop(Vec<String>),
}

/// What a node that is cut off from the control plane does with what it stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenDetached {
    /// Answers from its cache: the data plane outlives the control plane.
    Serve,
    /// Asks the origin about each object, at most once a second.
    Revalidate,
    /// Answers 503.
    Refuse,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsSpec {
    pub certificate: CertificateChoice,
    pub redirect: bool,
    pub min_version: TlsVersion,
    /// For how long browsers ask for nothing but https after each visit (RFC 6797); zero: they are told nothing.
    pub hsts: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CertificateChoice {
    /// By the network itself.
    Auto,
    /// From the network's own CA.
    Internal,
    /// Those that were uploaded under this name.
    Uploaded(CertificateName),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_covers_what_is_below_it_and_not_itself() {
        let p = HostPattern::parse("*.img.Example.com").unwrap();
        assert!(p.matches("a.img.example.com") && p.matches("a.b.img.example.com"));
        assert!(!p.matches("img.example.com") && !p.matches(".img.example.com") && !p.matches("aimg.example.com"));
        for bad in ["", "a b", "*.", "a..b", "*", "[::g]"].iter().filter(|b| **b != "*") {
            assert!(HostPattern::parse(bad).is_err(), "{bad}");
        }
    }
}
