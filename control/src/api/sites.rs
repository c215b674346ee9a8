//! Sites: applied as files, versioned, rolled back.

use super::{ApiError, Caller, json, reply};
use crate::holding;
use crate::shared::{Control, NotNow};
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use std::sync::Arc;
use tidegate_control_state::SiteRecord;
use tidegate_control_types::api::{HostView, SiteVersionView, SiteView};
use tidegate_control_types::site::{CertificateChoice, Shown};
use tidegate_control_types::token::{TokenRole, Verb};
use tidegate_control_types::{Change, SiteName, SiteSpec, site_file};

fn view(control: &Control, record: &SiteRecord) -> SiteView {
    let spec = &record.current().spec;
    let zone = control.raft.state.read().founding.zone.clone();
    SiteView {
        name: spec.name.to_string(),
        revision: record.revision(),
        hosts: spec.hosts.iter().map(ToString::to_string).collect(),
        unshown: record.state().unshown.iter().map(ToString::to_string).collect(),
        cname: zone.map(|z| format!("{}.{z}", spec.name)),
        spec: spec.clone(),
        source: record.current().source.clone(),
    }
}

pub fn site_name(text: &str) -> Result<SiteName, ApiError> {
    text.parse().map_err(|e: tidegate_control_types::name::NotAName| ApiError::bad(e.to_string()))
}

fn record(control: &Control, name: &SiteName) -> Result<SiteRecord, ApiError> {
    let found = control.raft.state.read().site(name.as_str()).cloned();
    found.ok_or_else(|| ApiError::not_found(format!("there is no site {name}")))
}

fn tagged(mut response: Response, revision: u64) -> Response {
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{revision}\"")) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

/// The revision in If-Match.
fn expected(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|v| v.trim_matches('"').parse().ok());
    number
        .map(Some)
        .ok_or_else(|| ApiError::bad("If-Match takes a site's revision, as its ETag says it; 0 for a site that must not be there yet"))
}

pub async fn list(State(control): State<Arc<Control>>, caller: Caller) -> Result<Response, ApiError> {
    let records: Vec<_> = control.raft.state.read().sites().filter(|s| caller.sees(s.name())).cloned().collect();
    Ok(reply(StatusCode::OK, &records.iter().map(|r| view(&control, r)).collect::<Vec<_>>()))
}

pub async fn show(State(control): State<Arc<Control>>, Path(name): Path<String>, caller: Caller) -> Result<Response, ApiError> {
    let name = site_name(&name)?;
    caller.may(Verb::Read, Some(&name))?;
    let record = record(&control, &name)?;
    Ok(tagged(reply(StatusCode::OK, &view(&control, &record)), record.revision()))
}

/// Whether the site's hosts lead to it.
pub async fn hosts(State(control): State<Arc<Control>>, Path(name): Path<String>, caller: Caller) -> Result<Response, ApiError> {
    let name = site_name(&name)?;
    caller.may(Verb::Read, Some(&name))?;
    let hosts = record(&control, &name)?.current().spec.hosts.clone();
    let zone = control.raft.state.read().founding.zone.clone();
    let zone = zone
        .ok_or_else(|| ApiError::new(StatusCode::CONFLICT, "zone", "this network was founded without a zone that hosts could lead to"))?;
    let target = format!("{name}.{zone}");
    let mut all = Vec::new();
    for host in hosts {
        let seen = control.names.of_host(&host, &target).await;
        let host = (name.clone(), host);
        let refused = match holding::take(&control, &host, &seen).await {
            Err(NotNow::Refused(why)) => Some(why.to_string()),
            other => other.map(|()| None)?,
        };
        let hold = control.raft.state.read().site(name.as_str()).and_then(|r| r.holds().get(&host.1).copied());
        let is_vouched = hold.is_some_and(|h| h.shown == Shown::Vouched);
        all.push(HostView {
            host: host.1.to_string(),
            shown: if is_vouched { Shown::Vouched } else { seen.shown },
            chain: seen.chain,
            problem: refused.or(seen.problem).filter(|_| !is_vouched),
            held: hold.is_some(),
            lost: hold.and_then(|h| h.lost).map(|t| t.0),
        });
    }
    Ok(reply(StatusCode::OK, &all))
}

