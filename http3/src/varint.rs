//! Integers of QUIC (RFC 9000 section 16).

use bytes::{BufMut, BytesMut};

/// The integer that `bytes` begin with, and how many bytes it has; `None`: not all of it is there.
pub fn read(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let length = 1usize << (first >> 6);
    let text = bytes.get(..length)?;
    let value = text.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    Some((value & mask(length), length))
}

const fn mask(length: usize) -> u64 {
    u64::MAX >> (64 - (8 * length - 2))
}

/// `value` is less than 2^62.
pub fn write(value: u64, to: &mut BytesMut) {
    match value {
        0..0x40 => to.put_uint(value, 1),
        0x40..0x4000 => to.put_uint(value | 0x4000, 2),
        0x4000..0x4000_0000 => to.put_uint(value | 0x8000_0000, 4),
        _ => to.put_u64(value & mask(8) | 0xc000_0000_0000_0000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(value in 0u64..1 << 62, more in proptest::collection::vec(any::<u8>(), 0..4)) {
            let mut bytes = BytesMut::new();
            write(value, &mut bytes);
            let length = bytes.len();
            bytes.put_slice(&more);
            prop_assert_eq!(read(&bytes), Some((value, length)));
            prop_assert_eq!(read(&bytes[..length - 1]), None);
        }
    }

    /// RFC 9000 appendix A.1.
    #[test]
    fn the_examples_of_the_standard() {
        assert_eq!(read(&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c]), Some((151_288_809_941_952_652, 8)));
        assert_eq!(read(&[0x9d, 0x7f, 0x3e, 0x7d]), Some((494_878_333, 4)));
        assert_eq!(read(&[0x40, 0x25]), Some((37, 2)));
        assert_eq!(read(&[0x25]), Some((37, 1)));
    }
}
