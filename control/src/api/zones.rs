//! Zones that are signed (DNSSEC), and the TXT records in them.

use super::{ApiError, Caller, json, reply};
use crate::shared::Control;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use std::sync::Arc;
use tidegate_certs::dnssec;
use tidegate_control_types::Change;
use tidegate_control_types::api::{TxtRequest, TxtView, ZoneRequest, ZoneView};
use tidegate_control_types::command::SealedDnsKey;
use tidegate_control_types::sealed::SealedName;
use tidegate_control_types::token::Verb;

/// A name in its normal form: lower case, no dot at its end.
fn zone(text: &str) -> Result<String, ApiError> {
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    let label = |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(ApiError::bad(format!("{text:?} is no name in a zone, as \"cdn.example.net\" is one")));
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
    let sealed_key = control.seal(&SealedName::DnsKey(zone.clone()), &made.key).map_err(fail)?;
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

/// Of one name.
const MOST_VALUES: usize = 20;
const LONGEST_VALUE: usize = 1000;

pub async fn txt_list(State(control): State<Arc<Control>>, caller: Caller) -> Result<Response, ApiError> {
    caller.may(Verb::Read, None)?;
    let view = |(name, values): (&String, &Vec<String>)| TxtView { name: name.clone(), values: values.clone() };
    let all: Vec<_> = control.raft.state.read().txt().iter().map(view).collect();
    Ok(reply(StatusCode::OK, &all))
}

pub async fn txt_put(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Response, ApiError> {
    caller.may(Verb::Node, None)?;
    let TxtRequest { mut values } = json(&body)?;
    let name = zone(&name)?;
    let fits = |v: &String| !v.is_empty() && v.len() <= LONGEST_VALUE && v.bytes().all(|b| (0x20..0x7f).contains(&b));
    if values.is_empty() || values.len() > MOST_VALUES || !values.iter().all(fits) {
        return Err(ApiError::bad(format!("values: 1 to {MOST_VALUES} texts of printable ASCII, up to {LONGEST_VALUE} bytes each")));
    }
    // No set of records holds one twice.
    values.sort();
    values.dedup();
    let view = TxtView { name: name.clone(), values: values.clone() };
    control.change(&caller.name(), Change::TxtPut { name, values }).await?;
    Ok(reply(StatusCode::OK, &view))
}

pub async fn txt_remove(State(control): State<Arc<Control>>, caller: Caller, Path(name): Path<String>) -> Result<Response, ApiError> {
    caller.may(Verb::Node, None)?;
    control.change(&caller.name(), Change::TxtPut { name: zone(&name)?, values: Vec::new() }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
