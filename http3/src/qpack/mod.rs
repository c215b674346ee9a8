//! Field sections without a dynamic table (RFC 9204): a peer that was told that there is none must not refer to one, and so no
//! section waits for another stream.

mod huffman;
mod integer;
mod static_table;

use bytes::{BufMut, Bytes, BytesMut};
use static_table::TABLE;

/// Why a field section cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionError {
    /// It is not one, or refers to a dynamic table (`QPACK_DECOMPRESSION_FAILED`).
    Broken,
    /// Its fields have more bytes than may be (RFC 9114 section 4.2.2).
    TooLarge,
}

/// What a field takes beside its name and its value (RFC 9114 section 4.2.2).
const OF_A_FIELD: usize = 32;

/// Hands each field over in its order, for as long as `take` wants them. All have at most `most` bytes.
///
/// # Errors
/// What is wrong with the section, or what `take` says is wrong with a field.
pub fn decode<E: From<SectionError>>(section: &[u8], most: usize, mut take: impl FnMut(&[u8], Bytes) -> Result<(), E>) -> Result<(), E> {
    let mut rest = section;
    // Required Insert Count, and Base, which means nothing without a dynamic table.
    let first = byte(&mut rest)?;
    if integer::read(first, 8, &mut rest) != Some(0) {
        return Err(SectionError::Broken.into());
    }
    let second = byte(&mut rest)?;
    integer::read(second, 7, &mut rest).ok_or(SectionError::Broken)?;

    // All values stand in one piece of memory; names are known ones mostly, which take none.
    let mut values = BytesMut::with_capacity(section.len().saturating_mul(2).min(most));
    let mut name_text = BytesMut::new();
    let mut size = 0usize;
    while let Ok(first) = byte(&mut rest) {
        let mut known: Option<&'static str> = None;
        let value = if first & 0x80 != 0 {
            let (name, value) = entry(first & 0x40 != 0, integer::read(first, 6, &mut rest))?;
            known = Some(name);
            Bytes::from_static(value.as_bytes())
        } else {
            if first & 0xc0 == 0x40 {
                known = Some(entry(first & 0x10 != 0, integer::read(first, 4, &mut rest))?.0);
            } else if first & 0xe0 == 0x20 {
                name_text.clear();
                string(first, 3, &mut rest, &mut name_text)?;
            } else {
                return Err(SectionError::Broken.into());
            }
            let first = byte(&mut rest)?;
            string(first, 7, &mut rest, &mut values)?;
            values.split().freeze()
        };
        let name = known.map_or(&name_text[..], str::as_bytes);
        size = size.saturating_add(name.len() + value.len() + OF_A_FIELD);
        if size > most {
            return Err(SectionError::TooLarge.into());
        }
        take(name, value)?;
    }
    Ok(())
}

fn byte(rest: &mut &[u8]) -> Result<u8, SectionError> {
    let (first, left) = rest.split_first().ok_or(SectionError::Broken)?;
    *rest = left;
    Ok(*first)
}

fn entry(of_static_table: bool, index: Option<usize>) -> Result<(&'static str, &'static str), SectionError> {
    index.filter(|_| of_static_table).and_then(|i| TABLE.get(i)).copied().ok_or(SectionError::Broken)
}

/// A string whose length has `prefix` bits of `first`, behind the bit that says whether it is Huffman-coded.
fn string(first: u8, prefix: u32, rest: &mut &[u8], to: &mut BytesMut) -> Result<(), SectionError> {
    let length = integer::read(first, prefix, rest).ok_or(SectionError::Broken)?;
    let (text, left) = rest.split_at_checked(length).ok_or(SectionError::Broken)?;
    *rest = left;
    if first & 1 << prefix == 0 {
        to.put_slice(text);
        return Ok(());
    }
    huffman::decode(text, to).ok_or(SectionError::Broken)
}

/// Begins a section: it requires nothing of a dynamic table.
pub fn begin(to: &mut BytesMut) {
    to.put_slice(&[0, 0]);
}

