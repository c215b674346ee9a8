//! Tasks stay on their worker's thread.

use hyper::rt::Executor;
use std::future::Future;

/// Spawns on the `LocalSet` of the worker that uses it.
#[derive(Clone, Copy, Debug)]
pub struct Local;

impl<F: Future + 'static> Executor<F> for Local
where
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
