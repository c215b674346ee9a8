//! Bodies as enums: a memory hit hands over one `Bytes` with its exact size and no box.

use crate::fill::FillReader;
use crate::in_flight::OneInFlight;
use crate::upstream::{FetchError, UpstreamBody};
use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Called once when a body is over: bytes handed over, and whether it was all of it.
pub type Finished = Box<dyn FnOnce(u64, bool)>;

enum Kind {
    Empty,
    Whole(Bytes),
    Pieces { rest: VecDeque<Bytes>, left: u64 },
    Fill(FillReader),
    Relay { body: UpstreamBody, left: Option<u64> },
}

/// The body of a response to a client.
pub struct ResponseBody {
    kind: Kind,
    sent: u64,
    ended: bool,
    finished: Option<Finished>,
    in_flight: Option<OneInFlight>,
}

impl ResponseBody {
    fn of(kind: Kind) -> Self {
        Self { kind, sent: 0, ended: false, finished: None, in_flight: None }
    }

    /// From now on the client has this body to take.
    pub fn hand_over(&mut self, mut in_flight: OneInFlight) {
        in_flight.waits_for_us(false);
        self.in_flight = Some(in_flight);
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
    pub fn pieces(mut pieces: Vec<Bytes>) -> Self {
        if pieces.len() == 1
            && let Some(only) = pieces.pop()
        {
            return Self::whole(only);
        }
        let left = pieces.iter().map(|p| p.len() as u64).sum();
        Self::of(Kind::Pieces { rest: pieces.into(), left })
    }

    pub(crate) fn fill(reader: FillReader) -> Self {
        Self::of(Kind::Fill(reader))
    }

    #[must_use]
    pub fn relay(body: UpstreamBody, length: Option<u64>) -> Self {
        Self::of(Kind::Relay { body, left: length })
    }

    /// Calls `finished` when the body has been handed over, or was dropped before.
    pub fn on_finish(&mut self, finished: Finished) {
        self.finished = Some(finished);
    }
}

impl ResponseBody {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FetchError>>> {
        Poll::Ready(match &mut self.kind {
            Kind::Empty => None,
            Kind::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                self.kind = Kind::Empty;
                Some(Ok(bytes))
            }
            Kind::Pieces { rest, left } => rest.pop_front().map(|piece| {
                *left -= piece.len() as u64;
                Ok(piece)
            }),
            Kind::Fill(reader) => ready!(reader.poll_data(cx)),
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
            finished(self.sent, self.ended || matches!(self.kind, Kind::Empty));
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = FetchError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, FetchError>>> {
        let this = &mut *self;
        let data = this.poll_data(cx);
        if let Some(in_flight) = &mut this.in_flight {
            in_flight.waits_for_us(data.is_pending());
        }
        let data = ready!(data);
        Poll::Ready(match data {
            None => {
                this.ended = true;
                None
            }
            Some(Ok(data)) => {
                this.sent += data.remaining() as u64;
                this.ended = this.is_end_stream();
                Some(Ok(Frame::data(data)))
            }
            Some(Err(e)) => Some(Err(e)),
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Whole(_) | Kind::Relay { .. } => false,
            Kind::Pieces { rest, .. } => rest.is_empty(),
            Kind::Fill(reader) => reader.left() == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Whole(b) => SizeHint::with_exact(b.len() as u64),
            Kind::Pieces { left, .. } => SizeHint::with_exact(*left),
            Kind::Fill(reader) => reader.left().map_or_else(SizeHint::default, SizeHint::with_exact),
            Kind::Relay { left, .. } => left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

/// The body of a request to upstream.
pub enum RequestBody {
    Empty,
    Client(Incoming),
}

impl From<Incoming> for RequestBody {
    fn from(body: Incoming) -> Self {
        if body.is_end_stream() { Self::Empty } else { Self::Client(body) }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Client(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client(body) => body.size_hint(),
        }
    }
}
