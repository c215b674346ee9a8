//! What each cache node holds for a URL, and what it would do with a request for it.

use super::{ApiError, Caller, json, reply};
use crate::questions;
use crate::shared::Control;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderName, HeaderValue, StatusCode, Uri};
use std::sync::Arc;
use tidegate_control_types::api::{ExplainRequest, ExplainView, NodeExplained, NodeSteered, SteeringRequest, SteeringView};
use tidegate_control_types::explain::{Asked, Question, Said};
use tidegate_control_types::purge::host_and_port;
use tidegate_control_types::token::Verb;
use tidegate_control_types::{Role, SiteName};

const MOST_HEADERS: usize = 100;
const MOST_URL: usize = 16 << 10;

pub async fn explain(State(control): State<Arc<Control>>, caller: Caller, body: Bytes) -> Result<Response, ApiError> {
    let asked: ExplainRequest = json(&body)?;
    let (https, host, port, target) = url(&asked.url)?;
    if asked.headers.len() > MOST_HEADERS {
        return Err(ApiError::bad(format!("headers: at most {MOST_HEADERS}")));
    }
    for (name, value) in &asked.headers {
        if name.parse::<HeaderName>().is_err() || HeaderValue::from_str(value).is_err() {
            return Err(ApiError::bad(format!("{name:?}: {value:?} is not a field of a request")));
        }
    }
    let nothing = || ApiError::not_found(format!("no site serves the host {host}"));
    let site = control.raft.state.read().site_of_host(&host).map(|s| s.name().clone()).ok_or_else(nothing)?;
    caller.may(Verb::Read, Some(&site))?;
    let question = Question { site: site.clone(), https, host, port, target, headers: asked.headers };
    let answers = questions::ask_all(&control, &Asked::Request(question)).await;
    let state = control.raft.state.read();
    let caches = state.nodes().filter(|n| n.state.role.caches() && n.removed.is_none());
    let nodes = caches.map(|n| NodeExplained {
        name: n.state.name.to_string(),
        role: n.state.role.to_string(),
        region: n.state.region.clone(),
        explained: match answers.get(&n.state.name) {
            Some(Said::Request(explained)) => Some(explained.clone()),
            _ => None,
        },
    });
    Ok(reply(StatusCode::OK, &ExplainView { site: site.to_string(), nodes: nodes.collect() }))
}

/// Where the nodes that answer for the zone send a client.
pub async fn steering(State(control): State<Arc<Control>>, caller: Caller, body: Bytes) -> Result<Response, ApiError> {
    let asked: SteeringRequest = json(&body)?;
    let client = asked.client.parse().map_err(|_| ApiError::bad(format!("client: {:?} is not an IP address", asked.client)))?;
    // `shop`, or `shop.<zone>`: a site's name has no dot.
    let label = asked.name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let nothing = || ApiError::not_found(format!("no site is called {label:?}: ask for <site>, or for <site>.<zone>"));
    let site = label.parse().ok().filter(|name: &SiteName| control.raft.state.read().site(name.as_str()).is_some()).ok_or_else(nothing)?;
    caller.may(Verb::Read, Some(&site))?;
    let answers = questions::ask_all(&control, &Asked::Steering { site, client }).await;
    let state = control.raft.state.read();
    let dns = state.nodes().filter(|n| n.state.role == Role::Dns && n.removed.is_none());
    let nodes = dns.map(|n| NodeSteered {
        name: n.state.name.to_string(),
        region: n.state.region.clone(),
        steered: match answers.get(&n.state.name) {
            Some(Said::Steering(steered)) => Some(steered.clone()),
            _ => None,
        },
    });
    Ok(reply(StatusCode::OK, &SteeringView { nodes: nodes.collect() }))
}

/// Scheme, host, port, and path with query.
fn url(text: &str) -> Result<(bool, String, Option<u16>, String), ApiError> {
    let wrong = || ApiError::bad(format!("url: {text:?} is not a URL such as \"https://www.example.com/a?b=c\""));
    if text.len() > MOST_URL {
        return Err(ApiError::bad(format!("url: longer than {MOST_URL} bytes")));
    }
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let https = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(wrong()),
    };
    let authority = uri.authority().map(http::uri::Authority::as_str).filter(|a| !a.contains('@')).ok_or_else(wrong)?;
    let (host, port) = host_and_port(authority).ok_or_else(wrong)?;
    let target = uri.path_and_query().map_or("/", |p| p.as_str());
    Ok((https, host, port, target.to_owned()))
}
