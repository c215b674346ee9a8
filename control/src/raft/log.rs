//! The log as Raft reads it: in memory, written through to the disk by the driver before anything is acknowledged.
//!
//! Invariant: `entries` are contiguous, the first at `compacted.0 + 1`, and `compacted.0 <= snapshot's index`.

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};
use std::cell::Cell;
use std::collections::VecDeque;

#[derive(Debug, Default)]
pub struct MemLog {
    hard_state: HardState,
    conf_state: ConfState,
    /// Index and term of the last entry that is gone from the log.
    compacted: (u64, u64),
    entries: VecDeque<Entry>,
    snapshot: Snapshot,
    /// A follower needs a newer snapshot than there is: one that has it among its members.
    wanted: Cell<bool>,
}

impl MemLog {
    #[must_use]
    pub fn new(hard_state: HardState, conf_state: ConfState, compacted: (u64, u64), entries: Vec<Entry>, snapshot: Snapshot) -> Self {
        Self { hard_state, conf_state, compacted, entries: entries.into(), snapshot, wanted: Cell::new(false) }
    }

    fn last(&self) -> u64 {
        self.compacted.0 + self.entries.len() as u64
    }

    fn at(&self, index: u64) -> Option<&Entry> {
        let offset = index.checked_sub(self.compacted.0 + 1)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    /// Puts `new` at their indices; what stood there and after is replaced.
    pub fn append(&mut self, new: &[Entry]) {
        let Some(first) = new.first() else { return };
        let keep = first.index.saturating_sub(self.compacted.0 + 1);
        self.entries.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
        self.entries.extend(new.iter().cloned());
    }

    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    pub fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    pub fn set_conf_state(&mut self, conf_state: ConfState) {
        self.conf_state = conf_state;
    }

    pub fn conf_state(&self) -> &ConfState {
        &self.conf_state
    }

    pub fn set_commit(&mut self, commit: u64) {
        self.hard_state.commit = commit;
    }

    /// The whole state came from the leader: the log starts anew behind it.
    pub fn install(&mut self, snapshot: Snapshot) {
        let meta = snapshot.get_metadata();
        self.compacted = (meta.index, meta.term);
        self.conf_state = meta.get_conf_state().clone();
        self.hard_state.term = self.hard_state.term.max(meta.term);
        self.hard_state.commit = meta.index;
        self.entries.clear();
        self.snapshot = snapshot;
    }

    /// This node's own state as of an applied index, for followers that are too far behind; the log before `keep_from`
    /// goes.
    pub fn compact(&mut self, snapshot: Snapshot, keep_from: u64) {
        self.snapshot = snapshot;
        while self.entries.front().is_some_and(|e| e.index < keep_from) {
            if let Some(e) = self.entries.pop_front() {
                self.compacted = (e.index, e.term);
            }
        }
    }

    /// Whether a snapshot should be taken now, whatever the log's length; asked once.
    pub fn take_wanted(&self) -> bool {
        self.wanted.replace(false)
    }

    pub fn compacted(&self) -> (u64, u64) {
        self.compacted
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Storage for MemLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state: self.conf_state.clone() })
    }

    fn entries(&self, low: u64, high: u64, max_size: impl Into<Option<u64>>, _: GetEntriesContext) -> raft::Result<Vec<Entry>> {
        if low <= self.compacted.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let (mut out, mut size) = (Vec::new(), 0u64);
        let most = max_size.into().unwrap_or(u64::MAX);
        for index in low..high {
            let entry = self.at(index).ok_or(Error::Store(StorageError::Unavailable))?;
            size += entry.data.len() as u64 + 32;
            if size > most && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.compacted.0 {
            return Ok(self.compacted.1);
        }
        if index < self.compacted.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        self.at(index).map(|e| e.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.compacted.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let meta = self.snapshot.get_metadata();
        let members = meta.get_conf_state();
        // A node ignores a snapshot that does not have it among its members.
        let is_member = members.voters.contains(&to) || members.learners.contains(&to);
        if meta.index < request_index.max(self.compacted.0) || !is_member {
            self.wanted.set(true);
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(self.snapshot.clone())
    }
}
