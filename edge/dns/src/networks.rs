//! Where clients are: a table of networks, each with the regions near it, the nearest first.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::str::FromStr;

const MOST_LINES: usize = 2_000_000;

/// Networks; the longest prefix that holds an address speaks for it.
#[derive(Clone, Debug, Default)]
pub struct Networks {
    /// Of each family, in order: the first address of a row of them that are near the same regions, and the place of these in `near`. The
    /// row goes on to the next.
    rows: [Vec<(u128, u32)>; 2],
    /// Each list once; the first has none.
    near: Vec<Vec<String>>,
}

/// What is wrong with a file of networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotNetworks {
    pub line: usize,
    pub problem: String,
}

impl std::fmt::Display for NotNetworks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.problem)
    }
}

impl std::error::Error for NotNetworks {}

/// The family of an address, and its bits from the highest of 128 on.
fn bits(address: IpAddr) -> (u8, u128) {
    match address.to_canonical() {
        IpAddr::V4(v4) => (0, u128::from(v4.to_bits()) << 96),
        IpAddr::V6(v6) => (1, v6.to_bits()),
    }
}

fn masked(bits: u128, length: u8) -> u128 {
    if length == 0 { 0 } else { bits & (u128::MAX << (128 - u32::from(length.min(128)))) }
}

/// Clients of so long a prefix are one network, by family: they are sent to the same edges also where others near them go elsewhere.
const ONE_NETWORK: [u8; 2] = [20, 44];

/// A client's network, for [`crate::steer::Client`], and the length of its prefix: `scope` at least.
#[must_use]
pub fn network(client: IpAddr, scope: u8) -> (u64, u8) {
    let (family, bits) = bits(client);
    let length = scope.max(ONE_NETWORK.get(usize::from(family)).copied().unwrap_or(0));
    let masked = masked(bits, length);
    // Its upper half alone says it for IPv4.
    #[allow(clippy::cast_possible_truncation)]
    let network = (masked >> 64) as u64 ^ (masked as u64).rotate_left(17) ^ u64::from(family);
    (network, length)
}

/// Where a list of regions stands.
#[derive(Clone, Copy, Debug)]
pub struct NearPlace(u32);

/// Networks that are read one after the other.
#[derive(Default)]
pub struct Reading {
    networks: [Vec<(u128, u8, u32)>; 2],
    near: Vec<Vec<String>>,
    places: HashMap<Vec<String>, u32>,
}

impl Reading {
    /// A list of regions, the nearest first.
    pub fn near(&mut self, near: Vec<String>) -> NearPlace {
        let (known, lists) = (u32::try_from(self.near.len()).unwrap_or(u32::MAX), &mut self.near);
        NearPlace(*self.places.entry(near).or_insert_with_key(|near| {
            lists.push(near.clone());
            known.saturating_add(1)
        }))
    }

    /// `near`: the regions near the addresses whose first `length` bits are those of `network`, unless a longer prefix says otherwise.
    pub fn add(&mut self, network: IpAddr, length: u8, NearPlace(place): NearPlace) {
        let (family, first) = bits(network);
        if let Some(networks) = self.networks.get_mut(usize::from(family)) {
            networks.push((masked(first, length), length, place));
        }
    }

    #[must_use]
    pub fn done(self) -> Networks {
        let near = std::iter::once(Vec::new()).chain(self.near).collect();
        Networks { rows: self.networks.map(rows), near }
    }
}

