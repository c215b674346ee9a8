//! Stands between a client's connection and hyper: lets through only heads that [`crate::head`] has read, follows the
//! framing of bodies, and keeps the time. A refused request's answer is written once those before it have been.
//!
//! Time is kept by one sweep per worker over all its connections, not by a timer per request.

use crate::early::EarlyResponses;
use crate::head::{self, Framing, Refusal};
use crate::settings::Limits;
use http::{HeaderMap, StatusCode};
use hyper::rt::{Read, ReadBufCursor, Write};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use tidegate_gateway::InFlight;
use tidegate_gateway::interim::{Interim, TakesInterim};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a connection waits for, as the sweep sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Waits {
    /// For a next request.
    Idle = 0,
    /// For the rest of a head.
    Head = 1,
    /// For more of a body.
    Body = 2,
    /// For nothing: its request is being answered.
    Nothing = 3,
}

/// Shared between a connection's transport, its requests and the worker's sweep.
#[derive(Debug)]
pub struct ConnectionState {
    /// Requests whose responses are not over.
    pub in_flight: Arc<InFlight>,
    /// 0: not decided, 1: it stays HTTP, 2: another protocol was granted.
    upgrade: AtomicU8,
    waits: AtomicU8,
    /// Milliseconds of the worker's coarse clock when that began; and when a write began to wait, or 0.
    since: AtomicU64,
    write_since: AtomicU64,
    expired: AtomicBool,
    /// HTTP/2: many responses on one connection, each with a window of its own.
    multiplexed: bool,
    early: EarlyResponses,
    /// Why this node ended the connection.
    refusal: Mutex<Option<Refusal>>,
    wakers: Mutex<[Option<Waker>; 2]>,
}

impl ConnectionState {
    #[must_use]
    pub fn new(clock: Arc<AtomicU64>, multiplexed: bool) -> Arc<Self> {
        let now = clock.load(Ordering::Relaxed);
        Arc::new(Self {
            in_flight: Arc::new(InFlight::new(clock)),
            upgrade: AtomicU8::new(0),
            waits: AtomicU8::new(Waits::Head as u8),
            since: AtomicU64::new(now),
            write_since: AtomicU64::new(0),
            expired: AtomicBool::new(false),
            multiplexed,
            early: EarlyResponses::default(),
            refusal: Mutex::default(),
            wakers: Mutex::default(),
        })
    }

    fn note_refusal(&self, refusal: Refusal) {
        *self.refusal.lock() = Some(refusal);
    }

