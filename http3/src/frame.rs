//! Frames (RFC 9114 section 7), whatever pieces they come in. What is not wanted is skipped as it comes, what is kept is bounded, and
//! how long a frame says that it is costs nothing.

use crate::code::{Broken, Code};
use crate::varint;
use bytes::{BufMut, Bytes, BytesMut};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Data,
    Headers,
    CancelPush,
    Settings,
    PushPromise,
    Goaway,
    MaxPushId,
}

impl Kind {
    /// `None`: to be skipped.
    fn of(number: u64) -> Result<Option<Self>, Broken> {
        Ok(Some(match number {
            0x0 => Self::Data,
            0x1 => Self::Headers,
            0x3 => Self::CancelPush,
            0x4 => Self::Settings,
            0x5 => Self::PushPromise,
            0x7 => Self::Goaway,
            0xd => Self::MaxPushId,
            0x2 | 0x6 | 0x8 | 0x9 => return Err(Broken::new(Code::FRAME_UNEXPECTED, "this frame is HTTP/2's")),
            _ => return Ok(None),
        }))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Some of a DATA frame.
    Data(Bytes),
    /// All of another.
    Whole(Kind, Bytes),
    /// One that is longer than this reader keeps; it is skipped.
    TooLong(Kind),
}

/// Reads the frames of one stream.
///
/// Invariant: no more is held than the beginning of a frame, or `most` bytes of one.
#[derive(Debug)]
pub struct Frames {
    state: State,
    most: usize,
}

#[derive(Debug)]
enum State {
    Begin { bytes: BytesMut },
    Data { left: u64 },
    Gather { kind: Kind, left: usize, payload: BytesMut },
    Skip { left: u64 },
}

/// A type and a length.
const LONGEST_BEGIN: usize = 16;

impl State {
    fn begin() -> Self {
        Self::Begin { bytes: BytesMut::new() }
    }
}

impl Frames {
    /// Keeps frames of up to `most` bytes.
    pub fn new(most: usize) -> Self {
        Self { state: State::begin(), most }
    }

    /// Whether a stream may end here.
    pub fn is_between(&self) -> bool {
        matches!(&self.state, State::Begin { bytes } if bytes.is_empty()) || matches!(self.state, State::Data { left: 0 })
    }

