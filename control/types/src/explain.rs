//! What nodes say of one request: what is stored for it, what they would do with it; and where they would send its client.

use crate::name::SiteName;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What a node is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Asked {
    /// Of cache nodes.
    Request(Question),
    /// Of those that answer for the zone: where would a client of this address be sent for the site?
    Steering { site: SiteName, client: IpAddr },
}

/// What it says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Said {
    Request(Explained),
    Steering(Steered),
}

/// Where a node that answers for the zone sends a client, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Steered {
    /// The name that was asked for.
    pub name: String,
    /// Regions near the client, the nearest first; and what said so.
    pub near: Vec<String>,
    pub near_by: String,
    /// How many bits of the client's address decided.
    pub scope: u8,
    /// Why these edges and no others, in words.
    pub why: String,
    /// Those that are named first, then the others by how good they are.
    pub edges: Vec<SteeredEdge>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SteeredEdge {
    pub name: String,
    pub region: String,
    pub addresses: Vec<IpAddr>,
    pub named: bool,
    /// ready | behind | cut_off | drained, and "lost, " before it where probes do not get through.
    pub standing: String,
    /// Its share of the sites among the edges of its region, and which part of their clients' networks it lets in: 1, unless it is busy.
    pub capacity: f64,
    pub room: f64,
}

/// A request as it would come to an edge; its site is found already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    pub site: SiteName,
    pub https: bool,
    /// Lower-case, without port.
    pub host: String,
    pub port: Option<u16>,
    /// Path and query.
    pub target: String,
    pub headers: Vec<(String, String)>,
}

/// What one cache node says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// Incarnation and index: which changes it knows.
    pub revision: String,
    /// Whether it holds its lease, and so knows of every purge that was answered.
    pub attached: bool,
    /// Site, scheme, host and port, path and query: what it is stored under.
    pub key: Vec<String>,
    pub next: Next,
    /// Which rule or directive decided, in words.
    pub why: String,
    /// The newest first.
    pub variants: Vec<Variant>,
}

/// What the next such request would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Next {
    /// Answered from the cache.
    Hit,
    /// Answered from the cache, stale, while upstream is asked behind it.
    HitStale,
    /// Upstream is asked whether what is stored still holds.
    Validate,
    /// Fetched, and shared with all who ask meanwhile.
    Fetch,
    /// Fetched for this request alone.
    Pass,
    /// Answered 503 or 421.
    Refuse,
}

impl Next {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::HitStale => "hit_stale",
            Self::Validate => "validate",
            Self::Fetch => "fetch",
            Self::Pass => "pass",
            Self::Refuse => "refuse",
        }
    }
}

/// One stored response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// It is the one for this request.
    pub selected: bool,
    pub status: u16,
    /// Names and values of the request's fields that it varies on.
    pub vary: Vec<(String, Option<String>)>,
    /// Seconds.
    pub age: u64,
    /// Freshness lifetime in seconds, and what said so.
    pub lifetime: u64,
    pub lifetime_by: String,
    /// current | softly_purged | purged | unvouched
    pub standing: String,
    /// The index through which it is known not to be purged.
    pub clean_through: u64,
    pub etag: Option<String>,
    pub tags: Vec<String>,
    /// Of its body, as upstream gave it.
    pub bytes: u64,
    /// Content codings that were made of it, with their bytes.
    pub codings: Vec<(String, u64)>,
    /// Of them, those that are here. The others are fetched when they are asked for, where it is in slices; else it is of no use
    /// without them.
    pub bytes_here: u64,
    pub in_slices: bool,
    /// It came from the disk tier.
    pub from_disk: bool,
}
