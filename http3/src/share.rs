//! Equal shares for the responses of a connection in the bytes that its client has not acknowledged. QUIC's own limit is one for the
//! whole connection: it wakes all writers that wait for room at once, and the first of them takes all of it.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

/// The responses of one connection that are not over.
#[derive(Debug)]
pub struct Shares {
    count: AtomicU64,
    /// Bytes for all of them together.
    most: u64,
}

/// The part of one response.
#[derive(Debug)]
pub struct Share {
    of: Arc<Shares>,
    /// Bytes on their way.
    held: AtomicU64,
    waker: Mutex<Option<Waker>>,
}

impl Shares {
    #[must_use]
    pub fn new(most: u64) -> Arc<Self> {
        Arc::new(Self { count: AtomicU64::new(0), most })
    }

    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Share {
        self.count.fetch_add(1, Ordering::Relaxed);
        Share { of: Arc::clone(self), held: AtomicU64::new(0), waker: Mutex::default() }
    }
}

impl Share {
    fn has_room(&self) -> bool {
        let part = self.of.most / self.of.count.load(Ordering::Relaxed).max(1);
        // However many there are, a piece of each goes out.
        self.held.load(Ordering::Acquire) < part.max(1)
    }

    /// Resolves once another piece may go out.
    pub fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        if self.has_room() {
            return Poll::Ready(());
        }
        *self.waker.lock() = Some(cx.waker().clone());
        // It may have become free meanwhile.
        if self.has_room() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// A piece goes out.
    pub fn hold(&self, bytes: usize) {
        self.held.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The client has it.
    pub fn let_go(&self, bytes: usize) {
        self.held.fetch_sub(bytes as u64, Ordering::Release);
        let waker = self.waker.lock().take();
        waker.inspect(Waker::wake_by_ref);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_response_has_an_equal_part() {
        let cx = Context::from_waker(Waker::noop());
        let all = Shares::new(100);
        let (a, b) = (all.begin(), all.begin());
        a.hold(49);
        assert!(a.poll_room(&cx).is_ready());
        a.hold(16);
        assert!(a.poll_room(&cx).is_pending() && b.poll_room(&cx).is_ready());
        drop(b);
        assert!(a.poll_room(&cx).is_ready(), "all of it is its own now");
        a.hold(50);
        assert!(a.poll_room(&cx).is_pending());
        a.let_go(49);
        assert!(a.poll_room(&cx).is_ready());
        let many: Vec<_> = (0..1000).map(|_| all.begin()).collect();
        assert!(many.iter().all(|share| share.poll_room(&cx).is_ready()));
    }
}
