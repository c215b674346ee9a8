//! Names of origins, resolved with their TTLs (hickory-resolver keeps them). One resolver per process, on the background
//! runtime: a worker only waits for its answer.

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{ResolverBuilder, TokioResolver};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tidegate_gateway::FetchError;
use tokio::runtime::Handle;

const TIMEOUT: Duration = Duration::from_secs(5);

fn name_server(address: &SocketAddr) -> NameServerConfig {
    let at = |protocol| {
        let mut connection = ConnectionConfig::new(protocol);
        connection.port = address.port();
        connection
    };
    NameServerConfig::new(address.ip(), true, vec![at(ProtocolConfig::Udp), at(ProtocolConfig::Tcp)])
}

#[derive(Clone)]
pub struct Resolver {
    inner: Option<Arc<TokioResolver>>,
    background: Handle,
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
        let built = builder.and_then(ResolverBuilder::build);
        let inner = built.inspect_err(|error| tracing::warn!(%error, "no name server is configured: only addresses can be origins")).ok();
        Self { inner: inner.map(Arc::new), background: Handle::current() }
    }

    /// Addresses of `host`, which may be one itself.
    ///
    /// # Errors
    /// There are none, or nobody says so in time.
    pub async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, FetchError> {
        if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(vec![ip]);
        }
        let resolver = self.inner.clone().ok_or(FetchError::Resolve)?;
        // The dot at the end: an origin's name is never completed with a search domain.
        let name = format!("{}.", host.trim_end_matches('.'));
        let looked_up = self.background.spawn(async move { tokio::time::timeout(TIMEOUT, resolver.lookup_ip(name)).await });
        match looked_up.await {
            Ok(Ok(Ok(found))) => Ok(found.iter().collect()),
            Ok(Ok(Err(error))) => {
                tracing::debug!(host, %error, "an origin's name does not resolve");
                Err(FetchError::Resolve)
            }
            _ => Err(FetchError::Resolve),
        }
    }
}
