//! Directly to a site's origin: choose a server, take or open a connection, send, and try another server where that is
//! safe and the budget allows.

use crate::body::TimedBody;
use crate::connect::{self, Connection, TlsSettings};
use crate::health::Health;
use crate::pool::Pool;
use crate::private;
use crate::resolve::Resolver;
use http::header::{self, HeaderValue};
use http::{Method, Request, Uri, Version};
use http_body::Body;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use tidegate_control_types::site::{Balance, HostPattern, OriginHost, OriginServer, OriginSpec};
use tidegate_control_types::{Clock, SiteName, SiteSpec};
use tidegate_gateway::interim::Interim;
use tidegate_gateway::{Fetch, FetchError, Fetched, RequestBody, Upstream, UpstreamBody};

/// A retry costs ten requests' worth of budget: retries stay under 10 % of requests, beyond a few at the start.
const RETRY_COST: i64 = 10;
const BUDGET_START: i64 = 200;
const BUDGET_MOST: i64 = 2000;

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

    /// The next server to try, not among `tried`; primary ones that are up, then backups, then any that was not tried.
    fn choose(&self, key_hash: u64, tried: &[usize], clock: &dyn Clock) -> Option<usize> {
        let now = clock.boot();
        let pick = |from: &[usize], good: &dyn Fn(&Health) -> bool| {
            let up = |n: &usize| self.health.get(*n).is_some_and(|h| good(h)) && !tried.contains(n);
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
        let (is_up, may_be_asked) = (|h: &Health| h.is_up(now), Health::may_be_asked);
        let up = pick(&self.primary, &is_up).or_else(|| pick(&self.backup, &is_up));
        // All were left alone for their failures: leaving all of them alone would make an outage of a few errors.
        up.or_else(|| pick(&self.primary, &may_be_asked)).or_else(|| pick(&self.backup, &may_be_asked))
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
    pub(crate) tls: TlsSettings,
}

impl OriginPools {
    #[must_use]
    pub fn new(resolver: Resolver) -> Arc<Self> {
        Arc::new(Self { sites: RwLock::default(), resolver, tls: TlsSettings::default() })
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

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PoolKey {
    site: SiteName,
    server: OriginServer,
}

/// One worker's way to the origins.
pub struct OriginUpstream {
    pools: Arc<OriginPools>,
    connections: Pool<PoolKey>,
    clock: Arc<dyn Clock>,
}

impl OriginUpstream {
    #[must_use]
    pub fn new(pools: Arc<OriginPools>, clock: Arc<dyn Clock>) -> Self {
        Self { pools, connections: Pool::new(), clock }
    }

    /// Opens a connection, or takes a kept one: `true` where it was kept, and so may be dead without anybody's fault. `upgrading`: to be
    /// one of HTTP/1.1, for this request alone.
    async fn connection(&self, servers: &Servers, key: &PoolKey, fresh: bool, upgrading: bool) -> Result<(Connection, bool), FetchError> {
        if !fresh
            && !upgrading
            && let Some(kept) = self.connections.take(key)
        {
            return Ok((kept, true));
        }
        let (spec, server) = (&servers.spec, &key.server);
        let mut addresses = self.pools.resolver.addresses(&server.host).await?;
        if addresses.is_empty() {
            return Err(FetchError::Resolve);
        }
        if !spec.allow_private {
            addresses.retain(|a| !private::is_private(*a));
            if addresses.is_empty() {
                return Err(FetchError::Private);
            }
        }
        let tcp = connect::tcp(&addresses, server.port, spec.connect_timeout).await?;
        let connection = if server.https {
            let name = spec.tls.server_name.as_deref().unwrap_or(&server.host);
            connect::tls(tcp, name, self.pools.tls.get(&spec.tls, !upgrading)?, spec.connect_timeout).await?
        } else {
            connect::clear(tcp).await?
        };
        if let Connection::H2(sender) = &connection {
            self.connections.share(key, sender);
        }
        Ok((connection, false))
    }

    async fn attempt(
        &self,
        servers: &Arc<Servers>,
        at: usize,
        request: Request<RequestBody>,
        interim: Option<&Interim>,
    ) -> Result<Fetched, Failed> {
        let Some((server, health)) = servers.spec.servers.get(at).zip(servers.health.get(at)) else {
            return Err(Failed::unsent(FetchError::Down, request));
        };
        let key = PoolKey { site: servers.site.clone(), server: server.clone() };
        let mut request = request;
        let mut fresh = false;
        loop {
            let upgrading = request.headers().contains_key(header::UPGRADE);
            let (connection, kept) = match self.connection(servers, &key, fresh, upgrading).await {
                Ok(c) => c,
                Err(error) => return Err(Failed::unsent(error, request)),
            };
            match self.exchange(servers, &key, health, connection, request, interim.cloned()).await {
                // The server closed a kept connection just as the request went out.
                Err(Failed { unsent: Some(back), .. }) if kept => {
                    request = back;
                    fresh = true;
                }
                other => return other,
            }
        }
    }

    async fn exchange(
        &self,
        servers: &Arc<Servers>,
        key: &PoolKey,
        health: &Arc<Health>,
        connection: Connection,
        mut request: Request<RequestBody>,
        interim: Option<Interim>,
    ) -> Result<Fetched, Failed> {
        let spec = &servers.spec;
        shape(&mut request, spec, &key.server, matches!(connection, Connection::H2(_)));
        let upgrading = request.headers().contains_key(header::UPGRADE);
        health.in_flight.fetch_add(1, Ordering::Relaxed);
        let counted = InFlight(Arc::clone(health));
        let late = |_| Failed { error: FetchError::Timeout, unsent: None };
        match connection {
            Connection::H1(mut sender) => {
                if let Some(interim) = interim {
                    hyper::ext::on_informational(&mut request, move |early| interim.pass(early.status(), early.headers()));
                }
                let sent = tokio::time::timeout(spec.first_byte_timeout, sender.try_send_request(request)).await.map_err(late)?;
                let mut response = sent.map_err(|mut e| Failed::of(&e.error().to_string(), e.take_message()))?;
                let switches = upgrading && response.status() == http::StatusCode::SWITCHING_PROTOCOLS;
                let upgrade = switches.then(|| hyper::upgrade::on(&mut response));
                let close_delimited = response.body().size_hint().exact().is_none() && !is_chunked(response.headers());
                let (pool, key) = (self.connections.clone(), key.clone());
                let over = Box::new(move |whole: bool| {
                    drop(counted);
                    // One that was opened for an upgrade speaks HTTP/1.1, whatever the origin prefers.
                    if whole && !upgrading {
                        pool.keep(key, sender);
                    }
                });
                let response = response.map(|body| UpstreamBody::new(TimedBody::new(body, spec.idle_timeout, over)));
                Ok(Fetched { response, vouched: None, close_delimited, upgrade })
            }
            Connection::H2(mut sender) => {
                let sent = tokio::time::timeout(spec.first_byte_timeout, sender.send(request, interim)).await.map_err(late)?;
                let response = sent.map_err(|f| Failed::of(&f.error.to_string(), f.unsent))?;
                let over = Box::new(move |_| drop(counted));
                let response = response.map(|body| UpstreamBody::new(TimedBody::new(body, spec.idle_timeout, over)));
                Ok(Fetched { response, vouched: None, close_delimited: false, upgrade: None })
            }
        }
    }
}

/// Whether the last transfer coding is chunked, so that the body says where it ends (RFC 9112 section 6.3).
fn is_chunked(headers: &http::HeaderMap) -> bool {
    let last = headers.get_all(header::TRANSFER_ENCODING).iter().next_back().and_then(|v| v.to_str().ok());
    last.and_then(|v| v.rsplit(',').next()).is_some_and(|coding| coding.trim().eq_ignore_ascii_case("chunked"))
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
    unsent: Option<Request<RequestBody>>,
}

impl Failed {
    fn unsent(error: FetchError, request: Request<RequestBody>) -> Self {
        Self { error, unsent: Some(request) }
    }

    fn of(error: &str, unsent: Option<Request<RequestBody>>) -> Self {
        tracing::debug!(error, "a request to an origin failed");
        Self { error: FetchError::Broken, unsent }
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
        path.parse::<Uri>()
    };
    if let Ok(uri) = uri {
        *request.uri_mut() = uri;
    }
}

impl Upstream for OriginUpstream {
    async fn fetch(&self, request: Request<RequestBody>, fetch: Fetch) -> Result<Fetched, FetchError> {
        let servers = self.pools.get(fetch.site.name()).ok_or(FetchError::Down)?;
        servers.earn();
        let again = (matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS)
            && matches!(request.body(), RequestBody::Empty))
        .then(|| copy(&request));
        let upgrading = request.headers().contains_key(header::UPGRADE);
        let mut next = Some(request);
        let (mut tried, mut last) = (Vec::new(), FetchError::Down);
        while let Some(request) = next.take() {
            let Some(at) = servers.choose(fetch.key_hash, &tried, &*self.clock) else { return Err(last) };
            tried.push(at);
            let health = servers.health.get(at);
            match self.attempt(&servers, at, request, fetch.interim.as_ref()).await {
                Ok(fetched) => {
                    health.inspect(|h| h.succeeded());
                    return Ok(fetched);
                }
                Err(failed) => {
                    tracing::debug!(site = fetch.site.name(), server = at, error = %failed.error, "an origin server failed");
                    if upgrading && failed.error == FetchError::Tls {
                        // An origin that speaks HTTP/2 alone is well: it upgrades nothing.
                        return Err(failed.error);
                    }
                    health.inspect(|h| h.failed(self.clock.boot()));
                    last = failed.error;
                    let left = tried.len() <= servers.spec.retries as usize;
                    next = failed.unsent.or_else(|| again.as_ref().map(copy)).filter(|_| left && servers.may_retry());
                }
            }
            if tried.len() >= servers.spec.servers.len() {
                // A single server gets its retries too.
                tried.retain(|_| false);
                if servers.spec.retries == 0 {
                    break;
                }
            }
        }
        Err(last)
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
