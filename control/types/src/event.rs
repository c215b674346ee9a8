//! What control nodes and cache nodes say to each other on the watch stream: a node's hello, then what it missed,
//! then every entry as it is applied; acknowledgements and askings for a lease the other way.

use crate::authority::Issuers;
use crate::certificate::Challenge;
use crate::explain::{Asked, Said};
use crate::lease::Grant;
use crate::name::{NodeName, SiteName};
use crate::node::{EdgeStanding, NodeReport, NodeState};
use crate::purge::PurgeOrder;
use crate::revision::Revision;
use crate::site::{HostPattern, SiteSpec};
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A site as the nodes that serve it know it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteState {
    pub spec: SiteSpec,
    /// The index of its newest version.
    pub revision: u64,
    /// The index at which a site of this name began; nothing stored earlier is this site's.
    pub created: u64,
    /// The index at which its hosts or its key's rules changed last: what was stored earlier needs revalidation, since
    /// purges in between may have named it otherwise.
    pub keys_since: u64,
    /// Hosts of its file that it does not answer for: whose they are was not shown.
    pub unshown: Vec<HostPattern>,
}

/// A site's certificate with its private key in clear: only inside mutual TLS and in memory.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    pub name: String,
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// PKCS #8 DER.
    pub key: Zeroizing<Vec<u8>>,
    pub hosts: Vec<String>,
    pub not_after: WallTime,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("name", &self.name).field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

/// What a zone is signed with, in clear: only inside mutual TLS and in memory, and for nodes that answer for the zone alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsKey {
    pub zone: String,
    pub public: Vec<u8>,
    /// PKCS #8 DER.
    pub key: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for DnsKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsKey").field("zone", &self.zone).finish_non_exhaustive()
    }
}

/// With what edges seal session tickets, in clear: only inside mutual TLS and in memory, and for edges alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketKey {
    pub made: WallTime,
    pub key: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TicketKey").field("made", &self.made).finish_non_exhaustive()
    }
}

/// What applying one entry changed, for those who watch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    Site(Box<SiteState>),
    SiteRemoved(SiteName),
    Purged(Vec<PurgeOrder>),
    Certificate(Certificate),
    CertificateRemoved(String),
    Node(NodeState),
    NodeRemoved(NodeName),
    DnsKey(DnsKey),
    DnsKeyRemoved(String),
    /// All of them, the newest last.
    TicketKeys(Vec<TicketKey>),
    /// A name's TXT records, all of them.
    Txt {
        name: String,
        values: Vec<String>,
    },
    /// A site's open challenges, all of them.
    Challenges {
        site: SiteName,
        challenges: Vec<Challenge>,
    },
    /// Of nodes' certificates.
    Issuers(Issuers),
}

/// All that a node at an earlier revision missed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CatchUp {
    /// Purges up to this index may be missing below: what was stored through less needs revalidation.
    pub floor: u64,
    /// Sites changed since the node's revision, and the names of all: others are gone.
    pub sites: Vec<SiteState>,
    pub site_names: Vec<SiteName>,
    pub certificates: Vec<Certificate>,
    pub dns_keys: Vec<DnsKey>,
    pub ticket_keys: Vec<TicketKey>,
    pub txt: Vec<(String, Vec<String>)>,
    pub challenges: Vec<(SiteName, Vec<Challenge>)>,
    pub nodes: Vec<NodeState>,
    pub issuers: Issuers,
    pub purges: Vec<(u64, Vec<PurgeOrder>)>,
}

/// Control node to cache node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToNode {
    CatchUp {
        revision: Revision,
        missed: Box<CatchUp>,
    },
    /// Entries in order, each with its index; after them the node is at `through`.
    Entries {
        through: u64,
        entries: Vec<(u64, Vec<Event>)>,
    },
    Lease {
        asking: u64,
        grant: Grant,
    },
    /// The operator removed this node, by the entry at this index.
    Removed {
        removal: u64,
    },
    /// What would it do with such a request, or such a client?
    Explain {
        number: u64,
        question: Box<Asked>,
    },
    /// To a node that answers for the zone, whenever it asks for its lease: how the edges stand. Empty where the leader does not know that yet.
    Standings(Vec<EdgeStanding>),
}

/// Cache node to control node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromNode {
    /// First of all; `None` where the node holds nothing.
    Hello {
        applied: Option<Revision>,
        /// It wants to be told of purges after this index: of all that are remembered, where it holds what an earlier life
        /// stored; of none (`u64::MAX`), where it holds nothing.
        purges_after: u64,
        version: String,
    },
    /// Every worker has applied all up to this index.
    Ack {
        index: u64,
    },
    AskLease {
        asking: u64,
    },
    Report(NodeReport),
    /// It was told of its removal by the entry at this index, and answers nothing any more, whatever becomes of its process.
    Ended {
        removal: u64,
    },
    Explained {
        number: u64,
        /// `None`: it is not for this node to say.
        said: Option<Box<Said>>,
    },
}
