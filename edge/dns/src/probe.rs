//! This node's own look at the edges' ports: one that is attached may have lost the way that its clients take, and a node that is cut
//! off from the control plane hears of nothing else.
//!
//! A probe begins a TLS handshake and takes any TLS record for an answer, so that a process which is stopped does not pass for one that
//! answers; it asks for no name that has a certificate, so that an edge signs nothing for it.

use crate::current::Current;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeSettings {
    /// Where edges take https.
    pub port: u16,
    /// Zero: none are probed.
    pub interval: Duration,
}

/// So many failures on end say that an address is lost.
const LOST_AFTER: u32 = 3;
const MOST_AT_ONCE: usize = 64;
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// What the probes say.
#[derive(Debug, Default)]
pub struct Probes(BTreeMap<IpAddr, u32>);

impl Probes {
    /// True where that changes what is lost.
    pub fn heard(&mut self, address: IpAddr, answers: bool) -> bool {
        let failures = self.0.entry(address).or_insert(0);
        let was_lost = *failures >= LOST_AFTER;
        *failures = if answers { 0 } else { failures.saturating_add(1) };
        was_lost != (*failures >= LOST_AFTER)
    }

    fn retain(&mut self, addresses: &[IpAddr]) {
        self.0.retain(|address, _| addresses.contains(address));
    }

    /// Those of an edge's `addresses` that clients get through to; none where the edge is lost. Where nothing of a family answers the fault
    /// is taken to be this node's own: what is known of the edge by its other addresses counts for these.
    #[must_use]
    pub fn found(&self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let is_lost = |ip: &IpAddr| self.0.get(ip).is_some_and(|failures| *failures >= LOST_AFTER);
        let some_answers = |v4: bool| self.0.iter().any(|(ip, _)| ip.is_ipv4() == v4 && !is_lost(ip));
        let counts = [some_answers(false), some_answers(true)];
        let judged = |ip: &&IpAddr| counts[usize::from(ip.is_ipv4())];
        if addresses.iter().any(|ip| judged(&ip)) && addresses.iter().filter(judged).all(is_lost) {
            return Vec::new();
        }
        addresses.iter().filter(|ip| !(judged(ip) && is_lost(ip))).copied().collect()
    }
}

/// Looks at every edge's addresses for as long as the node lives.
pub async fn probe(current: Arc<Current>, settings: ProbeSettings) {
    let Some(hello) = client_hello() else { return tracing::error!("edges are not probed: no TLS handshake can be begun") };
    let hello: Arc<[u8]> = hello.into();
    let at_once = Arc::new(Semaphore::new(MOST_AT_ONCE));
    let within = settings.interval.min(LONGEST_WAIT);
    let mut due = tokio::time::interval(settings.interval);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        let addresses = current.probed();
        let mut all = JoinSet::new();
        for address in &addresses {
            let (address, hello, at_once) = (*address, Arc::clone(&hello), Arc::clone(&at_once));
            all.spawn(async move {
                let _turn = at_once.acquire().await;
                let asked = tokio::time::timeout(within, answers(SocketAddr::new(address, settings.port), &hello)).await;
                (address, matches!(asked, Ok(Ok(true))))
            });
        }
        let found = all.join_all().await;
        current.probes(|probes| {
            probes.retain(&addresses);
            found.into_iter().fold(false, |changed, (address, answers)| {
                let is_news = probes.heard(address, answers);
                if is_news {
                    tracing::info!(%address, answers, "the way of clients to an edge has changed");
                }
                changed | is_news
            })
        });
    }
}

/// Whether TLS is spoken there.
async fn answers(address: SocketAddr, hello: &[u8]) -> std::io::Result<bool> {
    const ALERT: u8 = 21;
    const HANDSHAKE: u8 = 22;
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(hello).await?;
    Ok(matches!(stream.read_u8().await?, ALERT | HANDSHAKE))
}

fn client_hello() -> Option<Vec<u8>> {
    let config = rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from("probe.invalid").ok()?;
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).ok()?;
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_lost_after_three_failures_and_back_after_one_answer() {
        let mut probes = Probes::default();
        let (one, other, v6) = (ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1"));
        assert!(!probes.heard(other, true) && !probes.heard(v6, true));
        assert!(!probes.heard(one, false) && !probes.heard(one, false) && probes.heard(one, false));
        assert!(probes.found(&[one]).is_empty());
        assert_eq!(probes.found(&[one, v6]), [v6]);
        assert!(!probes.heard(one, false));
        assert!(probes.heard(one, true));
        assert_eq!(probes.found(&[one, v6]), [one, v6]);
    }

    #[test]
    fn where_nothing_of_a_family_answers_the_fault_is_here() {
        let mut probes = Probes::default();
        for _ in 0..LOST_AFTER {
            probes.heard(ip("2001:db8::1"), false);
            probes.heard(ip("2001:db8::2"), false);
            probes.heard(ip("192.0.2.1"), false);
            probes.heard(ip("192.0.2.2"), true);
        }
        // The way that is judged decides for the other.
        assert!(probes.found(&[ip("192.0.2.1"), ip("2001:db8::1")]).is_empty());
        assert_eq!(probes.found(&[ip("192.0.2.2"), ip("2001:db8::2")]).len(), 2);
        assert_eq!(probes.found(&[ip("2001:db8::1")]), [ip("2001:db8::1")]);
        probes.retain(&[ip("192.0.2.1")]);
        assert_eq!(probes.found(&[ip("192.0.2.1")]), [ip("192.0.2.1")]);
    }
}