/// Adds a field. `secret`: no hop on the way may put it into a table.
pub fn field(name: &str, value: &[u8], secret: bool, to: &mut BytesMut) {
    let indices = static_table::named(name);
    let whole = indices.iter().find(|i| TABLE.get(usize::from(**i)).is_some_and(|(_, v)| v.as_bytes() == value));
    match (whole, indices.first()) {
        (Some(index), _) => return integer::write(0xc0, 6, usize::from(*index), to),
        (None, Some(index)) => integer::write(if secret { 0x70 } else { 0x50 }, 4, usize::from(*index), to),
        (None, None) => text(if secret { 0x30 } else { 0x20 }, 3, name.as_bytes(), to),
    }
    text(0, 7, value, to);
}

fn text(pattern: u8, prefix: u32, text: &[u8], to: &mut BytesMut) {
    let coded = huffman::length(text);
    if coded < text.len() {
        integer::write(pattern | 1 << prefix, prefix, coded, to);
        huffman::encode(text, to);
    } else {
        integer::write(pattern, prefix, text.len(), to);
        to.put_slice(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(section: &[u8], most: usize) -> Result<Vec<(String, Vec<u8>)>, SectionError> {
        let mut fields = Vec::new();
        decode(section, most, |name, value| {
            fields.push((String::from_utf8_lossy(name).into_owned(), value.to_vec()));
            Ok::<_, SectionError>(())
        })?;
        Ok(fields)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(fields in proptest::collection::vec(("[a-z-]{1,20}", proptest::collection::vec(any::<u8>(), 0..300), any::<bool>()), 0..20)) {
            let mut section = BytesMut::new();
            begin(&mut section);
            for (name, value, secret) in &fields {
                field(name, value, *secret, &mut section);
            }
            let expected: Vec<_> = fields.into_iter().map(|(n, v, _)| (n, v)).collect();
            prop_assert_eq!(read(&section, usize::MAX).unwrap(), expected);
        }

        #[test]
        fn huffman_and_back(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (mut coded, mut back) = (BytesMut::new(), BytesMut::new());
            huffman::encode(&text, &mut coded);
            prop_assert_eq!(coded.len(), huffman::length(&text));
            huffman::decode(&coded, &mut back).unwrap();
            prop_assert_eq!(&back[..], &text[..]);
        }

        #[test]
        fn what_huffman_reads_it_would_have_written(coded in proptest::collection::vec(any::<u8>(), 0..40)) {
            let (mut text, mut again) = (BytesMut::new(), BytesMut::new());
            if huffman::decode(&coded, &mut text).is_some() {
                huffman::encode(&text, &mut again);
                prop_assert_eq!(&again[..], &coded[..]);
            }
        }
    }

    /// The examples of RFC 9204 appendix B.1 and RFC 7541 appendix C.4.1.
    #[test]
    fn the_examples_of_the_standards() {
        let section = b"\x00\x00\x51\x0b/index.html";
        assert_eq!(read(section, 1000).unwrap(), [(":path".to_owned(), b"/index.html".to_vec())]);
        let mut text = BytesMut::new();
        huffman::decode(&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff], &mut text).unwrap();
        assert_eq!(&text[..], b"www.example.com");
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let broken: [(&[u8], &str); 10] = [
            (b"", "no prefix"),
            (b"\x00", "half a prefix"),
            (b"\x01\x00\xd1", "it requires an entry of a dynamic table"),
            (b"\x00\x00\x80", "a field of the dynamic table"),
            (b"\x00\x00\x40\x00", "a name of the dynamic table"),
            (b"\x00\x00\x10", "a field behind the base"),
            (b"\x00\x00\xff\x24", "index 99"),
            (b"\x00\x00\x51\x0b/index", "a string that ends early"),
            (b"\x00\x00\x27\xff\xff\xff\xff\xff\xff\xff", "a length beyond all bounds"),
            (b"\x00\x00\x51\x81\xfe", "a Huffman text that is filled up wrongly"),
        ];
        for (section, what) in broken {
            assert_eq!(read(section, 1 << 20), Err(SectionError::Broken), "{what}");
        }
        // One byte of input is some 120 bytes of fields.
        let bomb = [&b"\x00\x00"[..], &[0xff, 0x16].repeat(10_000)].concat();
        assert_eq!(read(&bomb, 32 << 10), Err(SectionError::TooLarge));
    }
}
