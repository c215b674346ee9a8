//! The certificates of sites: seen, uploaded, ordered, removed.

use super::sites::site_name;
use super::{ApiError, Caller, json, reply};
use crate::shared::Control;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use std::sync::Arc;
use tidegate_certs::{identity, seal, token, upload};
use tidegate_control_state::State as Machine;
use tidegate_control_types::api::{CertificateUpload, CertificateView, CertificatesView, OrderView};
use tidegate_control_types::certificate::{RESERVED, SealedCertificate, acme_name, internal_name, is_uploaded_as};
use tidegate_control_types::sealed::SealedName;
use tidegate_control_types::site::CertificateChoice;
use tidegate_control_types::token::Verb;
use tidegate_control_types::{CertificateName, Change, Clock, SiteName, WallTime};

fn certificate_name(text: &str) -> Result<CertificateName, ApiError> {
    let name: CertificateName = text.parse().map_err(|e: tidegate_control_types::name::NotAName| ApiError::bad(e.to_string()))?;
    if RESERVED.contains(&name.as_str()) {
        return Err(ApiError::bad(format!("no certificate can be called {name}: that word has a meaning in site files")));
    }
    Ok(name)
}

/// The sites that a certificate is for, and what is done about it next.
fn users(control: &Control, state: &Machine, name: &str, now: WallTime) -> (Vec<SiteName>, String) {
    let of = |source: &str| name.strip_prefix(source).and_then(|n| n.strip_prefix('/')).and_then(|n| n.parse::<SiteName>().ok());
    if let Some(site) = of("acme") {
        let next = control.acme.next_of(control, state, &site, now);
        return (vec![site], next);
    }
    if let Some(site) = of("internal") {
        return (vec![site], "renewed by the network's own CA a month before its end".into());
    }
    let wants = |choice: &CertificateChoice| matches!(choice, CertificateChoice::Uploaded(wanted) if is_uploaded_as(name, wanted.as_str()));
    let sites = state.sites().filter(|s| wants(&s.current().spec.tls.certificate)).map(|s| s.name().clone()).collect();
    (sites, "upload another before its end: what was uploaded is not renewed by itself".into())
}

fn view(control: &Control, state: &Machine, c: &SealedCertificate) -> CertificateView {
    let now = control.clock.wall();
    let (sites, next) = users(control, state, &c.name, now);
    let leaf = c.chain.first().map_or(&[][..], Vec::as_slice);
    CertificateView {
        name: c.name.clone(),
        sites: sites.iter().map(ToString::to_string).collect(),
        hosts: c.hosts.clone(),
        issuer: identity::issuer(leaf).unwrap_or_default(),
        algorithm: upload::facts(leaf).map(|f| f.algorithm.to_owned()).unwrap_or_default(),
        fingerprint: seal::to_hex(&token::sha256(leaf)),
        not_before: c.not_before.0,
        not_after: c.not_after.0,
        days_left: i64::try_from(c.not_after.0).unwrap_or(i64::MAX).saturating_sub(i64::try_from(now.0).unwrap_or(0)) / 86_400_000,
        next,
    }
}

fn order_view(state: &Machine, site: &SiteName) -> Option<OrderView> {
    let order = state.order(site.as_str())?;
    Some(OrderView {
        site: site.to_string(),
        hosts: order.names.clone(),
        left_out: order.left_out.clone(),
        authority: order.authority.clone(),
        step: order.step,
        challenges: state.challenges(site.as_str()).iter().map(|c| format!("{} for {}", c.answer.kind(), c.host)).collect(),
        began: order.began.0,
        failures: order.failures,
        problem: order.problem.clone(),
        next_try: (order.failures > 0).then_some(order.next_try.0),
    })
}

/// Whether the caller may see it: one of its sites, or the network.
fn may_see(caller: &Caller, view: &CertificateView) -> bool {
    let own = view.name.split('/').next().filter(|n| !RESERVED.contains(n)).and_then(|n| n.parse::<SiteName>().ok());
    caller.may(Verb::Read, None).is_ok() || view.sites.iter().filter_map(|s| s.parse::<SiteName>().ok()).chain(own).any(|s| caller.sees(&s))
}

pub async fn list(State(control): State<Arc<Control>>, caller: Caller) -> Result<Response, ApiError> {
    let state = control.raft.state.read();
    let certificates = state.certificates().map(|c| view(&control, &state, c)).filter(|v| may_see(&caller, v)).collect();
    let orders = state.orders().filter(|o| caller.sees(&o.site)).filter_map(|o| order_view(&state, &o.site)).collect();
    Ok(reply(StatusCode::OK, &CertificatesView { certificates, orders }))
}

