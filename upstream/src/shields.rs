//! An edge's way: the shield that the key's hash chooses in its region, the next one when that fails, then the origin
//! itself.

use crate::body::TimedBody;
use crate::origin::copy;
use crate::ring::ranked;
use http::header::{self, HeaderValue};
use http::{Request, Response, Uri, Version};
use parking_lot::RwLock;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tidegate_control_types::{BootTime, Clock};
use tidegate_gateway::interim::Interim;
use tidegate_gateway::{Fetch, FetchError, Fetched, RequestBody, Upstream, UpstreamBody, fields};
use tidegate_http2::{ClientSettings, KeepAlive, Sender};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A shield that was not reached is not asked again for this long.
const LEAVE_ALONE: Duration = Duration::from_secs(2);
const CONNECTION: ClientSettings = ClientSettings {
    // More than an origin's head can come to when it is coded for HTTP/2, or one site's could end the connection for all.
    head: 1 << 20,
    stream_window: 2 << 20,
    connection_window: 16 << 20,
    keep_alive: KeepAlive { every: Duration::from_secs(2), within: Duration::from_secs(2) },
};
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
    down_until: AtomicU64,
}

impl Shield {
    #[must_use]
    pub fn new(name: String, address: String, tls_name: String) -> Self {
        Self { name, address, tls_name, down_until: AtomicU64::new(0) }
    }

    fn is_up(&self, now: BootTime) -> bool {
        now.as_nanos() >= self.down_until.load(Ordering::Relaxed)
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

/// How a request gets to a shield. The network has one way, a simulation another.
pub trait ShieldWay: 'static {
    /// Sends what [`to_shield`] made, within `timeout`; `idle`: how long its body may pause. A failure gives the request
    /// back where nothing of it was sent.
    fn send(
        &self,
        shield: &Shield,
        request: Request<RequestBody>,
        interim: Option<Interim>,
        timeout: Duration,
        idle: Duration,
    ) -> impl Future<Output = Result<Response<UpstreamBody>, (FetchError, Option<Request<RequestBody>>)>>;
}

/// This node's TLS settings towards shields, as they are now.
pub type ShieldTls = Arc<dyn Fn() -> Arc<ClientConfig> + Send + Sync>;

struct Open {
    tls_name: String,
    config: Arc<ClientConfig>,
    sender: Sender,
}

/// HTTP/2 over mutual TLS, one connection of a worker to each shield.
pub struct Http2Shields {
    tls: ShieldTls,
    /// By address, with the shield and the settings that each was made with: with others they are made again.
    open: RefCell<HashMap<String, Open>>,
}

impl Http2Shields {
    #[must_use]
    pub fn new(tls: ShieldTls) -> Self {
        Self { tls, open: RefCell::default() }
    }

    async fn sender(&self, shield: &Shield) -> Result<Sender, FetchError> {
        let config = (self.tls)();
        let is_good = |o: &&Open| o.tls_name == shield.tls_name && Arc::ptr_eq(&o.config, &config) && !o.sender.is_closed();
        if let Some(open) = self.open.borrow().get(&shield.address).filter(is_good) {
            return Ok(open.sender.clone());
        }
        let opening = async {
            let tcp = TcpStream::connect(&shield.address).await.map_err(|_| FetchError::Connect)?;
            let _ = tcp.set_nodelay(true);
            let name = ServerName::try_from(shield.tls_name.clone()).map_err(|_| FetchError::Tls)?;
            let tls = TlsConnector::from(Arc::clone(&config)).connect(name, tcp).await.map_err(|error| {
                tracing::warn!(shield = shield.name, %error, "a shield's TLS handshake failed");
                FetchError::Tls
            })?;
            tidegate_http2::connect(tls, &CONNECTION).await.map_err(|_| FetchError::Broken)
        };
        let sender = tokio::time::timeout(CONNECT_TIMEOUT, opening).await.map_err(|_| FetchError::Connect)??;
        let open = Open { tls_name: shield.tls_name.clone(), config, sender: sender.clone() };
        self.open.borrow_mut().insert(shield.address.clone(), open);
        Ok(sender)
    }
}

impl ShieldWay for Http2Shields {
    async fn send(
        &self,
        shield: &Shield,
        request: Request<RequestBody>,
        interim: Option<Interim>,
        timeout: Duration,
        idle: Duration,
    ) -> Result<Response<UpstreamBody>, (FetchError, Option<Request<RequestBody>>)> {
        let mut sender = match self.sender(shield).await {
            Ok(s) => s,
            Err(e) => return Err((e, Some(request))),
        };
        match tokio::time::timeout(timeout, sender.send(request, interim)).await {
            Err(_) => Err((FetchError::Timeout, None)),
            Ok(Err(failed)) => {
                tracing::debug!(shield = shield.name, error = %failed.error, "a request to a shield failed");
                self.open.borrow_mut().remove(&shield.address);
                Err((FetchError::Broken, failed.unsent))
            }
            Ok(Ok(response)) => Ok(response.map(|body| UpstreamBody::new(TimedBody::new(body, idle, Box::new(|_| ()))))),
        }
    }
}

/// One worker's way over the shields, and to the origin where none helps.
pub struct EdgeUpstream<W, O> {
    shields: Arc<Shields>,
    way: W,
    origin: O,
    clock: Arc<dyn Clock>,
}

impl<W: ShieldWay, O: Upstream> EdgeUpstream<W, O> {
    #[must_use]
    pub fn new(shields: Arc<Shields>, way: W, origin: O, clock: Arc<dyn Clock>) -> Self {
        Self { shields, way, origin, clock }
    }

