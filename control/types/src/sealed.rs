//! What the log holds only sealed, under the cluster key.

use crate::authority::{Fingerprint, hex};
use crate::name::SiteName;
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The id of a cluster key, as every sealed value names it.
pub type ClusterKeyId = [u8; 8];

/// Which keys seal, by their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterKeys {
    /// Under which secrets are sealed; others may be under one that it followed.
    pub current: ClusterKeyId,
    /// That control nodes are given: it seals once all have it.
    pub next: Option<ClusterKeyId>,
    /// Those that have sealed, and do so no more.
    pub former: Vec<ClusterKeyId>,
}

/// A secret in the log. What it is is part of its sealing: nothing opens as anything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SealedName {
    RootKey,
    IssuingKey(Fingerprint),
    RequestedIssuing,
    /// By the certificate's name.
    CertificateKey(String),
    /// By zone.
    DnsKey(String),
    /// By the time at which it was made.
    TicketKey(WallTime),
    /// By the authority's directory.
    Account(String),
    /// Of the certificate that is to be.
    OrderKey(SiteName),
}

impl fmt::Display for SealedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RootKey => f.write_str("root key"),
            Self::IssuingKey(fingerprint) => write!(f, "issuing key {}", hex(fingerprint)),
            Self::RequestedIssuing => f.write_str("requested issuing key"),
            Self::CertificateKey(name) => write!(f, "certificate {name}"),
            Self::DnsKey(zone) => write!(f, "zone {zone}"),
            Self::TicketKey(made) => write!(f, "ticket key {}", made.0),
            Self::Account(directory) => write!(f, "account {directory}"),
            Self::OrderKey(site) => write!(f, "order {site}"),
        }
    }
}

/// A secret sealed anew, in the place of the same secret under another key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resealed {
    pub name: SealedName,
    /// As it is meanwhile: another one there is left alone.
    pub before: Vec<u8>,
    pub sealed: Vec<u8>,
}