/// Those of a site, and those that were uploaded under the name.
pub async fn show(State(control): State<Arc<Control>>, Path(name): Path<String>, caller: Caller) -> Result<Response, ApiError> {
    let site = site_name(&name)?;
    let state = control.raft.state.read();
    let of_site = [acme_name(&site), internal_name(&site)];
    let wanted = match state.site(site.as_str()).map(|s| &s.current().spec.tls.certificate) {
        Some(CertificateChoice::Uploaded(wanted)) => wanted.as_str(),
        _ => site.as_str(),
    };
    let is_wanted = |c: &&SealedCertificate| of_site.contains(&c.name) || is_uploaded_as(&c.name, wanted);
    let certificates: Vec<_> =
        state.certificates().filter(is_wanted).map(|c| view(&control, &state, c)).filter(|v| may_see(&caller, v)).collect();
    let orders: Vec<_> = order_view(&state, &site).filter(|_| caller.sees(&site)).into_iter().collect();
    if certificates.is_empty() && orders.is_empty() {
        return Err(ApiError::not_found(format!("there is no certificate {site}, and no site of that name that has one")));
    }
    Ok(reply(StatusCode::OK, &CertificatesView { certificates, orders }))
}

pub async fn put(State(control): State<Arc<Control>>, Path(name): Path<String>, caller: Caller, body: Bytes) -> Result<Response, ApiError> {
    let name = certificate_name(&name)?;
    // Whoever may change one site alone may bring a certificate of that site's name.
    caller.may(Verb::Site, Some(&site_name(name.as_str())?))?;
    let CertificateUpload { chain, key } = json(&body)?;
    let now = control.clock.wall();
    let uploaded = upload::read(chain.as_bytes(), key.as_bytes(), now.as_secs()).map_err(|e| ApiError::bad(e.to_string()))?;
    let facts = uploaded.facts;
    let name = format!("{name}/{}", facts.algorithm);
    let sealed_key = control
        .seal(&SealedName::CertificateKey(name.clone()), &uploaded.key)
        .map_err(|e| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", e.to_string()))?;
    let (not_before, not_after) = (WallTime(facts.not_before * 1000), WallTime(facts.not_after * 1000));
    let certificate =
        SealedCertificate { name: name.clone(), chain: uploaded.chain, sealed_key, hosts: facts.names, not_before, not_after };
    control.change(&caller.name(), Change::CertificatePut { certificate }).await?;
    let state = control.raft.state.read();
    let view = state.certificate(&name).map(|c| view(&control, &state, c));
    Ok(reply(StatusCode::OK, &view))
}

pub async fn remove(State(control): State<Arc<Control>>, Path(name): Path<String>, caller: Caller) -> Result<Response, ApiError> {
    let name = certificate_name(&name)?;
    caller.may(Verb::Site, Some(&site_name(name.as_str())?))?;
    let all: Vec<String> = {
        let state = control.raft.state.read();
        state.certificates().map(|c| c.name.clone()).filter(|n| is_uploaded_as(n, name.as_str())).collect()
    };
    if all.is_empty() {
        return Err(ApiError::not_found(format!("no certificate was uploaded as {name}")));
    }
    for name in all {
        control.change(&caller.name(), Change::CertificateRemove { name }).await?;
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// A certificate for a site, from its authority: now, whatever failed before; where there is one that is good, only if `renew`.
async fn order(control: &Arc<Control>, caller: &Caller, site: &str, renew: bool) -> Result<Response, ApiError> {
    let site = site_name(site)?;
    caller.may(Verb::Site, Some(&site))?;
    let refuse = |why: String| ApiError::new(StatusCode::CONFLICT, "conflict", why);
    {
        let state = control.raft.state.read();
        let record = state.site(site.as_str()).ok_or_else(|| ApiError::not_found(format!("there is no site {site}")))?;
        let spec = &record.current().spec;
        if !spec.is_automatic() {
            return Err(refuse(format!(
                "the site {site} has another certificate: [tls] certificate = \"auto\" would let the network get one"
            )));
        }
        if control.settings.acme.is_none() {
            return Err(refuse("the control nodes' settings name no authority: see [acme]".into()));
        }
        if spec.certifiable().is_empty() {
            return Err(refuse(format!("the site {site} has no host of which an authority could make a certificate")));
        }
        if record.orderable().is_empty() {
            return Err(refuse(format!("no host of the site {site} shows yet that it is the site's: tidegate site hosts {site}")));
        }
    }
    control.acme.ask(site.clone(), renew);
    control.note_change();
    let state = control.raft.state.read();
    let certificates = state.certificate(&acme_name(&site)).map(|c| view(control, &state, c)).into_iter().collect();
    let orders = order_view(&state, &site).into_iter().collect();
    Ok(reply(StatusCode::ACCEPTED, &CertificatesView { certificates, orders }))
}

pub async fn issue(State(control): State<Arc<Control>>, Path(site): Path<String>, caller: Caller) -> Result<Response, ApiError> {
    order(&control, &caller, &site, false).await
}

pub async fn renew(State(control): State<Arc<Control>>, Path(site): Path<String>, caller: Caller) -> Result<Response, ApiError> {
    order(&control, &caller, &site, true).await
}
