//! What an entry of the log says.

use crate::authority::{Fingerprint, Issuing, RequestedIssuing};
use crate::certificate::{Challenge, OrderRecord, SealedAccount, SealedCertificate};
use crate::lease::LeaseTerms;
use crate::name::{NodeName, SiteName};
use crate::node::NodeState;
use crate::purge::PurgeOrder;
use crate::revision::Incarnation;
use crate::sealed::{ClusterKeyId, Resealed};
use crate::site::{Hold, HostPattern, SiteSpec};
use crate::time::WallTime;
use crate::token::{JoinRecord, TokenRecord};
use serde::{Deserialize, Serialize};

/// One change of the network, with the time that the leader gave it and who asked for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Command {
    pub at: WallTime,
    pub by: String,
    pub change: Change,
}

/// Grows at its end only. `expected` is the revision that the caller saw last (If-Match): another one refuses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Change {
    SitePut {
        spec: Box<SiteSpec>,
        source: String,
        expected: Option<u64>,
        /// An admin says that its hosts are this site's.
        vouched: bool,
    },
    SiteRemove {
        name: SiteName,
        expected: Option<u64>,
    },
    /// Orders whose site is not named get the one that serves their host.
    Purge {
        orders: Vec<PurgeOrder>,
    },
    /// Uses up the join token named; the same once more, over the same key, changes nothing. A node of that name refuses, until it is
    /// removed and forgotten.
    NodeEnrol {
        node: NodeState,
        join: String,
        /// Of the public key that its certificate is to be for.
        key: Fingerprint,
    },
    /// It is reached elsewhere, by its settings; what it is stays.
    NodeUpdate {
        node: NodeState,
    },
    NodeDrain {
        name: NodeName,
        drained: bool,
    },
    NodeRemove {
        name: NodeName,
        dead: bool,
    },
    /// By the leader: a removed node can no longer answer anything.
    NodeForget {
        name: NodeName,
        /// The index of the removal that it ends: a node of the same name may have enrolled since.
        removal: u64,
    },
    TokenCreate {
        token: TokenRecord,
    },
    TokenRevoke {
        id: String,
    },
    JoinCreate {
        join: JoinRecord,
    },
    JoinRevoke {
        id: String,
    },
    CertificatePut {
        certificate: SealedCertificate,
    },
    CertificateRemove {
        name: String,
    },
    /// A voter's or learner's place in the control plane.
    MemberPut {
        id: u64,
        name: NodeName,
        address: String,
    },
    MemberRemove {
        id: u64,
    },
    /// A zone is signed from now on (RFC 4033).
    DnsKeyPut {
        key: SealedDnsKey,
    },
    DnsKeyRemove {
        zone: String,
    },
    /// The TXT records of a name in the network's zones; none: there are none any more.
    TxtPut {
        /// In lower case, without a dot at its end.
        name: String,
        values: Vec<String>,
    },
    /// The newest of the keys with which edges seal session tickets.
    TicketKeyPut {
        key: SealedTicketKey,
    },
    /// Whether a host of a site is shown to be its own; `None`: no longer.
    HostPut {
        site: SiteName,
        host: HostPattern,
        hold: Option<Hold>,
    },
    /// An account at an authority that makes certificates.
    AccountPut {
        account: SealedAccount,
    },
    /// The authority knows it no more.
    AccountRemove {
        authority: String,
    },
    /// How far the order for a site's certificate is.
    OrderPut {
        order: Box<OrderRecord>,
    },
    OrderRemove {
        site: SiteName,
    },
    /// A site's open challenges, all of them.
    ChallengesPut {
        site: SiteName,
        challenges: Vec<Challenge>,
    },
    /// A cluster key that control nodes are given from now on, and no other one.
    ClusterKeyNext {
        key: ClusterKeyId,
    },
    /// It seals from now on: every control node has it.
    ClusterKeyPut {
        key: ClusterKeyId,
    },
    Reseal {
        items: Vec<Resealed>,
    },
    /// The root's private key, sealed: while it is here, the leader makes issuing authorities by itself.
    RootKeyPut {
        sealed: Vec<u8>,
    },
    /// An operator has taken it offline.
    RootKeyRemove,
    /// What the root, which is offline, is to sign; in the place of an earlier one.
    IssuingRequest {
        requested: RequestedIssuing,
    },
    /// An issuing authority that signs from now on.
    IssuingPut {
        issuing: Issuing,
        /// It is the one that was requested.
        requested: bool,
    },
    /// Nobody believes what it signed any more.
    IssuingRetire {
        fingerprint: Fingerprint,
    },
}

/// What a zone is signed with, sealed under the cluster key: ECDSA P-256 (RFC 6605).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedDnsKey {
    /// In lower case, without a dot at its end.
    pub zone: String,
    /// As it stands in the DNSKEY record.
    pub public: Vec<u8>,
    pub sealed_key: Vec<u8>,
}

/// With what edges seal session tickets; itself sealed under the cluster key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedTicketKey {
    pub made: WallTime,
    pub sealed: Vec<u8>,
}

/// The first state of a cluster, written by `control init`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founding {
    pub cluster: String,
    pub incarnation: Incarnation,
    pub zone: Option<String>,
    /// For the whole network and for good: a new leader has to count what its predecessor granted.
    pub lease: LeaseTerms,
    /// The certificate of the network's own root, DER.
    pub root: Vec<u8>,
}