/// Rows of addresses, of prefixes that may lie in one another.
fn rows(mut prefixes: Vec<(u128, u8, u32)>) -> Vec<(u128, u32)> {
    prefixes.sort_unstable();
    let mut rows: Vec<(u128, u32)> = vec![(0, 0)];
    let mut begin = |first: u128, place: u32| {
        // What begins at the same address is the longer prefix.
        rows.pop_if(|(row, _)| *row == first);
        if rows.last().is_none_or(|(_, before)| *before != place) {
            rows.push((first, place));
        }
    };
    // The prefixes that hold the address, each with its last one.
    let mut open: Vec<(u128, u32)> = Vec::new();
    let end_before = |open: &mut Vec<(u128, u32)>, next: Option<u128>, begin: &mut dyn FnMut(u128, u32)| {
        while let Some((last, _)) = open.pop_if(|(last, _)| next.is_none_or(|n| *last < n)) {
            if let Some(after) = last.checked_add(1) {
                begin(after, open.last().map_or(0, |(_, place)| *place));
            }
        }
    };
    for (first, length, place) in prefixes {
        end_before(&mut open, Some(first), &mut begin);
        begin(first, place);
        open.push((first | (u128::MAX.checked_shr(u32::from(length)).unwrap_or(0)), place));
    }
    end_before(&mut open, None, &mut begin);
    rows
}

impl FromStr for Networks {
    type Err = NotNetworks;

    /// Lines of `network,region[,next region...]`, as `203.0.113.0/24,eu-central,eu-west`; `#` begins a comment.
    fn from_str(text: &str) -> Result<Self, NotNetworks> {
        let (mut all, mut seen) = (Reading::default(), HashSet::new());
        for (n, line) in text.lines().enumerate() {
            let wrong = |problem: String| NotNetworks { line: n + 1, problem };
            if n >= MOST_LINES {
                return Err(wrong(format!("there are more than {MOST_LINES} lines")));
            }
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let mut fields = line.split(',').map(str::trim);
            let network = fields.next().unwrap_or_default();
            let like = || wrong(format!("{network:?} is no network, as 203.0.113.0/24 or 2001:db8::/32 is one"));
            let (address, length) = network.split_once('/').ok_or_else(like)?;
            let (address, length) = (address.parse::<IpAddr>().map_err(|_| like())?, length.parse::<u8>().map_err(|_| like())?);
            if length > if address.is_ipv4() { 32 } else { 128 } {
                return Err(like());
            }
            if address.to_canonical() != address {
                return Err(wrong(format!("{network:?} is an IPv4 network in IPv6's clothes: write it as 203.0.113.0/24")));
            }
            let (family, bits) = bits(address);
            if masked(bits, length) != bits {
                return Err(wrong(format!("{network:?} has bits beyond its prefix")));
            }
            let regions: Vec<String> = fields.map(str::to_owned).collect();
            if regions.is_empty() || regions.iter().any(String::is_empty) {
                return Err(wrong("a network needs the name of a region behind it, as 203.0.113.0/24,eu-central".into()));
            }
            if !seen.insert((family, length, bits)) {
                return Err(wrong(format!("{network} stands here twice")));
            }
            let near = all.near(regions);
            all.add(address, length, near);
        }
        Ok(all.done())
    }
}

impl Networks {
    /// How many rows of addresses it tells apart.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows.iter().map(Vec::len).sum()
    }

    /// The regions near `address`, the nearest first (none where no network holds it), and the length of the prefix that shares them: the
    /// same is said of every address that begins with as many of its bits.
    #[must_use]
    pub fn find(&self, address: IpAddr) -> (&[String], u8) {
        let (family, bits) = bits(address);
        let rows = self.rows.get(usize::from(family)).map_or(&[][..], Vec::as_slice);
        let (before, after) = rows.split_at(rows.partition_point(|(first, _)| *first <= bits));
        let Some((first, place)) = before.last() else { return (&[], 0) };
        let near = usize::try_from(*place).ok().and_then(|p| self.near.get(p)).map_or(&[][..], Vec::as_slice);
        // What is shared ends where the address parts from the rows on either side.
        let neighbours = first.checked_sub(1).into_iter().chain(after.first().map(|(next, _)| *next));
        let parting = neighbours.map(|other| u8::try_from((other ^ bits).leading_zeros() + 1).unwrap_or(128)).max();
        (near, parting.unwrap_or(0).min(if family == 0 { 32 } else { 128 }))
    }
}
