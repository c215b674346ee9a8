//! How many bytes of bodies may come before they are taken.
//!
//! A connection between nodes, or to an origin, carries the requests of strangers. Therefore the connection window never limits them.
//! Each stream's window limits how much a slow reader holds, and that window shrinks when many streams are open.

/// Bytes that one stream may hold.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Window of each stream while few are open.
    pub few: u32,
    /// Window of each stream that is opened while many are open. A smaller window takes nothing back from streams that have a larger
    /// one: at most 32 streams hold `few` bytes, 96 hold a quarter of that or `many`, and the others `many`.
    pub many: u32,
}

/// Streams up to which they are few, and from which on they are many.
const FEW: usize = 32;
const MANY: usize = 128;

impl Windows {
    /// As large as a connection's window can be (RFC 9113 section 6.9.1).
    pub const OF_CONNECTION: u32 = (1 << 31) - 1;

    /// Window of each stream when `open` streams are open.
    #[must_use]
    pub fn of(self, open: usize) -> u32 {
        match open {
            0..=FEW => self.few,
            n if n <= MANY => (self.few / 4).max(self.many),
            _ => self.many,
        }
    }
}
