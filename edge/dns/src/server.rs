//! UDP and TCP, within limits.

use crate::cookie::Cookies;
use crate::current::Current;
use crate::figures::Figures;
use crate::limit::{RateLimit, Verdict, network};
use crate::respond::{Reply, Responder, Transport};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tidegate_control_types::Clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Open at once on one worker; more wait to be accepted.
const MOST_CONNECTIONS: usize = 256;
/// For the next query of a connection, and for each answer to be taken (RFC 7766 section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// The same once half of the places are taken.
const IDLE_WHEN_BUSY: Duration = Duration::from_secs(2);
/// Of one network of clients, on one worker.
const MOST_OF_A_NETWORK: usize = 32;
/// Queries are short.
const MOST_QUERY: usize = 4096;

/// What a worker answers with.
#[derive(Clone)]
pub struct Answers {
    pub current: Arc<Current>,
    pub name: Arc<str>,
    pub figures: Arc<Figures>,
    pub clock: Arc<dyn Clock>,
    pub cookies: Arc<Cookies>,
    /// Its own.
    pub region: Arc<[String]>,
}

impl Answers {
    fn to(&self, packet: &[u8], source: SocketAddr, transport: Transport) -> Option<Reply> {
        let table = self.current.table()?;
        let (signer, networks) = (self.current.signer(), self.current.networks());
        // It goes round, as the times of signatures do (RFC 4034 section 3.1.5).
        let now = u32::try_from(self.clock.wall().as_secs() & u64::from(u32::MAX)).unwrap_or(0);
        let responder = Responder {
            table: &table,
            networks: &networks,
            signer: signer.as_deref(),
            cookies: Some(&self.cookies),
            now,
            name: &self.name,
            region: &self.region,
        };
        let answer = responder.respond(packet, source.ip().to_canonical(), transport);
        self.figures.asked(transport, answer.is_some());
        answer
    }
}

/// `limit`: of the same answer in a second to the same network; 0: any number.
pub async fn udp(socket: UdpSocket, answers: Answers, limit: u32) {
    let mut packet = vec![0; MOST_QUERY];
    let mut limit = RateLimit::new(limit);
    loop {
        match socket.recv_from(&mut packet).await {
            Ok((length, source)) => {
                if let Some(Reply { bytes: answer, proven }) = packet.get(..length).and_then(|p| answers.to(p, source, Transport::Udp)) {
                    let verdict = if limit.limits() && !proven {
                        let now = Duration::from_nanos(answers.clock.boot().as_nanos());
                        limit.check(source.ip().to_canonical(), &Responder::alike(&answer), now)
                    } else {
                        Verdict::Send
                    };
                    let answer = match verdict {
                        Verdict::Send => answer,
                        Verdict::CutShort => Responder::cut_short(&answer),
                        Verdict::Drop => {
                            answers.figures.held_back();
                            continue;
                        }
                    };
                    // One that cannot be sent is asked for again.
                    if let Err(error) = socket.send_to(&answer, source).await {
                        tracing::debug!(%source, %error, "an answer was not sent");
                    }
                }
            }
            // What an earlier answer met on its way comes back as an error here.
            Err(error) => tracing::debug!(%error, "a packet was not received"),
        }
    }
}

pub async fn tcp(listener: TcpListener, answers: Answers) {
    let open = Rc::new(Open::default());
    loop {
        if open.all.get() >= MOST_CONNECTIONS {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        match listener.accept().await {
            Ok((stream, source)) => {
                let Some(place) = open.place(source) else { continue };
                let answers = answers.clone();
                tokio::task::spawn_local(async move {
                    if let Err(error) = connection(stream, source, &answers, &place).await {
                        tracing::debug!(%source, %error, "a connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// The connections that are open on one worker.
#[derive(Default)]
struct Open {
    all: Cell<usize>,
    of_network: RefCell<HashMap<u128, usize>>,
}

/// One of them, until it is dropped.
struct Place {
    open: Rc<Open>,
    network: u128,
}

impl Open {
    /// `None`: its network has enough.
    fn place(self: &Rc<Self>, source: SocketAddr) -> Option<Place> {
        let network = network(source.ip().to_canonical());
        let mut of_network = self.of_network.borrow_mut();
        let count = of_network.entry(network).or_default();
        if *count >= MOST_OF_A_NETWORK {
            return None;
        }
        *count += 1;
        self.all.set(self.all.get() + 1);
        Some(Place { open: Rc::clone(self), network })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.all.set(self.open.all.get().saturating_sub(1));
        let mut of_network = self.open.of_network.borrow_mut();
        if let Some(count) = of_network.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                of_network.remove(&self.network);
            }
        }
    }
}

/// One query after another, each behind its length in two bytes (RFC 1035 section 4.2.2).
async fn connection(mut stream: TcpStream, source: SocketAddr, answers: &Answers, place: &Place) -> std::io::Result<()> {
    let _ = stream.set_nodelay(true);
    let mut packet = Vec::new();
    loop {
        let one = async {
            let length = usize::from(stream.read_u16().await?);
            if length > MOST_QUERY {
                return Err(std::io::Error::other("a query is too long"));
            }
            packet.resize(length, 0);
            stream.read_exact(&mut packet).await?;
            let Some(Reply { bytes: answer, .. }) = answers.to(&packet, source, Transport::Tcp) else {
                return Err(std::io::Error::other("what came is no query"));
            };
            let mut framed = u16::try_from(answer.len()).map_err(std::io::Error::other)?.to_be_bytes().to_vec();
            framed.extend_from_slice(&answer);
            stream.write_all(&framed).await
        };
        let idle = if place.open.all.get() > MOST_CONNECTIONS / 2 { IDLE_WHEN_BUSY } else { IDLE };
        match tokio::time::timeout(idle, one).await {
            Err(_) => return Ok(()),
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(done) => done?,
        }
    }
}