    /// Why this node ended the connection, where it was a request that could not be read.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        *self.refusal.lock()
    }

    /// A request of HTTP/1.1 begins, which takes interim responses until it ends.
    pub fn begin_request(self: &Arc<Self>) -> Interim {
        Interim::new(Arc::clone(self) as Arc<dyn TakesInterim>, self.early.begin())
    }

    /// Its response is there.
    pub fn end_request(&self) {
        self.early.end();
    }

    /// Whether the request that asked for another protocol got it.
    pub fn decide_upgrade(&self, granted: bool) {
        self.upgrade.store(if granted { 2 } else { 1 }, Ordering::Release);
        self.wake();
    }

    /// Until the sweep has found that it waited too long.
    pub async fn expired(&self) {
        std::future::poll_fn(|cx| {
            self.wait(0, cx);
            if self.expired.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn wake(&self) {
        let wakers = std::mem::take(&mut *self.wakers.lock());
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    fn wait(&self, which: usize, cx: &Context<'_>) {
        if let Some(slot) = self.wakers.lock().get_mut(which) {
            *slot = Some(cx.waker().clone());
        }
    }

    /// Ends the connection if it has waited too long; called by the sweep.
    pub fn check(&self, now: u64, limits: &Limits) {
        let over = |since: u64, most: std::time::Duration| u128::from(now.saturating_sub(since)) > most.as_millis();
        let since = self.since.load(Ordering::Relaxed);
        let in_flight = self.in_flight.count() > 0;
        let waits = self.waits.load(Ordering::Relaxed);
        if in_flight && waits == Waits::Idle as u8 {
            // Idleness begins when the last request is over.
            self.since.store(now, Ordering::Relaxed);
        }
        let late = match waits {
            // Its pings keep no HTTP/2 connection.
            _ if self.multiplexed => !in_flight && over(self.in_flight.taken_at(), limits.idle_timeout),
            w if w == Waits::Head as u8 => over(since, limits.head_timeout),
            w if w == Waits::Body as u8 => over(since, limits.body_timeout),
            // The meaning of silence in another protocol is unknown here.
            w if w == Waits::Idle as u8 && self.upgrade.load(Ordering::Relaxed) == 2 => over(since, limits.tunnel_timeout),
            w if w == Waits::Idle as u8 => !in_flight && over(since, limits.idle_timeout),
            _ => false,
        };
        let blocked = self.write_since.load(Ordering::Relaxed);
        // HTTP/2: the socket takes what little there is, pings say, while closed windows hold every response back.
        let untaken = (self.multiplexed && self.in_flight.waits_for_client()).then(|| self.in_flight.taken_at());
        let stalled = [(blocked > 0).then_some(blocked), untaken].into_iter().flatten().any(|since| over(since, limits.body_timeout));
        if late || stalled {
            self.expired.store(true, Ordering::Release);
            self.wake();
        }
    }
}

impl TakesInterim for ConnectionState {
    fn take(&self, request: u64, status: StatusCode, headers: &HeaderMap) {
        if self.early.push(request, status, headers) {
            self.wake();
        }
    }
}

enum Phase {
    Head,
    Body {
        left: u64,
    },
    ChunkSize,
    ChunkData {
        left: u64,
    },
    ChunkEnd,
    Trailers {
        bytes: usize,
    },
    /// A request asked for another protocol, and the answer is not known yet.
    Undecided,
    /// Not HTTP/1.1 here: HTTP/2, or what a granted upgrade speaks.
    Raw,
    Refused(Refusal),
    /// The body of a request that is being answered is malformed. Its reader gets the error and answers the request.
    BodyRefused,
}

/// Time that a client has to finish sending after the last response of its connection.
const LINGERS: std::time::Duration = std::time::Duration::from_secs(2);

pub struct Admission<I> {
    io: I,
    state: Arc<ConnectionState>,
    limits: Arc<Limits>,
    clock: Arc<AtomicU64>,
    phase: Phase,
    /// What came in and is not judged yet: part of a head or of a line.
    pending: Vec<u8>,
    /// Judged, not yet taken: from `taken` on.
    admitted: Vec<u8>,
    taken: usize,
    /// The empty line that may come before a head has come.
    skipped_line: bool,
    refusal_written: usize,
    /// Since nothing more is written: until when the client may still send.
    lingers: Option<Pin<Box<tokio::time::Sleep>>>,
    /// hyper has begun to write something that it has not flushed: an interim response must not come into its middle.
    writing: bool,
    /// Interim responses that are going out, from `early_written` on.
    early: Vec<u8>,
    early_written: usize,
}

const READ_SIZE: usize = 16 << 10;
/// Buffers larger than this are given back when they are empty: an idle connection holds next to nothing.
const KEPT_CAPACITY: usize = 2 << 10;
const LONGEST_LINE: usize = 8 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_SIZE]);
}

impl<I> Admission<I> {
    /// `http1`: heads are read and judged; without it only the time is kept.
    pub fn new(io: I, http1: bool, state: Arc<ConnectionState>, limits: Arc<Limits>, clock: Arc<AtomicU64>) -> Self {
        let phase = if http1 { Phase::Head } else { Phase::Raw };
        Self {
            io,
            state,
            limits,
            clock,
            phase,
            pending: Vec::new(),
            admitted: Vec::new(),
            taken: 0,
            skipped_line: false,
            refusal_written: 0,
            lingers: None,
            writing: false,
            early: Vec::new(),
            early_written: 0,
        }
    }

