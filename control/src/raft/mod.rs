//! Raft: the crate `raft` as the algorithm, driven deterministically.

mod disk;
mod driver;
mod log;

pub use disk::{Disk, RedbDisk, Stored, WriteBatch};
pub use driver::{Done, Driver, DriverSettings, Input, Leadership, Members, NotDone, Output, Shared, Ticket, member_change};
pub use log::MemLog;

/// The disk did not keep what it was given. The node stops: a vote or an entry that may be lost must not be acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("the log at {path} cannot be written: {error}{hint}")]
    Write { path: String, error: String, hint: &'static str },
    #[error("the log at {path} cannot be opened: {error}")]
    Open { path: String, error: String },
    #[error("the log at {path} is damaged: {what}")]
    Damaged { path: String, what: String },
}
