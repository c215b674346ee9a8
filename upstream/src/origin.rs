//! Directly to a site's origin: choose a server, take or open a connection, send, and try another server where that is
//! safe and the budget allows.

use crate::body::TimedBody;
use crate::connect::{self, Addresses, Connection, TlsSettings};
use crate::framing;
use crate::health::Health;
use crate::patience::{self, Patience};
use crate::pool::{Made, Pool};
use crate::private;
use crate::resolve::Resolver;
use http::header::{self, HeaderValue};
use http::{Method, Request, Uri, Version};
use http_body::Body;
use parking_lot::RwLock;
use std::cell::Cell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;
use tidegate_control_types::planted::Bug;
use tidegate_control_types::site::{Balance, HostPattern, OriginHost, OriginServer, OriginSpec, OriginTls};
use tidegate_control_types::{BootTime, Clock, SiteName, SiteSpec};
use tidegate_gateway::interim::{self, Interim};
use tidegate_gateway::{Fetch, FetchError, FetchFailed, Fetched, RequestBody, Turn, Upstream, UpstreamBody, fields};

/// A retry costs ten requests' worth of budget: retries stay under 10 % of requests, beyond a few at the start.
const RETRY_COST: i64 = 10;
const BUDGET_START: i64 = 200;
const BUDGET_MOST: i64 = 2000;
/// A resolver gives up before.
const MOST_RESOLVING: Duration = Duration::from_secs(60);
/// Maximum number of shared connections that one request finds drained before it opens one for itself.
const MAX_DRAINED: usize = 3;

/// The servers of one site, with what is known of each.
pub struct Servers {
    site: SiteName,
    spec: OriginSpec,
    hosts: Vec<HostPattern>,
    health: Vec<Arc<Health>>,
    /// Each server's index as often as its weight, first choice and backups.
    primary: Vec<usize>,
    backup: Vec<usize>,
    turn: AtomicU32,
    budget: AtomicI64,
}

impl Servers {
    fn new(site: &SiteSpec, old: Option<&Self>) -> Self {
        let spec = site.origin.clone();
        // A server that stays keeps what is known of it.
        let known = |server: &OriginServer| {
            let old = old?;
            old.spec.servers.iter().position(|s| s == server).and_then(|at| old.health.get(at)).map(Arc::clone)
        };
        let health = spec.servers.iter().map(|s| known(s).unwrap_or_default()).collect();
        let spread = |backup: bool| {
            let chosen = spec.servers.iter().enumerate().filter(|(_, s)| s.backup == backup);
            let most = spec.servers.iter().map(|s| s.weight).max().unwrap_or(1);
            // Interleaved, so that a heavy server's turns do not come in a row.
            let rounds = (0..most).flat_map(|round| chosen.clone().filter(move |(_, s)| round < s.weight).map(|(n, _)| n));
            rounds.collect::<Vec<_>>()
        };
        let (primary, backup) = (spread(false), spread(true));
        Self {
            site: site.name.clone(),
            hosts: site.hosts.clone(),
            spec,
            health,
            primary,
            backup,
            turn: AtomicU32::new(0),
            budget: AtomicI64::new(BUDGET_START),
        }
    }

    #[must_use]
    pub fn site(&self) -> &str {
        self.site.as_str()
    }

    #[must_use]
    pub fn spec(&self) -> &OriginSpec {
        &self.spec
    }

    /// A host that the site serves, for probes of origins that go by Host.
    #[must_use]
    pub fn probe_host(&self) -> Option<String> {
        self.hosts.iter().find_map(|h| if let HostPattern::Exact(name) = h { Some(name.clone()) } else { None })
    }

    pub fn each(&self) -> impl Iterator<Item = (&OriginServer, &Arc<Health>)> {
        self.spec.servers.iter().zip(&self.health)
    }

