//! About how often each key was asked for of late: counters that several keys share, the least of which is believed.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

const ROWS: u64 = 4;
/// A counter goes no further.
const MOST: u8 = 15;

pub struct Sketch {
    counters: Box<[AtomicU8]>,
    counted: AtomicU64,
}

impl Sketch {
    /// For about so many keys.
    #[must_use]
    pub fn new(keys: u64) -> Self {
        let size = usize::try_from((keys * 4).next_power_of_two()).unwrap_or(1 << 16).clamp(1 << 12, 1 << 25);
        Self { counters: std::iter::repeat_with(AtomicU8::default).take(size).collect(), counted: AtomicU64::new(0) }
    }

    fn of(&self, hash: u64) -> impl Iterator<Item = &AtomicU8> {
        let mask = self.counters.len() as u64 - 1;
        (0..ROWS).filter_map(move |row| {
            let mixed = (hash ^ row.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd);
            self.counters.get(usize::try_from((mixed >> 20) & mask).ok()?)
        })
    }

    pub fn count(&self, hash: u64) {
        for counter in self.of(hash) {
            // Two at once may count as one.
            let now = counter.load(Ordering::Relaxed);
            if now < MOST {
                counter.store(now + 1, Ordering::Relaxed);
            }
        }
        self.counted.fetch_add(1, Ordering::Relaxed);
    }

    /// Where enough has been counted, all counts half: what was asked for long ago fades. To be called now and then, where
    /// nobody waits.
    pub fn fade(&self) {
        if self.counted.load(Ordering::Relaxed) > self.counters.len() as u64 * 2 {
            self.counted.store(0, Ordering::Relaxed);
            self.counters.iter().for_each(|c| c.store(c.load(Ordering::Relaxed) / 2, Ordering::Relaxed));
        }
    }

    /// At least as often as it was; more where others share its counters.
    #[must_use]
    pub fn estimate(&self, hash: u64) -> u8 {
        self.of(hash).map(|c| c.load(Ordering::Relaxed)).min().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_near_the_truth_and_fade() {
        let sketch = Sketch::new(1000);
        for n in 0..500u64 {
            for _ in 0..=n % 5 {
                sketch.count(n.wrapping_mul(0x1234_5678_9abc_def1));
            }
        }
        let wrong = (0..500u64).filter(|n| u64::from(sketch.estimate(n.wrapping_mul(0x1234_5678_9abc_def1))) != n % 5 + 1).count();
        assert!(wrong < 10, "{wrong}");
        let before = sketch.estimate(4u64.wrapping_mul(0x1234_5678_9abc_def1));
        (0..40_000u64).for_each(|_| sketch.count(1));
        sketch.fade();
        assert_eq!(sketch.estimate(4u64.wrapping_mul(0x1234_5678_9abc_def1)), before / 2);
    }
}
