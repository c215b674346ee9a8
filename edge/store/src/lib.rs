//! Where responses are kept: the memory tier. Bodies are kept in pieces of at most [`CHUNK`] bytes, so that ranges,
//! streaming fills and admission all work on equal parts; a small body is one piece beside its head.
//!
//! The disk tier stands behind the same [`MemoryStore`] calls once it is there: `get`, `put`, `remove`, and `body`, which
//! gives the pieces of a range or says that one is gone.

#![forbid(unsafe_code)]

mod memory;
mod stored;

pub use memory::{MemoryStore, Variants};
pub use stored::{Body, StoredResponse};

/// The longest piece of a body, in bytes.
pub const CHUNK: usize = 256 << 10;
