//! An edge's way: the shield that the key's hash chooses in its region, the next one when that fails, then the origin
//! itself.

use crate::body::TimedBody;
use crate::connect::not_connected;
use crate::framing;
use crate::origin::{copy, is_repeatable};
use crate::patience::{self, Patience};
use crate::ring::ranked;
use crate::socket;
use http::header::{self, HeaderValue};
use http::{Request, Response, Uri, Version};
use parking_lot::RwLock;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tidegate_control_types::site::OriginSpec;
use tidegate_control_types::{BootTime, Clock};
use tidegate_gateway::interim::Interim;
use tidegate_gateway::{Allowance, Fetch, FetchError, FetchFailed, Fetched, RequestBody, Upstream, UpstreamBody, fields};
use tidegate_http2::{ClientSettings, KeepAlive, Sender, Windows};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A shield that failed is not asked again for this long; twice as long after each further failure.
const LEAVE_ALONE: Duration = Duration::from_secs(2);
const MAX_LEAVE_ALONE: Duration = Duration::from_secs(30);
/// Shields that one request asks before it goes to the origin itself.
const MAX_SHIELDS: usize = 2;
/// Connections of one worker to one shield.
const MAX_CONNECTIONS: usize = 16;
const CONNECTION: ClientSettings = ClientSettings {
    // More than an origin's head can come to when it is coded for HTTP/2, or one site's could end the connection for all.
    head: 1 << 20,
    windows: Windows { few: 2 << 20, many: 64 << 10 },
    keep_alive: KeepAlive { every: Duration::from_secs(1), within: Duration::from_secs(2) },
};
/// Time until a full shield is passed by: the requests that fill it may be those of another site, whose origin hangs.
const ROOM_WITHIN: Duration = Duration::from_secs(1);
/// Beyond the origin's own time-outs, which the shield keeps.
const GRACE: Duration = Duration::from_secs(2);

/// A shield of this edge's region.
#[derive(Debug)]
pub struct Shield {
    pub name: String,
    /// host:port of its listener for edges.
    pub address: String,
    /// The name that its certificate has to carry.
    pub tls_name: String,
    /// 0: it is up. Else it is down, and after this time one request may look whether it still is.
    down_until: AtomicU64,
    failures: AtomicU32,
    /// A request is looking.
    probed: AtomicBool,
}

/// Permission to send a request to a shield. Dropping it without a result does not change the shield's health.
struct Turn<'a> {
    shield: &'a Shield,
    is_probe: bool,
}

impl Shield {
    #[must_use]
    pub fn new(name: String, address: String, tls_name: String) -> Self {
        Self { name, address, tls_name, down_until: AtomicU64::new(0), failures: AtomicU32::new(0), probed: AtomicBool::new(false) }
    }

    /// `None`: it is down, or another request is looking whether it still is.
    fn turn(&self, now: BootTime) -> Option<Turn<'_>> {
        let down_until = self.down_until.load(Ordering::Relaxed);
        if down_until == 0 {
            return Some(Turn { shield: self, is_probe: false });
        }
        let is_probe = now.as_nanos() >= down_until && !self.probed.swap(true, Ordering::Relaxed);
        is_probe.then_some(Turn { shield: self, is_probe })
    }
}

impl Turn<'_> {
    fn succeeded(&self) {
        if self.shield.down_until.swap(0, Ordering::Relaxed) > 0 {
            tracing::info!(shield = self.shield.name, "shield answers again");
        }
        self.shield.failures.store(0, Ordering::Relaxed);
    }

    fn failed(&self, now: BootTime, error: FetchError) {
        if !self.is_probe && self.shield.down_until.load(Ordering::Relaxed) > 0 {
            // Another request of the same lost connection: it is one failure.
            return;
        }
        let failures = self.shield.failures.fetch_add(1, Ordering::Relaxed).min(8);
        let alone = (LEAVE_ALONE * 2u32.pow(failures)).min(MAX_LEAVE_ALONE);
        if self.shield.down_until.swap((now + alone).as_nanos(), Ordering::Relaxed) == 0 {
            tracing::warn!(shield = self.shield.name, %error, "shield failed");
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            self.shield.probed.store(false, Ordering::Relaxed);
        }
    }
}

/// The shields of the region, shared by all workers.
#[derive(Default)]
pub struct Shields(RwLock<Arc<Vec<Arc<Shield>>>>);

