//! The Huffman code for strings (RFC 7541 appendix B). The code is canonical: the lengths of its words say what they are.

use bytes::{BufMut, BytesMut};

/// The bits of each byte's word, and of the word that ends a text.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28, 6, 10,
    10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6,
    7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23,
    21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22,
    22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27,
    26, 30,
];

const SHORTEST: usize = 5;
const LONGEST: usize = 30;
/// What ends a text never stands in one.
const END: u16 = 256;

struct Code {
    words: [u32; 257],
    /// By length: the first word of it and the place of its symbol in `symbols`; and, with all bits to the left of 32, the first word
    /// that is longer.
    first: [(u32, usize); LONGEST + 1],
    beyond: [u64; LONGEST + 1],
    /// In the order of their words.
    symbols: [u16; 257],
}

#[allow(clippy::indexing_slicing, clippy::cast_possible_truncation)] // Evaluated by the compiler: a wrong index does not compile.
const fn code() -> Code {
    let mut code = Code { words: [0; 257], first: [(0, 0); LONGEST + 1], beyond: [0; LONGEST + 1], symbols: [0; 257] };
    let (mut word, mut place, mut length) = (0u32, 0, 1);
    while length <= LONGEST {
        word <<= 1;
        code.first[length] = (word, place);
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                code.words[symbol] = word;
                code.symbols[place] = symbol as u16;
                place += 1;
                word += 1;
            }
            symbol += 1;
        }
        code.beyond[length] = (word as u64) << (32 - length);
        length += 1;
    }
    code
}

static CODE: Code = code();

/// The bytes that `text` takes.
pub fn length(text: &[u8]) -> usize {
    text.iter().map(|b| LENGTHS.get(usize::from(*b)).map_or(0, |l| usize::from(*l))).sum::<usize>().div_ceil(8)
}

pub fn encode(text: &[u8], to: &mut BytesMut) {
    let (mut bits, mut held) = (0u64, 0u32);
    for byte in text {
        let at = usize::from(*byte);
        let (Some(word), Some(length)) = (CODE.words.get(at), LENGTHS.get(at)) else { continue };
        bits = bits << length | u64::from(*word);
        held += u32::from(*length);
        while held >= 8 {
            held -= 8;
            to.put_u8((bits >> held & 0xff) as u8);
        }
    }
    if held > 0 {
        // Filled up with the beginning of the word that ends a text: ones.
        to.put_u8(((bits << (8 - held) | (0xff >> held)) & 0xff) as u8);
    }
}

/// Decodes all of `text`; `None` where it is not what this code makes.
pub fn decode(mut text: &[u8], to: &mut BytesMut) -> Option<()> {
    let (mut bits, mut held) = (0u64, 0usize);
    loop {
        while held <= 32 {
            let Some((byte, rest)) = text.split_first() else { break };
            bits = bits << 8 | u64::from(*byte);
            held += 8;
            text = rest;
        }
        if held == 0 {
            return Some(());
        }
        // The next 32 bits, with ones behind the last: so a word is not taken for one that ends there.
        let next =
            if held >= 32 { bits >> (held - 32) & 0xffff_ffff } else { ((bits << (32 - held)) | ((1 << (32 - held)) - 1)) & 0xffff_ffff };
        let length = (SHORTEST..=LONGEST).find(|l| CODE.beyond.get(*l).is_some_and(|beyond| next < *beyond))?;
        if length > held {
            // What is left is filled up with ones, less than a byte of them.
            let ones = (1u64 << held) - 1;
            return (held < 8 && bits & ones == ones).then_some(());
        }
        let (word, place) = CODE.first.get(length)?;
        let word = (next >> (32 - length)).checked_sub(u64::from(*word))?;
        let symbol = *CODE.symbols.get(place + usize::try_from(word).ok()?)?;
        if symbol == END {
            return None;
        }
        to.put_u8(u8::try_from(symbol).ok()?);
        held -= length;
        bits &= (1u64 << held) - 1;
    }
}
