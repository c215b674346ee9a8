//! Names of origins, resolved with their TTLs. One resolver per process, on the background runtime: a worker only waits for its
//! answer. If no name server answers, the last known addresses are used for another day (RFC 8767).

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tidegate_gateway::FetchError;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

const TIMEOUT: Duration = Duration::from_secs(5);

fn name_server(address: &SocketAddr) -> NameServerConfig {
    let at = |protocol| {
        let mut connection = ConnectionConfig::new(protocol);
        connection.port = address.port();
        connection
    };
    NameServerConfig::new(address.ip(), true, vec![at(ProtocolConfig::Udp), at(ProtocolConfig::Tcp)])
}

/// The addresses of a name.
struct Known {
    addresses: Arc<[IpAddr]>,
    /// The name's own servers said that it has no addresses.
    has_none: bool,
    /// Expiry of the addresses by the name server's TTL.
    good_until: Instant,
    /// The name servers are not asked before.
    again_at: Instant,
    /// A question that is under way, which all who need the answer share.
    asked: Option<watch::Receiver<bool>>,
}

impl Known {
    fn found(&self) -> Result<Arc<[IpAddr]>, FetchError> {
        match (self.addresses.is_empty(), self.has_none) {
            (false, _) => Ok(Arc::clone(&self.addresses)),
            (true, true) => Err(FetchError::Resolve),
            (true, false) => Err(FetchError::NameServer),
        }
    }
}

/// Time after expiry in which addresses are still used if no name server answers (RFC 8767).
const STALE_FOR: Duration = Duration::from_secs(24 * 3600);
/// Maximum wait for a name server while expired addresses are at hand (RFC 8767 section 5).
const STALE_AFTER: Duration = Duration::from_millis(1800);
/// After a failure the name servers are asked again so much later (RFC 8767 section 5: 30 s at most).
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Bounds of a TTL.
const MIN_TTL: Duration = Duration::from_secs(1);
const MAX_TTL: Duration = Duration::from_secs(3600);
const MAX_NAMES: usize = 10_000;

#[derive(Clone)]
pub struct Resolver {
    inner: Option<Arc<TokioResolver>>,
    background: Handle,
    names: Arc<Mutex<HashMap<String, Known>>>,
}

impl Resolver {
    /// With these name servers, or where there are none the system's and its hosts file. Must be called on the background
    /// runtime.
    #[must_use]
    pub fn new(name_servers: &[SocketAddr]) -> Self {
        let builder = if name_servers.is_empty() {
            TokioResolver::builder_tokio()
        } else {
            let config = ResolverConfig::from_name_servers(name_servers.iter().map(name_server).collect());
            let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            builder.options_mut().use_hosts_file = ResolveHosts::Never;
            Ok(builder)
        };
        let built = builder.and_then(|mut builder| {
            // The library's cache is off: this type caches, because it also serves expired addresses.
            builder.options_mut().cache_size = 0;
            builder.build()
        });
        let inner = built.inspect_err(|error| tracing::warn!(%error, "no name server is configured: only addresses can be origins")).ok();
        Self { inner: inner.map(Arc::new), background: Handle::current(), names: Arc::default() }
    }