/// What only an admin may say: private origins reach into the operator's own network, and `*` takes every host.
fn needs_admin(spec: &SiteSpec) -> bool {
    spec.origin.allow_private || spec.hosts.contains(&tidegate_control_types::site::HostPattern::Any)
}

/// `vouch`: an admin's word that the site's hosts are its own. Where the network has no zone that they could lead to, it is all there is, and
/// an admin who applies the file gives it.
async fn apply(
    control: &Control,
    caller: &Caller,
    name: SiteName,
    source: String,
    expected: Option<u64>,
    vouch: bool,
) -> Result<Response, ApiError> {
    caller.may(Verb::Site, Some(&name))?;
    let spec = site_file::read("site", &source).map_err(|e| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "site-file", e.to_string()))?;
    if spec.name != name {
        return Err(ApiError::bad(format!("the file is of the site {}, the request of {name}", spec.name)));
    }
    if let CertificateChoice::Uploaded(certificate) = &spec.tls.certificate
        && certificate.as_str() != name.as_str()
    {
        // Of its own name it may use one; another's is for who may change all sites, or that one.
        caller.may(Verb::Site, Some(&site_name(certificate.as_str())?))?;
    }
    if needs_admin(&spec) && !caller.token.role.allows(Verb::Token) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            format!("allow_private and the host \"*\" need a token of the role {}", TokenRole::Admin.as_str()),
        ));
    }
    let is_admin = caller.may(Verb::Token, None).is_ok();
    if vouch && !is_admin {
        let why = format!("vouching for hosts needs a token of the role {}", TokenRole::Admin.as_str());
        return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", why));
    }
    let vouched = vouch || (is_admin && control.raft.state.read().founding.zone.is_none());
    let new = control.raft.state.read().site(name.as_str()).is_none();
    control.change(&caller.name(), Change::SitePut { spec: Box::new(spec), source, expected, vouched }).await?;
    let record = record(control, &name)?;
    tracing::info!(site = %name, revision = record.revision(), by = caller.name(), "site applied");
    Ok(tagged(reply(if new { StatusCode::CREATED } else { StatusCode::OK }, &view(control, &record)), record.revision()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vouch {
    #[serde(default)]
    vouch: bool,
}

pub async fn put(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    Query(Vouch { vouch }): Query<Vouch>,
    headers: HeaderMap,
    caller: Caller,
    body: Bytes,
) -> Result<Response, ApiError> {
    let source = String::from_utf8(body.to_vec()).map_err(|_| ApiError::bad("the body should be a site file: TOML in UTF-8"))?;
    apply(&control, &caller, site_name(&name)?, source, expected(&headers)?, vouch).await
}

pub async fn remove(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    caller: Caller,
) -> Result<Response, ApiError> {
    let name = site_name(&name)?;
    caller.may(Verb::Site, Some(&name))?;
    control.change(&caller.name(), Change::SiteRemove { name, expected: expected(&headers)? }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub async fn versions(State(control): State<Arc<Control>>, Path(name): Path<String>, caller: Caller) -> Result<Response, ApiError> {
    let name = site_name(&name)?;
    caller.may(Verb::Read, Some(&name))?;
    let record = record(&control, &name)?;
    let views = record.versions().map(|v| SiteVersionView { revision: v.index, at: v.at.0, by: v.by.clone(), source: v.source.clone() });
    Ok(reply(StatusCode::OK, &views.collect::<Vec<_>>()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rollback {
    revision: u64,
}

pub async fn rollback(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    caller: Caller,
    body: Bytes,
) -> Result<Response, ApiError> {
    let name = site_name(&name)?;
    // Before it is said which versions there are.
    caller.may(Verb::Site, Some(&name))?;
    let Rollback { revision } = json(&body)?;
    let record = record(&control, &name)?;
    let version = record.versions().find(|v| v.index == revision);
    let source = version
        .ok_or_else(|| ApiError::not_found(format!("the site {name} has no version {revision} any more; see its versions")))?
        .source
        .clone();
    apply(&control, &caller, name, source, expected(&headers)?, false).await
}
