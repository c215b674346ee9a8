//! UDP and TCP, within limits.

use crate::current::Current;
use crate::figures::Figures;
use crate::limit::{RateLimit, Verdict};
use crate::networks::Networks;
use crate::respond::{Responder, Transport};
use std::cell::Cell;
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
/// Queries are short.
const MOST_QUERY: usize = 4096;

/// What a worker answers with.
#[derive(Clone)]
pub struct Answers {
    pub current: Arc<Current>,
    pub networks: Arc<Networks>,
    pub name: Arc<str>,
    pub figures: Arc<Figures>,
    pub clock: Arc<dyn Clock>,
}

impl Answers {
    fn to(&self, packet: &[u8], source: SocketAddr, transport: Transport) -> Option<Vec<u8>> {
        let table = self.current.table()?;
        let responder = Responder { table: &table, networks: &self.networks, name: &self.name };
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
                if let Some(answer) = packet.get(..length).and_then(|p| answers.to(p, source, Transport::Udp)) {
                    let now = Duration::from_nanos(answers.clock.boot().as_nanos());
                    let answer = match limit.check(source.ip().to_canonical(), &Responder::alike(&answer), now) {
                        Verdict::Send => answer,
                        Verdict::CutShort => Responder::cut_short(&answer),
                        Verdict::Drop => Vec::new(),
                    };
                    if answer.is_empty() {
                        answers.figures.held_back();
                        continue;
                    }
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
    let open = Rc::new(Cell::new(0));
    loop {
        if open.get() >= MOST_CONNECTIONS {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        match listener.accept().await {
            Ok((stream, source)) => {
                let (answers, open) = (answers.clone(), Rc::clone(&open));
                open.set(open.get() + 1);
                tokio::task::spawn_local(async move {
                    if let Err(error) = connection(stream, source, &answers).await {
                        tracing::debug!(%source, %error, "a connection ended");
                    }
                    open.set(open.get().saturating_sub(1));
                });
            }
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// One query after another, each behind its length in two bytes (RFC 1035 section 4.2.2).
async fn connection(mut stream: TcpStream, source: SocketAddr, answers: &Answers) -> std::io::Result<()> {
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
            let Some(answer) = answers.to(&packet, source, Transport::Tcp) else {
                return Err(std::io::Error::other("what came is no query"));
            };
            let mut framed = u16::try_from(answer.len()).map_err(std::io::Error::other)?.to_be_bytes().to_vec();
            framed.extend_from_slice(&answer);
            stream.write_all(&framed).await
        };
        match tokio::time::timeout(IDLE, one).await {
            Err(_) => return Ok(()),
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(done) => done?,
        }
    }
}
