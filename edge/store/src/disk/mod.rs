//! The disk tier, and the threads that keep it away from the workers.

mod index;
mod medium;
mod record;
mod response;
#[cfg(test)]
pub mod tests;
mod threads;
mod tier;

pub use medium::{Folder, Medium, Segment};
pub use threads::Threads;
pub use tier::{ChunkAt, DiskFigures, Tier};

/// Responses of one key on the disk that differ by Vary; more push out the oldest.
const MAX_VARIANTS: usize = 16;

/// Where the disk tier's work is done. What is handed over may take as long as a disk takes.
pub trait Executor: Send + Sync {
    /// Reads run beside one another.
    fn read(&self, work: Box<dyn FnOnce() + Send>);
    /// Something waits to be written.
    fn wake_writer(&self);
    /// Nothing more will come: returns once all that waits is written.
    fn close(&self);
}
