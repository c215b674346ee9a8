//! Whether an origin's servers are up: by probes where the site asks for them, and by what requests meet.

use crate::origin::{OriginPools, Servers};
use crate::{connect, private};
use http::{Method, Request};
use http_body_util::BodyExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tidegate_control_types::site::{EjectionSpec, HealthSpec, OriginServer};
use tidegate_control_types::{BootTime, Clock};
use tidegate_gateway::{FetchError, RequestBody, UpstreamBody};

/// Bytes of a probe's answer that are read.
const MOST_READ: usize = 64 << 10;

/// What is known of one server; shared by all workers and the prober.
#[derive(Debug, Default)]
pub struct Health {
    failures: AtomicU32,
    ejected_until: AtomicU64,
    probed_down: AtomicBool,
    probe_run: AtomicU32,
    pub in_flight: AtomicU32,
}

impl Health {
    #[must_use]
    pub fn is_up(&self, now: BootTime) -> bool {
        !self.probed_down.load(Ordering::Relaxed) && now.as_nanos() >= self.ejected_until.load(Ordering::Relaxed)
    }

    /// Whether only what requests met speaks against it: better asked than nobody.
    #[must_use]
    pub fn may_be_asked(&self) -> bool {
        !self.probed_down.load(Ordering::Relaxed)
    }

    /// A request succeeded on it. `true`: it had been left alone, and is well again.
    pub fn succeeded(&self, now: BootTime) -> bool {
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        let until = self.ejected_until.load(Ordering::Relaxed);
        let is_over = until > 0 && now.as_nanos() >= until;
        is_over && self.ejected_until.compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// A request failed on it: as many in a row as the site says, and it is left alone for a while. `true`: it is so from now on.
    pub fn failed(&self, now: BootTime, rule: &EjectionSpec) -> bool {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 < rule.after {
            return false;
        }
        self.failures.store(0, Ordering::Relaxed);
        self.ejected_until.swap((now + rule.time).as_nanos(), Ordering::Relaxed) == 0
    }

    /// One probe's result: as many in a row as the site says turn the server up or down.
    fn probed(&self, good: bool, spec: &HealthSpec) -> bool {
        let down = self.probed_down.load(Ordering::Relaxed);
        if good != down {
            self.probe_run.store(0, Ordering::Relaxed);
            return false;
        }
        let run = self.probe_run.fetch_add(1, Ordering::Relaxed) + 1;
        let turns = run >= if down { spec.up_after } else { spec.down_after };
        if turns {
            self.probe_run.store(0, Ordering::Relaxed);
            self.probed_down.store(!down, Ordering::Relaxed);
        }
        turns
    }
}

/// Probes every server of every site that asks for it, for as long as the node runs. Runs on a thread of its own kind: a
/// `LocalSet`, away from the workers.
pub async fn probe_all(pools: Arc<OriginPools>, clock: Arc<dyn Clock>) {
    let mut next: std::collections::HashMap<String, BootTime> = std::collections::HashMap::new();
    loop {
        let now = clock.boot();
        for servers in pools.all() {
            let Some(spec) = servers.spec().health.clone() else { continue };
            for (server, health) in servers.each() {
                let name = format!("{} {server}", servers.site());
                if next.get(&name).is_some_and(|at| now < *at) {
                    continue;
                }
                next.insert(name, now + spec.interval);
                let (servers, server, health, spec) = (Arc::clone(&servers), server.clone(), Arc::clone(health), spec.clone());
                let pools = Arc::clone(&pools);
                tokio::task::spawn_local(async move {
                    let result = probe(&pools, &servers, &server, &spec).await;
                    if matches!(result, Err(FetchError::NoRoom)) {
                        return;
                    }
                    if health.probed(result.is_ok(), &spec) {
                        let up = result.is_ok();
                        tracing::info!(site = servers.site(), %server, up, "an origin server changed");
                    }
                });
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn probe(pools: &OriginPools, servers: &Servers, server: &OriginServer, spec: &HealthSpec) -> Result<(), FetchError> {
    let origin = servers.spec();
    let asking = async {
        let mut addresses = pools.resolver.addresses(&server.host).await?.to_vec();
        if !origin.allow_private {
            addresses.retain(|a| !private::is_private(*a));
        }
        let tcp = pools.addresses.connect(&addresses, server.port, origin.connect_timeout).await?;
        let connection = if server.https {
            let name = origin.tls.server_name.as_deref().unwrap_or(&server.host);
            connect::tls(tcp, name, pools.tls.get(&origin.tls, true)?, origin.connect_timeout, false).await?
        } else {
            connect::clear(tcp, false).await?
        };
        let host = match &origin.host {
            tidegate_control_types::site::OriginHost::Name(name) => name.clone(),
            tidegate_control_types::site::OriginHost::Keep => servers.probe_host().unwrap_or_else(|| server.host.clone()),
        };
        let h2 = matches!(connection, connect::Connection::H2(_));
        let uri = if h2 { format!("https://{host}{}", spec.path) } else { spec.path.clone() };
        let mut request = Request::builder().method(Method::GET).uri(uri);
        if !h2 {
            request = request.header(http::header::HOST, host);
        }
        let request =
            request.header(http::header::USER_AGENT, "tidegate-health").body(RequestBody::Empty).map_err(|_| FetchError::Broken)?;
        let mut response = match connection {
            connect::Connection::H1(mut s) => {
                let response = s.sender.send_request(request).await.map_err(|_| FetchError::Broken)?;
                response.map(|body| UpstreamBody::new(body.map_err(|_| FetchError::Broken)))
            }
            connect::Connection::H2(mut s) => {
                let slot = s.slot().await.map_err(|_| FetchError::Broken)?;
                let response = s.send(slot, request, None).await.map_err(|_| FetchError::Broken)?;
                response.map(|body| UpstreamBody::new(body.map_err(|_| FetchError::Broken)))
            }
        };
        let good = spec.expect.contains(&response.status().as_u16());
        // Read a little, so that the server is not cut off mid-answer.
        let mut read = 0;
        while let (true, Some(Ok(data))) = (read < MOST_READ, response.body_mut().data().await) {
            read += data.len();
        }
        if good { Ok(()) } else { Err(FetchError::Broken) }
    };
    tokio::time::timeout(origin.connect_timeout + origin.first_byte_timeout, asking).await.map_err(|_| FetchError::Timeout)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_probes_in_a_row_as_the_site_says_turn_a_server() {
        let spec = HealthSpec { path: "/".into(), interval: Duration::from_secs(1), expect: vec![200], down_after: 3, up_after: 2 };
        let (h, now) = (Health::default(), BootTime::default());
        for (good, up) in
            [(false, true), (false, true), (true, true), (false, true), (false, true), (false, false), (true, false), (true, true)]
        {
            h.probed(good, &spec);
            assert_eq!(h.is_up(now), up);
        }
    }

    #[test]
    fn failures_in_a_row_eject_for_a_while() {
        let (h, now) = (Health::default(), BootTime::default() + Duration::from_secs(100));
        let rule = EjectionSpec { statuses: Vec::new(), after: 3, time: Duration::from_secs(5) };
        h.failed(now, &rule);
        h.failed(now, &rule);
        assert!(!h.succeeded(now), "it was not left alone");
        h.failed(now, &rule);
        h.failed(now, &rule);
        assert!(h.is_up(now));
        h.failed(now, &rule);
        assert!(!h.is_up(now) && h.is_up(now + rule.time));
    }
}
