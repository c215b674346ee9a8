//! The requests of a connection that are not over: its transport waits for them before it says a last word, and whoever
//! keeps the time learns since when the client has been taking nothing.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Waker};

#[derive(Debug)]
pub struct InFlight {
    count: AtomicU32,
    /// Those of them that wait for this node or its upstream; the others wait for the client to take what is there.
    ours: AtomicU32,
    /// When the client last took something, in milliseconds of `clock`.
    taken: AtomicU64,
    clock: Arc<AtomicU64>,
    awaited: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl InFlight {
    /// `clock`: milliseconds, moved on by its owner.
    #[must_use]
    pub fn new(clock: Arc<AtomicU64>) -> Self {
        let taken = AtomicU64::new(clock.load(Ordering::Relaxed));
        Self { count: AtomicU32::new(0), ours: AtomicU32::new(0), taken, clock, awaited: AtomicBool::new(false), waker: Mutex::default() }
    }

    /// A request came.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> OneInFlight {
        self.count.fetch_add(1, Ordering::AcqRel);
        self.ours.fetch_add(1, Ordering::Relaxed);
        OneInFlight { all: Arc::clone(self), ours: true }
    }

    /// The client took something.
    pub fn taken(&self) {
        self.taken.store(self.clock.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// When the client last took anything, or the last request was over.
    #[must_use]
    pub fn taken_at(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Whether all that is left to do is the client's: to take what is there.
    #[must_use]
    pub fn waits_for_client(&self) -> bool {
        self.count() > 0 && self.ours.load(Ordering::Relaxed) == 0
    }

    /// Whether there is none; else `cx` is woken when the last one is over.
    pub fn is_idle(&self, cx: &Context<'_>) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return true;
        }
        *self.waker.lock() = Some(cx.waker().clone());
        self.awaited.store(true, Ordering::Release);
        self.count.load(Ordering::Acquire) == 0
    }

    #[must_use]
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }
}

/// One request of a connection, until its response is over or given up.
#[derive(Debug)]
pub struct OneInFlight {
    all: Arc<InFlight>,
    ours: bool,
}

impl OneInFlight {
    #[must_use]
    pub fn all(&self) -> &Arc<InFlight> {
        &self.all
    }

    /// Whether it waits for this node now, rather than for the client.
    pub fn waits_for_us(&mut self, ours: bool) {
        match (self.ours, ours) {
            (false, true) => drop(self.all.ours.fetch_add(1, Ordering::Relaxed)),
            (true, false) => drop(self.all.ours.fetch_sub(1, Ordering::Relaxed)),
            _ => {}
        }
        if !ours {
            self.all.taken();
        }
        self.ours = ours;
    }
}

impl Drop for OneInFlight {
    fn drop(&mut self) {
        self.waits_for_us(false);
        let all = &self.all;
        if all.count.fetch_sub(1, Ordering::AcqRel) == 1 && all.awaited.swap(false, Ordering::AcqRel) {
            let waker = all.waker.lock().take();
            waker.inspect(Waker::wake_by_ref);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_for_the_client_waits_for_it() {
        let clock = Arc::new(AtomicU64::new(5));
        let all = Arc::new(InFlight::new(Arc::clone(&clock)));
        let (mut a, b) = (all.begin(), all.begin());
        assert!(!all.waits_for_client());
        clock.store(7, Ordering::Relaxed);
        a.waits_for_us(false);
        assert!(!all.waits_for_client(), "one of them waits for us");
        clock.store(9, Ordering::Relaxed);
        drop(b);
        assert_eq!((all.count(), all.waits_for_client(), all.taken_at()), (1, true, 9));
        a.waits_for_us(true);
        assert!(!all.waits_for_client());
        clock.store(11, Ordering::Relaxed);
        drop(a);
        assert_eq!((all.count(), all.waits_for_client(), all.taken_at()), (0, false, 11));
    }
}