    /// The next of what `input` brings; it is taken off it. `None`: all of it is taken.
    pub fn next(&mut self, input: &mut Bytes) -> Result<Option<Frame>, Broken> {
        loop {
            match &mut self.state {
                State::Begin { bytes } => {
                    let Some((number, length)) = begin(bytes, input) else { return Ok(None) };
                    self.state = match Kind::of(number)? {
                        None => State::Skip { left: length },
                        Some(Kind::Data) => State::Data { left: length },
                        Some(kind) => match usize::try_from(length).ok().filter(|l| *l <= self.most) {
                            Some(left) => State::Gather { kind, left, payload: BytesMut::new() },
                            None => {
                                self.state = State::Skip { left: length };
                                return Ok(Some(Frame::TooLong(kind)));
                            }
                        },
                    };
                }
                State::Data { left: 0 } | State::Skip { left: 0 } => self.state = State::begin(),
                State::Gather { kind, left, payload } if input.len() >= *left => {
                    let last = input.split_to(*left);
                    let whole = if payload.is_empty() {
                        last
                    } else {
                        payload.put_slice(&last);
                        std::mem::take(payload).freeze()
                    };
                    let kind = *kind;
                    self.state = State::begin();
                    return Ok(Some(Frame::Whole(kind, whole)));
                }
                _ if input.is_empty() => return Ok(None),
                State::Gather { left, payload, .. } => {
                    *left -= input.len();
                    payload.put_slice(input);
                    input.clear();
                }
                State::Data { left } => return Ok(Some(Frame::Data(take(input, left)))),
                State::Skip { left } => drop(take(input, left)),
            }
        }
    }
}

/// As much of `input` as is left of a frame.
fn take(input: &mut Bytes, left: &mut u64) -> Bytes {
    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
    *left -= length as u64;
    input.split_to(length)
}

/// The type and the length of a frame, once `held` and `input` have both.
fn begin(held: &mut BytesMut, input: &mut Bytes) -> Option<(u64, u64)> {
    let read = |bytes: &[u8]| {
        let (number, first) = varint::read(bytes)?;
        let (length, second) = varint::read(bytes.get(first..)?)?;
        Some((number, length, first + second))
    };
    if held.is_empty()
        && let Some((number, length, taken)) = read(input)
    {
        drop(input.split_to(taken));
        return Some((number, length));
    }
    let before = held.len();
    held.put_slice(input.get(..input.len().min(LONGEST_BEGIN - before)).unwrap_or_default());
    match read(held) {
        Some((number, length, taken)) => {
            drop(input.split_to(taken - before));
            Some((number, length))
        }
        None => {
            input.clear();
            None
        }
    }
}

/// Writes the head of a frame; `length` bytes are to follow.
pub fn head(number: u64, length: usize, to: &mut BytesMut) {
    varint::write(number, to);
    varint::write(length as u64, to);
}

pub const DATA: u64 = 0x0;
pub const HEADERS: u64 = 0x1;
pub const SETTINGS: u64 = 0x4;
pub const GOAWAY: u64 = 0x7;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All frames of `stream`, cut at `cuts`; DATA is joined.
    fn read(stream: &[u8], cuts: &[usize], most: usize) -> Result<Vec<Frame>, Broken> {
        let (mut frames, mut got) = (Frames::new(most), Vec::new());
        let mut ends: Vec<usize> = cuts.iter().map(|c| c % (stream.len() + 1)).chain([stream.len()]).collect();
        ends.sort_unstable();
        let mut from = 0;
        for end in ends {
            let mut input = Bytes::copy_from_slice(&stream[from..end]);
            from = end;
            while let Some(frame) = frames.next(&mut input)? {
                match (got.last_mut(), frame) {
                    (Some(Frame::Data(before)), Frame::Data(more)) => *before = [&before[..], &more].concat().into(),
                    (_, frame) => got.push(frame),
                }
            }
            assert!(input.is_empty());
        }
        Ok(got)
    }

    proptest! {
        #[test]
        fn however_they_are_cut_frames_are_the_same(
            frames in proptest::collection::vec((prop_oneof![Just(0u64), Just(1), Just(4), Just(0x21), 0u64..1 << 40], proptest::collection::vec(any::<u8>(), 0..200)), 0..8),
            cuts in proptest::collection::vec(any::<usize>(), 0..12),
        ) {
            let mut stream = BytesMut::new();
            for (number, payload) in &frames {
                head(*number, payload.len(), &mut stream);
                stream.put_slice(payload);
            }
            prop_assert_eq!(read(&stream, &cuts, 100), read(&stream, &[], 100));
        }
    }

    #[test]
    fn what_a_frame_says_of_its_length_is_not_believed() {
        let mut stream = BytesMut::new();
        head(HEADERS, 1 << 30, &mut stream);
        stream.put_bytes(7, 1000);
        assert_eq!(read(&stream, &[3, 500], 100).unwrap(), [Frame::TooLong(Kind::Headers)]);
        let mut frames = Frames::new(1 << 40);
        assert_eq!(frames.next(&mut stream.freeze()), Ok(None));
        let State::Gather { payload, .. } = &frames.state else { unreachable!() };
        assert_eq!(payload.len(), 1000, "no more is held than came");
    }

    #[test]
    fn a_stream_ends_between_frames_only() {
        let mut stream = BytesMut::new();
        head(DATA, 3, &mut stream);
        stream.put_slice(b"abc");
        for length in 0..=stream.len() {
            let mut frames = Frames::new(100);
            let mut input = Bytes::copy_from_slice(&stream[..length]);
            while frames.next(&mut input).unwrap().is_some() {}
            assert_eq!(frames.is_between(), [0, stream.len()].contains(&length), "{length} bytes");
        }
    }

    #[test]
    fn frames_of_http_2_are_errors() {
        for number in [0x2, 0x6, 0x8, 0x9] {
            let mut stream = BytesMut::new();
            head(number, 0, &mut stream);
            assert_eq!(read(&stream, &[], 100).unwrap_err().code, Code::FRAME_UNEXPECTED);
        }
    }
}
