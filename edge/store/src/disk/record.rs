//! Records, the units of a segment file. Pure.
//!
//! A segment begins with [`SEGMENT_HEADER`] bytes: `tidegate`, the format's version, the segment's number. Records follow one
//! another without gaps; each has a head of [`HEAD`] bytes (little endian):
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | `TGR` and the kind |
//! | 4..8 | variant |
//! | 8..16 | hash of the key, or of object and number of a chunk |
//! | 16..20 | length of the payload in bytes |
//! | 20..24 | 0 |
//! | 24..32 | XXH3 of the payload, seeded with that of the head before it, seeded with where the record is |
//!
//! The seed makes a record that stands where it was not written read as torn.

use twox_hash::XxHash3_64;

pub const VERSION: u32 = 5;
pub const SEGMENT_HEADER: usize = 16;
pub const HEAD: usize = 32;
const SUM_AT: usize = 24;
/// In a name's variant: it is a chunk's.
const CHUNK: u32 = 1 << 31;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A stored response: its head, and its body where that is one piece.
    Response = b'r',
    /// A piece of a larger body.
    Chunk = b'c',
    /// The variant is gone.
    Dropped = b'd',
    /// All variants of the key are gone.
    Removed = b'x',
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Response, Self::Chunk, Self::Dropped, Self::Removed].into_iter().find(|k| *k as u8 == byte)
    }
}

/// What a record is found by. Two keys may share a name; the payload says which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    pub hash: u64,
    pub variant: u32,
}

impl Name {
    #[must_use]
    pub fn response(key: u64, vary: &[u8]) -> Self {
        #[allow(clippy::cast_possible_truncation)] // Any bits of it.
        let variant = XxHash3_64::oneshot(vary) as u32;
        Self { hash: key, variant: variant & !CHUNK }
    }

    #[must_use]
    pub fn chunk(object: u64, number: u64) -> Self {
        Self { hash: XxHash3_64::oneshot(&chunk_name(object, number)), variant: CHUNK }
    }

    #[must_use]
    pub fn is_chunk(self) -> bool {
        self.variant & CHUNK != 0
    }
}

/// What a chunk's payload begins with.
#[must_use]
pub fn chunk_name(object: u64, number: u64) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&object.to_le_bytes());
    out[8..].copy_from_slice(&number.to_le_bytes());
    out
}

#[must_use]
pub fn hash(key: &[u8]) -> u64 {
    XxHash3_64::oneshot(key)
}

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub segment: u32,
    /// Of its head, from the segment's beginning.
    pub offset: u32,
    /// Of its payload, in bytes.
    pub length: u32,
}

impl Place {
    fn seed(self) -> u64 {
        u64::from(self.segment) << 32 | u64::from(self.offset)
    }

    /// Head and payload, in bytes.
    #[must_use]
    pub fn size(self) -> u64 {
        HEAD as u64 + u64::from(self.length)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub kind: Kind,
    pub name: Name,
    pub length: u32,
}

#[must_use]
pub fn segment_header(number: u32) -> [u8; SEGMENT_HEADER] {
    let mut out = *b"tidegate\0\0\0\0\0\0\0\0";
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..].copy_from_slice(&number.to_le_bytes());
    out
}

/// Appends a record of `parts`, that is to stand at `offset` of `segment`; `None` if it is too long for any record.
pub fn write(out: &mut Vec<u8>, segment: u32, offset: u32, kind: Kind, name: Name, parts: &[&[u8]]) -> Option<Place> {
    let length = u32::try_from(parts.iter().map(|p| p.len()).sum::<usize>()).ok()?;
    let place = Place { segment, offset, length };
    let start = out.len();
    out.extend_from_slice(b"TGR");
    out.push(kind as u8);
    out.extend_from_slice(&name.variant.to_le_bytes());
    out.extend_from_slice(&name.hash.to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&[0; 12]);
    parts.iter().for_each(|p| out.extend_from_slice(p));
    let record = out.get_mut(start..)?;
    let sum = sum(place, record);
    record.get_mut(SUM_AT..HEAD)?.copy_from_slice(&sum.to_le_bytes());
    Some(place)
}

/// Of a whole record, its own sum left out.
fn sum(place: Place, record: &[u8]) -> u64 {
    let (head, payload) = record.split_at(HEAD.min(record.len()));
    let of_head = XxHash3_64::oneshot_with_seed(place.seed(), head.get(..SUM_AT).unwrap_or_default());
    XxHash3_64::oneshot_with_seed(of_head, payload)
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// The head that `bytes` begin with; whether it is true only [`check`] can tell.
#[must_use]
pub fn head(bytes: &[u8]) -> Option<Head> {
    let kind = Kind::of(*bytes.strip_prefix(b"TGR")?.first()?)?;
    let variant = u32::from_le_bytes(number(bytes, 4)?);
    let hash = u64::from_le_bytes(number(bytes, 8)?);
    Some(Head { kind, name: Name { hash, variant }, length: u32::from_le_bytes(number(bytes, 16)?) })
}

/// The head of a whole record, where every bit of it is as it was written at `place`.
#[must_use]
pub fn check(place: Place, record: &[u8]) -> Option<Head> {
    let head = head(record)?;
    let whole = record.len() as u64 == place.size() && head.length == place.length;
    (whole && u64::from_le_bytes(number(record, SUM_AT)?) == sum(place, record)).then_some(head)
}

/// What stands in a segment's index for one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    pub kind: Kind,
    pub name: Name,
    pub offset: u32,
    pub length: u32,
}

