//! The network's own authority, as the log has it: a root that every node trusts, and what it signed.

use crate::time::WallTime;
use serde::{Deserialize, Serialize};

/// SHA-256 of the public key of a certificate (its SubjectPublicKeyInfo).
pub type Fingerprint = [u8; 32];

/// Private keys are sealed under the cluster key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// The root's private key, until an operator takes it offline.
    pub root_key: Option<Vec<u8>>,
    /// Those that are trusted. The newest, at the end, signs.
    pub issuing: Vec<Issuing>,
    pub retired: Vec<Retired>,
    /// What an operator brings to the root that is offline.
    pub requested: Option<RequestedIssuing>,
}

/// An issuing authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issuing {
    pub fingerprint: Fingerprint,
    /// DER.
    pub certificate: Vec<u8>,
    pub sealed_key: Vec<u8>,
    pub not_before: WallTime,
    pub not_after: WallTime,
}

/// One that is trusted no more; forgotten once nobody would believe anything of it anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {
    pub fingerprint: Fingerprint,
    pub not_after: WallTime,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestedIssuing {
    /// Certificate signing request, DER.
    pub request: Vec<u8>,
    pub sealed_key: Vec<u8>,
}

/// What nodes are told of it: by whom their certificates have to be, and whose they believe no more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issuers {
    pub newest: Fingerprint,
    pub retired: Vec<Fingerprint>,
}

impl Authority {
    #[must_use]
    pub fn issuers(&self) -> Issuers {
        let newest = self.issuing.last().map(|i| i.fingerprint).unwrap_or_default();
        Issuers { newest, retired: self.retired.iter().map(|r| r.fingerprint).collect() }
    }
}

/// As people name one: in hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