impl Shields {
    /// The shields as they are now; one that stays keeps what is known of it.
    pub fn set(&self, shields: Vec<Shield>) {
        let old = Arc::clone(&self.0.read());
        let kept = |new: Shield| match old.iter().find(|o| (&o.name, &o.address, &o.tls_name) == (&new.name, &new.address, &new.tls_name)) {
            Some(same) => Arc::clone(same),
            None => Arc::new(new),
        };
        *self.0.write() = Arc::new(shields.into_iter().map(kept).collect());
    }

    fn get(&self) -> Arc<Vec<Arc<Shield>>> {
        Arc::clone(&self.0.read())
    }
}

/// A shield gave no answer; the request comes back where nothing of it was sent.
pub type Unanswered = (FetchError, Option<Request<RequestBody>>);

/// How a request gets to a shield. The network has one way, a simulation another.
pub trait ShieldWay: 'static {
    /// Sends what [`to_shield`] made; `first_byte` and `idle`: how long its answer may take to begin, and its body may pause.
    fn send(
        &self,
        shield: &Shield,
        request: Request<RequestBody>,
        interim: Option<Interim>,
        first_byte: Duration,
        idle: Duration,
    ) -> impl Future<Output = Result<Response<UpstreamBody>, Unanswered>>;
}

/// This node's TLS settings towards shields, as they are now.
pub type ShieldTls = Arc<dyn Fn() -> Arc<ClientConfig> + Send + Sync>;

/// The connections to one shield and the settings they were opened with. Other settings need new connections.
struct Open {
    tls_name: String,
    config: Arc<ClientConfig>,
    senders: Vec<Sender>,
    /// Held while one is opened, which all who wait then share.
    opening: Rc<Mutex<()>>,
}

/// HTTP/2 over mutual TLS: as many connections of a worker to each shield as its requests need.
pub struct Http2Shields {
    tls: ShieldTls,
    /// The connections by the shield's address.
    open: RefCell<HashMap<String, Open>>,
}

impl Http2Shields {
    #[must_use]
    pub fn new(tls: ShieldTls) -> Self {
        Self { tls, open: RefCell::default() }
    }

    /// A connection that takes another request, or else the lock for opening one.
    fn kept(&self, shield: &Shield, config: &Arc<ClientConfig>) -> Result<Sender, Rc<Mutex<()>>> {
        let mut all = self.open.borrow_mut();
        let new = || Open { tls_name: shield.tls_name.clone(), config: Arc::clone(config), senders: Vec::new(), opening: Rc::default() };
        let open = all.entry(shield.address.clone()).or_insert_with(new);
        if open.tls_name != shield.tls_name || !Arc::ptr_eq(&open.config, config) {
            *open = new();
        }
        open.senders.retain_mut(|s| !s.is_closed());
        let is_full = open.senders.len() >= MAX_CONNECTIONS;
        let least_loaded = || open.senders.iter().filter(|_| is_full).min_by_key(|s| s.load());
        let free = open.senders.iter().find(|s| s.has_room()).or_else(least_loaded);
        free.cloned().ok_or_else(|| Rc::clone(&open.opening))
    }

    /// A connection that was just opened, and whose shield has not said yet how many requests it takes.
    fn unheard(&self, shield: &Shield) -> Option<Sender> {
        let all = self.open.borrow();
        all.get(&shield.address)?.senders.iter().find(|s| !s.is_heard()).cloned()
    }

    async fn sender(&self, shield: &Shield) -> Result<Sender, FetchError> {
        let config = (self.tls)();
        let opening = match self.kept(shield, &config) {
            Ok(sender) => return Ok(sender),
            Err(opening) => opening,
        };
        let opens = async {
            let _one_at_a_time = opening.lock().await;
            loop {
                if let Ok(sender) = self.kept(shield, &config) {
                    return Ok(sender);
                }
                let Some(new) = self.unheard(shield) else { break };
                new.heard().await;
            }
            let address = shield.address.parse().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
            let tcp = TcpStream::connect(&shield.address).await.map_err(|error| not_connected(&error, address))?;
            socket::prepare(&tcp);
            let name = ServerName::try_from(shield.tls_name.clone()).map_err(|_| FetchError::Tls)?;
            let tls = TlsConnector::from(Arc::clone(&config)).connect(name, tcp).await.map_err(|error| {
                tracing::warn!(shield = shield.name, %error, "TLS handshake with a shield failed");
                FetchError::Tls
            })?;
            let sender = tidegate_http2::connect(tls, &CONNECTION).await.map_err(|_| FetchError::Reset)?;
            if let Some(open) = self.open.borrow_mut().get_mut(&shield.address) {
                open.senders.push(sender.clone());
            }
            Ok(sender)
        };
        // On the heap: most requests find a connection, and would carry the size of a handshake.
        tokio::time::timeout(CONNECT_TIMEOUT, Box::pin(opens)).await.map_err(|_| FetchError::ConnectTimeout)?
    }
}

