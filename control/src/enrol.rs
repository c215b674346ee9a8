//! Enrolment and renewal, at the leader.

use crate::ca;
use crate::raft::member_change;
use crate::shared::{Control, NotNow};
use raft::eraftpb::ConfChangeType;
use std::sync::Arc;
use tidegate_certs::token::hash_matches;
use tidegate_certs::{CertError, NodeIdentity};
use tidegate_control_state::{NodeRecord, Refusal};
use tidegate_control_types::{Change, Clock, Role, wire};
use tidegate_node::enrol::{ControlSecrets, EnrolAnswer, EnrolRequest};
use zeroize::Zeroizing;

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
        matches!(self, Self::Request(_) | Self::NotNow(NotNow::Refused(_)))
    }
}

/// Enrols a node: uses up its join token, writes it into the log, signs its certificate.
pub async fn enrol(control: &Arc<Control>, body: &[u8]) -> Result<EnrolAnswer, EnrolError> {
    let asked: EnrolRequest = wire::decode(body)?;
    let refused = || EnrolError::NotNow(NotNow::Refused(Refusal::JoinToken));
    control.read_barrier().await?;
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
    }
    let ca = ca::newest(control)?;
    let identity = NodeIdentity {
        cluster: control.raft.state.read().founding.cluster.clone(),
        role: asked.node.role.to_string(),
        region: asked.node.region.clone(),
        name: asked.node.name.to_string(),
    };
    let chain = ca.sign_node(&asked.request, &identity, control.clock.wall().as_secs())?;
    let by = format!("join token {}", asked.join_id);
    let (name, role, address) = (asked.node.name.clone(), asked.node.role, asked.node.address.clone());
    control.change(&by, Change::NodeEnrol { node: asked.node, join: asked.join_id }).await?;
    let secrets = match role {
        Role::Control => Some(add_member(control, &by, name, address.unwrap_or_default()).await?),
        Role::Edge | Role::Shield | Role::Dns => None,
    };
    Ok(EnrolAnswer { chain, retired: control.raft.state.read().authority.issuers().retired, control: secrets })
}

/// Writes a new control node into the log and makes it a learner; the leader makes it a voter once it has caught up.
async fn add_member(
    control: &Arc<Control>,
    by: &str,
    name: tidegate_control_types::NodeName,
    address: String,
) -> Result<ControlSecrets, EnrolError> {
    let id = control.raft.state.read().next_member();
    control.change(by, Change::MemberPut { id, name, address }).await?;
    control.change_members(member_change(ConfChangeType::AddLearnerNode, id)).await?;
    // Read after its place is in the log: a rotation gives its key to all who have one, before it reads who has.
    let cluster_keys = control.cluster_keys.ring().keys().map(|k| Zeroizing::new(*k.as_bytes())).collect();
    Ok(ControlSecrets { raft_id: id, cluster_keys })
}

pub async fn promote(control: &Control, id: u64) -> Result<(), NotNow> {
    control.change_members(member_change(ConfChangeType::AddNode, id)).await
}

/// A new certificate for a node that shows its old one.
pub fn renew(control: &Control, who: &NodeIdentity, request: &[u8]) -> Result<Vec<Vec<u8>>, EnrolError> {
    // What it is stands in the log; its certificate has to say the same.
    let is_known = |n: &NodeRecord| n.removed.is_none() && n.state.role.as_str() == who.role && n.state.region == who.region;
    if !control.raft.state.read().node(&who.name).is_some_and(is_known) {
        return Err(NotNow::Refused(Refusal::NotFound(format!("{} is not, or no longer, a node of this network", who.name))).into());
    }
    Ok(ca::newest(control)?.sign_node(request, who, control.clock.wall().as_secs())?)
}
