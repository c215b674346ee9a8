//! Where responses are kept: memory above, a disk below it. Bodies are kept in pieces of at most [`CHUNK`] bytes, so that
//! ranges, streaming fills and admission all work on equal parts; a small body is one piece beside its head.

#![forbid(unsafe_code)]

mod disk;
mod memory;
mod sketch;
mod store;
mod stored;
#[cfg(test)]
mod trace;

pub use disk::{DiskFigures, Executor, Folder, Medium, Segment, Threads, Tier};
pub use memory::{Passed, Ranges, Variants};
pub use store::{DiskPiece, Piece, Store};
pub use stored::{Body, Codings, StoredResponse};

/// The longest piece of a body, in bytes.
pub const CHUNK: usize = 256 << 10;
