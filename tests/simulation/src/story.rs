//! What happened, for a person to follow: who, what, and when by true time. Kept only when asked for.

use crate::checker::time;

#[derive(Default)]
pub struct Story {
    pub told: Option<Vec<String>>,
    /// Of all lines, told or not: two runs of one seed must come to the same.
    pub hash: u64,
}

impl Story {
    #[must_use]
    pub fn new(told: bool) -> Self {
        Self { told: told.then(Vec::new), hash: 0 }
    }

    pub fn tell(&mut self, now: u64, who: &str, what: impl FnOnce() -> String) {
        // A cheap mark of the order of events.
        let mark = now ^ who.bytes().fold(0u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        self.hash = self.hash.rotate_left(5).wrapping_mul(0x0100_0000_01b3) ^ mark;
        if let Some(lines) = &mut self.told {
            lines.push(format!("{:>11}  {who:<7} {}", time(now), what()));
        }
    }
}
