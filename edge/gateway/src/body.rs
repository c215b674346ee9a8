//! Bodies as enums: a memory hit hands over one `Bytes` with its exact size and no box.

use crate::coded_body::CodedBody;
use crate::fetch_error::FetchError;
use crate::fields;
use crate::fill::FillReader;
use crate::in_flight::OneInFlight;
use crate::slices::SlicedBody;
use crate::untaken::Untaken;
use crate::upstream::UpstreamBody;
use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tidegate_store::{Piece, Store};
use tokio::sync::oneshot;
use tokio::time::Sleep;

/// Called once when a body is over, with the bytes that were handed over.
pub type Finished = Box<dyn FnOnce(u64, End)>;

/// A callback for a body that upstream did not send to its end.
pub type Failing = Box<dyn FnOnce(FetchError)>;

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Whole,
    /// Upstream, or the disk, did not bring the rest.
    Failed(FetchError),
    /// The client went.
    Left,
}

enum Kind {
    Empty,
    Whole(Bytes),
    Stored(StoredBody),
    Fill(FillReader),
    Sliced(SlicedBody),
    Relay { body: UpstreamBody, left: Option<u64> },
    Coded(CodedBody),
}

/// The pieces of a stored body, of which some may have to be read from the disk: each while the one before it goes out.
struct StoredBody {
    store: Arc<Store>,
    rest: VecDeque<Piece>,
    /// With the time at which the disk has taken too long.
    reading: Option<(oneshot::Receiver<Bytes>, Pin<Box<Sleep>>)>,
    left: u64,
}

/// For one piece of a body.
const READ_WITHIN: Duration = Duration::from_secs(10);

impl StoredBody {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FetchError>>> {
        if self.reading.is_none() && !self.read_ahead() {
            let Some(Piece::Here(bytes)) = self.rest.pop_front() else { return Poll::Ready(None) };
            self.left -= bytes.len() as u64;
            self.read_ahead();
            return Poll::Ready(Some(Ok(bytes)));
        }
        let Some((reading, too_late)) = &mut self.reading else { return Poll::Ready(None) };
        let read = match Pin::new(reading).poll(cx) {
            Poll::Ready(read) => read.ok(),
            Poll::Pending => {
                ready!(too_late.as_mut().poll(cx));
                None
            }
        };
        self.reading = None;
        // The disk failed in the middle of a body: its client has to see it.
        let Some(bytes) = read else { return Poll::Ready(Some(Err(FetchError::Broken))) };
        self.left -= bytes.len() as u64;
        self.read_ahead();
        Poll::Ready(Some(Ok(bytes)))
    }

    /// Begins to read the next piece, where that is on the disk.
    fn read_ahead(&mut self) -> bool {
        if let Some(Piece::OnDisk(piece)) = self.rest.pop_front_if(|p| matches!(p, Piece::OnDisk(_))) {
            self.reading = Some((self.store.read(piece), Box::pin(tokio::time::sleep(READ_WITHIN))));
        }
        self.reading.is_some()
    }
}

/// The body of a response to a client.
pub struct ResponseBody {
    kind: Kind,
    sent: u64,
    /// `Left` for as long as nothing else is known.
    end: End,
    finished: Option<Finished>,
    failed: Option<Failing>,
    in_flight: Option<OneInFlight>,
    untaken: Option<Duration>,
    /// The longest piece that goes out at once, and what is left of a longer one.
    most: usize,
    held: Bytes,
}

/// Pieces over HTTP/2, in bytes: what a closed window can pin, and how finely it is seen that a client takes something.
pub const MULTIPLEXED_PIECE: usize = 16 << 10;

impl ResponseBody {
    fn of(kind: Kind) -> Self {
        Self {
            kind,
            sent: 0,
            end: End::Left,
            finished: None,
            failed: None,
            in_flight: None,
            untaken: None,
            most: usize::MAX,
            held: Bytes::new(),
        }
    }

