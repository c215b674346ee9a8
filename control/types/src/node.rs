//! Nodes: any process of the network, as the control plane and its neighbours know it.

use crate::authority::Fingerprint;
use crate::name::NodeName;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Control,
    Edge,
    Shield,
    Dns,
}

impl Role {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Edge => "edge",
            Self::Shield => "shield",
            Self::Dns => "dns",
        }
    }

    /// Whether it keeps responses, and so has to acknowledge purges and hold a lease.
    #[must_use]
    pub fn caches(self) -> bool {
        matches!(self, Self::Edge | Self::Shield)
    }

    /// Whether it is told of the keys that zones are signed with.
    #[must_use]
    pub fn signs_zones(self) -> bool {
        self == Self::Dns
    }

    /// Whether it is told of sites' private keys.
    #[must_use]
    pub fn holds_keys(self) -> bool {
        self == Self::Edge
    }

    /// Whether it follows the log over a watch stream of its own.
    #[must_use]
    pub fn follows(self) -> bool {
        self.caches() || self == Self::Dns
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        [Self::Control, Self::Edge, Self::Shield, Self::Dns]
            .into_iter()
            .find(|r| r.as_str() == s)
            .ok_or_else(|| format!("{s:?} is not a role: control, edge, shield or dns"))
    }
}

/// What the log holds of a node, and what every cache node is told of its neighbours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    pub name: NodeName,
    pub role: Role,
    pub region: String,
    /// Where other nodes reach it (host:port): a shield's listener for edges, a control node's for all.
    pub address: Option<String>,
    /// What DNS answers with: an edge's public addresses.
    pub advertise: Vec<IpAddr>,
    /// A drained node is sent no new work.
    pub drained: bool,
    /// The revision at which it enrolled.
    pub since: u64,
}

/// Addresses that one node may have for its clients.
pub const MOST_ADVERTISED: usize = 32;

impl NodeState {
    /// What a node says of itself is checked before it gets into the log.
    ///
    /// # Errors
    /// In words for the operator.
    pub fn check(&self) -> Result<(), String> {
        if let Err(e) = self.region.parse::<NodeName>() {
            return Err(format!("its region: {e}"));
        }
        if self.advertise.len() > MOST_ADVERTISED {
            return Err(format!("it advertises {} addresses: {MOST_ADVERTISED} at most", self.advertise.len()));
        }
        let is_address = |a: &str| a.rsplit_once(':').is_some_and(|(h, p)| (1..=255).contains(&h.len()) && p.parse::<u16>().is_ok());
        match &self.address {
            Some(address) if !is_address(address) => Err(format!("{:?} is no host:port", address.chars().take(80).collect::<String>())),
            _ => Ok(()),
        }
    }

    /// Whether other nodes or clients would reach `other` otherwise.
    #[must_use]
    pub fn is_elsewhere(&self, other: &Self) -> bool {
        self.address != other.address || self.advertise != other.advertise
    }
}

/// How an edge stands to the control plane, as the leader knows it: soft state, for those who send clients to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeStanding {
    pub node: NodeName,
    /// It holds a lease.
    pub attached: bool,
    /// The index through which it has applied the log.
    pub applied: u64,
    /// As it reports itself: of its processors' time what it uses, in thousandths, and how many processors it has; 0: it has not reported
    /// to this leader yet.
    pub load_permille: u16,
    pub capacity: u32,
}

/// What a node says of itself now and then; soft state, never in the log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    pub requests: u64,
    pub hits: u64,
    pub stored_bytes: u64,
    pub stored_limit_bytes: u64,
    pub open_connections: u64,
    /// Of its processors' time what it uses, in thousandths, and how many processors it has for requests.
    pub load_permille: u16,
    pub capacity: u32,
    pub version: String,
    /// Origin servers that its probes found down.
    pub origins_down: Vec<String>,
    /// Of the certificate that it shows other nodes.
    pub issuer: Fingerprint,
}
