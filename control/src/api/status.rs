//! The network as a whole, and who did what.

use super::{ApiError, Caller, nodes, reply};
use crate::shared::Control;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tidegate_control_types::Clock;
use tidegate_control_types::api::{AuditView, MemberView, Status};
use tidegate_control_types::token::Verb;

async fn member_views(control: &Control) -> Vec<MemberView> {
    let voters = control.members().await.map(|m| m.voters).unwrap_or_default();
    let leader = control.raft.leader.load(Ordering::Acquire);
    let state = control.raft.state.read();
    let view = |(id, name, address): (u64, &tidegate_control_types::NodeName, &str)| {
        let role = if id == leader {
            "leader"
        } else if voters.contains(&id) {
            "voter"
        } else {
            "learner"
        };
        MemberView { id, name: name.to_string(), address: address.into(), state: role.into() }
    };
    state.members().map(view).collect()
}

pub async fn members(State(control): State<Arc<Control>>, caller: Caller) -> Result<Response, ApiError> {
    caller.may(Verb::Read, None)?;
    Ok(reply(StatusCode::OK, &member_views(&control).await))
}

pub async fn status(State(control): State<Arc<Control>>, caller: Caller) -> Result<Response, ApiError> {
    caller.may(Verb::Read, None)?;
    let members = member_views(&control).await;
    let nodes = nodes::all(&control)?;
    let state = control.raft.state.read();
    let status = Status {
        cluster: state.founding.cluster.clone(),
        revision: state.revision().to_string(),
        leader: members.iter().find(|m| m.state == "leader").map(|m| m.name.clone()).unwrap_or_default(),
        term: control.raft.term.load(Ordering::Acquire),
        zone: state.founding.zone.clone(),
        sites: state.sites().count(),
        members,
        nodes,
    };
    Ok(reply(StatusCode::OK, &status))
}

pub async fn audit(State(control): State<Arc<Control>>, caller: Caller) -> Result<Response, ApiError> {
    caller.may(Verb::Token, None)?;
    let state = control.raft.state.read();
    let records = state.audit().rev().map(|a| AuditView { index: a.index, at: a.at.0, by: a.by.clone(), what: a.what.clone() });
    Ok(reply(StatusCode::OK, &records.collect::<Vec<_>>()))
}

/// The whole state, as `control restore` takes it.
pub async fn backup(State(control): State<Arc<Control>>, caller: Caller) -> Result<Response, ApiError> {
    caller.may(Verb::Token, None)?;
    let bytes = crate::backup::write(&control.raft.state.read(), control.clock.wall());
    tracing::info!(by = caller.name(), bytes = bytes.len(), "a backup was taken");
    Ok(([(http::header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}