impl ShieldWay for Http2Shields {
    async fn send(
        &self,
        shield: &Shield,
        request: Request<RequestBody>,
        interim: Option<Interim>,
        first_byte: Duration,
        idle: Duration,
    ) -> Result<Response<UpstreamBody>, Unanswered> {
        let mut sender = match self.sender(shield).await {
            Ok(s) => s,
            Err(e) => return Err((e, Some(request))),
        };
        let progress = request.body().progress();
        let began = tokio::time::Instant::now();
        let slot = match tokio::time::timeout(first_byte.min(ROOM_WITHIN), sender.slot()).await {
            Ok(Ok(slot)) => slot,
            Ok(Err(_)) => return Err((FetchError::Reset, Some(request))),
            Err(_) => return Err((FetchError::NoStream, Some(request))),
        };
        let patience = Patience { first_byte: first_byte.saturating_sub(began.elapsed()), stall: idle };
        match patience.wait(sender.send(slot, request, interim), progress.as_deref()).await {
            Err(error) => Err((error, None)),
            Ok(Err(error)) => {
                tracing::debug!(shield = shield.name, %error, "a request to a shield failed");
                // One stream that ended early, on a connection that lives on, speaks of the answer that was on it.
                let error = match &error {
                    e if e.reason() == Some(tidegate_http2::Reason::REFUSED_STREAM) => FetchError::Unprocessed,
                    e if e.is_go_away() && e.is_remote() && e.reason() == Some(tidegate_http2::Reason::NO_ERROR) => FetchError::Unprocessed,
                    e if e.is_reset() && e.is_library() => FetchError::Malformed,
                    e if e.is_reset() => FetchError::Broken,
                    _ => FetchError::Reset,
                };
                Err((error, None))
            }
            Ok(Ok(response)) => {
                let idle = patience::idle(response.headers(), idle);
                Ok(response.map(|body| UpstreamBody::new(TimedBody::new(body, idle, progress, Box::new(|_| ())))))
            }
        }
    }
}

/// Whether an error says nothing about the shield's health: it is full, or this node is.
fn is_full(error: FetchError) -> bool {
    matches!(error, FetchError::NoStream | FetchError::NoRoom)
}

/// One worker's way over the shields, and to the origin where none helps.
pub struct EdgeUpstream<W, O> {
    shields: Arc<Shields>,
    way: W,
    origin: O,
    clock: Arc<dyn Clock>,
}

/// The party to blame for a failed request. An origin's slowness never makes an edge leave its shield.
enum Blame {
    /// The shield itself gave no answer.
    Shield(FetchError, Option<Box<Request<RequestBody>>>),
    /// The shield says that the origin failed, or takes as long as the origin may. `is_heard`: an answer of the shield shows it.
    Origin { failed: FetchFailed, is_heard: bool },
}

impl Blame {
    /// A shield counts as lost when its connection fails or stops answering pings, never because an answer is slow or is an error.
    /// `attempts`: the most requests that a lost shield may have sent to origins.
    fn of(error: FetchError, attempts: u32, unsent: Option<Request<RequestBody>>) -> Self {
        let failed = FetchFailed { attempts, ..error.into() };
        match error {
            FetchError::Timeout | FetchError::Deadline | FetchError::Stalled => Self::Origin { failed, is_heard: false },
            FetchError::Malformed | FetchError::Framing | FetchError::Broken => Self::Origin { failed, is_heard: true },
            _ => Self::Shield(error, unsent.map(Box::new)),
        }
    }
}

/// How long a shield may take until its answer begins. A request with a body has no total limit: it is sent once, and takes what its
/// client and the origin may take.
fn longest(origin: &OriginSpec, request: &Request<RequestBody>, allowance: Allowance, within: Duration) -> Duration {
    if matches!(request.body(), RequestBody::Empty) {
        return within;
    }
    within.max(origin.connect_timeout * allowance.attempts + origin.first_byte_timeout)
}