const LISTED: usize = 24;

/// A segment's index: what it holds, so that a start need not read it.
#[must_use]
pub fn write_list(segment: u32, list: &[Listed]) -> Vec<u8> {
    let mut out = Vec::with_capacity(SEGMENT_HEADER + LISTED * list.len() + 8);
    out.extend_from_slice(&segment_header(segment));
    for l in list {
        out.extend_from_slice(&l.name.hash.to_le_bytes());
        out.extend_from_slice(&l.name.variant.to_le_bytes());
        out.extend_from_slice(&l.offset.to_le_bytes());
        out.extend_from_slice(&l.length.to_le_bytes());
        out.extend_from_slice(&[l.kind as u8, 0, 0, 0]);
    }
    let sum = XxHash3_64::oneshot_with_seed(list.len() as u64, &out);
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

/// `None` for one that is torn, or another segment's.
#[must_use]
pub fn read_list(segment: u32, bytes: &[u8]) -> Option<Vec<Listed>> {
    let (list, sum) = bytes.split_last_chunk::<8>()?;
    let entries = list.strip_prefix(&segment_header(segment))?.chunks_exact(LISTED);
    let count = entries.len() as u64;
    if !entries.remainder().is_empty() || u64::from_le_bytes(*sum) != XxHash3_64::oneshot_with_seed(count, list) {
        return None;
    }
    entries
        .map(|e| {
            let word = |at| Some(u32::from_le_bytes(number(e, at)?));
            let name = Name { hash: u64::from_le_bytes(number(e, 0)?), variant: word(8)? };
            Some(Listed { kind: Kind::of(*e.get(20)?)?, name, offset: word(12)?, length: word(16)? })
        })
        .collect()
}

/// What a segment holds, read from its records; it ends at the first that is torn.
#[must_use]
pub fn scan(segment: u32, bytes: &[u8]) -> Vec<Listed> {
    let mut list = Vec::new();
    if !bytes.starts_with(&segment_header(segment)) {
        return list;
    }
    let mut at = SEGMENT_HEADER;
    while let Some(rest) = bytes.get(at..)
        && let Some(said) = head(rest)
        && let Ok(offset) = u32::try_from(at)
    {
        let place = Place { segment, offset, length: said.length };
        let size = HEAD + said.length as usize;
        let Some(h) = rest.get(..size).and_then(|record| check(place, record)) else { break };
        list.push(Listed { kind: h.kind, name: h.name, offset, length: h.length });
        at += size;
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segment(payloads: &[Vec<u8>]) -> (Vec<u8>, Vec<Listed>) {
        let mut out = segment_header(7).to_vec();
        let mut list = Vec::new();
        for (n, payload) in payloads.iter().enumerate() {
            let name = Name::response(n as u64, payload);
            let offset = u32::try_from(out.len()).unwrap();
            let p = write(&mut out, 7, offset, Kind::Response, name, &[payload]).unwrap();
            list.push(Listed { kind: Kind::Response, name, offset: p.offset, length: p.length });
        }
        (out, list)
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_and_what_was_changed_is_not(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..6),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let (mut bytes, list) = segment(&payloads);
            prop_assert_eq!(&scan(7, &bytes), &list);
            prop_assert!(scan(8, &bytes).is_empty(), "another segment's");
            prop_assert_eq!(read_list(7, &write_list(7, &list)), Some(list.clone()));
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let read = scan(7, &bytes);
            // All before the flipped byte, nothing from it on.
            let whole = list.iter().take_while(|l| at >= SEGMENT_HEADER && (l.offset as usize + HEAD + l.length as usize) <= at).count();
            prop_assert_eq!(&read[..], &list[..whole]);
            let mut listed = write_list(7, &list);
            let at = at % listed.len();
            listed[at] ^= flip;
            prop_assert_eq!(read_list(7, &listed), None);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut with_header = segment_header(1).to_vec();
            with_header.extend_from_slice(b"TGRr");
            with_header.extend_from_slice(&bytes);
            prop_assert!(scan(1, &with_header).len() < 2);
            prop_assert_eq!((read_list(1, &with_header), read_list(1, &bytes)), (None, None));
        }
    }
}
