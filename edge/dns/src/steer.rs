//! Which edges a client is sent to: a pure function of the site, the regions near the client and the table.
//!
//! Always true: no edge that is not ready is named while there is one that is ready. Equal inputs give equal answers. A site's clients
//! in one region are sent to the same few edges, so that these hold what the site's clients ask for (rendezvous hashing, by weight).

use crate::table::{Edge, Table};
use std::net::IpAddr;

/// Edges that one answer names: clients have another one to go to, and caches are not split further.
pub const MOST_NAMED: usize = 2;

/// How good an edge is for a site; the best there are come into question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    /// It serves what it has, perhaps by an older configuration: better than no answer.
    CutOff,
    /// Attached, but it has not applied the site's newest version yet.
    Behind,
    Ready,
}

/// `None`: it is sent nobody, whatever happens.
#[must_use]
pub fn readiness(edge: &Edge, revision: u64) -> Option<Readiness> {
    if edge.drained {
        return None;
    }
    Some(match (edge.attached, edge.applied >= revision) {
        (true, true) => Readiness::Ready,
        (true, false) => Readiness::Behind,
        (false, _) => Readiness::CutOff,
    })
}

/// The edges for `site`, with an address that `reachable` takes, for a client near the regions of `near`; the best first. Which are good
/// enough and near enough is decided whatever their addresses: none is better than one that is worse, or farther, than those that another
/// kind of address leads to.
#[must_use]
pub fn choose<'a>(table: &'a Table, site: &str, near: &[String], reachable: impl Fn(&IpAddr) -> bool) -> Vec<&'a Edge> {
    let revision = table.sites.get(site).copied().unwrap_or(0);
    let candidates = || table.edges.iter().filter_map(|e| readiness(e, revision).map(|r| (r, e)));
    let Some(best) = candidates().map(|(r, _)| r).max() else { return Vec::new() };
    let distance = |e: &Edge| near.iter().position(|region| *region == e.region).unwrap_or(near.len());
    let ready = || candidates().filter(|(r, _)| *r == best).map(|(_, e)| e);
    let Some(nearest) = ready().map(distance).min() else { return Vec::new() };
    let here = ready().filter(|e| distance(e) == nearest && e.addresses.iter().any(&reachable));
    let mut chosen: Vec<(f64, &Edge)> = here.map(|e| (score(site, e), e)).collect();
    chosen.sort_by(|(a, x), (b, y)| b.total_cmp(a).then_with(|| x.name.cmp(&y.name)));
    chosen.into_iter().take(MOST_NAMED).map(|(_, e)| e).collect()
}

/// Weighted rendezvous hashing: an edge wins a share of the sites that goes with its weight, and a change of one edge's weight moves only
/// sites from or to it.
fn score(site: &str, edge: &Edge) -> f64 {
    let hash = mixed(
        site.bytes()
            .chain([0])
            .chain(edge.name.bytes())
            .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)),
    );
    // In (0, 1): 53 bits, and never 0.
    #[allow(clippy::cast_precision_loss)]
    let uniform = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -edge.weight.max(f64::MIN_POSITIVE) / uniform.ln()
}

/// The finaliser of MurmurHash3: FNV alone leaves near names near.
fn mixed(mut h: u64) -> u64 {
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}
