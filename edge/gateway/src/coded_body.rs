//! The body of a response for one client alone, coded while it streams (RFC 9110 section 8.4).
//!
//! Each piece goes out at once, so that the client can decode all that it has received. Encoders have small windows, and a node has
//! a bounded number of them; a body above that number goes out uncoded.

use crate::fetch_error::FetchError;
use crate::upstream::UpstreamBody;
use bytes::Bytes;
use flate2::write::GzEncoder;
use http::HeaderMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use tidegate_cache::Coding;
use zstd::zstd_safe::CParameter;

/// Bodies that a node codes at once.
const MAX_AT_ONCE: usize = 512;
/// Quick rather than small: the client waits for them.
const GZIP_LEVEL: u32 = 4;
const ZSTD_LEVEL: i32 = 1;
const BROTLI_QUALITY: u32 = 3;
/// Base-2 logarithm of the window of zstd and brotli, in bytes.
const WINDOW_LOG: u32 = 17;

static AT_ONCE: AtomicUsize = AtomicUsize::new(0);

enum Encoder {
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(Box<zstd::Encoder<'static, Vec<u8>>>),
    Gzip(Box<GzEncoder<Vec<u8>>>),
}

impl Encoder {
    fn new(coding: Coding) -> io::Result<Self> {
        Ok(match coding {
            Coding::Brotli => Self::Brotli(Box::new(brotli::CompressorWriter::new(Vec::new(), 4096, BROTLI_QUALITY, WINDOW_LOG))),
            Coding::Zstd => {
                let mut encoder = zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
                Self::Zstd(Box::new(encoder))
            }
            Coding::Gzip => Self::Gzip(Box::new(GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP_LEVEL)))),
        })
    }

    /// Takes a piece in; returns all that can be decoded of it.
    fn push(&mut self, data: &[u8]) -> io::Result<Bytes> {
        fn through<'a, W: Write>(to: &'a mut W, data: &[u8], out: impl FnOnce(&'a mut W) -> &'a mut Vec<u8>) -> io::Result<Bytes> {
            to.write_all(data)?;
            to.flush()?;
            Ok(std::mem::take(out(to)).into())
        }
        match self {
            Self::Brotli(e) => through(&mut **e, data, |e| e.get_mut()),
            Self::Zstd(e) => through(&mut **e, data, |e| e.get_mut()),
            Self::Gzip(e) => through(&mut **e, data, |e| e.get_mut()),
        }
    }

    /// The end of the coded form.
    fn finish(self) -> io::Result<Bytes> {
        Ok(match self {
            Self::Brotli(e) => e.into_inner(),
            Self::Zstd(e) => e.finish()?,
            Self::Gzip(e) => e.finish()?,
        }
        .into())
    }
}

pub struct CodedBody {
    body: UpstreamBody,
    /// `None` once the end of the coded form has gone out.
    encoder: Option<Encoder>,
}

impl CodedBody {
    /// # Errors
    /// The body is returned uncoded if the node has reached its maximum number of encoders.
    pub fn new(body: UpstreamBody, coding: Coding) -> Result<Self, UpstreamBody> {
        if AT_ONCE.fetch_add(1, Ordering::Relaxed) >= MAX_AT_ONCE {
            AT_ONCE.fetch_sub(1, Ordering::Relaxed);
            return Err(body);
        }
        match Encoder::new(coding) {
            Ok(encoder) => Ok(Self { body, encoder: Some(encoder) }),
            Err(_) => {
                AT_ONCE.fetch_sub(1, Ordering::Relaxed);
                Err(body)
            }
        }
    }

    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FetchError>>> {
        let broken = |_| FetchError::Broken;
        while let Some(encoder) = &mut self.encoder {
            let out = match ready!(self.body.poll_data(cx)) {
                Some(Ok(data)) => encoder.push(&data).map_err(broken)?,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => match self.encoder.take() {
                    Some(encoder) => encoder.finish().map_err(broken)?,
                    None => break,
                },
            };
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(out)));
            }
        }
        Poll::Ready(None)
    }

    #[must_use]
    pub fn is_end_stream(&self) -> bool {
        self.encoder.is_none() && self.body.is_end_stream()
    }

    pub fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.body.take_trailers()
    }
}

impl Drop for CodedBody {
    fn drop(&mut self) {
        AT_ONCE.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::{Body, Frame};
    use std::collections::VecDeque;
    use std::io::Read;
    use std::pin::Pin;
    use std::task::Waker;

    struct Pieces(VecDeque<Bytes>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = FetchError;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, FetchError>>> {
            Poll::Ready(self.0.pop_front().map(|p| Ok(Frame::data(p))))
        }
    }

    fn decoded(coding: Coding, coded: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        // A truncated body decodes up to its end.
        let _ = match coding {
            Coding::Brotli => brotli::Decompressor::new(coded, 4096).read_to_end(&mut out),
            Coding::Zstd => zstd::Decoder::new(coded).unwrap().read_to_end(&mut out),
            Coding::Gzip => flate2::read::GzDecoder::new(coded).read_to_end(&mut out),
        };
        out
    }

    #[test]
    fn each_piece_can_be_decoded_when_it_has_come_and_the_whole_is_the_same() {
        for coding in Coding::ALL {
            let pieces: Vec<Bytes> = (0..20).map(|n| format!("event {n}: {}\n", "text ".repeat(n * 40)).into()).collect();
            let inner = UpstreamBody::new(Pieces(pieces.clone().into()));
            let mut body = CodedBody::new(inner, coding).ok().unwrap();
            let (mut coded, mut plain) = (Vec::new(), Vec::new());
            let mut next = pieces.iter();
            while let Poll::Ready(Some(data)) = body.poll_data(&mut Context::from_waker(Waker::noop())) {
                coded.extend_from_slice(&data.unwrap());
                plain.extend_from_slice(next.next().map_or(&[], |p| p));
                assert_eq!(decoded(coding, &coded), plain, "{coding:?}");
            }
            assert_eq!(decoded(coding, &coded), pieces.concat());
            assert!(coded.len() < plain.len() / 4 && body.encoder.is_none());
        }
    }
}