    /// Leaves it to the client to take this body, in pieces of at most `most` bytes. `untaken`: how long the client may take nothing.
    pub fn hand_over(&mut self, mut in_flight: OneInFlight, most: usize, untaken: Duration) {
        self.untaken = Some(untaken);
        in_flight.waits_for_us(false);
        self.most = most;
        self.in_flight = Some(in_flight);
    }

    /// The time that its client may take nothing, for a transport that sees which response is taken.
    #[must_use]
    pub fn untaken(&self) -> Untaken {
        Untaken::new(self.untaken)
    }

    /// What counts this response as one that is not over: for a transport that hears when the client has it.
    pub fn take_in_flight(&mut self) -> Option<OneInFlight> {
        self.in_flight.take()
    }

    /// Drops the body of a response to HEAD.
    pub fn leave_out(&mut self) {
        self.kind = Kind::Empty;
    }

    #[must_use]
    pub fn empty() -> Self {
        Self::of(Kind::Empty)
    }

    #[must_use]
    pub fn whole(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::empty() } else { Self::of(Kind::Whole(bytes)) }
    }

    #[must_use]
    pub fn stored(store: &Arc<Store>, mut pieces: Vec<Piece>) -> Self {
        if let [Piece::Here(only)] = &mut pieces[..] {
            return Self::whole(std::mem::take(only));
        }
        let left = pieces.iter().map(|p| p.len() as u64).sum();
        Self::of(Kind::Stored(StoredBody { store: Arc::clone(store), rest: pieces.into(), reading: None, left }))
    }

    pub(crate) fn fill(reader: FillReader) -> Self {
        Self::of(Kind::Fill(reader))
    }

    pub(crate) fn sliced(body: SlicedBody) -> Self {
        Self::of(Kind::Sliced(body))
    }

    #[must_use]
    pub fn relay(body: UpstreamBody, length: Option<u64>) -> Self {
        Self::of(Kind::Relay { body, left: length })
    }

    #[must_use]
    pub(crate) fn coded(body: CodedBody) -> Self {
        Self::of(Kind::Coded(body))
    }

    /// Calls `failed` if upstream does not send the rest.
    pub fn on_failure(&mut self, failed: Failing) {
        self.failed = Some(failed);
    }

    /// Calls `finished` when the body has been handed over, or was dropped before.
    pub fn on_finish(&mut self, finished: Finished) {
        self.finished = Some(finished);
    }
}

impl ResponseBody {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FetchError>>> {
        let mut data = if self.held.is_empty() {
            match ready!(self.poll_data(cx)) {
                Some(Ok(data)) => data,
                other => return Poll::Ready(other),
            }
        } else {
            std::mem::take(&mut self.held)
        };
        if data.len() > self.most {
            self.held = data.split_off(self.most);
        }
        Poll::Ready(Some(Ok(data)))
    }

