//! Receipts of purges, and what nodes that were away have to be told.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use tidegate_control_types::{PurgeOrder, WallTime};

const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
const MOST_KEPT: usize = 100_000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PurgeRecord {
    pub at: WallTime,
    pub by: String,
    pub orders: Vec<PurgeOrder>,
}

/// Invariant: every purge with an index > `forgotten_through` is in `kept`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Purges {
    kept: BTreeMap<u64, PurgeRecord>,
    forgotten_through: u64,
    most_kept: usize,
}

impl Purges {
    pub(crate) fn starting_at(index: u64) -> Self {
        Self { kept: BTreeMap::new(), forgotten_through: index, most_kept: MOST_KEPT }
    }

    /// Under another log no receipt counts.
    pub(crate) fn restarted_at(&self, index: u64) -> Self {
        Self { kept: BTreeMap::new(), forgotten_through: index, most_kept: self.most_kept }
    }

    pub(crate) fn forgotten_through(&self) -> u64 {
        self.forgotten_through
    }

    pub(crate) fn get(&self, index: u64) -> Option<&PurgeRecord> {
        self.kept.get(&index)
    }

    pub(crate) fn since(&self, index: u64) -> impl DoubleEndedIterator<Item = (u64, Vec<PurgeOrder>)> {
        self.kept.range(index.saturating_add(1)..).map(|(i, p)| (*i, p.orders.clone()))
    }

    pub(crate) fn add(&mut self, index: u64, record: PurgeRecord) {
        let now = record.at;
        self.kept.insert(index, record);
        while let Some(first) = self.kept.first_entry() {
            let young = now.since(first.get().at) < KEPT_FOR;
            if young && self.kept.len() <= self.most_kept {
                break;
            }
            if let Some((index, _)) = self.kept.pop_first() {
                self.forgotten_through = index;
            }
        }
    }

    pub(crate) fn keep_at_most(&mut self, most: usize) {
        self.most_kept = most;
    }
}
