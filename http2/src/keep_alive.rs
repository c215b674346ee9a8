//! Pings: a peer that is gone without a word is noticed.

use h2::{Ping, PingPong};
use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How often the peer is asked for a sign of life, and how long it may take to give one.
#[derive(Clone, Copy, Debug)]
pub struct KeepAlive {
    pub every: Duration,
    pub within: Duration,
}

/// Asks, and notices when nothing comes back.
pub struct Pinger {
    pings: PingPong,
    times: KeepAlive,
    timer: Pin<Box<Sleep>>,
    /// The bytes that had come when the ping was sent that is not answered yet.
    asked_at: Option<u64>,
    received: Rc<Cell<u64>>,
}

impl Pinger {
    pub fn new(pings: PingPong, times: KeepAlive, received: Rc<Cell<u64>>) -> Self {
        Self { pings, times, timer: Box::pin(tokio::time::sleep(times.every)), asked_at: None, received }
    }

    fn set(&mut self, after: Duration) {
        self.timer.as_mut().reset(Instant::now() + after);
    }

    /// Ready once the peer is gone. `open`: whether anybody waits for it; without that it is not asked.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>, open: bool) -> Poll<()> {
        loop {
            let Some(before) = self.asked_at else {
                ready!(self.timer.as_mut().poll(cx));
                if !open {
                    // The timer stays as it is: who opens a stream next learns soon whether the peer is still there.
                    return Poll::Pending;
                }
                if self.pings.send_ping(Ping::opaque()).is_ok() {
                    self.asked_at = Some(self.received.get());
                    self.set(self.times.within);
                } else {
                    self.set(self.times.every);
                }
                continue;
            };
            match self.pings.poll_pong(cx) {
                Poll::Ready(Ok(_)) => {
                    self.asked_at = None;
                    self.set(self.times.every);
                }
                // The connection's own end tells more.
                Poll::Ready(Err(_)) => return Poll::Pending,
                Poll::Pending => {
                    ready!(self.timer.as_mut().poll(cx));
                    if self.received.get() == before {
                        return Poll::Ready(());
                    }
                    // It lives, but the ping waits behind much that it takes slowly.
                    self.asked_at = Some(self.received.get());
                    self.set(self.times.within);
                }
            }
        }
    }
}

/// A connection that counts the bytes that come in.
pub struct Counted<I> {
    io: I,
    received: Rc<Cell<u64>>,
}

impl<I> Counted<I> {
    pub fn new(io: I) -> (Self, Rc<Cell<u64>>) {
        let received = Rc::new(Cell::new(0));
        (Self { io, received: Rc::clone(&received) }, received)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Counted<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        self.received.set(self.received.get() + (buf.filled().len() - before) as u64);
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Counted<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[std::io::IoSlice<'_>]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
