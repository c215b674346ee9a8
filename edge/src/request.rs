//! What a request meets at an edge before and after the gateway: its site, challenges of authorities, redirects, purges by method,
//! upgrades, and the line in the access log.

use crate::access_log::Line;
use crate::admission::ConnectionState;
use crate::routes::CHALLENGES;
use crate::websocket::{self, Asking};
use crate::worker::{Client, Open, Shared, Worker};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tidegate_control_types::BootTime;
use tidegate_control_types::purge::host_and_port;
use tidegate_gateway::interim::Interim;
use tidegate_gateway::{Answer, Answering, Asked, CacheStatus, End, RequestBody, ResponseBody, Site, fields, show_date};
use tidegate_node::link::full;

const PURGE_TIMEOUT: Duration = Duration::from_secs(15);

impl Worker {
    /// One request, from its head to its response's head.
    pub fn answer(
        self: &Rc<Self>,
        mut request: Request<RequestBody>,
        client: &Client,
        connection: &Arc<ConnectionState>,
        interim: Option<Interim>,
    ) -> Answering<Response<ResponseBody>> {
        match websocket::asked(&mut request) {
            None => {}
            Some(Err(status)) => {
                let why = "this protocol is not carried here";
                self.refused(client, Some(&request), status, why);
                return Answering::now(self.page(status, why));
            }
            Some(Ok(asking)) => return self.answer_websocket(asking, request, client, interim),
        }
        if !request.headers().contains_key(header::UPGRADE) {
            return self.answer_routed(request, client, interim, false).then(|(response, _)| response);
        }
        let offered = fields::offered_protocols(request.headers()).filter(|_| request.version() == Version::HTTP_11);
        let granted = offered.is_some();
        match offered {
            Some(offered) => drop(request.headers_mut().insert(header::UPGRADE, offered)),
            None => drop(request.headers_mut().remove(header::UPGRADE)),
        }
        let ours = granted.then(|| hyper::upgrade::on(&mut request));
        let (connection, this) = (Arc::clone(connection), Rc::clone(self));
        self.answer_routed(request, client, interim, granted).then(move |(response, theirs)| {
            // On every way: the transport waits for the word.
            connection.decide_upgrade(theirs.is_some());
            if let (Some(theirs), Some(ours)) = (theirs, ours) {
                // It counts as a connection still, and is waited for at a stop.
                let open = Open::new(&this);
                tokio::task::spawn_local(async move {
                    let _open = open;
                    carry(theirs, ours).await;
                });
            }
            response
        })
    }

    fn answer_websocket(
        self: &Rc<Self>,
        asking: Asking,
        request: Request<RequestBody>,
        client: &Client,
        interim: Option<Interim>,
    ) -> Answering<Response<ResponseBody>> {
        if self.is_full() {
            let (status, why) = (StatusCode::SERVICE_UNAVAILABLE, "there are as many connections as there may be");
            self.refused(client, Some(&request), status, why);
            return Answering::now(self.page(status, why));
        }
        let (idle, open) = (self.limits.get().tunnel_timeout, Open::new(self));
        self.answer_routed(request, client, interim, true).then(move |(response, tunnel)| asking.granted(response, tunnel, idle, open))
    }

