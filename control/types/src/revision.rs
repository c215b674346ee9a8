//! A revision names one state of the whole network: which log, and how far into it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Drawn anew by `control init`, `restore` and `recover`. Two revisions compare only within one incarnation:
/// what was stored under another one needs revalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// Of a network that was restored `generation` times (its lower 16 bits count); `random` sets two of them apart.
    #[must_use]
    pub fn new(generation: u64, random: u64) -> Self {
        Self(generation << 48 | (random & 0xffff_ffff_ffff))
    }

    /// How often the network was restored before this log began.
    #[must_use]
    pub fn generation(self) -> u64 {
        self.0 >> 48
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One entry of one Raft log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Revision {
    pub incarnation: Incarnation,
    /// Raft log index; 0 is before the first entry.
    pub index: u64,
}

impl Revision {
    #[must_use]
    pub fn new(incarnation: Incarnation, index: u64) -> Self {
        Self { incarnation, index }
    }

    /// Whether this revision is known to include `other`. Revisions of two incarnations never include one another.
    #[must_use]
    pub fn reaches(self, other: Self) -> bool {
        self.incarnation == other.incarnation && self.index >= other.index
    }

    /// Reads what `Display` wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (incarnation, index) = text.split_once('/')?;
        if incarnation.len() != 16 || index.is_empty() || !index.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        Some(Self::new(Incarnation(u64::from_str_radix(incarnation, 16).ok()?), index.parse().ok()?))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.incarnation, self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_read_back_and_nothing_else_is() {
        let r = Revision::new(Incarnation(0xabc), 42);
        assert_eq!(Revision::parse(&r.to_string()), Some(r));
        for bad in ["", "/", "abc/1", "0000000000000abc/", "0000000000000abc/-1", "0000000000000abc/+1", "000000000000000g/1"] {
            assert_eq!(Revision::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn revisions_of_two_incarnations_never_reach_one_another() {
        let (a, b) = (Revision::new(Incarnation(1), 9), Revision::new(Incarnation(2), 3));
        assert!(!a.reaches(b) && !b.reaches(a));
        assert!(a.reaches(Revision::new(Incarnation(1), 9)));
    }
}
