//! Who may do what through the API.

use crate::authority::Fingerprint;
use crate::name::{NodeName, SiteName};
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// What a request needs of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Look at sites, nodes, receipts and status.
    Read,
    Purge,
    /// Apply, roll back and remove sites.
    Site,
    /// Drain and remove nodes, make join tokens, change the voters.
    Node,
    /// Make and revoke tokens.
    Token,
}

/// A named set of verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenRole {
    Admin,
    Deploy,
    Purge,
    Read,
}

impl TokenRole {
    pub const ALL: [Self; 4] = [Self::Admin, Self::Deploy, Self::Purge, Self::Read];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Deploy => "deploy",
            Self::Purge => "purge",
            Self::Read => "read",
        }
    }

    #[must_use]
    pub fn allows(self, verb: Verb) -> bool {
        match self {
            Self::Admin => true,
            Self::Deploy => matches!(verb, Verb::Read | Verb::Purge | Verb::Site),
            Self::Purge => matches!(verb, Verb::Read | Verb::Purge),
            Self::Read => verb == Verb::Read,
        }
    }
}

impl FromStr for TokenRole {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|r| r.as_str() == s)
            .ok_or_else(|| format!("{s:?} is not a role of a token: admin, deploy, purge or read"))
    }
}

/// What the log keeps of a token. The secret is shown once, when it is made; only its hash is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    pub id: String,
    pub note: String,
    /// SHA-256 of the secret part (256 random bits, so that a plain hash is enough).
    pub hash: [u8; 32],
    pub role: TokenRole,
    /// The sites it is for; empty means all of the network.
    pub sites: Vec<SiteName>,
    pub created: WallTime,
    pub expires: Option<WallTime>,
}

impl TokenRecord {
    /// Whether it may do `verb` to `site` (`None`: to the network as a whole) at `now`.
    #[must_use]
    pub fn allows(&self, verb: Verb, site: Option<&SiteName>, now: WallTime) -> bool {
        let scoped = self.sites.is_empty() || site.is_some_and(|s| self.sites.contains(s));
        self.role.allows(verb) && scoped && self.expires.is_none_or(|end| now < end)
    }
}

/// A one-time permission to enrol one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRecord {
    pub id: String,
    pub hash: [u8; 32],
    pub role: crate::node::Role,
    /// The region it is bound to, if any.
    pub region: Option<String>,
    pub created: WallTime,
    pub expires: WallTime,
    pub used: Option<Joined>,
}

/// Who has used up a join token. A node that did not hear the answer asks for it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    pub node: NodeName,
    /// Of the public key that it asked a certificate for.
    pub key: Fingerprint,
    /// Index of its enrolment.
    pub enrolled: u64,
    pub at: WallTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_for_one_site_can_do_nothing_to_another_or_to_the_network() {
        let site = |s: &str| s.parse::<SiteName>().unwrap();
        let token = TokenRecord {
            id: "a".into(),
            note: String::new(),
            hash: [0; 32],
            role: TokenRole::Purge,
            sites: vec![site("shop")],
            created: WallTime(0),
            expires: Some(WallTime(1000)),
        };
        assert!(token.allows(Verb::Purge, Some(&site("shop")), WallTime(0)));
        assert!(!token.allows(Verb::Purge, Some(&site("blog")), WallTime(0)));
        assert!(!token.allows(Verb::Purge, None, WallTime(0)));
        assert!(!token.allows(Verb::Site, Some(&site("shop")), WallTime(0)));
        assert!(!token.allows(Verb::Purge, Some(&site("shop")), WallTime(1000)), "expired");
    }
}
