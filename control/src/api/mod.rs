//! The HTTP API: JSON under `/v1`, bearer tokens, errors as RFC 9457 problem details. Any control node answers: one that
//! does not lead hands the request to the leader.

mod certificates;
mod explain;
mod keys;
mod nodes;
mod purges;
mod sites;
mod status;
mod tokens;
mod zones;

use crate::shared::{Control, NotNow};
use axum::Router;
use axum::body::Bytes;
use axum::extract::FromRequestParts;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tidegate_certs::token::{ApiToken, hash_matches};
use tidegate_control_state::Refusal;
use tidegate_control_types::api::Problem;
use tidegate_control_types::token::{TokenRecord, Verb};
use tidegate_control_types::{Clock, SiteName};
use tidegate_node::Body;
use tidegate_node::link::full;
use tower_service::Service;

/// The longest request body, in bytes.
const MOST_BODY: usize = 4 << 20;
const LEADER_WAIT: Duration = Duration::from_secs(4);
const FORWARDED: &str = "tidegate-forwarded";

#[derive(Clone)]
pub struct Api {
    control: Arc<Control>,
    router: Router,
}

const OPENAPI: &str = include_str!("openapi.json");

pub fn router(control: Arc<Control>) -> Api {
    let router = Router::new()
        .route("/v1/openapi.json", get(|| async { ([(header::CONTENT_TYPE, "application/json")], OPENAPI) }))
        .route("/v1/status", get(status::status))
        .route("/v1/backup", get(status::backup))
        .route("/v1/audit", get(status::audit))
        .route("/v1/members", get(status::members))
        .route("/v1/sites", get(sites::list))
        .route("/v1/sites/{name}", get(sites::show).put(sites::put).delete(sites::remove))
        .route("/v1/sites/{name}/hosts", get(sites::hosts))
        .route("/v1/sites/{name}/versions", get(sites::versions))
        .route("/v1/sites/{name}/rollback", post(sites::rollback))
        .route("/v1/certificates", get(certificates::list))
        .route("/v1/certificates/{name}", get(certificates::show).put(certificates::put).delete(certificates::remove))
        .route("/v1/certificates/{name}/issue", post(certificates::issue))
        .route("/v1/certificates/{name}/renew", post(certificates::renew))
        .route("/v1/ca", get(keys::show))
        .route("/v1/ca/rotate", post(keys::rotate_ca))
        .route("/v1/ca/request", post(keys::request))
        .route("/v1/ca/install", post(keys::install))
        .route("/v1/ca/root-key", delete(keys::drop_root))
        .route("/v1/ca/issuing/{fingerprint}", delete(keys::retire))
        .route("/v1/keys", get(keys::keys))
        .route("/v1/keys/cluster/rotate", post(keys::rotate_cluster_key))
        .route("/v1/keys/tickets/rotate", post(keys::rotate_ticket_key))
        .route("/v1/explain", post(explain::explain))
        .route("/v1/dns/explain", post(explain::steering))
        .route("/v1/dns/zones", post(zones::sign))
        .route("/v1/dns/zones/{zone}", get(zones::show).delete(zones::unsign))
        .route("/v1/dns/txt", get(zones::txt_list))
        .route("/v1/dns/txt/{name}", put(zones::txt_put).delete(zones::txt_remove))
        .route("/v1/purges", post(purges::purge))
        .route("/v1/purges/{index}", get(purges::receipt))
        .route("/v1/nodes", get(nodes::list))
        .route("/v1/nodes/{name}", get(nodes::show).delete(nodes::remove))
        .route("/v1/nodes/{name}/drain", post(nodes::drain))
        .route("/v1/nodes/{name}/undrain", post(nodes::undrain))
        .route("/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/v1/tokens/{id}", delete(tokens::revoke))
        .route("/v1/joins", post(tokens::create_join))
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "not-found", "there is no such resource; see /v1/openapi.json") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method", "this resource has no such method")
        })
        .with_state(Arc::clone(&control));
    Api { control, router }
}

/// Answers one request here, or at the leader.
pub async fn answer(api: Api, request: Request<Incoming>) -> http::Response<Body> {
    let response = match try_answer(api, request).await {
        Ok(r) => return r,
        Err(e) => e.into_response(),
    };
    response.map(|b| b.map_err(Into::into).boxed_unsync())
}

async fn try_answer(mut api: Api, request: Request<Incoming>) -> Result<http::Response<Body>, ApiError> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, MOST_BODY).collect().await;
    let body =
        body.map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, "body", format!("the request's body is of no use: {e}")))?.to_bytes();
    let open = parts.uri.path() == "/v1/openapi.json";
    if !open && let Some(leader) = other_leader(&api.control, &parts.headers).await? {
        return forward(&api.control, &leader, parts, body).await;
    }
    let request = Request::from_parts(parts, axum::body::Body::from(body));
    let response = match api.router.call(request).await {
        Ok(r) => r,
        Err(e) => match e {},
    };
    Ok(response.map(|b| b.map_err(Into::into).boxed_unsync()))
}

/// The leader's address, where it is another node; waits a moment for an election to end.
async fn other_leader(control: &Control, headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut changed = control.changed.subscribe();
    let found = async {
        loop {
            if control.leads() {
                return Some(None);
            }
            if let (Some(address), false) = (control.leader_address(), headers.contains_key(FORWARDED)) {
                return Some(Some(address));
            }
            changed.changed().await.ok()?;
        }
    };
    match tokio::time::timeout(LEADER_WAIT, found).await {
        Ok(Some(leader)) => Ok(leader),
        _ => Err(NotNow::NoLeader.into()),
    }
}

