//! How values become bytes, on disk and between nodes: one version byte, then postcard.
//!
//! An encoded type never changes its meaning. A successor gets the next version and the reader keeps
//! the old one for as long as a cluster may hold it; enums grow at their end only.

use serde::{Serialize, de::DeserializeOwned};

/// The one version of everything that is encoded so far.
pub const VERSION: u8 = 1;

/// The longest frame that one node accepts from another, in bytes.
pub const MAX_FRAME: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("it is empty")]
    Empty,
    #[error("it has version {found}, this program reads version {VERSION}; a newer Tidegate wrote it")]
    Version { found: u8 },
    #[error("it is damaged: {0}")]
    Damaged(#[from] postcard::Error),
    #[error("a frame of {found} bytes is longer than {MAX_FRAME}")]
    TooLong { found: usize },
}

/// Encodes `value` behind the version byte.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // postcard fails only for types without a known length or a full fixed buffer; ours have neither.
    postcard::to_extend(value, vec![VERSION]).unwrap_or_default()
}

/// # Errors
/// Bytes of another version, or damaged ones.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    match bytes.split_first() {
        None => Err(WireError::Empty),
        Some((&VERSION, rest)) => Ok(postcard::from_bytes(rest)?),
        Some((&found, _)) => Err(WireError::Version { found }),
    }
}

/// Encodes `value` as one frame of a stream: its length (u32, big endian), then [`encode`]'s bytes.
#[must_use]
pub fn frame<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = vec![0; 4];
    out.push(VERSION);
    let mut out = postcard::to_extend(value, out).unwrap_or_default();
    let length = u32::try_from(out.len().saturating_sub(4)).unwrap_or(u32::MAX);
    if let Some(head) = out.first_chunk_mut::<4>() {
        *head = length.to_be_bytes();
    }
    out
}

/// Cuts frames off a stream of bytes that arrives in any pieces.
#[derive(Debug, Default)]
pub struct Deframer {
    buffer: Vec<u8>,
    start: usize,
}

impl Deframer {
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if one has arrived.
    ///
    /// # Errors
    /// A frame over [`MAX_FRAME`], of another version, or damaged: the stream is of no use after it.
    pub fn take<T: DeserializeOwned>(&mut self) -> Result<Option<T>, WireError> {
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        let Some((head, body)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if length > MAX_FRAME {
            return Err(WireError::TooLong { found: length });
        }
        let Some(body) = body.get(..length) else { return Ok(None) };
        let value = decode(body)?;
        self.start += 4 + length;
        Ok(Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_any_cutting(values in proptest::collection::vec(".*", 0..8), cut in 1usize..7) {
            let bytes: Vec<u8> = values.iter().flat_map(frame).collect();
            let (mut d, mut got) = (Deframer::default(), Vec::<String>::new());
            for piece in bytes.chunks(cut) {
                d.push(piece);
                while let Some(v) = d.take().unwrap() { got.push(v); }
            }
            prop_assert_eq!(got, values);
        }

        #[test]
        fn damaged_bytes_are_an_error_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode::<crate::Command>(&bytes);
            let _ = decode::<crate::ToNode>(&bytes);
            let mut d = Deframer::default();
            d.push(&bytes);
            let _ = d.take::<crate::FromNode>();
        }
    }

    #[test]
    fn another_version_is_named() {
        assert!(matches!(decode::<u8>(&[9, 1]), Err(WireError::Version { found: 9 })));
    }
}
