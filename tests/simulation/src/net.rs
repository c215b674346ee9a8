//! What lies between hosts: delay, loss, duplication, and links that are cut, each direction for itself.

use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet};

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1000 * MS;

/// A machine of the simulated network, by its place in the list of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(pub usize);

/// How bad the network is.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Of a message, at most.
    pub delay_ms: u64,
    /// Of a thousand Raft messages.
    pub lost: u64,
    pub doubled: u64,
    /// Of a thousand messages, those that take up to twenty times as long.
    pub late: u64,
}

pub struct Net {
    pub weather: Weather,
    seed: u64,
    cut: BTreeSet<(Host, Host)>,
    /// Each direction draws its own numbers, so that a message more or less elsewhere changes nothing here.
    links: BTreeMap<(Host, Host), Rng>,
}

impl Net {
    #[must_use]
    pub fn new(seed: u64, weather: Weather) -> Self {
        Self { weather, seed, cut: BTreeSet::new(), links: BTreeMap::new() }
    }

    pub fn cut(&mut self, from: Host, to: Host) {
        self.cut.insert((from, to));
    }

    pub fn heal(&mut self, from: Host, to: Host) {
        self.cut.remove(&(from, to));
    }

    pub fn heal_all(&mut self) {
        self.cut.clear();
    }

    #[must_use]
    pub fn is_cut(&self, from: Host, to: Host) -> bool {
        self.cut.contains(&(from, to))
    }

    #[must_use]
    pub fn is_apart(&self, a: Host, b: Host) -> bool {
        self.is_cut(a, b) || self.is_cut(b, a)
    }

    fn link(&mut self, from: Host, to: Host) -> &mut Rng {
        let seed = self.seed ^ ((from.0 as u64) << 32 | to.0 as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.links.entry((from, to)).or_insert_with(|| Rng::with_seed(seed))
    }

    /// How long one message takes, in nanoseconds.
    pub fn delay(&mut self, from: Host, to: Host) -> u64 {
        let weather = self.weather;
        let link = self.link(from, to);
        let most = weather.delay_ms.max(1) * MS;
        let usual = link.u64(most / 20..most);
        if link.u64(0..1000) < weather.late { usual * link.u64(1..20) } else { usual }
    }

    /// When the copies of one datagram arrive: none, one or two.
    pub fn datagram(&mut self, from: Host, to: Host) -> Vec<u64> {
        if self.is_cut(from, to) {
            return Vec::new();
        }
        let weather = self.weather;
        let chance = self.link(from, to).u64(0..1000);
        if chance < weather.lost {
            return Vec::new();
        }
        let copies = if chance < weather.lost + weather.doubled { 2 } else { 1 };
        (0..copies).map(|_| self.delay(from, to)).collect()
    }
}