async fn forward(control: &Control, leader: &str, parts: Parts, body: Bytes) -> Result<http::Response<Body>, ApiError> {
    let fail = |why: String| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "no-leader", why);
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request =
        Request::builder().method(parts.method).uri(format!("https://node{path}")).body(full(body)).map_err(|e| fail(e.to_string()))?;
    for name in [header::AUTHORIZATION, header::CONTENT_TYPE, header::IF_MATCH] {
        if let Some(value) = parts.headers.get(&name) {
            request.headers_mut().insert(name, value.clone());
        }
    }
    request.headers_mut().insert(FORWARDED, HeaderValue::from_static("1"));
    let response = control.links.send(leader, "control", request).await.map_err(|e| fail(format!("the leader does not answer: {e}")))?;
    Ok(response.map(|b| b.map_err(Into::into).boxed_unsync()))
}

/// A problem, as the client gets it.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    detail: String,
}

impl ApiError {
    pub fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        Self { status, kind, detail: detail.into() }
    }

    pub fn bad(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", detail)
    }

    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", detail)
    }
}

impl From<NotNow> for ApiError {
    fn from(e: NotNow) -> Self {
        let (status, kind) = match &e {
            NotNow::Refused(Refusal::NotFound(_)) | NotNow::UnknownNode => (StatusCode::NOT_FOUND, "not-found"),
            NotNow::Refused(Refusal::Conflict(_)) => (StatusCode::CONFLICT, "conflict"),
            NotNow::Refused(Refusal::Stale { .. }) => (StatusCode::PRECONDITION_FAILED, "revision"),
            NotNow::Refused(Refusal::Limit(_)) => (StatusCode::INSUFFICIENT_STORAGE, "limit"),
            NotNow::Refused(Refusal::JoinToken) => (StatusCode::FORBIDDEN, "join-token"),
            NotNow::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            NotNow::NoLeader => (StatusCode::SERVICE_UNAVAILABLE, "no-leader"),
            NotNow::Unknown => (StatusCode::SERVICE_UNAVAILABLE, "unknown-outcome"),
        };
        Self::new(status, kind, e.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Problem").to_owned();
        let problem = Problem { r#type: format!("/problems/{}", self.kind), title, status: self.status.as_u16(), detail: self.detail };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// Reads a JSON body; what is wrong is said in the problem.
pub fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|e| ApiError::bad(format!("the body is not what this resource takes: {e}")))
}

pub fn reply<T: Serialize>(status: StatusCode, value: &T) -> Response {
    let body = serde_json::to_vec(value).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Whoever asks, by a valid token. Extracted before anything else, with a linearizable read behind it: a revoked token
/// is of no use from the moment its revocation was answered.
pub struct Caller {
    token: TokenRecord,
    control: Arc<Control>,
}

impl Caller {
    /// # Errors
    /// The token does not allow it.
    pub fn may(&self, verb: Verb, site: Option<&SiteName>) -> Result<(), ApiError> {
        if self.token.allows(verb, site, self.control.clock.wall()) {
            return Ok(());
        }
        let what = site.map_or("the network".into(), |s| format!("the site {s}"));
        Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", format!("this token ({}) does not allow {verb:?} on {what}", self.token.id)))
    }

    /// Whether it may see `site` in a list.
    pub fn sees(&self, site: &SiteName) -> bool {
        self.token.allows(Verb::Read, Some(site), self.control.clock.wall())
    }

    /// As the audit log names it.
    pub fn name(&self) -> String {
        if self.token.note.is_empty() {
            format!("token {}", self.token.id)
        } else {
            format!("token {} ({})", self.token.id, self.token.note)
        }
    }
}

impl FromRequestParts<Arc<Control>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, ApiError> {
        let control = Arc::clone(control);
        let refuse = |why: &str| ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", why);
        let value = parts.headers.get(header::AUTHORIZATION).ok_or_else(|| refuse("send a token: Authorization: Bearer tgt_..."))?;
        let text = value.to_str().ok().and_then(|v| v.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let token = text
            .and_then(|(_, t)| ApiToken::parse(t))
            .ok_or_else(|| refuse("this is not a token of Tidegate's: Authorization: Bearer tgt_..."))?;
        control.read_barrier().await?;
        let state = control.raft.state.read();
        let record = state.token(&token.id).filter(|r| hash_matches(&token.secret, &r.hash)).cloned();
        drop(state);
        let record = record.ok_or_else(|| refuse("the token is unknown or revoked"))?;
        if record.expires.is_some_and(|end| control.clock.wall() >= end) {
            return Err(refuse("the token has expired"));
        }
        Ok(Self { token: record, control })
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_openapi_document_names_every_route() {
        let document: serde_json::Value = serde_json::from_str(super::OPENAPI).unwrap();
        let source = include_str!("mod.rs");
        let routes: Vec<_> =
            source.split(".route(\"").skip(1).filter_map(|r| r.split('"').next()).filter(|r| r.starts_with("/v1")).collect();
        assert!(routes.len() > 10);
        for route in routes.iter().filter(|r| **r != "/v1/openapi.json") {
            assert!(document["paths"][*route].is_object(), "{route} is not in openapi.json");
        }
        assert_eq!(document["paths"].as_object().unwrap().len(), routes.len() - 1, "openapi.json names routes that are not there");
    }
}
