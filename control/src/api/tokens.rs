//! Tokens for the API, and join tokens for nodes. Each is shown once.

use super::{ApiError, Caller, json, reply};
use crate::init::{JOIN_TTL, join_record};
use crate::shared::Control;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use std::sync::Arc;
use std::time::Duration;
use tidegate_certs::token::{ApiToken, sha256};
use tidegate_control_types::api::{JoinRequest, TokenRequest, TokenView};
use tidegate_control_types::token::{JoinRecord, TokenRecord, Verb};
use tidegate_control_types::{Change, Clock, SiteName};

const MOST_NOTE: usize = 200;
const MOST_JOIN_TTL: Duration = Duration::from_secs(7 * 86_400);

fn token_view(t: &TokenRecord) -> TokenView {
    TokenView {
        id: t.id.clone(),
        role: t.role.as_str().into(),
        sites: t.sites.iter().map(ToString::to_string).collect(),
        note: t.note.clone(),
        created: t.created.0,
        expires: t.expires.map(|e| e.0),
        token: None,
    }
}

fn join_view(j: &JoinRecord) -> TokenView {
    TokenView {
        id: j.id.clone(),
        role: format!("join {}", j.role),
        sites: Vec::new(),
        note: j.region.clone().unwrap_or_default(),
        created: j.created.0,
        expires: Some(j.expires.0),
        token: None,
    }
}

pub async fn list(State(control): State<Arc<Control>>, caller: Caller) -> Result<Response, ApiError> {
    caller.may(Verb::Token, None)?;
    let state = control.raft.state.read();
    let all: Vec<_> = state.tokens().map(token_view).chain(state.joins().filter(|j| j.used.is_none()).map(join_view)).collect();
    Ok(reply(StatusCode::OK, &all))
}

pub async fn create(State(control): State<Arc<Control>>, caller: Caller, body: Bytes) -> Result<Response, ApiError> {
    caller.may(Verb::Token, None)?;
    let asked: TokenRequest = json(&body)?;
    let sites =
        asked.sites.iter().map(|s| s.parse::<SiteName>()).collect::<Result<Vec<_>, _>>().map_err(|e| ApiError::bad(e.to_string()))?;
    if let Some(missing) = sites.iter().find(|s| control.raft.state.read().site(s.as_str()).is_none()) {
        return Err(ApiError::not_found(format!("there is no site {missing}")));
    }
    if asked.note.len() > MOST_NOTE {
        return Err(ApiError::bad(format!("a note has at most {MOST_NOTE} bytes")));
    }
    let token = ApiToken::generate().map_err(|e| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "random", e.to_string()))?;
    let now = control.clock.wall();
    let record = TokenRecord {
        id: token.id.clone(),
        note: asked.note,
        hash: sha256(&token.secret),
        role: asked.role,
        sites,
        created: now,
        expires: asked.expires_in.map(|s| now + Duration::from_secs(s)),
    };
    let view = TokenView { token: Some(token.reveal()), ..token_view(&record) };
    control.change(&caller.name(), Change::TokenCreate { token: record }).await?;
    Ok(reply(StatusCode::CREATED, &view))
}

pub async fn create_join(State(control): State<Arc<Control>>, caller: Caller, body: Bytes) -> Result<Response, ApiError> {
    caller.may(Verb::Node, None)?;
    let asked: JoinRequest = json(&body)?;
    let (cluster, ca, retired) = {
        let state = control.raft.state.read();
        (state.founding.cluster.clone(), state.founding.root.clone(), state.authority.issuers().retired)
    };
    let ttl = asked.expires_in.map_or(JOIN_TTL, Duration::from_secs).min(MOST_JOIN_TTL);
    let made = join_record((&cluster, &ca, &retired), asked.role, asked.region, control.clock.wall(), ttl);
    let (record, token) = made.map_err(|e| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "random", e.to_string()))?;
    let view = TokenView { token: Some(token), ..join_view(&record) };
    control.change(&caller.name(), Change::JoinCreate { join: record }).await?;
    Ok(reply(StatusCode::CREATED, &view))
}

pub async fn revoke(State(control): State<Arc<Control>>, Path(id): Path<String>, caller: Caller) -> Result<Response, ApiError> {
    caller.may(Verb::Token, None)?;
    let is_join = control.raft.state.read().join(&id).is_some();
    let change = if is_join { Change::JoinRevoke { id } } else { Change::TokenRevoke { id } };
    control.change(&caller.name(), change).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
