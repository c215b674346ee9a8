//! The disk of a control node: what a write returned for survives the loss of power, unless a bug is planted that leaves
//! the sync out; a crash in the middle of a write leaves all of it or nothing.

use crate::checker::LogBook;
use parking_lot::Mutex;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use std::collections::BTreeMap;
use std::sync::Arc;
use tidegate_control::raft::{Disk, StorageError, Stored, WriteBatch};
use tidegate_control_types::planted::Bug;

#[derive(Clone, Default)]
struct Image {
    hard_state: HardState,
    conf_state: ConfState,
    compacted: (u64, u64),
    entries: BTreeMap<u64, Entry>,
    snapshot: Snapshot,
}

/// What the next write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fails {
    /// No room: nothing is written.
    Full,
    /// Power is lost in the middle of it; `kept`: just after it became durable.
    Crash { kept: bool },
}

#[derive(Default)]
struct State {
    image: Image,
    /// As of the last sync.
    durable: Image,
    fails: Option<Fails>,
}

#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    node: u64,
    book: Arc<Mutex<LogBook>>,
}

impl SimDisk {
    #[must_use]
    pub fn new(node: u64, book: Arc<Mutex<LogBook>>) -> Self {
        Self { state: Arc::default(), node, book }
    }

    /// As `control init` writes it.
    pub fn found(&self, snapshot: Snapshot) {
        let meta = snapshot.get_metadata();
        let image = Image {
            hard_state: HardState { term: meta.term, commit: meta.index, ..HardState::default() },
            conf_state: meta.get_conf_state().clone(),
            compacted: (meta.index, meta.term),
            entries: BTreeMap::new(),
            snapshot,
        };
        let mut state = self.state.lock();
        state.durable = image.clone();
        state.image = image;
    }

    pub fn fail(&self, fails: Option<Fails>) {
        self.state.lock().fails = fails;
    }

    /// Whether a write has failed as it was told to.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.state.lock().fails.is_some()
    }

    /// What was not synced is gone.
    pub fn lose_power(&self) {
        let mut state = self.state.lock();
        if Bug::DiskWithoutFsync.is_planted() {
            state.image = state.durable.clone();
        }
    }

    /// What a kernel does by itself now and then.
    pub fn sync(&self) {
        let mut state = self.state.lock();
        if Bug::DiskWithoutFsync.is_planted() {
            state.durable = state.image.clone();
        }
    }

    /// The term of the entry at `index`, where this disk has it.
    #[must_use]
    pub fn term_at(&self, index: u64) -> Option<u64> {
        let image = &self.state.lock().image;
        if index == image.compacted.0 {
            return Some(image.compacted.1);
        }
        image.entries.get(&index).map(|e| e.term)
    }

    /// Whether the entry at `index` is in the log or behind its beginning.
    #[must_use]
    pub fn reaches(&self, index: u64) -> bool {
        let image = &self.state.lock().image;
        index <= image.compacted.0 || image.entries.contains_key(&index)
    }
}

impl Image {
    fn write(&mut self, batch: &WriteBatch<'_>) {
        if batch.clear {
            self.entries.clear();
        }
        if let Some((index, term)) = batch.compacted {
            self.compacted = (index, term);
            self.entries = self.entries.split_off(&(index + 1));
        }
        if let Some(first) = batch.entries.first() {
            self.entries.split_off(&first.index);
            self.entries.extend(batch.entries.iter().map(|e| (e.index, e.clone())));
        }
        if let Some(v) = batch.snapshot {
            self.snapshot = v.clone();
        }
        if let Some(v) = batch.hard_state {
            self.hard_state = v.clone();
        }
        if let Some(v) = batch.conf_state {
            self.conf_state = v.clone();
        }
    }
}

impl Disk for SimDisk {
    fn load(&mut self) -> Result<Stored, StorageError> {
        let image = self.state.lock().image.clone();
        Ok(Stored {
            hard_state: image.hard_state,
            conf_state: image.conf_state,
            compacted: image.compacted,
            entries: image.entries.into_values().collect(),
            snapshot: image.snapshot,
        })
    }

    fn write(&mut self, batch: &WriteBatch<'_>) -> Result<(), StorageError> {
        let mut state = self.state.lock();
        let fails = state.fails;
        if matches!(fails, None | Some(Fails::Crash { kept: true })) {
            state.image.write(batch);
            self.book.lock().wrote(self.node, batch.entries);
        }
        match fails {
            None => Ok(()),
            Some(fails) => Err(StorageError::Write { path: "disk".into(), error: format!("{fails:?}"), hint: "" }),
        }
    }
}
