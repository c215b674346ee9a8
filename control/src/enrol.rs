//! Enrolment and renewal, at the leader.

use crate::ca;
use crate::raft::member_change;
use crate::shared::{Control, NotNow};
use raft::eraftpb::ConfChangeType;
use std::sync::Arc;
use std::time::Duration;
use tidegate_certs::ca::requested_key;
use tidegate_certs::token::hash_matches;
use tidegate_certs::{CertError, NodeIdentity};
use tidegate_control_state::{Enrolment, Refusal};
use tidegate_control_types::{Change, Clock, NodeState, Role, wire};
use tidegate_node::enrol::{ControlSecrets, EnrolAnswer, EnrolRequest};
use zeroize::Zeroizing;

/// A node cannot fill the log with where it is reached.
const BETWEEN_MOVES: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error("the request cannot be read: {0}")]
    Request(#[from] wire::WireError),
    #[error(transparent)]
    NotNow(#[from] NotNow),
    #[error(transparent)]
    Control(#[from] crate::ControlError),
    #[error(transparent)]
    Certificate(#[from] CertError),
}

impl EnrolError {
    /// Whether asking again can help.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Request(_) | Self::Certificate(_) | Self::NotNow(NotNow::Refused(_)))
    }
}

/// Enrols a node: uses up its join token, writes it into the log, signs its certificate.
pub async fn enrol(control: &Arc<Control>, body: &[u8]) -> Result<EnrolAnswer, EnrolError> {
    let asked: EnrolRequest = wire::decode(body)?;
    let refused = || EnrolError::NotNow(NotNow::Refused(Refusal::JoinToken));
    control.read_barrier().await?;
    let again;
    {
        let state = control.raft.state.read();
        let join = state.join(&asked.join_id).ok_or_else(refused)?;
        // All that can be refused is refused before the token is used up.
        if !hash_matches(&asked.join_secret, &join.hash) {
            return Err(refused());
        }
        if join.role != asked.node.role {
            let why = format!("the join token is for the role {}, and {} is to be {}", join.role, asked.node.name, asked.node.role);
            return Err(NotNow::Refused(Refusal::Conflict(why)).into());
        }
        asked.node.check().map_err(|why| NotNow::Refused(Refusal::Conflict(why)))?;
        again = join.used.is_some();
    }
    let ca = ca::newest(control)?;
    let key = requested_key(&asked.request)?;
    let by = format!("join token {}", asked.join_id);
    let node = asked.node.clone();
    control.change(&by, Change::NodeEnrol { node: asked.node, join: asked.join_id, key }).await?;
    let (name, role) = (node.name.clone(), node.role);
    let identity = {
        let state = control.raft.state.read();
        let record = state.node(name.as_str()).filter(|n| n.removed.is_none());
        let record = record.ok_or_else(|| NotNow::Refused(Refusal::NotFound(format!("{name} was removed as soon as it had enrolled"))))?;
        let cluster = state.founding.cluster.clone();
        NodeIdentity {
            cluster,
            role: role.to_string(),
            region: record.state.region.clone(),
            name: name.to_string(),
            enrolled: record.state.since,
        }
    };
    let chain = ca.sign_node(&asked.request, &identity, control.clock.wall().as_secs())?;
    let secrets = match role {
        Role::Control => Some(add_member(control, &by, name, (node.address.unwrap_or_default(), again)).await?),
        Role::Edge | Role::Shield | Role::Dns => None,
    };
    Ok(EnrolAnswer { chain, retired: control.raft.state.read().authority.issuers().retired, control: secrets })
}

/// Writes a new control node into the log and makes it a learner; the leader makes it a voter once it has caught up.
async fn add_member(
    control: &Arc<Control>,
    by: &str,
    name: tidegate_control_types::NodeName,
    (address, again): (String, bool),
) -> Result<ControlSecrets, EnrolError> {
    // Two at once would get the same id.
    let _one = control.joining.lock().await;
    let (there, next) = {
        let state = control.raft.state.read();
        let there = state.members().find(|m| *m.1 == name).map(|m| m.0);
        (there, state.next_member())
    };
    // It is there where the node asks once more, having heard no answer.
    let id = there.unwrap_or(next);
    if there.is_none() {
        // Where another has just got this id, it asks once more.
        let put = control.change(by, Change::MemberPut { id, name, address }).await;
        put.map_err(|e| if matches!(e, NotNow::Refused(_)) { NotNow::Unknown } else { e })?;
    }
    let members = control.members().await.ok_or(NotNow::Unknown)?;
    // It has heard the answer, and runs: whoever asks now is somebody else.
    if again && (members.voters.contains(&id) || members.learners.iter().any(|(l, matched)| *l == id && *matched > 0)) {
        return Err(NotNow::Refused(Refusal::JoinToken).into());
    }
    if members.learners.iter().all(|l| l.0 != id) {
        control.change_members(member_change(ConfChangeType::AddLearnerNode, id)).await?;
    }
    // Read after its place is in the log: a rotation gives its key to all who have one, before it reads who has.
    let cluster_keys = control.cluster_keys.ring().keys().map(|k| Zeroizing::new(*k.as_bytes())).collect();
    Ok(ControlSecrets { raft_id: id, cluster_keys })
}

pub async fn promote(control: &Control, id: u64) -> Result<(), NotNow> {
    control.change_members(member_change(ConfChangeType::AddNode, id)).await
}

/// How a node stands, as far as this control node has applied the log.
pub fn enrolment(control: &Control, who: &NodeIdentity) -> Enrolment {
    control.raft.state.read().enrolment((&who.name, &who.role, &who.region), who.enrolled)
}

/// Where a node is reached, as it says itself, into the log of this leader, if that is new.
pub async fn announced(control: &Control, node: NodeState) -> Result<(), NotNow> {
    node.check().map_err(Refusal::Conflict)?;
    control.read_barrier().await?;
    let is_news = control.raft.state.read().node(node.name.as_str()).is_some_and(|n| n.state.is_elsewhere(&node));
    if !is_news {
        return Ok(());
    }
    let now = control.clock.boot();
    {
        let mut moved = control.moved.lock();
        moved.retain(|_, at| now.since(*at) < BETWEEN_MOVES);
        if moved.contains_key(&node.name) {
            return Err(NotNow::Busy);
        }
        moved.insert(node.name.clone(), now);
    }
    control.change(&format!("node {}", node.name), Change::NodeUpdate { node }).await.map(drop)
}

/// A new certificate for a node that shows its old one.
pub fn renew(control: &Control, who: &NodeIdentity, request: &[u8]) -> Result<Vec<Vec<u8>>, EnrolError> {
    if enrolment(control, who) != Enrolment::Stands {
        return Err(NotNow::Refused(Refusal::NotFound(format!("{} is not, or no longer, a node of this network", who.name))).into());
    }
    Ok(ca::newest(control)?.sign_node(request, who, control.clock.wall().as_secs())?)
}
