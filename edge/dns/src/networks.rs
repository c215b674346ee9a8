//! Where clients are: a table of networks, each with the regions near it, the nearest first.

use std::collections::HashMap;
use std::net::IpAddr;
use std::str::FromStr;

const MOST_LINES: usize = 2_000_000;

/// Networks; the longest prefix that holds an address speaks for it.
#[derive(Clone, Debug, Default)]
pub struct Networks {
    /// Prefixes of each family, the longest length first.
    lengths: [Vec<u8>; 2],
    /// First address and length of all of each family, in order.
    ordered: [Vec<(u128, u8)>; 2],
    regions: HashMap<(u8, u8, u128), Vec<String>>,
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

impl FromStr for Networks {
    type Err = NotNetworks;

    /// Lines of `network,region[,next region...]`, as `203.0.113.0/24,eu-central,eu-west`; `#` begins a comment.
    fn from_str(text: &str) -> Result<Self, NotNetworks> {
        let mut all = Self::default();
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
            if all.regions.insert((family, length, bits), regions).is_some() {
                return Err(wrong(format!("{network} stands here twice")));
            }
            let family = usize::from(family);
            if let Some(lengths) = all.lengths.get_mut(family).filter(|l| !l.contains(&length)) {
                lengths.push(length);
            }
            if let Some(ordered) = all.ordered.get_mut(family) {
                ordered.push((bits, length));
            }
        }
        all.lengths.iter_mut().for_each(|l| l.sort_unstable_by(|a, b| b.cmp(a)));
        all.ordered.iter_mut().for_each(|o| o.sort_unstable());
        Ok(all)
    }
}

impl Networks {
    /// The regions near `address`, the nearest first (none where no network holds it), and the length of the prefix that shares them: the
    /// same is said of every address that begins with as many of its bits.
    #[must_use]
    pub fn find(&self, address: IpAddr) -> (&[String], u8) {
        let (family, bits) = bits(address);
        let at = usize::from(family);
        let (lengths, ordered) = (self.lengths.get(at).map_or(&[][..], Vec::as_slice), self.ordered.get(at).map_or(&[][..], Vec::as_slice));
        let found =
            lengths.iter().find_map(|length| Some((self.regions.get(&(family, *length, masked(bits, *length)))?.as_slice(), *length)));
        // Others end what is shared where they part from the address: of those on either side the next does so latest.
        let middle = ordered.partition_point(|(first, _)| *first <= bits);
        let (before, after) = ordered.split_at(middle);
        let apart = |(first, length): &&(u128, u8)| masked(bits, *length) != *first;
        let neighbours = before.iter().rev().find(apart).into_iter().chain(after.first());
        let parting = neighbours.map(|(first, _)| u8::try_from((first ^ bits).leading_zeros() + 1).unwrap_or(128)).max();
        let (near, length) = found.unwrap_or_default();
        (near, length.max(parting.unwrap_or(0)).min(if family == 0 { 32 } else { 128 }))
    }
}