    /// Of a response that is its client's alone. With one that is shared they are not kept (RFC 9110 section 6.5.1).
    fn trailers(&mut self) -> Option<HeaderMap> {
        let trailers = match &mut self.kind {
            Kind::Relay { body, .. } => body.take_trailers(),
            Kind::Coded(body) => body.take_trailers(),
            _ => None,
        };
        trailers.map(|mut trailers| {
            fields::strip_of_trailers(&mut trailers);
            trailers
        })
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FetchError>>> {
        Poll::Ready(match &mut self.kind {
            Kind::Empty => None,
            Kind::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                self.kind = Kind::Empty;
                Some(Ok(bytes))
            }
            Kind::Stored(body) => ready!(body.poll_data(cx)),
            Kind::Fill(reader) => ready!(reader.poll_data(cx)),
            Kind::Sliced(body) => ready!(body.poll_data(cx)),
            Kind::Coded(body) => ready!(body.poll_data(cx)),
            Kind::Relay { body, left } => {
                let data = ready!(body.poll_data(cx));
                if let (Some(left), Some(Ok(data))) = (left, &data) {
                    *left = left.saturating_sub(data.len() as u64);
                }
                data
            }
        })
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        drop(self.in_flight.take());
        if let Some(finished) = self.finished.take() {
            let is_whole = matches!(self.kind, Kind::Empty) && self.held.is_empty();
            finished(self.sent, if is_whole { End::Whole } else { self.end });
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = FetchError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, FetchError>>> {
        let this = &mut *self;
        let data = this.poll_piece(cx);
        if let Some(in_flight) = &mut this.in_flight {
            in_flight.waits_for_us(data.is_pending());
        }
        let data = ready!(data);
        Poll::Ready(match data {
            None => {
                this.end = End::Whole;
                this.trailers().map(|t| Ok(Frame::trailers(t)))
            }
            Some(Ok(data)) => {
                this.sent += data.remaining() as u64;
                // Whoever knows the length asks no further, though trailers might come.
                if this.is_end_stream() || (matches!(this.kind, Kind::Relay { left: Some(0), .. }) && this.held.is_empty()) {
                    this.end = End::Whole;
                }
                Some(Ok(Frame::data(data)))
            }
            Some(Err(error)) => {
                this.end = End::Failed(error);
                if let Some(failed) = this.failed.take() {
                    failed(error);
                }
                Some(Err(error))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        if !self.held.is_empty() {
            return false;
        }
        match &self.kind {
            Kind::Empty => true,
            Kind::Whole(_) => false,
            Kind::Relay { body, left } => left.unwrap_or(0) == 0 && body.is_end_stream(),
            Kind::Coded(body) => body.is_end_stream(),
            Kind::Stored(body) => body.left == 0,
            Kind::Fill(reader) => reader.left() == Some(0),
            Kind::Sliced(body) => body.left() == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let left = match &self.kind {
            Kind::Empty => Some(0),
            Kind::Whole(b) => Some(b.len() as u64),
            Kind::Stored(body) => Some(body.left),
            Kind::Fill(reader) => reader.left(),
            Kind::Sliced(body) => Some(body.left()),
            Kind::Relay { left, .. } => *left,
            Kind::Coded(_) => None,
        };
        left.map_or_else(SizeHint::default, |left| SizeHint::with_exact(left + self.held.len() as u64))
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, clippy::panic)] // A test fails by panicking.
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::cell::Cell;
    use std::rc::Rc;
    use std::sync::atomic::AtomicU64;
    use std::task::Waker;

    #[test]
    fn a_relayed_body_is_complete_with_its_last_byte() {
        use crate::UpstreamBody;
        for (length, end) in [(5, End::Whole), (6, End::Left)] {
            let told = Rc::new(Cell::new(None));
            let inner = UpstreamBody::new(http_body_util::Full::new(Bytes::from_static(b"12345")).map_err(|e| match e {}));
            let mut body = ResponseBody::relay(inner, Some(length));
            let tell = Rc::clone(&told);
            body.on_finish(Box::new(move |bytes, end| tell.set(Some((bytes, end)))));
            // Whoever knows the length asks no further.
            assert!(Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())).is_ready());
            assert_eq!(body.is_end_stream(), end == End::Whole);
            drop(body);
            assert_eq!(told.get(), Some((5, end)));
        }
    }

    #[test]
    fn pieces_are_as_long_as_they_may_be_and_no_longer() {
        let in_flight = Arc::new(crate::InFlight::new(Arc::new(AtomicU64::new(0))));
        let whole: Vec<u8> = (0..40_000u32).map(|n| n as u8).collect();
        let mut body = ResponseBody::whole(whole.clone().into());
        body.hand_over(in_flight.begin(), MULTIPLEXED_PIECE, Duration::MAX);
        let (mut got, mut lengths) = (Vec::new(), Vec::new());
        while !body.is_end_stream() {
            assert_eq!(body.size_hint().exact(), Some((whole.len() - got.len()) as u64));
            let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())) else { panic!() };
            let data = frame.into_data().unwrap();
            lengths.push(data.len());
            got.extend_from_slice(&data);
        }
        assert_eq!((lengths, got), (vec![16_384, 16_384, 7_232], whole));
    }
}
