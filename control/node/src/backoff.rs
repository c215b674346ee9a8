//! The one way in which the project tries again: exponentially, with full jitter, up to a bound.

use std::time::Duration;

#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    first: Duration,
    most: Duration,
}

impl Backoff {
    #[must_use]
    pub fn new(first: Duration, most: Duration) -> Self {
        Self { next: first, first, most }
    }

    /// How long to wait before the next try; `random` is any number.
    pub fn next(&mut self, random: u64) -> Duration {
        let bound = self.next;
        self.next = (self.next * 2).min(self.most);
        let half = bound / 2;
        half + Duration::from_nanos(random % u64::try_from(half.as_nanos()).unwrap_or(1).max(1))
    }

    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_bound_and_start_again() {
        let mut b = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<_> = (0..6).map(|_| b.next(u64::MAX)).collect();
        assert!(waits.iter().all(|w| *w <= Duration::from_secs(1)) && waits[5] >= Duration::from_millis(500));
        b.reset();
        assert!(b.next(0) <= Duration::from_millis(100));
    }
}