    /// Addresses of `host`, which may be one itself.
    ///
    /// # Errors
    /// `Resolve`: the name has no addresses. `NameServer`: no name server answered in time, and no older addresses are known.
    pub async fn addresses(&self, host: &str) -> Result<Arc<[IpAddr]>, FetchError> {
        if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(Arc::new([ip]));
        }
        let (old, mut asked) = {
            let mut names = self.names.lock();
            let known = names.get(host);
            if let Some(known) = known.filter(|k| Instant::now() < k.again_at) {
                return known.found();
            }
            let old = known.filter(|k| !k.addresses.is_empty()).map(|k| Arc::clone(&k.addresses));
            let asked = match known.and_then(|k| k.asked.clone()) {
                Some(asked) => asked,
                None => self.ask(&mut names, host)?,
            };
            (old, asked)
        };
        // It ends with its task in any case.
        let answered = asked.wait_for(|done| *done);
        match old {
            Some(old) => {
                if tokio::time::timeout(STALE_AFTER, answered).await.is_err() {
                    tracing::debug!(host, "no name server answers; the origin's last known addresses are used");
                    return Ok(old);
                }
            }
            None => drop(answered.await),
        }
        self.names.lock().get(host).ok_or(FetchError::NameServer)?.found()
    }

    /// Whether `host` still leads to an address, as far as is known. Once that is too old, the name servers are asked again behind the
    /// caller's back.
    #[must_use]
    pub fn still_leads_to(&self, host: &str, address: IpAddr) -> bool {
        let mut names = self.names.lock();
        let Some(known) = names.get(host) else { return true };
        let (leads, is_old) = (known.addresses.contains(&address), Instant::now() >= known.again_at && known.asked.is_none());
        if is_old {
            let _ = self.ask(&mut names, host);
        }
        // A working connection stays in use while no address is known.
        leads || names.get(host).is_none_or(|k| k.addresses.is_empty())
    }

    /// Asks the name servers, behind the callers' backs.
    fn ask(&self, names: &mut HashMap<String, Known>, host: &str) -> Result<watch::Receiver<bool>, FetchError> {
        let resolver = self.inner.clone().ok_or(FetchError::NameServer)?;
        if names.len() >= MAX_NAMES {
            let now = Instant::now();
            names.retain(|_, k| k.asked.is_some() || now < k.again_at);
        }
        if names.len() >= MAX_NAMES
            && !names.contains_key(host)
            && let Some(oldest) = names.iter().filter(|(_, k)| k.asked.is_none()).min_by_key(|(_, k)| k.again_at).map(|(n, _)| n.clone())
        {
            names.remove(&oldest);
        }
        let (done, asked) = watch::channel(false);
        let now = Instant::now();
        let unknown = || Known { addresses: Arc::default(), has_none: false, good_until: now, again_at: now, asked: None };
        names.entry(host.to_owned()).or_insert_with(unknown).asked = Some(asked.clone());
        // The dot at the end: an origin's name is never completed with a search domain.
        let name = format!("{}.", host.trim_end_matches('.'));
        let (names, host) = (Arc::clone(&self.names), host.to_owned());
        self.background.spawn(async move {
            let looked_up = tokio::time::timeout(TIMEOUT, resolver.lookup_ip(name)).await;
            let now = Instant::now();
            let mut names = names.lock();
            if let Some(known) = names.get_mut(&host) {
                known.asked = None;
                match looked_up {
                    Ok(Ok(answer)) => {
                        let ttl = answer.valid_until().saturating_duration_since(now.into_std()).clamp(MIN_TTL, MAX_TTL);
                        known.addresses = answer.iter().collect();
                        known.has_none = known.addresses.is_empty();
                        (known.good_until, known.again_at) = (now + ttl, now + ttl);
                    }
                    // An authoritative "no such name" overrides older addresses.
                    Ok(Err(error)) if says_none(&error) => {
                        tracing::debug!(host, %error, "an origin's name has no addresses");
                        known.addresses = Arc::default();
                        known.has_none = true;
                        known.again_at = now + AGAIN_AFTER;
                    }
                    failed => {
                        let error = if failed.is_err() { "no answer in time" } else { "the name server answered with an error" };
                        tracing::warn!(host, error, "cannot resolve an origin's name; using the addresses known last");
                        if now >= known.good_until + STALE_FOR {
                            known.addresses = Arc::default();
                        }
                        known.has_none = false;
                        known.again_at = now + AGAIN_AFTER;
                    }
                }
            }
            drop(names);
            let _ = done.send(true);
        });
        Ok(asked)
    }
}

/// Whether the name's own servers say that it has no addresses, or does not exist, rather than nothing.
fn says_none(error: &NetError) -> bool {
    let NetError::Dns(DnsError::NoRecordsFound(none)) = error else { return false };
    matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError)
}
