//! Certificates of sites, as the log has them, and the orders by which an authority makes them (RFC 8555).

use crate::name::SiteName;
use crate::site::{CertificateChoice, HostPattern, SiteSpec};
use crate::time::WallTime;
use serde::{Deserialize, Serialize};

/// A certificate whose private key is sealed under the cluster key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedCertificate {
    /// `internal/<site>`, `acme/<site>` or, uploaded, `<name>/<algorithm of its key>`.
    pub name: String,
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    pub sealed_key: Vec<u8>,
    /// The names that it is for: DNS names, `*.` before those of which it has any one label, or addresses.
    pub hosts: Vec<String>,
    pub not_before: WallTime,
    pub not_after: WallTime,
}

/// From the network's own CA.
#[must_use]
pub fn internal_name(site: &SiteName) -> String {
    format!("internal/{site}")
}

/// From an authority that the world trusts.
#[must_use]
pub fn acme_name(site: &SiteName) -> String {
    format!("acme/{site}")
}

/// Names that no uploaded certificate may have.
pub const RESERVED: [&str; 4] = ["auto", "internal", "acme", "none"];

/// Whether `name` is one of those under which the certificate `uploaded` stands, one for each algorithm.
#[must_use]
pub fn is_uploaded_as(name: &str, uploaded: &str) -> bool {
    name.strip_prefix(uploaded).is_some_and(|rest| rest.starts_with('/'))
}

/// Whether a certificate for `names` is one for all that `host` says; of `*` nothing can be said.
#[must_use]
pub fn covers(names: &[String], host: &HostPattern) -> bool {
    match host {
        HostPattern::Any => true,
        HostPattern::Under(base) => names.iter().any(|n| n.strip_prefix("*.") == Some(base)),
        HostPattern::Exact(h) => {
            let h = h.trim_matches(['[', ']']);
            let above = h.split_once('.').map(|(_, above)| above);
            names.iter().any(|n| n == h || (above.is_some() && n.strip_prefix("*.") == above))
        }
    }
}

impl SiteSpec {
    /// The names under which an authority can certify its hosts: addresses and `*` are none.
    #[must_use]
    pub fn certifiable(&self) -> Vec<String> {
        let is_name =
            |h: &str| h.contains('.') && !h.contains(':') && !h.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
        let names = self.hosts.iter().filter(|h| match h {
            HostPattern::Exact(h) | HostPattern::Under(h) => is_name(h),
            HostPattern::Any => false,
        });
        names.map(ToString::to_string).collect()
    }

    #[must_use]
    pub fn is_automatic(&self) -> bool {
        self.tls.certificate == CertificateChoice::Auto
    }
}

/// A challenge that is open (RFC 8555 section 8): whoever is asked for it by the authority gives this answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// The name that is to be proven, without `*.`.
    pub host: String,
    pub answer: ChallengeAnswer,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChallengeAnswer {
    /// Section 8.3: at `/.well-known/acme-challenge/<token>`.
    Http01 { token: String, key_authorization: String },
    /// RFC 8737: a certificate that holds this digest.
    TlsAlpn01 { digest: Vec<u8> },
    /// Section 8.4: a TXT record at `_acme-challenge.<site>.<zone>`, to which `_acme-challenge.<host>` leads.
    Dns01 { value: String },
}

impl ChallengeAnswer {
    /// As RFC 8555 names it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Http01 { .. } => "http-01",
            Self::TlsAlpn01 { .. } => "tls-alpn-01",
            Self::Dns01 { .. } => "dns-01",
        }
    }
}

/// An account at an authority; its private key is sealed under the cluster key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedAccount {
    /// URL of the authority's directory.
    pub authority: String,
    pub sealed: Vec<u8>,
}

/// How far an order is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderStep {
    /// The authority is asked for it.
    Ordering,
    /// The challenges are open, and the authority looks at them.
    Validating,
    /// All names are proven: the certificate is asked for.
    Finalizing,
    /// It came to nothing, and is begun anew at its time.
    Failed,
}

/// An order for a site's certificate, with all that another leader needs to go on with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderRecord {
    pub site: SiteName,
    /// That the site wants in it.
    pub names: Vec<String>,
    /// Those of them that could not be proven: the others do not wait for these.
    pub left_out: Vec<String>,
    /// URL of the authority's directory.
    pub authority: String,
    /// The order's own, once the authority has it.
    pub url: Option<String>,
    /// Of the certificate that is to be: PKCS #8 DER, sealed under the cluster key.
    pub sealed_key: Vec<u8>,
    pub began: WallTime,
    pub step: OrderStep,
    /// On end.
    pub failures: u32,
    /// Why it failed last.
    pub problem: Option<String>,
    /// When it is begun anew, after a failure.
    pub next_try: WallTime,
}

impl OrderRecord {
    /// The names that it is for.
    #[must_use]
    pub fn ordered(&self) -> Vec<String> {
        self.names.iter().filter(|n| !self.left_out.contains(n)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_for_one_label() {
        let names = ["a.example", "*.b.example", "192.0.2.1"].map(str::to_owned);
        for (host, is) in [
            ("a.example", true),
            ("x.b.example", true),
            ("x.y.b.example", false),
            ("b.example", false),
            ("192.0.2.1", true),
            ("*.b.example", true),
            ("*.example", false),
            ("*", true),
        ] {
            assert_eq!(covers(&names, &HostPattern::parse(host).unwrap()), is, "{host}");
        }
        assert!(is_uploaded_as("shop/rsa", "shop") && !is_uploaded_as("shop-2/rsa", "shop"));
    }
}
