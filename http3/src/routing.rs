//! Several workers on one port. The kernel spreads packets over their sockets by both ends' addresses, so a client that changes its own
//! (RFC 9000 section 9) comes to another worker. Connection identifiers say whose a connection is, and a worker that gets a packet of
//! another's hands it over: on the usual way nothing crosses threads.

use parking_lot::Mutex;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, UdpPoller};
use quinn_proto::InvalidCid;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// A worker's number, and random bytes.
const IDENTIFIER: usize = 10;
const NUMBER: usize = 2;
/// Packets, or runs of them, that wait for a worker; more are lost, as packets may be.
const MOST_WAITING: usize = 256;

/// What came to another worker's socket.
struct Handed {
    bytes: Box<[u8]>,
    meta: RecvMeta,
}

/// A worker's part of a port.
pub struct Port {
    socket: UdpSocket,
    number: u16,
    inbox: mpsc::Receiver<Handed>,
    workers: Arc<[mpsc::Sender<Handed>]>,
}

/// For sockets that share one address: one for each worker.
#[must_use]
pub fn ports(sockets: Vec<UdpSocket>) -> Vec<Port> {
    let (senders, inboxes): (Vec<_>, Vec<_>) = sockets.iter().map(|_| mpsc::channel(MOST_WAITING)).unzip();
    let workers: Arc<[_]> = senders.into();
    let parts = sockets.into_iter().zip(inboxes).zip(0..);
    parts.map(|((socket, inbox), number)| Port { socket, number, inbox, workers: Arc::clone(&workers) }).collect()
}

impl Port {
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    pub(crate) fn identifiers(&self, random: fn() -> u64) -> Identifiers {
        Identifiers { number: self.number, workers: self.workers.len(), random }
    }

    pub(crate) fn routed(self, wrap: impl FnOnce(UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>>) -> io::Result<Routed> {
        let (inner, inbox) = (wrap(self.socket)?, Mutex::new(self.inbox));
        Ok(Routed { inner, number: self.number, inbox, own_first: AtomicBool::new(false), workers: self.workers })
    }
}

/// Makes the identifiers of a worker's connections. They show which worker has a connection, and nothing else of it.
#[derive(Clone)]
pub struct Identifiers {
    number: u16,
    workers: usize,
    random: fn() -> u64,
}

impl ConnectionIdGenerator for Identifiers {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; IDENTIFIER];
        let (number, random) = bytes.split_at_mut(NUMBER);
        number.copy_from_slice(&self.number.to_be_bytes());
        random.copy_from_slice(&(self.random)().to_be_bytes());
        ConnectionId::new(&bytes)
    }

    /// What names another worker is lost here, and not answered as a connection that nobody knows: it may be known there.
    fn validate(&self, identifier: &ConnectionId) -> Result<(), InvalidCid> {
        let number = identifier.first_chunk().map_or(self.number, |n| u16::from_be_bytes(*n));
        if number != self.number && usize::from(number) < self.workers { Err(InvalidCid) } else { Ok(()) }
    }

    fn cid_len(&self) -> usize {
        IDENTIFIER
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Whose connection a packet is of, where it says: after the handshake. Before it a client's address is to stay the same.
fn owner(packet: &[u8]) -> Option<u16> {
    const LONG_HEADER: u8 = 0x80;
    let (first, rest) = packet.split_first()?;
    let identifier = rest.get(..IDENTIFIER).filter(|_| first & LONG_HEADER == 0)?;
    identifier.first_chunk().map(|number| u16::from_be_bytes(*number))
}

/// A worker's socket, with what other workers hand over.
pub struct Routed {
    inner: Arc<dyn AsyncUdpSocket>,
    number: u16,
    /// Locked by this worker alone.
    inbox: Mutex<mpsc::Receiver<Handed>>,
    /// It is this socket's turn: neither keeps the other from being read.
    own_first: AtomicBool,
    workers: Arc<[mpsc::Sender<Handed>]>,
}

impl std::fmt::Debug for Routed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routed").field("inner", &self.inner).field("number", &self.number).finish_non_exhaustive()
    }
}

impl Routed {
    fn take_handed(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let mut inbox = self.inbox.lock();
        let mut count = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Poll::Ready(Some(handed)) = inbox.poll_recv(cx) else { break };
            // Every worker's buffers have the same size.
            if let Some(place) = buf.get_mut(..handed.bytes.len()) {
                place.copy_from_slice(&handed.bytes);
                *meta = handed.meta;
                count += 1;
            } else {
                meta.len = 0;
            }
        }
        count
    }

    /// Hands over what is another worker's; a run of packets comes from one sender and so is of one connection.
    fn hand_over(&self, bytes: &[u8], meta: &mut RecvMeta) {
        let Some(bytes) = bytes.get(..meta.len) else { return };
        let Some(other) = owner(bytes).filter(|n| *n != self.number).and_then(|n| self.workers.get(usize::from(n))) else { return };
        let _ = other.try_send(Handed { bytes: bytes.into(), meta: *meta });
        meta.len = 0;
    }
}

impl AsyncUdpSocket for Routed {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        if !self.own_first.swap(false, Ordering::Relaxed) {
            let handed = self.take_handed(cx, bufs, meta);
            if handed > 0 {
                self.own_first.store(true, Ordering::Relaxed);
                return Poll::Ready(Ok(handed));
            }
        }
        let received = self.inner.poll_recv(cx, bufs, meta);
        let Poll::Ready(received) = received else {
            // Registers with the inbox too.
            let handed = self.take_handed(cx, bufs, meta);
            return if handed > 0 { Poll::Ready(Ok(handed)) } else { Poll::Pending };
        };
        let count = received?;
        for (buf, meta) in bufs.iter().zip(meta).take(count) {
            self.hand_over(buf, meta);
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_names_its_worker() {
        let mut of_worker = Identifiers { number: 259, workers: 260, random: || 7 };
        let identifier = of_worker.generate_cid();
        assert_eq!(identifier.len(), of_worker.cid_len());
        let short = [&[0x40], &identifier[..], b"protected"].concat();
        assert_eq!(owner(&short), Some(259));
        let long = [&[0xc0], &identifier[..], b"protected"].concat();
        assert_eq!(owner(&long), None, "a client chooses the identifiers of its first packets");
        for length in 0..=IDENTIFIER {
            assert_eq!(owner(&short[..length]), None);
        }
        assert!(of_worker.validate(&identifier).is_ok());
        assert!(Identifiers { number: 1, workers: 260, random: || 7 }.validate(&identifier).is_err());
        assert!(Identifiers { number: 1, workers: 2, random: || 7 }.validate(&identifier).is_ok(), "of an earlier life with more workers");
    }
}