impl<W: ShieldWay, O: Upstream> EdgeUpstream<W, O> {
    #[must_use]
    pub fn new(shields: Arc<Shields>, way: W, origin: O, clock: Arc<dyn Clock>) -> Self {
        Self { shields, way, origin, clock }
    }

    async fn ask(&self, shield: &Shield, request: Request<RequestBody>, fetch: &Fetch) -> Result<Fetched, Blame> {
        let origin = &fetch.site.state.spec.origin;
        let within = fetch.allowance.until.since(self.clock.boot());
        let first_byte = patience::first_byte(&request, longest(origin, &request, fetch.allowance, within)) + GRACE;
        let (method, interim) = (request.method().clone(), fetch.interim.clone());
        let has_deadline = matches!(request.body(), RequestBody::Empty);
        let request = to_shield(request, fetch, within);
        let answered = self.way.send(shield, request, interim, first_byte, origin.idle_timeout + GRACE).await;
        let mut response = answered.map_err(|(error, unsent)| {
            let error = if error == FetchError::Timeout && has_deadline { FetchError::Deadline } else { error };
            Blame::of(error, fetch.allowance.attempts, unsent)
        })?;
        let vouched = fields::revision(response.headers(), &fields::VOUCHED);
        let own = response.headers().get(fields::OWN_ERROR).and_then(|v| FetchError::of_token(v.to_str().ok()?));
        let number = |name| fields::number(response.headers(), name).and_then(|n| u32::try_from(n).ok());
        let (attempts, line) = (number(&fields::ATTEMPTS), number(&fields::LINE));
        if let Some(error) = own {
            let failed = FetchFailed { error, attempts: attempts.unwrap_or(1), line };
            return Err(Blame::Origin { failed, is_heard: true });
        }
        let failed_before = attempts.unwrap_or(0);
        // It does not know the site, or this edge, yet: nothing went to the origin.
        let unknown = || Blame::Origin { failed: FetchError::Shield.into(), is_heard: true };
        let vouched = vouched.ok_or_else(unknown)?;
        let close_delimited = response.headers().contains_key(fields::UNFRAMED);
        let stands_in = response.headers().contains_key(fields::STANDS_IN);
        let length = response.body().length();
        let framed = framing::take(&method, length, &mut response).map_err(|error| Blame::of(error, failed_before + 1, None))?;
        Ok(Fetched { response, length: framed.length, vouched: Some(vouched), stands_in, failed_before, close_delimited, upgrade: None })
    }

    /// Asks a shield that was down for the target of this request, but only for a stored response: if the shield answers at all, it is
    /// well again.
    async fn probe(&self, shield: &Shield, request: &Request<RequestBody>, fetch: &Fetch) -> Result<(), FetchError> {
        let mut probe = Request::new(RequestBody::Empty);
        *probe.method_mut() = http::Method::HEAD;
        probe.uri_mut().clone_from(request.uri());
        if let Some(host) = request.headers().get(header::HOST) {
            probe.headers_mut().insert(header::HOST, host.clone());
        }
        probe.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("only-if-cached"));
        let fetch = Fetch { interim: None, ..fetch.clone() };
        match tokio::time::timeout(PROBED_WITHIN, self.ask(shield, probe, &fetch)).await {
            Ok(Ok(_) | Err(Blame::Origin { is_heard: true, .. })) => Ok(()),
            Ok(Err(Blame::Origin { failed, .. })) => Err(failed.error),
            Ok(Err(Blame::Shield(error, _))) => Err(error),
            Err(_) => Err(FetchError::Timeout),
        }
    }
}

/// Time that a shield which was down has for a small answer of its own.
const PROBED_WITHIN: Duration = Duration::from_secs(2);