    async fn ask(
        &self,
        shield: &Shield,
        request: Request<RequestBody>,
        fetch: &Fetch,
    ) -> Result<Fetched, (FetchError, Option<Request<RequestBody>>)> {
        let origin = &fetch.site.state.spec.origin;
        let tries = origin.retries + 1;
        let timeout = (origin.connect_timeout + origin.first_byte_timeout) * tries + GRACE;
        let (request, interim) = (to_shield(request, fetch), fetch.interim.clone());
        let response = self.way.send(shield, request, interim, timeout, origin.idle_timeout + GRACE).await?;
        let vouched = fields::revision(response.headers(), &fields::VOUCHED);
        let own = response.headers().get(fields::OWN_ERROR).and_then(|v| FetchError::of_token(v.to_str().ok()?));
        if let Some(error) = own {
            // The shield has tried the origin as often as the site allows: this edge does not try once more.
            return Err((error, None));
        }
        let Some(vouched) = vouched else { return Err((FetchError::Broken, None)) };
        let close_delimited = response.headers().contains_key(fields::UNFRAMED);
        Ok(Fetched { response, vouched: Some(vouched), close_delimited, upgrade: None })
    }
}

/// The request as a shield takes it: HTTP/2, with what this edge demands.
fn to_shield(mut request: Request<RequestBody>, fetch: &Fetch) -> Request<RequestBody> {
    let headers = request.headers_mut();
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
    async fn fetch(&self, request: Request<RequestBody>, fetch: Fetch) -> Result<Fetched, FetchError> {
        let shields = self.shields.get();
        if fetch.direct || shields.is_empty() {
            return self.origin.fetch(request, fetch).await;
        }
        let safe = request.method().is_safe() && matches!(request.body(), RequestBody::Empty);
        let again = safe.then(|| copy(&request));
        let mut next = Some(request);
        let now = self.clock.boot();
        for shield in ranked(fetch.key_hash, &shields, |s| &s.name).into_iter().filter(|s| s.is_up(now)).take(2) {
            let Some(request) = next.take() else { break };
            match self.ask(shield, request, &fetch).await {
                Ok(fetched) => return Ok(fetched),
                Err((error, unsent)) => {
                    let reached = unsent.is_none();
                    if !reached || error == FetchError::Timeout {
                        shield.down_until.store((self.clock.boot() + LEAVE_ALONE).as_nanos(), Ordering::Relaxed);
                    }
                    if !matches!(error, FetchError::Connect | FetchError::Broken | FetchError::Tls)
                        || (reached && error != FetchError::Broken)
                    {
                        return Err(error);
                    }
                    tracing::warn!(shield = shield.name, %error, "a shield failed");
                    next = unsent.map(from_shield).or_else(|| again.as_ref().map(copy));
                    if next.is_none() {
                        return Err(error);
                    }
                }
            }
        }
        match next {
            Some(request) => self.origin.fetch(request, fetch).await,
            None => Err(FetchError::Connect),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
