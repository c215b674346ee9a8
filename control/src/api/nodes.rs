//! Nodes: seen, drained, removed.

use super::{ApiError, Caller, reply};
use crate::raft::{Leadership, member_change};
use crate::shared::Control;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use raft::eraftpb::ConfChangeType;
use serde::Deserialize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tidegate_control_state::{NodeRecord, State as Machine};
use tidegate_control_types::api::NodeView;
use tidegate_control_types::token::Verb;
use tidegate_control_types::{BootTime, Change, NodeName, Role};

pub fn view(control: &Control, state: &Machine, leadership: &Leadership, node: &NodeRecord, now: BootTime) -> NodeView {
    let name = &node.state.name;
    let report = leadership.fleet.report(name).map(|(r, _)| r);
    let member = state.members().find(|m| m.1 == name);
    let condition = match (node.removed, node.state.role, member) {
        (Some(_), _, _) => "removed",
        (None, Role::Control, Some((id, ..))) if id == control.raft.leader.load(Ordering::Acquire) => "leader",
        (None, Role::Control, _) => "member",
        (None, ..) if !leadership.fleet.attached(name, now) => "detached",
        (None, ..) if node.state.drained => "drained",
        (None, ..) => "attached",
    };
    NodeView {
        name: name.to_string(),
        role: node.state.role.to_string(),
        region: node.state.region.clone(),
        address: node.state.address.clone(),
        advertise: node.state.advertise.iter().map(ToString::to_string).collect(),
        state: condition.into(),
        applied: if node.state.role.follows() { leadership.fleet.acked_index(name) } else { None },
        requests: report.map(|r| r.requests),
        hits: report.map(|r| r.hits),
        stored_bytes: report.map(|r| r.stored_bytes),
        version: report.map(|r| r.version.clone()),
        origins_down: report.map(|r| r.origins_down.clone()).unwrap_or_default(),
    }
}

pub fn all(control: &Control) -> Result<Vec<NodeView>, ApiError> {
    let now = control.now();
    let views = control.with_leadership(|state, l| state.nodes().map(|n| view(control, state, l, n, now)).collect());
    views.ok_or_else(|| crate::shared::NotNow::NoLeader.into())
}

fn node_name(text: &str) -> Result<NodeName, ApiError> {
    text.parse().map_err(|e: tidegate_control_types::name::NotAName| ApiError::bad(e.to_string()))
}

pub async fn list(State(control): State<Arc<Control>>, caller: Caller) -> Result<Response, ApiError> {
    caller.may(Verb::Read, None)?;
    Ok(reply(StatusCode::OK, &all(&control)?))
}

pub async fn show(State(control): State<Arc<Control>>, Path(name): Path<String>, caller: Caller) -> Result<Response, ApiError> {
    caller.may(Verb::Read, None)?;
    let name = node_name(&name)?;
    let found = all(&control)?.into_iter().find(|n| n.name == name.as_str());
    Ok(reply(StatusCode::OK, &found.ok_or_else(|| ApiError::not_found(format!("there is no node {name}")))?))
}

pub async fn drain(State(control): State<Arc<Control>>, Path(name): Path<String>, caller: Caller) -> Result<Response, ApiError> {
    set_drained(&control, &caller, &name, true).await
}

pub async fn undrain(State(control): State<Arc<Control>>, Path(name): Path<String>, caller: Caller) -> Result<Response, ApiError> {
    set_drained(&control, &caller, &name, false).await
}

async fn set_drained(control: &Control, caller: &Caller, name: &str, drained: bool) -> Result<Response, ApiError> {
    caller.may(Verb::Node, None)?;
    control.change(&caller.name(), Change::NodeDrain { name: node_name(name)?, drained }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
pub struct Removal {
    #[serde(default)]
    dead: bool,
}

pub async fn remove(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    Query(how): Query<Removal>,
    caller: Caller,
) -> Result<Response, ApiError> {
    caller.may(Verb::Node, None)?;
    let name = node_name(&name)?;
    let member = control.raft.state.read().members().find(|m| *m.1 == name).map(|m| m.0);
    if let Some(id) = member {
        if id == control.raft.id {
            let why = format!("{name} leads the control plane: stop it first, so that another one leads, then remove it");
            return Err(ApiError::new(StatusCode::CONFLICT, "conflict", why));
        }
        still_decides(&control, id).await?;
        // Each step may be made again.
        control.change_members(member_change(ConfChangeType::RemoveNode, id)).await?;
        control.change(&caller.name(), Change::MemberRemove { id }).await?;
    }
    // A control node answers no client by what it knows.
    let is_control = control.raft.state.read().node(name.as_str()).is_some_and(|n| n.state.role == Role::Control);
    let dead = how.dead || is_control;
    control.change(&caller.name(), Change::NodeRemove { name, dead }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Whether the control plane can remove this voter, and decide anything without it.
async fn still_decides(control: &Arc<Control>, gone: u64) -> Result<(), ApiError> {
    let voters = control.members().await.map(|m| m.voters).unwrap_or_default();
    let names: Vec<_> = control.raft.state.read().members().map(|(id, name, address)| (id, name.to_string(), address.to_owned())).collect();
    let (mut answer, mut silent) = (vec![control.raft.id], Vec::new());
    for (id, name, address) in names.into_iter().filter(|(id, ..)| *id != control.raft.id && voters.contains(id)) {
        let path = format!("/issuer?log={}", control.log());
        match control.links.call(&address, "control", &path, Vec::new(), ANSWERS_WITHIN).await {
            Ok(_) => answer.push(id),
            Err(_) => silent.push(name),
        }
    }
    let is_majority = |voters: &[u64]| voters.iter().filter(|id| answer.contains(id)).count() > voters.len() / 2;
    let left: Vec<u64> = voters.iter().copied().filter(|id| *id != gone).collect();
    if is_majority(&voters) && is_majority(&left) {
        return Ok(());
    }
    let why = format!(
        "{} of {} control nodes do not answer ({}): those that would be left could decide nothing. Start them again, or restore the network from a backup",
        silent.len(),
        voters.len(),
        silent.join(", ")
    );
    Err(ApiError::new(StatusCode::CONFLICT, "conflict", why))
}