/// The request as a shield takes it: HTTP/2, with what this edge demands.
fn to_shield(mut request: Request<RequestBody>, fetch: &Fetch, within: Duration) -> Request<RequestBody> {
    let headers = request.headers_mut();
    headers.insert(fields::ATTEMPTS, HeaderValue::from(fetch.allowance.attempts));
    headers.insert(fields::WITHIN, HeaderValue::from(u64::try_from(within.as_millis()).unwrap_or(u64::MAX)));
    let host = headers.remove(header::HOST);
    let authority = host.as_ref().and_then(|h| h.to_str().ok()).unwrap_or("site").to_owned();
    fields::insert(headers, fields::DEMAND, &fetch.demand.to_string());
    fields::insert(headers, fields::SITE, fetch.site.name());
    headers.insert(fields::SCHEME, HeaderValue::from_static(if fetch.https { "https" } else { "http" }));
    if fetch.end_to_end {
        headers.insert(fields::END_TO_END, HeaderValue::from_static("1"));
    }
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_owned();
    if let Ok(uri) = format!("https://{authority}{path}").parse::<Uri>() {
        *request.uri_mut() = uri;
    }
    *request.version_mut() = Version::HTTP_2;
    request
}

/// What [`to_shield`] did, undone: the request goes to the origin itself.
fn from_shield(mut request: Request<RequestBody>) -> Request<RequestBody> {
    let authority = request.uri().authority().map(|a| a.as_str().to_owned());
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_owned();
    fields::strip_internal(request.headers_mut());
    if let Some(authority) = authority {
        fields::insert(request.headers_mut(), header::HOST, &authority);
    }
    if let Ok(uri) = path.parse::<Uri>() {
        *request.uri_mut() = uri;
    }
    *request.version_mut() = Version::HTTP_11;
    request
}

