//! Names of origins, resolved with their TTLs (hickory-resolver keeps them). One resolver per process, on the background
//! runtime: a worker only waits for its answer.

use hickory_resolver::TokioResolver;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tidegate_gateway::FetchError;
use tokio::runtime::Handle;

const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub struct Resolver {
    inner: Option<Arc<TokioResolver>>,
    background: Handle,
}

impl Resolver {
    /// With the system's name servers and hosts file. Must be called on the background runtime.
    #[must_use]
    pub fn from_system() -> Self {
        let built = TokioResolver::builder_tokio().and_then(hickory_resolver::ResolverBuilder::build);
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