    /// The next server to try: primary ones that are up, then backups. Where none is up, those that only requests speak against:
    /// leaving all of them alone would make an outage of a few errors.
    fn choose(&self, key_hash: u64, tried: &mut Tried, clock: &dyn Clock) -> Option<usize> {
        let now = clock.boot();
        let any_is_up = self.health.iter().any(|h| h.is_up(now));
        let good = |h: &Health| if any_is_up { h.is_up(now) } else { h.may_be_asked() };
        let pick = |from: &[usize], tried: &Tried| {
            let up = |n: &usize| self.health.get(*n).is_some_and(|h| good(h)) && !tried.round.contains(n) && !tried.hopeless.contains(n);
            let mut live: Vec<usize> = from.iter().copied().filter(up).collect();
            match self.spec.balance {
                Balance::RoundRobin => {
                    let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
                    live.get(turn % live.len().max(1)).copied()
                }
                Balance::LeastRequests => {
                    live.into_iter().min_by_key(|n| self.health.get(*n).map_or(0, |h| h.in_flight.load(Ordering::Relaxed)))
                }
                Balance::Hash => {
                    live.sort_unstable();
                    live.dedup();
                    let names: Vec<_> =
                        live.iter().map(|n| (*n, self.spec.servers.get(*n).map(ToString::to_string).unwrap_or_default())).collect();
                    crate::ring::ranked(key_hash, &names, |(_, name)| name).first().map(|(n, _)| *n)
                }
            }
        };
        let next = |tried: &Tried| pick(&self.primary, tried).or_else(|| pick(&self.backup, tried));
        next(tried).or_else(|| {
            tried.round.clear();
            next(tried)
        })
    }

    fn note_failed(&self, at: usize, now: BootTime, why: &dyn std::fmt::Display) {
        if let Some((server, health)) = self.spec.servers.get(at).zip(self.health.get(at))
            && health.failed(now, &self.spec.ejection)
        {
            let time = self.spec.ejection.time.as_secs_f64();
            tracing::warn!(site = self.site(), %server, %why, "an origin server failed too often and is left alone for {time} s");
        }
    }

    fn note_succeeded(&self, at: usize, now: BootTime) {
        if let Some((server, health)) = self.spec.servers.get(at).zip(self.health.get(at))
            && health.succeeded(now)
        {
            tracing::info!(site = self.site(), %server, "an origin server that was left alone answers again");
        }
    }

    fn earn(&self) {
        if self.budget.load(Ordering::Relaxed) < BUDGET_MOST {
            self.budget.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn may_retry(&self) -> bool {
        let paid = self.budget.fetch_sub(RETRY_COST, Ordering::Relaxed);
        if paid < RETRY_COST {
            self.budget.fetch_add(RETRY_COST, Ordering::Relaxed);
        }
        paid >= RETRY_COST
    }
}

/// The origins of all sites on one node.
pub struct OriginPools {
    sites: RwLock<HashMap<SiteName, Arc<Servers>>>,
    pub(crate) resolver: Resolver,
    pub(crate) addresses: Addresses,
    pub(crate) tls: TlsSettings,
}

impl OriginPools {
    #[must_use]
    pub fn new(resolver: Resolver) -> Arc<Self> {
        Arc::new(Self { sites: RwLock::default(), resolver, addresses: Addresses::default(), tls: TlsSettings::default() })
    }

    /// Takes over the sites as they are now.
    pub fn set_sites<'a>(&self, specs: impl Iterator<Item = &'a SiteSpec>) {
        let old = self.sites.read().clone();
        let servers = |spec: &SiteSpec| match old.get(&spec.name) {
            Some(same) if same.spec == spec.origin && same.hosts == spec.hosts => Arc::clone(same),
            other => Arc::new(Servers::new(spec, other.map(|o| &**o))),
        };
        *self.sites.write() = specs.map(|s| (s.name.clone(), servers(s))).collect();
    }

    #[must_use]
    pub fn all(&self) -> Vec<Arc<Servers>> {
        self.sites.read().values().cloned().collect()
    }

    fn get(&self, site: &str) -> Option<Arc<Servers>> {
        self.sites.read().get(site).cloned()
    }

    /// Servers that are down, for reports.
    #[must_use]
    pub fn down(&self, clock: &dyn Clock) -> Vec<String> {
        let now = clock.boot();
        let all = self.all();
        let each = all.iter().flat_map(|s| s.each().map(move |(server, h)| (s.site(), server, h)));
        each.filter(|(_, _, h)| !h.is_up(now)).map(|(site, server, _)| format!("{site}: {server}")).take(100).collect()
    }
}

/// The properties of a kept connection. A request with other properties needs a new connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PoolKey {
    site: SiteName,
    server: OriginServer,
    tls: OriginTls,
    allow_private: bool,
}

