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
use tidegate_control_types::Clock;
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

/// So many failures on end say that an address is lost, and so many answers that it is back.
const LOST_AFTER: u32 = 3;
const BACK_AFTER: u32 = 2;
const MOST_AT_ONCE: usize = 64;
/// For one answer. Three of them are within a lease.
const WITHIN: Duration = Duration::from_millis(1500);

/// What the probes say.
#[derive(Debug, Default)]
pub struct Probes(BTreeMap<IpAddr, Way>);

#[derive(Clone, Copy, Debug, Default)]
struct Way {
    is_lost: bool,
    /// On end, which say otherwise.
    against: u32,
}

impl Probes {
    /// True where that changes what is lost.
    pub fn heard(&mut self, address: IpAddr, answers: bool) -> bool {
        let way = self.0.entry(address).or_default();
        way.against = if answers == way.is_lost { way.against + 1 } else { 0 };
        let turns = way.against >= if way.is_lost { BACK_AFTER } else { LOST_AFTER };
        if turns {
            *way = Way { is_lost: !way.is_lost, against: 0 };
        }
        turns
    }

    fn retain(&mut self, addresses: &[IpAddr]) {
        self.0.retain(|address, _| addresses.contains(address));
    }

    /// Those of an edge's `addresses` that clients do not get through to. Where less than half of a family answers, the fault is taken to be
    /// this node's own, or one that leaving edges out would make worse: what is known of the edge by its other addresses counts for these.
    #[must_use]
    pub fn lost(&self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let is_lost = |ip: &IpAddr| self.0.get(ip).is_some_and(|way| way.is_lost);
        let counts = [false, true].map(|v4| {
            let of_family = || self.0.iter().filter(|(ip, _)| ip.is_ipv4() == v4);
            of_family().count() > 0 && of_family().filter(|(_, way)| !way.is_lost).count() * 2 >= of_family().count()
        });
        let judged = |ip: &&IpAddr| counts.get(usize::from(ip.is_ipv4())).is_some_and(|c| *c);
        if addresses.iter().any(|ip| judged(&ip)) && addresses.iter().filter(judged).all(is_lost) {
            return addresses.to_vec();
        }
        addresses.iter().filter(|ip| judged(ip) && is_lost(ip)).copied().collect()
    }
}

/// Looks at every edge's addresses for as long as the node lives.
pub async fn probe(current: Arc<Current>, settings: ProbeSettings, clock: Arc<dyn Clock>) {
    let Some(hello) = client_hello() else { return tracing::error!("edges are not probed: no TLS handshake can be begun") };
    let hello: Arc<[u8]> = hello.into();
    let at_once = Arc::new(Semaphore::new(MOST_AT_ONCE));
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
                let asked = tokio::time::timeout(WITHIN, answers(SocketAddr::new(address, settings.port), &hello)).await;
                (address, matches!(asked, Ok(Ok(true))))
            });
        }
        let found = all.join_all().await;
        current.probes(clock.boot(), |probes| {
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
    fn an_address_is_lost_after_three_failures_and_back_after_two_answers() {
        let mut probes = Probes::default();
        let (one, other, v6) = (ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1"));
        assert!(!probes.heard(other, true) && !probes.heard(v6, true));
        assert!(!probes.heard(one, false) && !probes.heard(one, false));
        assert!(!probes.heard(one, true) && !probes.heard(one, false) && !probes.heard(one, false), "not on end");
        assert!(probes.heard(one, false));
        assert_eq!((probes.lost(&[one]), probes.lost(&[one, v6])), (vec![one], vec![one]));
        assert!(!probes.heard(one, true) && !probes.heard(one, false) && !probes.heard(one, true));
        assert!(probes.heard(one, true));
        assert!(probes.lost(&[one, v6]).is_empty());
    }

    #[test]
    fn where_most_of_a_family_does_not_answer_the_fault_is_here() {
        let mut probes = Probes::default();
        let all = |n: u8| IpAddr::from([192, 0, 2, n]);
        for _ in 0..LOST_AFTER {
            for n in 1..=5 {
                probes.heard(all(n), n > 3);
            }
        }
        assert!(probes.lost(&[all(1)]).is_empty(), "three of five");
        for _ in 0..BACK_AFTER {
            probes.heard(all(3), true);
        }
        assert_eq!(probes.lost(&[all(1)]), [all(1)]);
        // The way that is judged decides for the other, of which nothing is known here.
        let v6 = ip("2001:db8::1");
        for _ in 0..LOST_AFTER {
            probes.heard(v6, false);
        }
        assert_eq!(probes.lost(&[all(1), v6]), [all(1), v6]);
        assert!(probes.lost(&[all(4), v6]).is_empty() && probes.lost(&[v6]).is_empty());
        probes.retain(&[v6]);
        assert!(probes.lost(&[all(1)]).is_empty());
    }
}
