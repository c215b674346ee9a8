//! What a client sends on the stream of a request: frames, and the body that they carry.

use crate::code::{Broken, Code};
use crate::frame::{self, Frames, Kind};
use crate::message::{self, MessageError};
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::{Body, SizeHint};
use quinn::{Connection, ReadError, RecvStream};
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

/// Why a client's stream cannot be read on.
#[derive(Debug)]
pub enum ReceiveError {
    /// It was given up, or its connection was lost.
    Lost(ReadError),
    Broken(Broken),
    /// `H3_MESSAGE_ERROR`: of this stream alone.
    Malformed(&'static str),
}

impl std::fmt::Display for ReceiveError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lost(error) => error.fmt(f),
            Self::Broken(Broken { why, .. }) | Self::Malformed(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ReceiveError {}

impl From<Broken> for ReceiveError {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// The frames of a stream.
pub struct Stream {
    from: RecvStream,
    frames: Frames,
    came: Bytes,
    ended: bool,
}

impl Stream {
    /// Keeps field sections of up to `most` bytes.
    pub fn new(from: RecvStream, most: usize) -> Self {
        Self { from, frames: Frames::new(most), came: Bytes::new(), ended: false }
    }

    pub fn is_early(&self) -> bool {
        self.from.is_0rtt()
    }

    /// The next frame; `None` at the stream's end.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<frame::Frame>, ReceiveError>> {
        loop {
            if let Some(frame) = self.frames.next(&mut self.came)? {
                return Poll::Ready(Ok(Some(frame)));
            }
            if self.ended {
                let whole = self.frames.is_between();
                return Poll::Ready(if whole { Ok(None) } else { Err(Broken::new(Code::FRAME_ERROR, "a frame ends early").into()) });
            }
            match ready!(pin!(self.from.read_chunk(usize::MAX, true)).poll(cx)).map_err(ReceiveError::Lost)? {
                Some(chunk) => self.came = chunk.bytes,
                None => self.ended = true,
            }
        }
    }

    /// Nothing more of it is wanted.
    pub fn stop(&mut self, code: Code) {
        if !self.ended {
            self.ended = true;
            let _ = self.from.stop(code.into());
        }
    }
}

/// The body of a request. It counts as whole only if its stream ended where it should.
pub struct Received {
    stream: Stream,
    /// Told where the client breaks the protocol.
    connection: Connection,
    /// Came before anybody asked for it.
    held: Option<frame::Frame>,
    phase: Phase,
    /// By Content-Length.
    left: Option<u64>,
    /// Bytes of trailers.
    most: usize,
}

const LONGER: ReceiveError = ReceiveError::Malformed("the body is longer than Content-Length says");

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Data,
    Trailers,
    Over,
}

impl Received {
    pub(crate) fn new(stream: Stream, connection: Connection, headers: &HeaderMap, most: usize) -> Self {
        let left = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        Self { stream, connection, held: None, phase: Phase::Data, left, most }
    }

    /// Reads on until it is known whether there is a body at all.
    pub(crate) fn poll_known(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ReceiveError>> {
        while self.held.is_none() && self.phase != Phase::Over {
            match ready!(self.stream.poll_frame(cx))? {
                None => self.end()?,
                Some(frame::Frame::Data(data)) if data.is_empty() => {}
                Some(frame::Frame::Data(_)) if self.left == Some(0) => return Poll::Ready(Err(LONGER)),
                frame => self.held = frame,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn end(&mut self) -> Result<(), ReceiveError> {
        self.phase = Phase::Over;
        if self.left.is_some_and(|left| left > 0) {
            return Err(ReceiveError::Malformed("the body is shorter than Content-Length says"));
        }
        Ok(())
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<http_body::Frame<Bytes>>, ReceiveError>> {
        loop {
            if self.phase == Phase::Over {
                return Poll::Ready(Ok(None));
            }
            let frame = match self.held.take() {
                Some(frame) => Some(frame),
                None => ready!(self.stream.poll_frame(cx))?,
            };
            match (frame, self.phase) {
                (None, _) => self.end()?,
                (Some(frame::Frame::Data(data)), Phase::Data) => {
                    if let Some(left) = &mut self.left {
                        *left = left.checked_sub(data.len() as u64).ok_or(LONGER)?;
                    }
                    if !data.is_empty() {
                        return Poll::Ready(Ok(Some(http_body::Frame::data(data))));
                    }
                }
                (Some(frame::Frame::Whole(Kind::Headers, section)), Phase::Data) => {
                    self.phase = Phase::Trailers;
                    let trailers = message::trailers(&section, self.most).map_err(|error| match error {
                        MessageError::Section(_) => {
                            ReceiveError::Broken(Broken::new(Code::DECOMPRESSION_FAILED, "trailers cannot be read"))
                        }
                        MessageError::Malformed(why) => ReceiveError::Malformed(why),
                    })?;
                    return Poll::Ready(Ok(Some(http_body::Frame::trailers(trailers))));
                }
                (Some(frame::Frame::TooLong(Kind::Headers)), Phase::Data) => {
                    return Poll::Ready(Err(ReceiveError::Malformed("there are too many trailers")));
                }
                (Some(_), _) => return Poll::Ready(Err(Broken::new(Code::FRAME_UNEXPECTED, "a frame is out of its place").into())),
            }
        }
    }

    fn fail(&mut self, error: &ReceiveError) {
        self.phase = Phase::Over;
        match error {
            ReceiveError::Lost(_) => self.stream.ended = true,
            ReceiveError::Malformed(_) => self.stream.stop(Code::MESSAGE_ERROR),
            ReceiveError::Broken(broken) => self.connection.close(broken.code.into(), broken.why.as_bytes()),
        }
    }
}

/// Whoever answers without it needs no more of it (RFC 9114 section 4.1).
impl Drop for Received {
    fn drop(&mut self) {
        self.stream.stop(Code::NO_ERROR);
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = ReceiveError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, ReceiveError>>> {
        let next = ready!(self.poll_next(cx));
        if let Err(error) = &next {
            self.fail(error);
        }
        Poll::Ready(next.transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.phase == Phase::Over
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            _ if self.is_end_stream() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}