impl<W: ShieldWay, O: Upstream> Upstream for EdgeUpstream<W, O> {
    async fn fetch(&self, request: Request<RequestBody>, fetch: Fetch) -> Result<Fetched, FetchFailed> {
        let shields = self.shields.get();
        if fetch.direct || shields.is_empty() {
            return self.origin.fetch(request, fetch).await;
        }
        let progress = request.body().progress();
        let again = is_repeatable(&request).then(|| copy(&request));
        let mut next = Some(request);
        let mut left = fetch.allowance.attempts;
        let mut failed = FetchFailed::from(FetchError::Shield);
        let spent = |failed: &mut FetchFailed, left: &mut u32, last: FetchFailed| {
            *failed = FetchFailed { attempts: failed.attempts + last.attempts, ..last };
            // A shield that reports no attempt is asked again as often as one that tried once each time.
            *left = left.saturating_sub(last.attempts.max(u32::from(last.error != FetchError::Shield)));
        };
        let now = self.clock.boot();
        let ranked = ranked(fetch.key_hash, &shields, |s| &s.name);
        for (shield, turn) in ranked.into_iter().filter_map(|s| Some((s, s.turn(now)?))).take(MAX_SHIELDS) {
            // A request with a body takes as long as its client does, and is sent once: it is no probe.
            if let Some(request) = next.as_ref().filter(|_| turn.is_probe && progress.is_some()) {
                if let Err(error) = self.probe(shield, request, &fetch).await {
                    if !is_full(error) {
                        turn.failed(self.clock.boot(), error);
                    }
                    continue;
                }
                turn.succeeded();
            }
            while let Some(request) = next.take() {
                // One attempt is reserved for the case that this shield is lost and the fate of its request unknown.
                let attempts = if left > 1 { left - 1 } else { left };
                let allowance = Allowance { attempts, ..fetch.allowance };
                match self.ask(shield, request, &Fetch { allowance, ..fetch.clone() }).await {
                    Ok(fetched) => {
                        turn.succeeded();
                        return Ok(Fetched { failed_before: failed.attempts + fetched.failed_before, ..fetched });
                    }
                    Err(_) if let Some(error) = progress.as_ref().and_then(|p| p.client_fault()) => {
                        // No server is to blame.
                        return Err(FetchFailed { error, ..failed });
                    }
                    Err(Blame::Origin { failed: of_origin, is_heard }) => {
                        if is_heard {
                            turn.succeeded();
                        }
                        spent(&mut failed, &mut left, of_origin);
                        let may_go_on = left > 0 && of_origin.error.is_worth_a_retry() && self.clock.boot() < fetch.allowance.until;
                        // It does not know the site, or cannot reach anybody.
                        if matches!(of_origin.error, FetchError::Shield | FetchError::NoRoom) {
                            next = again.as_ref().map(copy);
                            break;
                        }
                        next = again.as_ref().filter(|_| may_go_on).map(copy);
                        if next.is_none() {
                            return Err(failed);
                        }
                    }
                    Err(Blame::Shield(error, unsent)) => {
                        if !is_full(error) {
                            turn.failed(self.clock.boot(), error);
                        }
                        let was_tried = unsent.is_none() && !error.is_before_processing();
                        let attempts = if was_tried { allowance.attempts } else { 0 };
                        spent(&mut failed, &mut left, FetchFailed { attempts, ..FetchError::Shield.into() });
                        next = unsent.map(|unsent| from_shield(*unsent)).or_else(|| again.as_ref().filter(|_| left > 0).map(copy));
                        break;
                    }
                }
            }
            if next.is_none() {
                return Err(failed);
            }
        }
        let Some(request) = next else { return Err(failed) };
        let allowance = Allowance { attempts: left, ..fetch.allowance };
        let fetched = self.origin.fetch(request, Fetch { allowance, ..fetch }).await;
        match fetched {
            Ok(fetched) => Ok(Fetched { failed_before: failed.attempts + fetched.failed_before, ..fetched }),
            Err(last) => Err(FetchFailed { attempts: failed.attempts + last.attempts, ..last }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use http_body_util::BodyExt;
    use tidegate_control_types::{Incarnation, Revision, WallTime};

    struct At(Duration);

    impl Clock for At {
        fn boot(&self) -> BootTime {
            BootTime::default() + self.0
        }

        fn wall(&self) -> WallTime {
            WallTime(0)
        }
    }

    #[test]
    fn a_shield_that_took_the_name_and_address_of_another_is_another() {
        let shields = Shields::default();
        let one = |enrolled: u64| Shield::new("s1".into(), "192.0.2.1:7444".into(), format!("s1.{enrolled}.shield.main.tidegate.internal"));
        shields.set(vec![one(4)]);
        let first = Arc::clone(&shields.get()[0]);
        shields.set(vec![one(4)]);
        assert!(Arc::ptr_eq(&first, &shields.get()[0]), "what is known of it stays");
        shields.set(vec![one(9)]);
        assert_eq!(shields.get()[0].tls_name, "s1.9.shield.main.tidegate.internal");
    }

    #[test]
    fn one_request_at_a_time_looks_whether_a_shield_is_still_down() {
        let shield = Shield::new("s1".into(), "192.0.2.1:7444".into(), "s1".into());
        let at = |seconds| BootTime::default() + Duration::from_secs(seconds);
        shield.turn(at(100)).unwrap().failed(at(100), FetchError::Reset);
        assert!(shield.turn(at(101)).is_none(), "it is left alone");
        let probe = shield.turn(at(103)).unwrap();
        assert!(shield.turn(at(103)).is_none(), "one at a time");
        probe.failed(at(103), FetchError::Reset);
        drop(probe);
        assert!(shield.turn(at(106)).is_none(), "left alone for longer");
        // A turn that is dropped without a result changes nothing.
        drop(shield.turn(at(108)).unwrap());
        shield.turn(at(108)).unwrap().succeeded();
        let (a, b) = (shield.turn(at(108)), shield.turn(at(108)));
        assert!(a.is_some() && b.is_some());
    }

    /// A shield that fails at once with this word and never asked the origin, and how often it was asked.
    struct Fails(&'static str, std::cell::Cell<u32>);

    impl ShieldWay for Fails {
        async fn send(
            &self,
            _: &Shield,
            _: Request<RequestBody>,
            _: Option<Interim>,
            _: Duration,
            _: Duration,
        ) -> Result<Response<UpstreamBody>, Unanswered> {
            self.1.set(self.1.get() + 1);
            let body = UpstreamBody::new(http_body_util::Empty::new().map_err(|e: std::convert::Infallible| match e {}));
            let response = Response::builder().status(503).header(fields::VOUCHED, "1:1").header(fields::OWN_ERROR, self.0);
            Ok(response.header(fields::ATTEMPTS, 0).body(body).unwrap())
        }
    }

    struct Origin;

    impl Upstream for Origin {
        async fn fetch(&self, _: Request<RequestBody>, _: Fetch) -> Result<Fetched, FetchFailed> {
            Err(FetchError::Refused.into())
        }
    }

    /// A shield whose connections end, or which answers: with the methods that it was asked with.
    struct Lost {
        is_well: bool,
        asked: RefCell<Vec<Method>>,
    }

    impl ShieldWay for Lost {
        async fn send(
            &self,
            _: &Shield,
            request: Request<RequestBody>,
            _: Option<Interim>,
            _: Duration,
            _: Duration,
        ) -> Result<Response<UpstreamBody>, Unanswered> {
            self.asked.borrow_mut().push(request.method().clone());
            let body = UpstreamBody::new(http_body_util::Empty::new().map_err(|e: std::convert::Infallible| match e {}));
            let vouched = Revision::new(Incarnation(1), 1).to_string();
            let response = Response::builder().header(fields::VOUCHED, vouched).body(body).unwrap();
            if self.is_well { Ok(response) } else { Err((FetchError::Reset, None)) }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_finds_a_shield_well_again_and_is_no_probe_itself() {
        let shields = Arc::new(Shields::default());
        shields.set(vec![Shield::new("s1".into(), "192.0.2.1:7444".into(), "s1".into())]);
        shields.get()[0].turn(BootTime::default()).unwrap().failed(BootTime::default(), FetchError::Reset);
        let clock = Arc::new(At(Duration::from_secs(600)));
        let mut edge = EdgeUpstream::new(shields, Lost { is_well: false, asked: RefCell::default() }, Origin, clock);
        let upload =
            || Request::post("https://h.example/").body(RequestBody::of(http_body_util::Full::new(bytes::Bytes::from("x")), 9)).unwrap();
        let fetch = |until| Fetch { allowance: Allowance { attempts: 3, until }, ..fetch() };
        let until = BootTime::default() + Duration::from_secs(660);
        assert_eq!(edge.fetch(upload(), fetch(until)).await.err().unwrap().error, FetchError::Refused, "it went to the origin");
        edge.clock = Arc::new(At(Duration::from_secs(1200)));
        edge.way.is_well = true;
        let until = BootTime::default() + Duration::from_secs(1260);
        assert!(edge.fetch(upload(), fetch(until)).await.is_ok());
        assert!(edge.fetch(upload(), fetch(until)).await.is_ok());
        assert_eq!(*edge.way.asked.borrow(), [Method::HEAD, Method::HEAD, Method::POST, Method::POST]);
    }

    fn fetch() -> Fetch {
        let text = "name = \"s\"\nhosts = [\"h.example\"]\n[origin]\nservers = [{ url = \"http://o.example\" }]\n";
        let spec = tidegate_control_types::site_file::read("s.toml", text).unwrap();
        let state = Arc::new(tidegate_control_types::SiteState { spec, revision: 1, created: 1, keys_since: 1, unshown: Vec::new() });
        let until = BootTime::default() + Duration::from_secs(60);
        Fetch {
            site: Rc::new(tidegate_gateway::Site::new(state, Arc::default())),
            key_hash: 1,
            demand: Revision::new(Incarnation(1), 1),
            end_to_end: false,
            https: false,
            direct: false,
            interim: None,
            allowance: Allowance { attempts: 3, until },
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_shield_that_reports_no_attempt_is_asked_no_more_often_than_the_origin_would_be() {
        // A shield that has no room for a connection is asked once, and nothing is wrong with the origin.
        for (word, times, error) in [("down", 3, FetchError::Down), ("no-room", 1, FetchError::Refused)] {
            let shields = Arc::new(Shields::default());
            shields.set(vec![Shield::new("s1".into(), "192.0.2.1:7444".into(), "s1".into())]);
            let edge = EdgeUpstream::new(shields, Fails(word, std::cell::Cell::new(0)), Origin, Arc::new(At(Duration::ZERO)));
            let request = Request::get("/").body(RequestBody::Empty).unwrap();
            let failed = edge.fetch(request, fetch()).await.err().unwrap();
            assert_eq!((failed.error, failed.attempts, edge.way.1.get()), (error, 0, times));
            assert!(edge.shields.get()[0].turn(BootTime::default()).is_some());
        }
    }

    #[test]
    fn requests_of_one_lost_connection_count_as_one_failure() {
        let shield = Shield::new("s1".into(), "192.0.2.1:7444".into(), "s1".into());
        let at = |seconds| BootTime::default() + Duration::from_secs(seconds);
        let turns: Vec<_> = (0..5).map(|_| shield.turn(at(100)).unwrap()).collect();
        turns.iter().for_each(|turn| turn.failed(at(100), FetchError::Reset));
        assert!(shield.turn(at(101)).is_none());
        assert!(shield.turn(at(103)).is_some());
    }
}
