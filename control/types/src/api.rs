//! The documents of the HTTP API, as the server writes and the client reads them.

use crate::certificate::OrderStep;
use crate::explain::{Explained, Steered};
use crate::purge::PurgeType;
use crate::site::{Shown, SiteSpec};
use serde::{Deserialize, Serialize};

/// RFC 9457 problem details.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Problem {
    /// Stable name of the kind of problem, relative to the API's root.
    pub r#type: String,
    pub title: String,
    pub status: u16,
    pub detail: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PurgeRequest {
    pub r#type: PurgeType,
    #[serde(default)]
    pub selectors: Vec<String>,
    #[serde(default)]
    pub site: Option<String>,
    #[serde(default)]
    pub soft: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    pub url: String,
    /// Fields of the request: names and values.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExplainView {
    pub site: String,
    pub nodes: Vec<NodeExplained>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeExplained {
    pub name: String,
    pub role: String,
    pub region: String,
    /// `null` where the node gave no answer in time.
    pub explained: Option<Explained>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SteeringRequest {
    /// A site's name, or its name in the zone.
    pub name: String,
    /// An IP address.
    pub client: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SteeringView {
    pub nodes: Vec<NodeSteered>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeSteered {
    pub name: String,
    pub region: String,
    /// `null` where the node gave no answer in time.
    pub steered: Option<Steered>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TxtRequest {
    pub values: Vec<String>,
}

/// The TXT records of a name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TxtView {
    pub name: String,
    pub values: Vec<String>,
}

/// Whether a host of a site is the site's, as the world's name servers say.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostView {
    pub host: String,
    pub shown: Shown,
    /// The names that its CNAME records lead to, one after another.
    pub chain: Vec<String>,
    /// What is to be done, or could not be found out.
    pub problem: Option<String>,
    /// Whether the site answers for it: once it was shown whose it is, and for some days after it shows so no more.
    pub held: bool,
    /// Milliseconds since 1970: since when it shows so no more.
    pub lost: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZoneRequest {
    pub zone: String,
}

/// A signed zone, in the words of the DS record that belongs into its parent (RFC 4034 section 5).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ZoneView {
    pub zone: String,
    pub key_tag: u16,
    /// 13: ECDSA P-256 with SHA-256 (RFC 6605).
    pub algorithm: u8,
    /// 2: SHA-256 (RFC 4509).
    pub digest_type: u8,
    /// Hexadecimal.
    pub digest: String,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateUpload {
    /// In PEM, the site's own first.
    pub chain: String,
    /// In PEM, without a passphrase.
    pub key: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CertificatesView {
    pub certificates: Vec<CertificateView>,
    /// That are under way, or failed and are tried again.
    pub orders: Vec<OrderView>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CertificateView {
    /// `internal/<site>`, `acme/<site>` or, uploaded, `<name>/<algorithm>`.
    pub name: String,
    pub sites: Vec<String>,
    pub hosts: Vec<String>,
    pub issuer: String,
    /// ecdsa | rsa | ed25519
    pub algorithm: String,
    /// SHA-256 of the certificate, in hexadecimal.
    pub fingerprint: String,
    /// Milliseconds since 1970.
    pub not_before: u64,
    pub not_after: u64,
    /// Below 0 once it has expired.
    pub days_left: i64,
    /// What is done about it, and by whom.
    pub next: String,
}

/// An order at an authority (RFC 8555).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OrderView {
    pub site: String,
    pub hosts: Vec<String>,
    /// Those of them that could not be proven: the others do not wait for these.
    pub left_out: Vec<String>,
    pub authority: String,
    pub step: OrderStep,
    /// That are open.
    pub challenges: Vec<String>,
    /// Milliseconds since 1970.
    pub began: u64,
    /// On end.
    pub failures: u32,
    /// Why it failed last.
    pub problem: Option<String>,
    /// Milliseconds since 1970.
    pub next_try: Option<u64>,
}

/// A purge and how far it has come: the answer to the purge and, later, its receipt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Receipt {
    pub revision: String,
    pub index: u64,
    pub r#type: PurgeType,
    pub site: Option<String>,
    pub selectors: Vec<String>,
    pub soft: bool,
    pub by: String,
    /// Milliseconds since 1970.
    pub at: u64,
    /// True everywhere: no request that came after is answered with what it names.
    pub done: bool,
    pub nodes: Vec<ReceiptNode>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReceiptNode {
    pub name: String,
    pub role: String,
    pub region: String,
    /// applied | silent | waiting | may_serve
    pub state: String,
    /// Milliseconds since 1970, as the leader heard of it.
    pub applied_at: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SiteView {
    pub name: String,
    pub revision: u64,
    pub hosts: Vec<String>,
    /// Those of them that it does not answer for yet: whose they are was not shown.
    pub unshown: Vec<String>,
    /// Where to point a CNAME at, if the network has a zone.
    pub cname: Option<String>,
    pub spec: SiteSpec,
    /// The file as it was applied.
    pub source: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SiteVersionView {
    pub revision: u64,
    pub at: u64,
    pub by: String,
    pub source: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeView {
    pub name: String,
    pub role: String,
    pub region: String,
    pub address: Option<String>,
    pub advertise: Vec<String>,
    /// attached | detached | drained | removed, and for control nodes leader | member.
    pub state: String,
    /// The newest revision that it acknowledged to this leader.
    pub applied: Option<u64>,
    pub requests: Option<u64>,
    pub hits: Option<u64>,
    pub stored_bytes: Option<u64>,
    pub version: Option<String>,
    pub origins_down: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    pub role: crate::token::TokenRole,
    #[serde(default)]
    pub sites: Vec<String>,
    #[serde(default)]
    pub note: String,
    /// Seconds until it expires; never where it is missing.
    #[serde(default)]
    pub expires_in: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    pub role: crate::node::Role,
    #[serde(default)]
    pub region: Option<String>,
    /// Seconds until it expires.
    #[serde(default)]
    pub expires_in: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenView {
    pub id: String,
    /// Role of an API token, or `join <role>`.
    pub role: String,
    pub sites: Vec<String>,
    pub note: String,
    pub created: u64,
    pub expires: Option<u64>,
    /// The whole token, in the answer that made it and never again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// The network's own authority. Times in milliseconds since 1970, fingerprints in hexadecimal digits: of the root's certificate, of
/// issuing authorities' public keys (SHA-256 of the SubjectPublicKeyInfo).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CaView {
    pub root: String,
    pub root_not_after: u64,
    /// The leader makes issuing authorities by itself.
    pub root_key_in_log: bool,
    /// Those that are believed, the newest first.
    pub issuing: Vec<IssuingView>,
    pub retired: Vec<String>,
    /// A request waits for what the root makes of it.
    pub requested: bool,
    /// Nodes of which it is not known whose certificate they show.
    pub unheard: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IssuingView {
    pub fingerprint: String,
    pub made: u64,
    pub not_after: u64,
    pub signs: bool,
    /// Nodes that show a certificate of it.
    pub nodes: Vec<String>,
}

/// A certificate signing request in PEM form.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CaRequestView {
    pub request: String,
}

/// A certificate in PEM form.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaUpload {
    pub certificate: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeysView {
    /// Id of the key that seals.
    pub cluster_key: String,
    /// Secrets in the log, and those of them that an older key has sealed.
    pub sealed: usize,
    pub sealed_otherwise: usize,
    /// In milliseconds since 1970.
    pub ticket_key_made: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MemberView {
    pub id: u64,
    pub name: String,
    pub address: String,
    /// leader | voter | learner
    pub state: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AuditView {
    pub index: u64,
    pub at: u64,
    pub by: String,
    pub what: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub cluster: String,
    pub revision: String,
    pub leader: String,
    pub term: u64,
    pub zone: Option<String>,
    pub sites: usize,
    pub members: Vec<MemberView>,
    pub nodes: Vec<NodeView>,
}
