//! What survives a crash: hard state, voters, entries and the newest snapshot, in one file, each write one transaction.

use super::StorageError;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::path::Path;
use tidegate_control_types::wire::VERSION;

/// All that a driver starts with.
#[derive(Default)]
pub struct Stored {
    pub hard_state: HardState,
    pub conf_state: ConfState,
    pub compacted: (u64, u64),
    pub entries: Vec<Entry>,
    pub snapshot: Snapshot,
}

/// One atomic change. Entries replace what stood at their indices and after.
#[derive(Default)]
pub struct WriteBatch<'a> {
    pub hard_state: Option<&'a HardState>,
    pub conf_state: Option<&'a ConfState>,
    pub entries: &'a [Entry],
    pub snapshot: Option<&'a Snapshot>,
    /// Index and term of the last entry that goes.
    pub compacted: Option<(u64, u64)>,
    /// Every entry goes: the snapshot came from the leader.
    pub clear: bool,
}

/// A disk that keeps what `write` returned for; the simulation has another one.
pub trait Disk: Send {
    /// # Errors
    /// It cannot be read, or is damaged.
    fn load(&mut self) -> Result<Stored, StorageError>;

    /// Atomic, and durable once it returns.
    ///
    /// # Errors
    /// Nothing of the batch may be relied on; the node has to stop.
    fn write(&mut self, batch: &WriteBatch<'_>) -> Result<(), StorageError>;
}

const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// A redb file; every value begins with a version byte.
pub struct RedbDisk {
    path: String,
    database: Database,
}

impl RedbDisk {
    #[must_use]
    pub fn exists(data: &Path) -> bool {
        data.join("raft.redb").exists()
    }

    /// # Errors
    /// The file cannot be opened: another process has it, or it is damaged.
    pub fn open(data: &Path) -> Result<Self, StorageError> {
        let file = data.join("raft.redb");
        let path = file.display().to_string();
        let database = Database::create(&file).map_err(|e| StorageError::Open { path: path.clone(), error: e.to_string() })?;
        Ok(Self { path, database })
    }

    #[allow(clippy::needless_pass_by_value)] // For map_err.
    fn damaged(&self, what: impl std::fmt::Display) -> StorageError {
        StorageError::Damaged { path: self.path.clone(), what: what.to_string() }
    }

    fn failed(&self, error: &dyn std::error::Error) -> StorageError {
        let text = error.to_string();
        let full = text.contains("No space left") || text.contains("os error 28");
        let hint = if full { "; free space on that disk and start this node again, nothing that was acknowledged is lost" } else { "" };
        StorageError::Write { path: self.path.clone(), error: text, hint }
    }

    fn unwrap<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], StorageError> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => Ok(rest),
            Some((found, _)) => Err(self.damaged(format!("a value has version {found}, this program reads {VERSION}"))),
            None => Err(self.damaged("an empty value")),
        }
    }

    fn message<M: protobuf::Message>(&self, bytes: &[u8]) -> Result<M, StorageError> {
        M::parse_from_bytes(self.unwrap(bytes)?).map_err(|e| self.damaged(e))
    }

    fn try_load(&self) -> Result<Stored, StorageError> {
        let mut out = Stored::default();
        let read = self.database.begin_read().map_err(|e| self.damaged(e))?;
        let Ok(meta) = read.open_table(META) else { return Ok(out) };
        let get = |key: &str| meta.get(key).map_err(|e| self.damaged(e));
        if let Some(v) = get("hard_state")? {
            out.hard_state = self.message(v.value())?;
        }
        if let Some(v) = get("conf_state")? {
            out.conf_state = self.message(v.value())?;
        }
        if let Some(v) = get("snapshot")? {
            out.snapshot = self.message(v.value())?;
        }
        if let Some(v) = get("compacted")? {
            let bytes: [u8; 16] = self.unwrap(v.value())?.try_into().map_err(|_| self.damaged("compacted"))?;
            let both = u128::from_be_bytes(bytes);
            out.compacted = (u64::try_from(both >> 64).unwrap_or(0), u64::try_from(both & u128::from(u64::MAX)).unwrap_or(0));
        }
        let Ok(entries) = read.open_table(ENTRIES) else { return Ok(out) };
        for row in entries.iter().map_err(|e| self.damaged(e))? {
            let (_, value) = row.map_err(|e| self.damaged(e))?;
            out.entries.push(self.message(value.value())?);
        }
        let contiguous = out.entries.iter().zip(out.compacted.0 + 1..).all(|(e, index)| e.index == index);
        if contiguous { Ok(out) } else { Err(self.damaged("its entries are not contiguous")) }
    }

    fn try_write(&self, batch: &WriteBatch<'_>) -> Result<(), Box<dyn std::error::Error>> {
        let write = self.database.begin_write()?;
        {
            let mut meta = write.open_table(META)?;
            let mut entries = write.open_table(ENTRIES)?;
            if let Some(v) = batch.snapshot {
                meta.insert("snapshot", versioned(v)?.as_slice())?;
            }
            if let Some((index, term)) = batch.compacted {
                let both = u128::from(index) << 64 | u128::from(term);
                meta.insert("compacted", [&[VERSION][..], &both.to_be_bytes()].concat().as_slice())?;
                entries.retain_in::<u64, _>(..=index, |_, _| false)?;
            }
            if batch.clear {
                entries.retain(|_, _| false)?;
            }
            if let Some(first) = batch.entries.first() {
                entries.retain_in::<u64, _>(first.index.., |_, _| false)?;
                for entry in batch.entries {
                    entries.insert(entry.index, versioned(entry)?.as_slice())?;
                }
            }
            if let Some(v) = batch.hard_state {
                meta.insert("hard_state", versioned(v)?.as_slice())?;
            }
            if let Some(v) = batch.conf_state {
                meta.insert("conf_state", versioned(v)?.as_slice())?;
            }
        }
        write.commit()?;
        Ok(())
    }
}

fn versioned<M: protobuf::Message>(message: &M) -> Result<Vec<u8>, protobuf::ProtobufError> {
    let mut out = vec![VERSION];
    message.write_to_vec(&mut out)?;
    Ok(out)
}

impl Disk for RedbDisk {
    fn load(&mut self) -> Result<Stored, StorageError> {
        self.try_load()
    }

    fn write(&mut self, batch: &WriteBatch<'_>) -> Result<(), StorageError> {
        self.try_write(batch).map_err(|e| self.failed(e.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![7; 3].into(), ..Entry::default() }
    }

    #[test]
    fn what_was_written_is_there_after_opening_again() {
        let dir = tempfile::tempdir().unwrap();
        let hard_state = HardState { term: 2, vote: 1, commit: 3, ..HardState::default() };
        {
            let mut disk = RedbDisk::open(dir.path()).unwrap();
            let all = [entry(1, 1), entry(2, 1), entry(3, 1), entry(4, 1)];
            disk.write(&WriteBatch { entries: &all, hard_state: Some(&hard_state), ..WriteBatch::default() }).unwrap();
            disk.write(&WriteBatch { entries: &[entry(3, 2)], ..WriteBatch::default() }).unwrap();
            disk.write(&WriteBatch { compacted: Some((1, 1)), ..WriteBatch::default() }).unwrap();
        }
        let stored = RedbDisk::open(dir.path()).unwrap().load().unwrap();
        assert_eq!(stored.hard_state, hard_state);
        assert_eq!(stored.entries, [entry(2, 1), entry(3, 2)]);
        assert_eq!(stored.compacted, (1, 1));
    }
}
