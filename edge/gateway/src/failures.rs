//! The recent failures of a site's keys, as `tidegate explain` shows them.

use crate::fetch_error::FetchError;
use crate::fetch_error::FetchFailed;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use tidegate_control_types::WallTime;

/// Maximum number of failures kept per site on one node.
const MOST: usize = 64;

/// Minimum time between two log lines for one cause of a site.
const LOGGED_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Recent {
    of_keys: VecDeque<(u64, WallTime, FetchFailed)>,
    /// Time of the last log line for each cause.
    logged: HashMap<FetchError, WallTime>,
}

#[derive(Debug, Default)]
pub struct Failures(Mutex<Recent>);

impl Failures {
    /// `key`: a hash of it. Returns whether this failure belongs into the node's log, which has each cause at most every ten seconds.
    pub fn note(&self, key: u64, at: WallTime, failed: FetchFailed) -> bool {
        let mut recent = self.0.lock();
        let all = &mut recent.of_keys;
        all.retain(|(k, _, _)| *k != key);
        if all.len() >= MOST {
            all.pop_front();
        }
        all.push_back((key, at, failed));
        let is_due = recent.logged.get(&failed.error).is_none_or(|last| at.since(*last) >= LOGGED_EVERY || at < *last);
        if is_due {
            recent.logged.insert(failed.error, at);
        }
        is_due
    }

    /// The last one of this key, if it is among the last of the site.
    #[must_use]
    pub fn last(&self, key: u64) -> Option<(WallTime, FetchFailed)> {
        self.0.lock().of_keys.iter().find(|(k, _, _)| *k == key).map(|(_, at, failed)| (*at, *failed))
    }
}