    fn waits(&self, what: Waits) {
        self.state.waits.store(what as u8, Ordering::Relaxed);
        self.state.since.store(self.clock.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Judges `bytes`, which follow what was judged before.
    fn judge(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.step(bytes) {
                Ok(used) => bytes = bytes.get(used..).unwrap_or_default(),
                Err(refusal) => {
                    self.refuse(refusal);
                    return;
                }
            }
        }
        let waits = match self.phase {
            Phase::Head if self.pending.is_empty() => Waits::Idle,
            Phase::Head => {
                // The time runs from the head's first byte, whatever trickles in.
                if self.state.waits.load(Ordering::Relaxed) == Waits::Head as u8 {
                    return;
                }
                Waits::Head
            }
            Phase::Raw => Waits::Idle,
            // For more of a body it waits only while somebody wants to read it.
            _ => Waits::Nothing,
        };
        self.waits(waits);
    }

    fn refuse(&mut self, refusal: Refusal) {
        let in_body = matches!(self.phase, Phase::ChunkSize | Phase::ChunkEnd | Phase::Trailers { .. });
        if in_body {
            self.phase = Phase::BodyRefused;
        } else {
            self.state.note_refusal(refusal);
            self.phase = Phase::Refused(refusal);
        }
        self.pending = Vec::new();
        self.waits(Waits::Nothing);
    }

    /// Judges some of `bytes`; returns how many.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        match &mut self.phase {
            Phase::Raw => self.admit(bytes, bytes.len()),
            Phase::Undecided => {
                if self.pending.len() + bytes.len() > READ_SIZE * 4 {
                    return Err(Refusal { status: 400, why: "too much was sent before the other protocol was granted" });
                }
                self.pending.extend_from_slice(bytes);
                Ok(bytes.len())
            }
            Phase::Refused(_) | Phase::BodyRefused => Ok(bytes.len()),
            Phase::Head => self.head(bytes),
            Phase::Body { left } => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= n as u64;
                if *left == 0 {
                    self.phase = Phase::Head;
                }
                self.admit(bytes, n)
            }
            Phase::ChunkData { left } => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= n as u64;
                if *left == 0 {
                    self.phase = Phase::ChunkEnd;
                }
                self.admit(bytes, n)
            }
            Phase::ChunkSize | Phase::ChunkEnd | Phase::Trailers { .. } => self.line(bytes),
        }
    }

    fn admit(&mut self, bytes: &[u8], n: usize) -> Result<usize, Refusal> {
        self.admitted.extend_from_slice(bytes.get(..n).unwrap_or_default());
        Ok(n)
    }

    fn head(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        if !self.skipped_line {
            let (before, is_cr) = (self.pending.len(), self.pending == b"\r");
            match (head::empty_line(bytes), is_cr) {
                // The rest of the line comes later.
                (1, false) if before == 0 => {
                    self.pending.push(b'\r');
                    return Ok(1);
                }
                (2, false) if before == 0 => {
                    self.skipped_line = true;
                    return Ok(2);
                }
                (_, true) if bytes.first() == Some(&b'\n') => {
                    self.pending.clear();
                    self.skipped_line = true;
                    return Ok(1);
                }
                _ => {}
            }
        }
        if self.pending.is_empty() {
            if let Some(end) = head::end(bytes, &self.limits)? {
                self.read_head(bytes.get(..end).unwrap_or_default())?;
                return Ok(end);
            }
            self.pending.extend_from_slice(bytes);
            return Ok(bytes.len());
        }
        let before = self.pending.len();
        self.pending.extend_from_slice(bytes);
        let Some(end) = head::end(&self.pending, &self.limits)? else { return Ok(bytes.len()) };
        let whole = std::mem::take(&mut self.pending);
        self.read_head(whole.get(..end).unwrap_or_default())?;
        Ok(end - before)
    }

    fn read_head(&mut self, head: &[u8]) -> Result<(), Refusal> {
        let read = head::read(head, &self.limits)?;
        self.skipped_line = false;
        self.phase = match read.framing {
            Framing::Length(0) if read.upgrade => {
                self.state.upgrade.store(0, Ordering::Release);
                Phase::Undecided
            }
            Framing::Length(0) => Phase::Head,
            Framing::Length(left) => Phase::Body { left },
            Framing::Chunked => Phase::ChunkSize,
        };
        self.admitted.extend_from_slice(head);
        Ok(())
    }

    /// Judges a line of the chunked coding once all of it is there.
    fn line(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let used = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
        self.pending.extend_from_slice(bytes.get(..used).unwrap_or_default());
        if self.pending.len() > LONGEST_LINE {
            return Err(Refusal { status: 400, why: "a line of the chunked body is too long" });
        }
        if self.pending.last() != Some(&b'\n') {
            return Ok(used);
        }
        let line = std::mem::take(&mut self.pending);
        let Some(text) = line.strip_suffix(b"\r\n").filter(|t| !t.contains(&b'\r')) else {
            return Err(Refusal { status: 400, why: "a line of the chunked body does not end in CR LF" });
        };
        self.phase = match self.phase {
            Phase::ChunkEnd if text.is_empty() => Phase::ChunkSize,
            Phase::ChunkEnd => return Err(Refusal { status: 400, why: "a chunk is longer than its size says" }),
            Phase::Trailers { .. } if text.is_empty() => Phase::Head,
            Phase::Trailers { bytes } if bytes + line.len() > LONGEST_LINE => {
                return Err(Refusal { status: 431, why: "the trailers are too large" });
            }
            Phase::Trailers { bytes } => {
                head::trailer(text)?;
                Phase::Trailers { bytes: bytes + line.len() }
            }
            _ => match head::chunk_size(text)? {
                0 => Phase::Trailers { bytes: 0 },
                // How large a body may be is looked at where it is read, which is behind what decides about its request.
                left => Phase::ChunkData { left },
            },
        };
        self.admitted.extend_from_slice(&line);
        Ok(used)
    }

    /// Hands over what was admitted; `false` where there is nothing.
    fn hand_over(&mut self, buf: &mut ReadBufCursor<'_>) -> bool {
        let ready = self.admitted.get(self.taken..).unwrap_or_default();
        if ready.is_empty() {
            return false;
        }
        let n = ready.len().min(buf.remaining());
        buf.put_slice(ready.get(..n).unwrap_or_default());
        self.taken += n;
        if self.taken == self.admitted.len() {
            self.taken = 0;
            self.admitted.clear();
            if self.admitted.capacity() > KEPT_CAPACITY {
                self.admitted = Vec::new();
            }
        }
        true
    }

    /// Settles what does not need the other side; `Some` is the answer to a read.
    fn before_read(&mut self, cx: &Context<'_>) -> Option<Poll<std::io::Result<()>>> {
        if self.state.expired.load(Ordering::Acquire) {
            let waited = self.state.waits.load(Ordering::Relaxed);
            if matches!(self.phase, Phase::Head) && waited == Waits::Head as u8 && !self.pending.is_empty() {
                self.refuse(Refusal { status: 408, why: "the request's head did not come in time" });
            } else if !matches!(self.phase, Phase::Refused(_) | Phase::BodyRefused) {
                return Some(Poll::Ready(Ok(())));
            }
        }
        if matches!(self.phase, Phase::Undecided) {
            match self.state.upgrade.load(Ordering::Acquire) {
                0 => {
                    self.state.wait(0, cx);
                    // A client that goes meanwhile is noticed when something is written to it.
                    return Some(Poll::Pending);
                }
                decided => {
                    self.phase = if decided == 2 { Phase::Raw } else { Phase::Head };
                    let early = std::mem::take(&mut self.pending);
                    self.judge(&early);
                }
            }
        }
        if matches!(self.phase, Phase::BodyRefused) && self.taken == self.admitted.len() {
            return Some(Poll::Ready(Ok(())));
        }
        if matches!(self.phase, Phase::Refused(_)) && self.taken == self.admitted.len() {
            if !self.state.in_flight.is_idle(cx) {
                return Some(Poll::Pending);
            }
            return Some(Poll::Ready(Ok(())));
        }
        None
    }
}

