//! A site as a worker sees it: its settings ready for use, and its figures.

use crate::failures::Failures;
use crate::fetch_error::{FetchError, FetchFailed};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tidegate_cache::{FreshnessDefaults, Target};
use tidegate_control_types::site::QueryRule;
use tidegate_control_types::{SiteState, WallTime};

/// Figures of one site on one node, shared by its workers.
#[derive(Debug, Default)]
pub struct Counters {
    pub requests: AtomicU64,
    pub hits: AtomicU64,
    pub stale: AtomicU64,
    pub fetches: AtomicU64,
    pub collapsed: AtomicU64,
    pub errors: AtomicU64,
    /// Codings made of stored bodies.
    pub codings: AtomicU64,
    /// Bytes of bodies handed to clients.
    pub body_bytes: AtomicU64,
    pub failures: Failures,
    /// Number of fetches without a head that no client waits for any more.
    left: AtomicUsize,
}

/// Maximum number of fetches of a site and node that go on although their clients left before the head came.
const MOST_LEFT: usize = 64;

/// One of these fetches.
pub struct Left<'a>(&'a AtomicUsize);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Counters {
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts a fetch whose clients have left, for as long as the result lives. `None`: there are too many of them.
    pub fn leave(&self) -> Option<Left<'_>> {
        let one_more = |n| (n < MOST_LEFT).then_some(n + 1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok().map(|_| Left(&self.left))
    }
}

#[derive(Debug)]
pub struct Site {
    pub state: Arc<SiteState>,
    pub defaults: FreshnessDefaults,
    pub counters: Arc<Counters>,
}

impl Site {
    #[must_use]
    pub fn new(state: Arc<SiteState>, counters: Arc<Counters>) -> Self {
        let cache = &state.spec.cache;
        let defaults = FreshnessDefaults {
            ttl: cache.default_ttl.map(|d| d.as_secs()),
            stale_while_revalidate: cache.stale_while_revalidate.as_secs(),
            stale_if_error: cache.stale_if_error.as_secs(),
            stale_if_unreachable: cache.stale_if_unreachable.as_secs(),
        };
        Self { state, defaults, counters }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        self.state.spec.name.as_str()
    }

    /// Keeps a failure for `tidegate explain`, and logs it if its cause was not logged just before. Requests that failed by their own
    /// clients, and fetches that were ended on purpose, are not failures of the site. `key`: a hash of it.
    pub fn note_failure(&self, target: &str, key: u64, at: WallTime, failed: FetchFailed) {
        let is_of_the_client = matches!(failed.error, FetchError::Client | FetchError::TooLarge);
        if is_of_the_client || matches!(failed.error, FetchError::Abandoned | FetchError::Changed | FetchError::ServerError) {
            return;
        }
        if self.counters.failures.note(key, at, failed) {
            // A query may hold a secret.
            let path = target.split_once('?').map_or(target, |(path, _)| path);
            tracing::warn!(site = self.name(), path, cause = failed.error.token(), "request failed: {failed}");
        }
    }

    /// A target in the normal form of this site's keys.
    #[must_use]
    pub fn target(&self, https: bool, host: &str, path_and_query: &str) -> Target {
        let rule = &self.state.spec.cache.query;
        let keeps = |name: &str| keeps(rule, name);
        let filter: Option<&dyn Fn(&str) -> bool> = if *rule == QueryRule::All { None } else { Some(&keeps) };
        Target::new(https, host, path_and_query, filter)
    }
}

fn keeps(rule: &QueryRule, name: &str) -> bool {
    let named = |list: &[String]| {
        list.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == pattern,
        })
    };
    match rule {
        QueryRule::All => true,
        QueryRule::None => false,
        QueryRule::Keep(list) => named(list),
        QueryRule::Drop(list) => !named(list),
    }
}