    fn answer_routed(
        self: &Rc<Self>,
        request: Request<RequestBody>,
        client: &Client,
        interim: Option<Interim>,
        upgrading: bool,
    ) -> Answering<Tunnelled> {
        let started = self.shared.log.as_ref().map(|_| self.shared.clock.boot());
        let Routed { site, host, port } = match self.route(&request, client) {
            Ok(r) => r,
            Err((status, why)) => {
                self.refused(client, Some(&request), status, why);
                let mut response = self.page(status, why);
                if status == StatusCode::BAD_REQUEST && request.version() < Version::HTTP_2 {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                return Answering::now((response, None));
            }
        };
        // An origin that has a certificate of its own may answer authorities itself, over plain HTTP.
        let is_challenge = request.uri().path().starts_with(CHALLENGES);
        if is_challenge && let Some(answer) = self.challenge(&host, request.uri().path()) {
            return Answering::now((answer, None));
        }
        if site.state.spec.tls.redirect && !client.https && !is_challenge {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
            self.log_unforwarded(client, Some(&request), site.name(), StatusCode::PERMANENT_REDIRECT, "to-https");
            return Answering::now((self.redirect(&host, request.uri()), None));
        }
        if request.uri().path() == "*" {
            // It asks about the server as a whole, and is of use as a test of it alone (RFC 9110 section 9.3.7).
            let mut response = Response::new(ResponseBody::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
            self.date(response.headers_mut());
            self.log_unforwarded(client, Some(&request), site.name(), StatusCode::NO_CONTENT, "options");
            return Answering::now((response, None));
        }
        if request.method() == "PURGE" {
            let this = Rc::clone(self);
            return Answering::later(async move { (this.purge(&site, &host, &request).await, None) });
        }
        let alt_svc = (client.https && request.version() < Version::HTTP_3).then(|| self.alt_svc(port)).flatten();
        let tls = &site.state.spec.tls;
        let hsts = (client.https && !tls.hsts.is_zero()).then(|| self.routes.borrow().hsts(site.name())).flatten();
        let logged =
            started.map(|at| Logged { worker: Rc::clone(self), started: at, seen: Some(Seen::of(&request, client, &site, &host)) });
        let is_head = request.method() == Method::HEAD;
        let answering = self.forward(site, (&host, port), request, client, interim, upgrading).then(move |mut answer| {
            if is_head {
                answer.response.body_mut().leave_out();
            }
            if let Some(value) = alt_svc {
                answer.response.headers_mut().insert(header::ALT_SVC, value);
            }
            if let Some(value) = hsts {
                // The origin may have said more.
                answer.response.headers_mut().entry(header::STRICT_TRANSPORT_SECURITY).or_insert(value);
            }
            answer
        });
        let Some(logged) = logged else { return answering.then(|answer| (answer.response, answer.tunnel)) };
        answering.then(move |mut answer| {
            logged.answered(&mut answer);
            (answer.response, answer.tunnel)
        })
    }

    /// Through the gateway.
    fn forward(
        &self,
        site: Rc<Site>,
        (host, port): (&str, Option<u16>),
        request: Request<RequestBody>,
        client: &Client,
        interim: Option<Interim>,
        upgrading: bool,
    ) -> Answering<Answer> {
        let (parts, body) = request.into_parts();
        let mut headers = parts.headers;
        headers.remove(header::HOST);
        fields::join_cookies(&mut headers);
        if !upgrading {
            headers.remove(header::UPGRADE);
        }
        let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
        let target = site.target(client.https, host, path).on_port(port);
        // Over HTTP/1.1 hyper and the connection do this.
        let body = if parts.version >= Version::HTTP_2 && !matches!(body, RequestBody::Empty) {
            let limits = self.limits.get();
            let silence = if tidegate_gateway::is_stream(&headers) { limits.tunnel_timeout } else { limits.body_timeout };
            let expects = headers.get(header::EXPECT).is_some_and(|e| e.as_bytes().eq_ignore_ascii_case(b"100-continue"));
            body.never_silent_for(silence).expected(interim.clone().filter(|_| expects))
        } else {
            body
        };
        let asked = Asked::of_client(site, parts.method, target, headers).with_target_as_sent(path);
        self.gateway.answer(Asked { client: Some(client.ip), interim, ..asked }, body)
    }

    /// The site of a request, or why it is refused.
    fn route(&self, request: &Request<RequestBody>, client: &Client) -> Result<Routed, (StatusCode, &'static str)> {
        let bad = |why| (StatusCode::BAD_REQUEST, why);
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let field = match (hosts.next(), hosts.next()) {
            (h, None) => h.map(|h| h.to_str().map_err(|_| bad("Host is not a host"))).transpose()?,
            _ => return Err(bad("there are two Host fields")),
        };
        let of_target = request.uri().authority().map(|a| a.as_str());
        if request.version() < Version::HTTP_2 {
            right_scheme(request.uri(), client.https)?;
        }
        if of_target.is_some_and(|a| a.contains('@')) {
            return Err(bad("the target names a user, which no URL of http may (RFC 9110 section 4.2.4)"));
        }
        let authority = match (of_target, field) {
            (Some(a), Some(f)) if !same_authority(a, f, client.https) => return Err(bad("Host and the target name different hosts")),
            (Some(a), _) => a,
            (None, Some(f)) => f,
            (None, None) => return Err(bad("there is no Host field")),
        };
        if request.version() >= Version::HTTP_2 {
            // Over HTTP/1.1 admission has seen to it.
            let limits = self.limits.get();
            // A cookie may come in many lines, which are one (RFC 9113 section 8.2.3).
            let crumbs = request.headers().get_all(header::COOKIE).iter().count();
            if request.headers().len() - crumbs.saturating_sub(1) > limits.fields {
                return Err((StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "there are too many fields"));
            }
            // The protocol's own limit is twice this one, and its refusal says nothing.
            if fields::size(request.headers()) > limits.head {
                return Err((StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the head of the request is too large"));
            }
            let target = request.uri().path_and_query().map_or("", |p| p.as_str());
            if target.len() > limits.uri {
                return Err((StatusCode::URI_TOO_LONG, "the target is too long"));
            }
            if !target.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
                return Err(bad("the target has a character that no URI has: it has to be written as % and two digits"));
            }
            if http_body::Body::size_hint(request.body()).lower() > limits.body {
                return Err((StatusCode::PAYLOAD_TOO_LARGE, "the body of the request is too large"));
            }
        }
        let (host, port) = host_and_port(authority).filter(|_| !authority.contains('@')).ok_or(bad("Host is not a host"))?;
        if request.uri().path() == "*" && *request.method() != Method::OPTIONS {
            return Err(bad("only OPTIONS may have the target *"));
        }
        if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "this method is not allowed here"));
        }
        if fields::loops(request.headers(), &self.gateway.node.cdn_id) {
            return Err((
                StatusCode::LOOP_DETECTED,
                "this request came back to the network that sent it: the site's origin is this network itself (CDN-Loop)",
            ));
        }
        let routes = Rc::clone(&self.routes.borrow());
        let unknown = (StatusCode::MISDIRECTED_REQUEST, "no site of this network has this host");
        let site = routes.find(&host).ok_or(unknown)?;
        let other = |name: &String| routes.find(name).is_some_and(|s| !Rc::ptr_eq(s, site));
        if client.server_name.as_ref().is_some_and(other) {
            return Err((StatusCode::MISDIRECTED_REQUEST, "this connection was made for another site"));
        }
        Ok(Routed { site: Rc::clone(site), host, port })
    }