/// One worker's way to the origins.
pub struct OriginUpstream {
    pools: Arc<OriginPools>,
    connections: Pool<PoolKey>,
    clock: Arc<dyn Clock>,
}

/// The time limits of one attempt.
#[derive(Clone, Copy)]
struct Limits<'a> {
    /// For TCP, and again for TLS.
    connect: Duration,
    first_byte: Duration,
    /// Without the origin taking any of the request's body, or sending any of its own.
    idle: Duration,
    /// When the request's time is over, whatever the step; a request with a body is sent once, and takes as long as its client does.
    until: Option<tokio::time::Instant>,
    total: Duration,
    /// The time that was left for the last step.
    given: &'a Cell<Duration>,
}

impl Limits<'_> {
    /// How long a step may take: `most`, or the rest of the request's time.
    fn left(&self, most: Duration) -> Duration {
        let left = self.until.map_or(most, |until| most.min(until.saturating_duration_since(tokio::time::Instant::now())));
        self.given.set(left);
        left
    }

    fn patience(&self) -> Patience {
        Patience { first_byte: self.left(self.first_byte), stall: self.idle }
    }

    /// The time that the site gives the step which ended with a time-out.
    fn most(&self, error: FetchError) -> Option<Duration> {
        match error {
            FetchError::ConnectTimeout | FetchError::TlsTimeout => Some(self.connect),
            FetchError::Timeout | FetchError::NoStream => Some(self.first_byte),
            FetchError::NameServer => Some(MOST_RESOLVING),
            _ => None,
        }
    }

    /// Whether a failure counts against the server. A time-out does only if the server had half of the time that the site gives it:
    /// later attempts of a request may have little left.
    fn speaks_against_server(&self, error: FetchError) -> bool {
        error.is_of_the_server() && self.most(error).is_none_or(|most| self.given.get() >= most.min(self.total) / 2)
    }

    /// The error as the client hears it: if the request's deadline cut the step short, the deadline is the cause.
    fn reported(&self, error: FetchError) -> FetchError {
        let is_cut_short = self.until.is_some_and(|until| tokio::time::Instant::now() >= until);
        if is_cut_short && self.most(error).is_some_and(|most| self.given.get() < most) { FetchError::Deadline } else { error }
    }
}

impl OriginUpstream {
    #[must_use]
    pub fn new(pools: Arc<OriginPools>, clock: Arc<dyn Clock>) -> Self {
        Self { pools, connections: Pool::new(), clock }
    }

    /// A kept connection that may be used on: not too old, and to an address that the name still leads to.
    fn kept(&self, servers: &Servers, key: &PoolKey) -> Option<(Connection, Made)> {
        let (now, most) = (tokio::time::Instant::now(), servers.spec.max_connection_age);
        let is_good = |made: &Made| now.duration_since(made.at) < most && self.pools.resolver.still_leads_to(&key.server.host, made.to);
        self.connections.take(key, is_good)
    }

