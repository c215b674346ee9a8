//! Integers with a prefix (RFC 7541 section 5.1).

use bytes::{BufMut, BytesMut};

/// Larger ones than this are of no use here: lengths and indices.
const MOST: u32 = 1 << 24;

/// Reads the integer whose first byte is `first`, in its lowest `prefix` bits.
pub fn read(first: u8, prefix: u32, rest: &mut &[u8]) -> Option<usize> {
    let most = (1u32 << prefix) - 1;
    let mut value = u32::from(first) & most;
    if value < most {
        return usize::try_from(value).ok();
    }
    let mut shift = 0;
    loop {
        let (byte, left) = rest.split_first()?;
        *rest = left;
        value = value.checked_add(u32::from(byte & 0x7f).checked_shl(shift)?)?;
        if value > MOST || shift > 21 {
            return None;
        }
        if byte & 0x80 == 0 {
            return usize::try_from(value).ok();
        }
        shift += 7;
    }
}

/// Writes `value` behind the bits of `pattern`.
pub fn write(pattern: u8, prefix: u32, value: usize, to: &mut BytesMut) {
    let most = (1usize << prefix) - 1;
    if value < most {
        // It is less than what the prefix holds.
        to.put_u8(pattern | u8::try_from(value).unwrap_or_default());
        return;
    }
    to.put_u8(pattern | u8::try_from(most).unwrap_or(u8::MAX));
    let mut left = value - most;
    while left >= 0x80 {
        to.put_u8(0x80 | u8::try_from(left & 0x7f).unwrap_or_default());
        left >>= 7;
    }
    to.put_u8(u8::try_from(left).unwrap_or_default());
}