impl<I: AsyncRead + Unpin> Read for Admission<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.hand_over(&mut buf) {
                return Poll::Ready(Ok(()));
            }
            if let Some(answer) = this.before_read(cx) {
                if answer.is_ready() && this.hand_over(&mut buf) {
                    return Poll::Ready(Ok(()));
                }
                return answer;
            }
            if this.taken < this.admitted.len() {
                continue;
            }
            let n = SCRATCH.with_borrow_mut(|scratch| {
                let mut read = ReadBuf::new(scratch);
                match Pin::new(&mut this.io).poll_read(cx, &mut read) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
                    Poll::Ready(Ok(())) => {
                        let filled = read.filled();
                        this.judge(filled);
                        Poll::Ready(Ok(filled.len()))
                    }
                }
            });
            match n {
                Poll::Pending => {
                    let in_body =
                        !matches!(this.phase, Phase::Head | Phase::Raw | Phase::Undecided | Phase::Refused(_) | Phase::BodyRefused);
                    if in_body && this.state.waits.load(Ordering::Relaxed) != Waits::Body as u8 {
                        this.waits(Waits::Body);
                    }
                    this.state.wait(0, cx);
                    return Poll::Pending;
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(_)) => {}
            }
        }
    }
}

impl<I: AsyncWrite + Unpin> Admission<I> {
    fn note_write<T>(&self, cx: &Context<'_>, result: Poll<std::io::Result<T>>) -> Poll<std::io::Result<T>> {
        if result.is_pending() {
            if self.state.expired.load(Ordering::Acquire) {
                return Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()));
            }
            if self.state.write_since.load(Ordering::Relaxed) == 0 {
                self.state.write_since.store(self.clock.load(Ordering::Relaxed).max(1), Ordering::Relaxed);
            }
            self.state.wait(1, cx);
        } else {
            if self.state.write_since.load(Ordering::Relaxed) > 0 {
                self.state.write_since.store(0, Ordering::Relaxed);
            }
            if matches!(self.phase, Phase::Raw) {
                // What another protocol says without being asked keeps its connection alive.
                self.state.since.store(self.clock.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        result
    }

    /// Interim responses go between responses: before the first byte that hyper writes after it has flushed all, or when it flushes.
    fn write_early(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if self.early.is_empty() {
            self.early = self.state.early.take(self.writing);
        }
        while let Some(rest) = self.early.get(self.early_written..).filter(|rest| !rest.is_empty()) {
            let written = Pin::new(&mut self.io).poll_write(cx, rest);
            match ready!(self.note_write(cx, written))? {
                0 => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                n => self.early_written += n,
            }
        }
        self.early = Vec::new();
        self.early_written = 0;
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + Unpin> Admission<I> {
    /// Whether the client is in the middle of a request's body, or sends on although it was refused.
    fn is_owed_data(&self) -> bool {
        !matches!(self.phase, Phase::Head | Phase::Raw | Phase::Undecided)
    }

    /// Reads and drops the rest of the client's data, so that the client can read its answer: closing a socket with unread bytes resets
    /// the connection, and after a reset a client may drop an answer that it has received.
    fn linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let late = self.lingers.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGERS)));
        let mut scratch = [0; 4096];
        loop {
            if late.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                _ => return Poll::Ready(()),
            }
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Write for Admission<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        if !self.writing || !self.early.is_empty() {
            ready!(self.write_early(cx))?;
            self.writing = true;
        }
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        self.note_write(cx, result)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[std::io::IoSlice<'_>]) -> Poll<std::io::Result<usize>> {
        if !self.writing || !self.early.is_empty() {
            ready!(self.write_early(cx))?;
            self.writing = true;
        }
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.note_write(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if self.state.early.may_come() {
            // hyper itself waits for nothing but the response, where the next request is here already.
            self.state.wait(1, cx);
        }
        ready!(self.write_early(cx))?;
        self.writing = false;
        let result = Pin::new(&mut self.io).poll_flush(cx);
        self.note_write(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        if let Phase::Refused(refusal) = this.phase {
            let page = refusal.page();
            while let Some(rest) = page.as_bytes().get(this.refusal_written..).filter(|r| !r.is_empty()) {
                match ready!(Pin::new(&mut this.io).poll_write(cx, rest)) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => this.refusal_written += n,
                }
            }
            let _ = ready!(Pin::new(&mut this.io).poll_flush(cx));
        }
        if this.lingers.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        }
        if this.is_owed_data() {
            ready!(this.linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}

impl Refusal {
    /// The whole answer.
    #[must_use]
    pub fn page(self) -> String {
        let reason = http::StatusCode::from_u16(self.status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Refused");
        let text = format!("{} {reason}\n\n{}\n", self.status, self.why);
        format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
            self.status,
            text.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that takes as many bytes as it has room for.
    #[derive(Clone, Default)]
    struct Narrow {
        out: Arc<Mutex<Vec<u8>>>,
        room: Arc<AtomicU64>,
    }

    impl AsyncRead for Narrow {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Narrow {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
            let room = usize::try_from(self.room.load(Ordering::Relaxed)).unwrap();
            if room == 0 {
                return Poll::Pending;
            }
            let n = buf.len().min(room);
            self.room.fetch_sub(n as u64, Ordering::Relaxed);
            self.out.lock().extend_from_slice(&buf[..n]);
            Poll::Ready(Ok(n))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn an_interim_response_that_has_begun_to_go_out_goes_out_whole() {
        let io = Narrow::default();
        let clock = Arc::new(AtomicU64::new(0));
        let state = ConnectionState::new(Arc::clone(&clock), false);
        let mut admission = Admission::new(io.clone(), true, Arc::clone(&state), Arc::new(Limits::default()), clock);
        let mut cx = Context::from_waker(Waker::noop());
        let mut write = |bytes: &[u8]| Pin::new(&mut admission).poll_write(&mut cx, bytes);
        // A response waits for a client that reads slowly; the next request is here, and its hint.
        io.room.store(3, Ordering::Relaxed);
        assert!(matches!(write(b"response"), Poll::Ready(Ok(3))));
        assert!(write(b"ponse").is_pending());
        state.begin_request().pass(StatusCode::EARLY_HINTS, &HeaderMap::new());
        io.room.store(9, Ordering::Relaxed);
        assert!(matches!(write(b"ponse"), Poll::Ready(Ok(5))));
        assert!(Pin::new(&mut admission).poll_flush(&mut Context::from_waker(Waker::noop())).is_pending());
        // Its response comes while half of the hint is out.
        state.end_request();
        io.room.store(1000, Ordering::Relaxed);
        let mut written = 0;
        while written < 4 {
            match Pin::new(&mut admission).poll_write(&mut Context::from_waker(Waker::noop()), &b"next"[written..]) {
                Poll::Ready(Ok(n)) => written += n,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(String::from_utf8_lossy(&io.out.lock()), "responseHTTP/1.1 103 Early Hints\r\n\r\nnext");
    }
}