    /// Opens a connection, or takes a kept one: `true` where it was kept, and so may be dead without anybody's fault. `upgrading`: to be
    /// one of HTTP/1.1, for this request alone.
    async fn connection(
        &self,
        servers: &Servers,
        key: &PoolKey,
        fresh: bool,
        upgrading: bool,
        limits: Limits<'_>,
    ) -> Result<(Connection, Made, bool), NoConnection> {
        let kept = || if fresh || upgrading { None } else { self.kept(servers, key) };
        if let Some((connection, made)) = kept() {
            return Ok((connection, made, true));
        }
        // On the heap: most requests find a connection, and would carry the size of a handshake.
        Box::pin(self.open(servers, key, kept, fresh, upgrading, limits)).await
    }

    async fn open(
        &self,
        servers: &Servers,
        key: &PoolKey,
        kept: impl Fn() -> Option<(Connection, Made)>,
        fresh: bool,
        upgrading: bool,
        limits: Limits<'_>,
    ) -> Result<(Connection, Made, bool), NoConnection> {
        let began = tokio::time::Instant::now();
        let (spec, server) = (&servers.spec, &key.server);
        let resolving = tokio::time::timeout(limits.left(MOST_RESOLVING), self.pools.resolver.addresses(&server.host));
        let mut addresses = resolving.await.map_err(|_| FetchError::NameServer)??.to_vec();
        if !spec.allow_private {
            addresses.retain(|a| !private::is_private(*a));
            if addresses.is_empty() {
                return Err(FetchError::Private.into());
            }
        }
        let Some(opening) = self.connections.opening(key).filter(|_| !upgrading) else {
            return Ok(self.open_one(servers, key, &addresses, upgrading, limits).await?);
        };
        // To open a connection may take the time twice, for TCP and for TLS.
        let waiting = tokio::time::timeout(limits.left(limits.connect * 2), opening.lock());
        let late = |_| NoConnection { error: FetchError::ConnectTimeout, is_anothers: true };
        let mut last_failed = waiting.await.map_err(late)?;
        loop {
            if let Some((connection, made)) = kept() {
                return Ok((connection, made, true));
            }
            let new = if fresh { None } else { self.connections.unheard(key) };
            let Some(new) = new else { break };
            tokio::time::timeout(limits.left(limits.connect), new.heard()).await.map_err(late)?;
        }
        // All who waited for a connection that failed share its error: one after the other would wait as long each.
        if let Some((at, error)) = *last_failed
            && at > began
        {
            return Err(NoConnection { error, is_anothers: true });
        }
        let opened = self.open_one(servers, key, &addresses, upgrading, limits).await;
        match &opened {
            Err(error) => *last_failed = Some((tokio::time::Instant::now(), *error)),
            Ok((Connection::H1(_), ..)) => self.connections.shares_none(key),
            Ok(_) => {}
        }
        Ok(opened?)
    }

    async fn open_one(
        &self,
        servers: &Servers,
        key: &PoolKey,
        addresses: &[IpAddr],
        upgrading: bool,
        limits: Limits<'_>,
    ) -> Result<(Connection, Made, bool), FetchError> {
        let within = || limits.left(limits.connect);
        let (spec, server) = (&servers.spec, &key.server);
        let tcp = self.pools.addresses.connect(addresses, server.port, within()).await?;
        let to = tcp.peer_addr().map_err(|_| FetchError::Reset)?.ip();
        let made = Made { at: tokio::time::Instant::now(), to };
        let connection = if server.https {
            let name = spec.tls.server_name.as_deref().unwrap_or(&server.host);
            let may_speak_h2 = !upgrading && !self.connections.refuses_h2(key);
            connect::tls(tcp, name, self.pools.tls.get(&spec.tls, may_speak_h2)?, within(), upgrading).await?
        } else {
            connect::clear(tcp, upgrading).await?
        };
        if let Connection::H2(sender) = &connection {
            self.connections.share(key, sender, made);
        }
        Ok((connection, made, false))
    }

