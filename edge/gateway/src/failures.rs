//! The recent failures of a site's keys, as `tidegate explain` shows them.

use crate::upstream::FetchFailed;
use parking_lot::Mutex;
use std::collections::VecDeque;
use tidegate_control_types::WallTime;

/// Maximum number of failures kept per site on one node.
const MOST: usize = 64;

#[derive(Debug, Default)]
pub struct Failures(Mutex<VecDeque<(u64, WallTime, FetchFailed)>>);

impl Failures {
    /// `key`: a hash of it.
    pub fn note(&self, key: u64, at: WallTime, failed: FetchFailed) {
        let mut all = self.0.lock();
        all.retain(|(k, _, _)| *k != key);
        if all.len() >= MOST {
            all.pop_front();
        }
        all.push_back((key, at, failed));
    }

    /// The last one of this key, if it is among the last of the site.
    #[must_use]
    pub fn last(&self, key: u64) -> Option<(WallTime, FetchFailed)> {
        self.0.lock().iter().find(|(k, _, _)| *k == key).map(|(_, at, failed)| (*at, *failed))
    }
}
