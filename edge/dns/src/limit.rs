//! Response-rate limiting: of the same answer a network of clients gets so many in a second over UDP, where the source of a query can be
//! forged. What comes on top is dropped, but for every other one, which goes out without content and cut short: whoever really asked
//! asks again over TCP.
//!
//! Pure: the time is an argument. A fixed number of slots; two that meet in one share it, which is seldom and does no harm for long.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

const SLOTS: usize = 1 << 16;
/// What is saved up while nothing is asked, in seconds' worth.
const BURST_SECONDS: u32 = 2;
/// One answer: what a limit of one in a second earns in as many nanoseconds, so that no time is too short to earn.
const ONE: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Send,
    CutShort,
    Drop,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    whose: u64,
    /// Answers that may still go out, in units of [`ONE`].
    left: u64,
    at: Duration,
    over: bool,
}

pub struct RateLimit {
    slots: Box<[Slot]>,
    /// 0: there is no limit.
    per_second: u32,
    /// Not to be guessed, so that nobody can aim at another's slot.
    hasher: RandomState,
}

/// What is delegated to one customer, commonly: /24 and /56.
pub fn network(client: IpAddr) -> u128 {
    match client {
        IpAddr::V4(v4) => u128::from(v4.to_bits() >> 8),
        IpAddr::V6(v6) => 1 << 127 | v6.to_bits() >> 72,
    }
}

impl RateLimit {
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        let slots = if per_second > 0 { SLOTS } else { 0 };
        Self { slots: vec![Slot::default(); slots].into(), per_second, hasher: RandomState::new() }
    }

    /// Whether there is anything to check.
    #[must_use]
    pub fn limits(&self) -> bool {
        self.per_second > 0
    }

    /// Whether `answer` (the same for all that are alike) may go to `client` at `now`.
    pub fn check(&mut self, client: IpAddr, answer: &[u8], now: Duration) -> Verdict {
        let whose = self.hasher.hash_one((network(client), answer));
        let most = u64::from(self.per_second) * u64::from(BURST_SECONDS) * ONE;
        let at = usize::try_from(whose).unwrap_or(0) % self.slots.len().max(1);
        let Some(slot) = self.slots.get_mut(at) else { return Verdict::Send };
        if slot.whose != whose {
            *slot = Slot { whose, left: most, at: now, over: false };
        }
        let earned = u64::try_from(now.saturating_sub(slot.at).as_nanos()).unwrap_or(u64::MAX).saturating_mul(self.per_second.into());
        (slot.left, slot.at) = (slot.left.saturating_add(earned).min(most), now);
        if let Some(left) = slot.left.checked_sub(ONE) {
            (slot.left, slot.over) = (left, false);
            return Verdict::Send;
        }
        slot.over = !slot.over;
        if slot.over { Verdict::CutShort } else { Verdict::Drop }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_gets_so_many_of_one_answer_and_others_are_unharmed() {
        let mut limit = RateLimit::new(10);
        let at = |ms| Duration::from_millis(ms);
        let victim: IpAddr = "192.0.2.7".parse().unwrap();
        let mut flood = |client: &str, answer: &[u8], now, times| {
            let client = client.parse().unwrap();
            let verdicts: Vec<_> = (0..times).map(|_| limit.check(client, answer, now)).collect();
            let of = |v| verdicts.iter().filter(|x| **x == v).count();
            (of(Verdict::Send), of(Verdict::CutShort), of(Verdict::Drop))
        };
        assert_eq!(flood("192.0.2.7", b"a", at(5_000), 100), (20, 40, 40));
        // Its neighbours are the same network to us; another answer, or another network, is not.
        assert_eq!(flood("192.0.2.200", b"a", at(5_000), 10), (0, 5, 5));
        assert_eq!(flood("192.0.2.7", b"b", at(5_000), 5), (5, 0, 0));
        assert_eq!(flood("192.0.3.7", b"a", at(5_000), 5), (5, 0, 0));
        assert_eq!(flood("2001:db8:0:1::1", b"a", at(5_000), 25).0, 20);
        assert_eq!(flood("2001:db8:0:ff::1", b"a", at(5_000), 10).0, 0);
        // A tenth of a second later there is one more, after a minute no more than at first.
        assert_eq!(flood("192.0.2.7", b"a", at(5_100), 10).0, 1);
        assert_eq!(flood("192.0.2.7", b"a", at(65_100), 100).0, 20);
        // However close together they come.
        let mut close = RateLimit::new(200);
        let sent = (0..40_000u32).filter(|n| close.check(victim, b"a", Duration::from_micros(100) * *n) == Verdict::Send).count();
        assert!((1_190..=1_201).contains(&sent), "{sent}");
        assert_eq!(RateLimit::new(0).check(victim, b"a", at(0)), Verdict::Send);
    }
}
