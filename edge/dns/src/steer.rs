//! Which edges a client is sent to: a pure function of the site, the client and the table.
//!
//! Always true: no edge that is not ready is named while there is one that is ready. Equal inputs give equal answers.
//!
//! A site's clients in one region are sent to the same few edges, so that these hold what the site's clients ask for: rendezvous hashing
//! by capacity puts all edges of a region into an order of the site's own. An edge with room takes whoever comes; one that is busy lets
//! only a part of the clients' networks in, and the others go on to the next in that order. So a site that is too much for its first
//! edges spreads over as many as it takes, little by little, and what is not busy stays as it is.

use crate::table::{Edge, Site, Table};
use std::net::IpAddr;

/// Edges that one answer names: clients have another one to go to, and caches are not split further.
pub const MOST_NAMED: usize = 2;

/// How good an edge is for a site; the best there are come into question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    /// Probes do not get through to it; how it stands otherwise decides among several such.
    Lost(Standing),
    Found(Standing),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It serves what it has, perhaps by an older configuration: better than no answer.
    CutOff,
    /// Attached, but it has not applied the site's newest version yet.
    Behind,
    Ready,
}

/// For clients that want addresses which `wanted` takes. `None`: it is sent nobody, whatever happens.
#[must_use]
pub fn readiness(edge: &Edge, site: &Site, wanted: impl Fn(&IpAddr) -> bool) -> Option<Readiness> {
    if edge.drained || !site.is_served_by(edge) {
        return None;
    }
    let standing = match (edge.attached, edge.applied >= site.revision) {
        (true, true) => Standing::Ready,
        (true, false) => Standing::Behind,
        (false, _) => Standing::CutOff,
    };
    Some(if edge.is_lost(wanted) { Readiness::Lost(standing) } else { Readiness::Found(standing) })
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Regions near it, the nearest first.
    pub near: &'a [String],
    /// Of its network: the same for all that an answer is for.
    pub network: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Chosen<'a> {
    /// The best first.
    pub edges: Vec<&'a Edge>,
    /// Clients of other networks near the same regions may be sent elsewhere.
    pub by_network: bool,
}

/// The edges for `site`, with an address that `wanted` takes. Which are good enough and near enough is decided whatever addresses they
/// have, if not whatever they have lost: none is better than one that is worse, or farther, than those that another kind of address leads
/// to.
#[must_use]
pub fn choose<'a>(table: &'a Table, site: &str, client: Client<'_>, wanted: impl Fn(&IpAddr) -> bool) -> Chosen<'a> {
    let nobody = Chosen { edges: Vec::new(), by_network: false };
    let Some(asked) = table.sites.get(site) else { return nobody };
    let candidates = || table.edges.iter().filter_map(|e| readiness(e, asked, &wanted).map(|r| (r, e)));
    let Some(best) = candidates().map(|(r, _)| r).max() else { return nobody };
    let distance = |e: &Edge| client.near.iter().position(|region| *region == e.region).unwrap_or(client.near.len());
    let ready = || candidates().filter(|(r, _)| *r == best).map(|(_, e)| e);
    let Some(nearest) = ready().map(distance).min() else { return nobody };
    let here = ready().filter(|e| distance(e) == nearest && e.addresses.iter().any(&wanted));
    let mut order: Vec<(f64, &Edge)> = here.map(|e| (score(site, e), e)).collect();
    order.sort_by(|(a, x), (b, y)| b.total_cmp(a).then_with(|| x.name.cmp(&y.name)));

    let mut chosen = nobody;
    let mut passed_by = Vec::new();
    for (_, edge) in order {
        if chosen.edges.len() == MOST_NAMED {
            break;
        }
        let is_busy = edge.room < 1.0;
        chosen.by_network |= is_busy;
        let lets_in = !is_busy || uniform(&[site.as_bytes(), edge.name.as_bytes(), &client.network.to_le_bytes()]) < edge.room;
        if lets_in { &mut chosen.edges } else { &mut passed_by }.push(edge);
    }
    // Where all are busy some have to take more.
    let missing = MOST_NAMED - chosen.edges.len();
    chosen.edges.extend(passed_by.into_iter().take(missing));
    chosen
}

/// Weighted rendezvous hashing: an edge wins a share of the sites that goes with its capacity, and a change of one edge's moves only
/// sites from or to it.
fn score(site: &str, edge: &Edge) -> f64 {
    -edge.capacity.max(f64::MIN_POSITIVE) / uniform(&[site.as_bytes(), edge.name.as_bytes()]).ln()
}

/// A number in (0, 1) that `parts` decide.
fn uniform(parts: &[&[u8]]) -> f64 {
    let bytes = parts.iter().flat_map(|part| part.iter().copied().chain([0]));
    let hash = mixed(bytes.fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)));
    // 53 bits, and never 0.
    #[allow(clippy::cast_precision_loss)]
    let number = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    number
}

/// The finaliser of MurmurHash3: FNV alone leaves near names near.
fn mixed(mut h: u64) -> u64 {
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}
