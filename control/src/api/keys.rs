//! The network's own authority and its keys: what signs, what seals, and the next of each.

use super::{ApiError, Caller, json, reply};
use crate::ca::{self, CaError};
use crate::cluster_key::{self, NotRotated};
use crate::duties::{self, NoKey};
use crate::shared::Control;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Deserialize;
use std::sync::Arc;
use tidegate_certs::ca::{from_pem, request_pem};
use tidegate_certs::{CertError, identity, seal};
use tidegate_control_types::Change;
use tidegate_control_types::api::{CaRequestView, CaUpload, CaView, IssuingView, KeysView};
use tidegate_control_types::authority::hex;
use tidegate_control_types::token::Verb;

impl From<CertError> for ApiError {
    fn from(e: CertError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", e.to_string())
    }
}

impl From<CaError> for ApiError {
    fn from(e: CaError) -> Self {
        match e {
            CaError::NotNow(e) => e.into(),
            CaError::Certificate(e @ CertError::Certificate(_)) => Self::bad(e.to_string()),
            CaError::Certificate(e) => e.into(),
            e => Self::new(StatusCode::CONFLICT, "conflict", e.to_string()),
        }
    }
}

impl From<NotRotated> for ApiError {
    fn from(e: NotRotated) -> Self {
        match e {
            NotRotated::NotNow(e) => e.into(),
            NotRotated::Refused(why) => Self::new(StatusCode::CONFLICT, "conflict", why),
        }
    }
}

impl From<NoKey> for ApiError {
    fn from(e: NoKey) -> Self {
        match e {
            NoKey::NotNow(e) => e.into(),
            NoKey::Certificates(e) => e.into(),
        }
    }
}

async fn ca_view(control: &Arc<Control>) -> Result<CaView, ApiError> {
    let shown = ca::shown(control).await;
    let state = control.raft.state.read();
    let authority = &state.authority;
    let issuers = authority.issuers();
    let by = |fingerprint| shown.iter().filter(|(_, by)| *by == Some(fingerprint)).map(|(name, _)| name.clone()).collect();
    let issuing = authority.issuing.iter().rev().map(|i| IssuingView {
        fingerprint: hex(&i.fingerprint),
        made: i.not_before.0,
        not_after: i.not_after.0,
        signs: i.fingerprint == issuers.newest,
        nodes: by(i.fingerprint),
    });
    Ok(CaView {
        root: hex(&tidegate_certs::token::sha256(&state.founding.root)),
        root_not_after: identity::not_after(&state.founding.root)? * 1000,
        root_key_in_log: authority.root_key.is_some(),
        issuing: issuing.collect(),
        retired: issuers.retired.iter().map(|r| hex(r)).collect(),
        requested: authority.requested.is_some(),
        unheard: shown.iter().filter(|(_, by)| by.is_none()).map(|(name, _)| name.clone()).collect(),
    })
}

pub async fn show(State(control): State<Arc<Control>>, caller: Caller) -> Result<Response, ApiError> {
    caller.may(Verb::Read, None)?;
    Ok(reply(StatusCode::OK, &ca_view(&control).await?))
}

pub async fn rotate_ca(State(control): State<Arc<Control>>, caller: Caller) -> Result<Response, ApiError> {
    caller.may(Verb::Token, None)?;
    ca::rotate(&control, &caller.name()).await?;
    Ok(reply(StatusCode::CREATED, &ca_view(&control).await?))
}

pub async fn request(State(control): State<Arc<Control>>, caller: Caller) -> Result<Response, ApiError> {
    caller.may(Verb::Token, None)?;
    let request = request_pem(&ca::make_request(&control, &caller.name()).await?);
    Ok(reply(StatusCode::CREATED, &CaRequestView { request }))
}

pub async fn install(State(control): State<Arc<Control>>, caller: Caller, body: Bytes) -> Result<Response, ApiError> {
    caller.may(Verb::Token, None)?;
    let CaUpload { certificate } = json(&body)?;
    ca::install(&control, &caller.name(), from_pem(&certificate, "CERTIFICATE").map_err(CaError::from)?).await?;
    Ok(reply(StatusCode::CREATED, &ca_view(&control).await?))
}

pub async fn drop_root(State(control): State<Arc<Control>>, caller: Caller) -> Result<Response, ApiError> {
    caller.may(Verb::Token, None)?;
    control.change(&caller.name(), Change::RootKeyRemove).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Deserialize)]
pub struct Retirement {
    #[serde(default)]
    force: bool,
}

pub async fn retire(
    State(control): State<Arc<Control>>,
    Path(fingerprint): Path<String>,
    Query(how): Query<Retirement>,
    caller: Caller,
) -> Result<Response, ApiError> {
    caller.may(Verb::Token, None)?;
    let fingerprint = seal::from_hex(&fingerprint).and_then(|f| f.try_into().ok());
    let fingerprint = fingerprint.ok_or_else(|| ApiError::bad("a fingerprint has 64 hexadecimal digits: tidegate control ca show"))?;
    ca::retire(&control, &caller.name(), &fingerprint, how.force).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn keys_view(control: &Control) -> KeysView {
    let state = control.raft.state.read();
    let (sealed, sealed_otherwise) = cluster_key::sealed_otherwise(&state);
    KeysView {
        cluster_key: seal::to_hex(&state.cluster_keys.current),
        sealed,
        sealed_otherwise,
        ticket_key_made: state.ticket_keys().last().map(|k| k.made.0),
    }
}

pub async fn keys(State(control): State<Arc<Control>>, caller: Caller) -> Result<Response, ApiError> {
    caller.may(Verb::Read, None)?;
    Ok(reply(StatusCode::OK, &keys_view(&control)))
}

pub async fn rotate_cluster_key(State(control): State<Arc<Control>>, caller: Caller) -> Result<Response, ApiError> {
    caller.may(Verb::Token, None)?;
    cluster_key::rotate(&control, &caller.name()).await?;
    control.note_change();
    Ok(reply(StatusCode::CREATED, &keys_view(&control)))
}

pub async fn rotate_ticket_key(State(control): State<Arc<Control>>, caller: Caller) -> Result<Response, ApiError> {
    caller.may(Verb::Token, None)?;
    duties::make_ticket_key(&control, &caller.name()).await?;
    Ok(reply(StatusCode::CREATED, &keys_view(&control)))
}
