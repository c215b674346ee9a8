//! Look up, collapse, fetch, store, deliver: what an edge and an origin shield both are. A newcomer reads
//! [`Gateway::answer`] first: it shows the way of a request from top to bottom.
//!
//! One [`Gateway`] lives on each worker; the store and the fills are shared by all workers of a node, the ledger is each
//! worker's own, so that a hit takes no lock but the store's.

#![forbid(unsafe_code)]

mod answering;
mod asked;
mod body;
mod coded_body;
mod coder;
mod codings;
mod deliver;
mod explain;
mod failures;
mod fetch;
mod fetch_error;
pub mod fields;
mod figures;
mod fill;
mod gateway;
mod hot;
mod in_flight;
mod intake;
pub mod interim;
mod pass;
mod request_body;
mod site;
mod slices;
#[cfg(test)]
mod tests;
mod untaken;
mod upstream;

pub use answering::Answering;
pub use asked::{Asked, Outgoing, Purpose};
pub use body::{End, Finished, MULTIPLEXED_PIECE, ResponseBody};
pub use coder::Coder;
pub use explain::unknown;
pub use fetch_error::{FetchError, FetchFailed};
pub use figures::{AllCounters, Figures};
pub use fill::{FillError, Fills};
pub use gateway::{Answer, Caches, Gateway, Node, Tier, hash};
pub use in_flight::{InFlight, OneInFlight};
pub use request_body::{Progress, RequestBody, Turn};
pub use site::{Counters, Site};
pub use untaken::Untaken;
pub use upstream::{Allowance, ConnectProtocol, Fetch, Fetched, Upstream, UpstreamBody};

/// The key of a target within a site.
#[must_use]
pub fn key(site: &str, target: &tidegate_cache::Target) -> tidegate_cache::CacheKey {
    tidegate_cache::CacheKey::new(site, target)
}

/// The token of why a request went forward.
#[must_use]
pub fn forward_token(reason: tidegate_cache::ForwardReason) -> &'static str {
    reason.token()
}
pub use tidegate_cache::field::show_date;
pub use tidegate_cache::ledger::MOST_SELECTORS;
pub use tidegate_cache::storable::is_stream;
pub use tidegate_cache::{Accepted, CacheStatus};
pub use tidegate_store as store;
pub use tidegate_store::Store;
