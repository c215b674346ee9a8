//! Zones that are signed (DNSSEC).

use super::{ApiError, Caller, json, reply};
use crate::shared::Control;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use std::sync::Arc;
use tidegate_certs::dnssec;
use tidegate_control_types::Change;
use tidegate_control_types::api::{ZoneRequest, ZoneView};
use tidegate_control_types::command::SealedDnsKey;
use tidegate_control_types::token::Verb;

/// A zone's name in its normal form: lower case, no dot at its end.
fn zone(text: &str) -> Result<String, ApiError> {
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    let label = |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(ApiError::bad(format!("zone: {text:?} is no zone, as \"cdn.example.net\" is one")));
    }
    Ok(name)
}

fn view(key: &SealedDnsKey) -> ZoneView {
    let digest = dnssec::ds_digest(&key.zone, &key.public).iter().map(|b| format!("{b:02X}")).collect();
    ZoneView {
        zone: key.zone.clone(),
        key_tag: dnssec::key_tag(&key.public),
        algorithm: dnssec::ALGORITHM,
        digest_type: dnssec::DIGEST_TYPE,
        digest,
    }
}

pub async fn sign(State(control): State<Arc<Control>>, caller: Caller, body: Bytes) -> Result<Response, ApiError> {
    caller.may(Verb::Node, None)?;
    let asked: ZoneRequest = json(&body)?;
    let zone = zone(&asked.zone)?;
    let fail = |e: tidegate_certs::CertError| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "key", e.to_string());
    let made = dnssec::generate().map_err(fail)?;
    let sealed_key = control.cluster_key.seal(&format!("zone {zone}"), &made.key).map_err(fail)?;
    let key = SealedDnsKey { zone, public: made.public, sealed_key };
    let view = view(&key);
    control.change(&caller.name(), Change::DnsKeyPut { key }).await?;
    Ok(reply(StatusCode::CREATED, &view))
}

pub async fn show(State(control): State<Arc<Control>>, caller: Caller, Path(name): Path<String>) -> Result<Response, ApiError> {
    caller.may(Verb::Read, None)?;
    let zone = zone(&name)?;
    let state = control.raft.state.read();
    let key =
        state.dns_key(&zone).ok_or_else(|| ApiError::not_found(format!("the zone {zone} is not signed: tidegate dns sign {zone}")))?;
    Ok(reply(StatusCode::OK, &view(key)))
}

pub async fn unsign(State(control): State<Arc<Control>>, caller: Caller, Path(name): Path<String>) -> Result<Response, ApiError> {
    caller.may(Verb::Node, None)?;
    control.change(&caller.name(), Change::DnsKeyRemove { zone: zone(&name)? }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
