//! How many requests of a connection are not over: its transport waits for them before it says a last word.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Waker};

#[derive(Debug, Default)]
pub struct InFlight {
    count: AtomicU32,
    awaited: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl InFlight {
    pub fn up(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    pub fn down(&self) {
        if self.count.fetch_sub(1, Ordering::AcqRel) == 1 && self.awaited.swap(false, Ordering::AcqRel) {
            let waker = self.waker.lock().take();
            waker.inspect(Waker::wake_by_ref);
        }
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