    async fn attempt(
        &self,
        servers: &Arc<Servers>,
        at: usize,
        request: Request<RequestBody>,
        interim: Option<&Interim>,
        limits: Limits<'_>,
    ) -> Result<Fetched, Failed> {
        let Some((server, health)) = servers.spec.servers.get(at).zip(servers.health.get(at)) else {
            return Err(Failed::unsent(FetchError::Down, request));
        };
        let (tls, allow_private) = (servers.spec.tls.clone(), servers.spec.allow_private);
        let key = PoolKey { site: servers.site.clone(), server: server.clone(), tls, allow_private };
        let mut request = request;
        let mut fresh = false;
        let mut drained = 0;
        loop {
            let upgrading = request.headers().contains_key(header::UPGRADE);
            let (connection, made, kept) = match self.connection(servers, &key, fresh, upgrading, limits).await {
                Ok(c) => c,
                Err(NoConnection { error, is_anothers }) => return Err(Failed { is_anothers, ..Failed::unsent(error, request) }),
            };
            let is_shared = matches!(connection, Connection::H2(_));
            match self.exchange(servers, &key, health, (connection, made), request, interim.cloned(), limits).await {
                // The server closed a kept connection just as the request went out. A shared one is out of the pool by that, and
                // another one may be good; the idle ones are as old as this one.
                Err(Failed { unsent: Some(back), error, .. }) if kept && error != FetchError::NoStream => {
                    request = back;
                    drained += usize::from(is_shared);
                    fresh = !is_shared || drained > MAX_DRAINED;
                }
                Err(failed) => {
                    if kept && failed.error == FetchError::Reset {
                        self.connections.distrust(&key);
                    }
                    if failed.error == FetchError::NeedsHttp1 {
                        self.connections.note_refuses_h2(&key);
                    }
                    return Err(failed);
                }
                answered => return answered,
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    async fn exchange(
        &self,
        servers: &Arc<Servers>,
        key: &PoolKey,
        health: &Arc<Health>,
        (connection, made): (Connection, Made),
        mut request: Request<RequestBody>,
        interim: Option<Interim>,
        limits: Limits<'_>,
    ) -> Result<Fetched, Failed> {
        shape(&mut request, &servers.spec, &key.server, matches!(connection, Connection::H2(_)));
        let offered = request.headers().get(header::UPGRADE).cloned();
        let (upgrading, method, progress) = (offered.is_some(), request.method().clone(), request.body().progress());
        health.in_flight.fetch_add(1, Ordering::Relaxed);
        let counted = InFlight(Arc::clone(health));
        let sent = |error| Failed { error, line: None, unsent: None, is_anothers: false };
        match connection {
            Connection::H1(mut to) => {
                let usually_has_body = matches!(method, Method::POST | Method::PUT | Method::PATCH);
                let count = to.count_interim();
                hyper::ext::on_informational(&mut request, move |early| {
                    count.fetch_add(interim::cost(early.headers()), Ordering::Relaxed);
                    interim.iter().for_each(|i| i.pass(early.status(), early.headers()));
                });
                let answered = limits.patience().wait(to.sender.try_send_request(request), progress.as_deref()).await.map_err(sent)?;
                let mut response = answered.map_err(|mut e| {
                    let error = if to.had_too_many_interim() { FetchError::Interim } else { h1_error(e.error()) };
                    // A line number is only useful if the head itself was malformed.
                    let line = to.bad_line().filter(|_| error == FetchError::Malformed);
                    Failed { error, line, unsent: e.take_message(), is_anothers: false }
                })?;
                if fields::is_too_large(response.headers()) {
                    return Err(sent(FetchError::HeadTooLarge));
                }
                let switches = response.status() == http::StatusCode::SWITCHING_PROTOCOLS;
                if response.status().is_informational() && !(switches && is_offered(offered.as_ref(), response.headers())) {
                    // An unrequested upgrade is an error (RFC 9110 section 15.2.2).
                    return Err(sent(FetchError::Switched));
                }
                let upgrade = switches.then(|| hyper::upgrade::on(&mut response));
                let decoded = response.body().size_hint().exact();
                // A server that does not read the body of a request takes it for the next request, which may be another client's. Many do
                // so with methods that seldom have one, and when they answer early or with an error.
                let is_unread =
                    progress.as_ref().is_some_and(|p| !usually_has_body || p.turn() != Turn::Answer || !response.status().is_success());
                let leaves_bytes = is_unread || framing::leaves_bytes(&method, &response);
                let framing::Framing { length, close_delimited } = framing::take(&method, decoded, &mut response).map_err(sent)?;
                let (pool, key) = (self.connections.clone(), key.clone());
                let over = Box::new(move |whole: bool| {
                    drop(counted);
                    // One that was opened for an upgrade speaks HTTP/1.1, whatever the origin prefers.
                    if whole && !upgrading && !leaves_bytes {
                        pool.keep(key, to, made);
                    }
                });
                let idle = patience::idle(response.headers(), limits.idle);
                let response = response.map(|body| UpstreamBody::new(TimedBody::new(body, idle, progress, over)));
                Ok(Fetched { response, length, vouched: None, stands_in: false, failed_before: 0, close_delimited, upgrade })
            }
            Connection::H2(mut sender) => {
                let slot = match tokio::time::timeout(limits.left(limits.first_byte), sender.slot()).await {
                    Ok(Ok(slot)) => slot,
                    Ok(Err(error)) => return Err(Failed::unsent(h2_error(&error), request)),
                    Err(_) => return Err(Failed::unsent(FetchError::NoStream, request)),
                };
                let answered = limits.patience().wait(sender.send(slot, request, interim), progress.as_deref()).await.map_err(sent)?;
                let mut response = answered.map_err(|error| sent(h2_error(&error)))?;
                if fields::is_too_large(response.headers()) {
                    return Err(sent(FetchError::HeadTooLarge));
                }
                let decoded = response.body().size_hint().exact();
                let framed = framing::take(&method, decoded, &mut response).map_err(sent)?;
                let over = Box::new(move |_| drop(counted));
                let idle = patience::idle(response.headers(), limits.idle);
                let response = response.map(|body| UpstreamBody::new(TimedBody::new(body, idle, progress, over)));
                Ok(Fetched {
                    response,
                    length: framed.length,
                    vouched: None,
                    stands_in: false,
                    failed_before: 0,
                    close_delimited: false,
                    upgrade: None,
                })
            }
        }
    }
}

fn h1_error(error: &hyper::Error) -> FetchError {
    tracing::debug!(error = %std::error::Error::source(error).map_or_else(|| error.to_string(), |s| format!("{error}: {s}")), "a request to an origin failed");
    match error {
        e if e.is_parse_too_large() => FetchError::HeadTooLarge,
        e if e.is_parse() && is_of_framing(e) => FetchError::Framing,
        e if e.is_parse() => FetchError::Malformed,
        _ => FetchError::Reset,
    }
}

/// hyper reads the fields that frame a body once it has the head, and says which it was in words alone.
fn is_of_framing(error: &hyper::Error) -> bool {
    let text = error.to_string();
    text.contains("content-length") || text.contains("transfer-encoding")
}

fn h2_error(error: &tidegate_http2::Error) -> FetchError {
    tracing::debug!(%error, "a request to an origin failed");
    match error.reason() {
        Some(tidegate_http2::Reason::REFUSED_STREAM) => FetchError::Unprocessed,
        Some(tidegate_http2::Reason::HTTP_1_1_REQUIRED) => FetchError::NeedsHttp1,
        // A server that stops names the last request that it answers (RFC 9113 section 6.8). This one came after that.
        Some(tidegate_http2::Reason::NO_ERROR) if error.is_go_away() && error.is_remote() => FetchError::Unprocessed,
        _ if error.is_library() => FetchError::Malformed,
        // This end gave the request up.
        Some(tidegate_http2::Reason::ENHANCE_YOUR_CALM) if !error.is_remote() => FetchError::Interim,
        _ => FetchError::Reset,
    }
}

/// Whether a response switches to a protocol that the request offered.
fn is_offered(offered: Option<&HeaderValue>, response: &http::HeaderMap) -> bool {
    let Some(offered) = offered else { return false };
    let switched = response.get(header::UPGRADE).map(|v| v.as_bytes().trim_ascii());
    switched.is_some_and(|to| offered.as_bytes().split(|b| *b == b',').any(|o| o.trim_ascii().eq_ignore_ascii_case(to)))
}

struct InFlight(Arc<Health>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A failed attempt; the request comes back where nothing of it was sent.
struct Failed {
    error: FetchError,
    /// Which line of a head is not valid HTTP.
    line: Option<u32>,
    unsent: Option<Request<RequestBody>>,
    /// Another request's connection failed, and counted for the server then.
    is_anothers: bool,
}

/// Why there is no connection.
struct NoConnection {
    error: FetchError,
    /// This request waited for one that another request opened.
    is_anothers: bool,
}

impl From<FetchError> for NoConnection {
    fn from(error: FetchError) -> Self {
        Self { error, is_anothers: false }
    }
}

impl Failed {
    fn unsent(error: FetchError, request: Request<RequestBody>) -> Self {
        Self { error, line: None, unsent: Some(request), is_anothers: false }
    }
}

/// Gives the request the Host and the form that this server and protocol want.
fn shape(request: &mut Request<RequestBody>, spec: &OriginSpec, server: &OriginServer, h2: bool) {
    if let OriginHost::Name(name) = &spec.host
        && let Ok(value) = HeaderValue::from_str(name)
    {
        request.headers_mut().insert(header::HOST, value);
    }
    *request.version_mut() = if h2 { Version::HTTP_2 } else { Version::HTTP_11 };
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let uri = if h2 {
        let host = request.headers_mut().remove(header::HOST);
        let authority = host.as_ref().and_then(|h| h.to_str().ok()).unwrap_or(&server.host);
        request.headers_mut().remove(header::UPGRADE);
        request.headers_mut().remove(header::CONNECTION);
        format!("https://{authority}{path}").parse::<Uri>()
    } else {
        if request.headers().contains_key(header::TE) && !request.headers().get_all(header::CONNECTION).iter().any(|v| v == "te") {
            request.headers_mut().append(header::CONNECTION, HeaderValue::from_static("te"));
        }
        if !request.headers().contains_key(header::HOST)
            && let Some(value) = request.uri().authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok())
        {
            request.headers_mut().insert(header::HOST, value);
        }
        if matches!(request.body(), RequestBody::Empty) && matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) {
            // Some servers refuse what could have a body and says no length (RFC 9110 section 8.6).
            request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(0));
        }
        let has_unknown_length = !matches!(request.body(), RequestBody::Empty) && request.body().size_hint().exact().is_none();
        if has_unknown_length && matches!(*request.method(), Method::GET | Method::HEAD) {
            // hyper would send no body with these methods.
            request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        path.parse::<Uri>()
    };
    if let Ok(uri) = uri {
        *request.uri_mut() = uri;
    }
}

impl Upstream for OriginUpstream {
    async fn fetch(&self, request: Request<RequestBody>, fetch: Fetch) -> Result<Fetched, FetchFailed> {
        let servers = self.pools.get(fetch.site.name()).ok_or(FetchError::Down)?;
        servers.earn();
        let progress = request.body().progress();
        let again = matches!(request.body(), RequestBody::Empty).then(|| copy(&request));
        let is_repeatable = is_repeatable(&request);
        let upgrading = request.headers().contains_key(header::UPGRADE);
        let mut next = Some(request);
        let mut tried = Tried::default();
        let mut failed = FetchFailed::from(FetchError::Down);
        let given = Cell::new(Duration::ZERO);
        while let Some(request) = next.take() {
            let Some(at) = servers.choose(fetch.key_hash, &mut tried, &*self.clock) else { break };
            let Some(limits) = self.limits(&servers, &request, fetch.allowance.until, &given) else {
                if failed.attempts == 0 {
                    failed.error = FetchError::Deadline;
                }
                break;
            };
            failed.attempts += 1;
            match self.attempt(&servers, at, request, fetch.interim.as_ref(), limits).await {
                Ok(fetched) => {
                    let rule = &servers.spec.ejection;
                    if rule.statuses.contains(&fetched.response.status().as_u16()) {
                        servers.note_failed(at, self.clock.boot(), &fetched.response.status());
                    } else {
                        servers.note_succeeded(at, self.clock.boot());
                    }
                    return Ok(Fetched { failed_before: failed.attempts - 1, ..fetched });
                }
                Err(_) if let Some(error) = progress.as_ref().and_then(|p| p.client_fault()) => {
                    // No server is to blame.
                    return Err(FetchFailed { error, ..failed });
                }
                Err(Failed { error, line, unsent, is_anothers }) => {
                    tracing::debug!(site = fetch.site.name(), server = at, %error, "an origin server failed");
                    (failed.error, failed.line) = (limits.reported(error), line);
                    if upgrading && error == FetchError::Tls {
                        // An origin that speaks HTTP/2 alone is well: it upgrades nothing.
                        break;
                    }
                    // A server that answers with something other than HTTP is no server, one with a bad field may have a bad page.
                    let is_no_http = error == FetchError::Malformed && line == Some(1);
                    // One that grew tired of a slow client is well.
                    let is_owed = progress.as_ref().is_some_and(|p| p.is_owed());
                    if (limits.speaks_against_server(error) || is_no_http) && !is_owed && !is_anothers {
                        servers.note_failed(at, self.clock.boot(), &error);
                    }
                    tried.failed(at, error);
                    let may_go_on =
                        error != FetchError::Private && (failed.attempts < fetch.allowance.attempts || Bug::AttemptsUncounted.is_planted());
                    let may_repeat = is_repeatable || error.is_before_processing();
                    next = unsent.or_else(|| again.as_ref().filter(|_| may_repeat).map(copy)).filter(|_| may_go_on && servers.may_retry());
                }
            }
        }
        Err(failed)
    }
}

impl OriginUpstream {
    /// The time limits of the next attempt; `None` after the deadline. The deadline applies to requests that are sent at once: a request
    /// with a body is sent only once, and takes as long as its client takes.
    fn limits<'a>(
        &self,
        servers: &Servers,
        request: &Request<RequestBody>,
        until: BootTime,
        given: &'a Cell<Duration>,
    ) -> Option<Limits<'a>> {
        let spec = &servers.spec;
        let first_byte = patience::first_byte(request, spec.first_byte_timeout);
        let is_timed = matches!(request.body(), RequestBody::Empty) && first_byte == spec.first_byte_timeout;
        let left = is_timed.then(|| until.since(self.clock.boot()));
        let until = left.map(|left| tokio::time::Instant::now() + left);
        let limits = Limits { connect: spec.connect_timeout, first_byte, idle: spec.idle_timeout, until, total: spec.total_timeout, given };
        left.is_none_or(|left| !left.is_zero()).then_some(limits)
    }
}

/// Whether a request may be sent twice.
pub(crate) fn is_repeatable(request: &Request<RequestBody>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) && matches!(request.body(), RequestBody::Empty)
}

/// The servers that one request has met.
#[derive(Default)]
struct Tried {
    /// In this round: each gets its turn before one is asked again.
    round: Vec<usize>,
    /// They will not do better for this request.
    hopeless: Vec<usize>,
}

impl Tried {
    fn failed(&mut self, at: usize, error: FetchError) {
        self.round.push(at);
        if !error.is_worth_a_retry() {
            self.hopeless.push(at);
        }
    }
}

/// A request without body, once more.
pub(crate) fn copy(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut out = Request::new(RequestBody::Empty);
    out.method_mut().clone_from(request.method());
    out.uri_mut().clone_from(request.uri());
    out.headers_mut().clone_from(request.headers());
    out
}