    fn challenge(&self, host: &str, path: &str) -> Option<Response<ResponseBody>> {
        let answer = Bytes::copy_from_slice(self.routes.borrow().challenge(host, path)?.as_bytes());
        let mut response = Response::new(ResponseBody::whole(answer));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        self.date(headers);
        Some(response)
    }

    pub fn page(&self, status: StatusCode, why: &str) -> Response<ResponseBody> {
        let text = format!("{status}\n\n{why}\n");
        let mut response = Response::new(ResponseBody::whole(Bytes::from(text)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        self.date(headers);
        headers.insert(header::VIA, self.gateway.node.via.clone());
        response
    }

    /// For a client of HTTP/1.1 or HTTP/2 (RFC 7838): it may come back over HTTP/3, for a day, on the port that it has come to. Where
    /// ports are mapped on the way, that is not the port that this edge listens on.
    fn alt_svc(&self, port: Option<u16>) -> Option<HeaderValue> {
        self.shared.quic.as_ref()?;
        let port = port.unwrap_or(443);
        let mut last = self.alt_svc.borrow_mut();
        if let Some((_, value)) = last.as_ref().filter(|(p, _)| *p == port) {
            return Some(value.clone());
        }
        let value = HeaderValue::from_maybe_shared(Bytes::from(format!("h3=\":{port}\"; ma=86400"))).ok()?;
        *last = Some((port, value.clone()));
        Some(value)
    }

    fn date(&self, headers: &mut HeaderMap) {
        fields::insert(headers, header::DATE, &show_date(self.shared.clock.wall().as_secs()));
    }

    fn redirect(&self, host: &str, uri: &Uri) -> Response<ResponseBody> {
        let port = self.shared.settings.https.first().map(|a| a.port()).filter(|p| *p != 443).map(|p| format!(":{p}")).unwrap_or_default();
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let mut response = self.page(StatusCode::PERMANENT_REDIRECT, "this site is served over https");
        fields::insert(response.headers_mut(), header::LOCATION, &format!("https://{host}{port}{path}"));
        response
    }

    /// `PURGE` on a URL: the same as the API's purge by url, answered alike.
    async fn purge(&self, site: &Site, host: &str, request: &Request<RequestBody>) -> Response<ResponseBody> {
        let Some(token) = request.headers().get(header::AUTHORIZATION).cloned() else {
            let mut response = self.page(StatusCode::UNAUTHORIZED, "PURGE needs a token: Authorization: Bearer tgt_...");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return response;
        };
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        let body = serde_json::json!({ "type": "url", "selectors": [format!("{host}{path}")], "site": site.name() }).to_string();
        let (links, control) = (Arc::clone(&self.shared.links), self.shared.settings.node.control.clone());
        let asked = self.shared.background.spawn(async move {
            for address in &control {
                let request =
                    Request::post("https://node/v1/purges?wait=10s").header(header::AUTHORIZATION, token.clone()).body(full(body.clone()));
                let Ok(request) = request else { return None };
                if let Ok(response) = links.send(address, "control", request).await {
                    let status = response.status();
                    let body = http_body_util::BodyExt::collect(response.into_body()).await.ok()?.to_bytes();
                    return Some((status, body));
                }
            }
            None
        });
        match tokio::time::timeout(PURGE_TIMEOUT, asked).await {
            Ok(Ok(Some((status, body)))) => {
                let mut response = Response::new(ResponseBody::whole(body));
                *response.status_mut() = status;
                self.date(response.headers_mut());
                response.headers_mut().insert(
                    header::CONTENT_TYPE,
                    HeaderValue::from_static(if status.is_success() { "application/json" } else { "application/problem+json" }),
                );
                response
            }
            _ => self.page(StatusCode::SERVICE_UNAVAILABLE, "no control node answers; nothing is known of this purge: ask again"),
        }
    }

    /// Counts and logs a request that reaches no site. `request`: where its head could be read.
    pub fn refused(&self, client: &Client, request: Option<&Request<RequestBody>>, status: StatusCode, why: &str) {
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
        self.log_unforwarded(client, request, "", status, why);
    }

    /// Logs a request that the gateway does not see.
    fn log_unforwarded(&self, client: &Client, request: Option<&Request<RequestBody>>, site: &str, status: StatusCode, why: &str) {
        let Some(log) = &self.shared.log else { return };
        let field = |r: &Request<RequestBody>| r.headers().get(header::HOST).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        let authority = |r: &Request<RequestBody>| r.uri().authority().map(|a| a.as_str().to_owned());
        log.line(&Line {
            time: self.shared.clock.wall().0,
            node: &self.shared.node,
            site,
            client: Some(client.ip),
            protocol: request.map_or("", |r| protocol_of(r, client)),
            method: request.map_or("", |r| r.method().as_str()),
            host: &request.and_then(|r| authority(r).or_else(|| field(r))).unwrap_or_default(),
            target: request.map_or("", |r| r.uri().path_and_query().map_or("/", |p| p.as_str())),
            status: status.as_u16(),
            bytes: 0,
            complete: true,
            cache: "none",
            detail: Some(why),
            collapsed: false,
            milliseconds: 0,
        });
    }

    fn log(&self, started: BootTime, seen: Seen, answer: &mut Answer) {
        let Some(log) = self.shared.log.clone() else { return };
        let (status, how) = (answer.response.status().as_u16(), answer.status);
        let shared = Arc::clone(&self.shared);
        answer.response.body_mut().on_finish(Box::new(move |bytes, end| {
            log.line(&seen.line(&shared, started, status, how, (bytes, end)));
        }));
    }
}

/// Whether a target in absolute form may be asked for over this connection (RFC 9110 section 7.4).
fn right_scheme(uri: &Uri, https: bool) -> Result<(), (StatusCode, &'static str)> {
    match (uri.scheme_str(), https) {
        (None, _) | (Some("http"), false) | (Some("https"), true) => Ok(()),
        (Some("https"), false) => Err((StatusCode::MISDIRECTED_REQUEST, "an https resource is not given over a connection in clear")),
        (Some("http"), true) => Err((StatusCode::MISDIRECTED_REQUEST, "an http resource is not given over a connection of TLS")),
        _ => Err((StatusCode::BAD_REQUEST, "only resources of http and https are given here")),
    }
}

/// Whether two authorities name one host and port, where the scheme's own port need not be said (RFC 9110 section 4.2.3).
fn same_authority(a: &str, b: &str, https: bool) -> bool {
    let read = |text| host_and_port(text).map(|(host, port)| (host, port.unwrap_or(if https { 443 } else { 80 })));
    a.eq_ignore_ascii_case(b) || read(a).is_some_and(|a| read(b) == Some(a))
}

/// With the upstream's side of a granted upgrade.
type Tunnelled = (Response<ResponseBody>, Option<hyper::upgrade::OnUpgrade>);

struct Routed {
    site: Rc<Site>,
    /// Lower-case, without port.
    host: String,
    port: Option<u16>,
}

/// The access log's entry for a request. Written when the response is over, or when the client leaves before that.
struct Logged {
    worker: Rc<Worker>,
    started: BootTime,
    seen: Option<Seen>,
}

impl Logged {
    fn answered(mut self, answer: &mut Answer) {
        if let Some(seen) = self.seen.take() {
            self.worker.log(self.started, seen, answer);
        }
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        if let (Some(seen), Some(log)) = (self.seen.take(), &self.worker.shared.log) {
            log.line(&seen.line(&self.worker.shared, self.started, CLIENT_CLOSED, CacheStatus::default(), (0, End::Left)));
        }
    }
}

/// In the access log, as nginx has it: the client went before it was answered.
const CLIENT_CLOSED: u16 = 499;

/// What the access log says of a request.
struct Seen {
    site: Rc<Site>,
    client: IpAddr,
    protocol: &'static str,
    method: Method,
    host: String,
    target: String,
}

impl Seen {
    fn of(request: &Request<RequestBody>, client: &Client, site: &Rc<Site>, host: &str) -> Self {
        let protocol = protocol_of(request, client);
        let target = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_owned();
        Self { site: Rc::clone(site), client: client.ip, protocol, method: request.method().clone(), host: host.to_owned(), target }
    }

    /// The line of an answer of which so many bytes went out, with how it ended.
    fn line<'a>(&'a self, shared: &'a Shared, started: BootTime, status: u16, how: CacheStatus, (bytes, end): (u64, End)) -> Line<'a> {
        Line {
            time: shared.clock.wall().0,
            node: &shared.node,
            site: self.site.name(),
            client: Some(self.client),
            protocol: self.protocol,
            method: self.method.as_str(),
            host: &self.host,
            target: &self.target,
            status,
            bytes,
            complete: end == End::Whole,
            cache: how.forward.map_or(if how.hit { "hit" } else { "none" }, tidegate_gateway::forward_token),
            detail: match end {
                End::Whole => how.detail,
                End::Failed(error) => Some(error.token()),
                End::Left => Some("client-closed"),
            },
            collapsed: how.collapsed,
            milliseconds: u64::try_from(shared.clock.boot().since(started).as_millis()).unwrap_or(u64::MAX),
        }
    }
}

fn protocol_of(request: &Request<RequestBody>, client: &Client) -> &'static str {
    match (request.version(), client.https) {
        (Version::HTTP_3, _) => "h3",
        (Version::HTTP_2, _) => "h2",
        (Version::HTTP_10, _) => "http/1.0",
        (_, true) => "https/1.1",
        (_, false) => "http/1.1",
    }
}

/// Carries bytes both ways until either side ends.
async fn carry(theirs: hyper::upgrade::OnUpgrade, ours: hyper::upgrade::OnUpgrade) {
    let (Ok(theirs), Ok(ours)) = tokio::join!(theirs, ours) else { return };
    let (mut a, mut b) = (hyper_util::rt::TokioIo::new(theirs), hyper_util::rt::TokioIo::new(ours));
    let _ = tokio::io::copy_bidirectional(&mut a, &mut b).await;
}
