//! The one place of the project that reads the system's clocks and draws random numbers that are no secrets.

use parking_lot::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tidegate_control_types::{BootTime, Clock, WallTime};

#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn boot(&self) -> BootTime {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = Duration::from_secs(u64::try_from(t.tv_sec).unwrap_or(0));
        BootTime::default() + seconds + Duration::from_nanos(u64::try_from(t.tv_nsec).unwrap_or(0))
    }

    #[allow(clippy::disallowed_methods)] // The rim: everything else gets the time as an argument.
    fn wall(&self) -> WallTime {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        WallTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// What share of its processors' time this process uses, between one asking and the next.
#[derive(Debug)]
pub struct Load {
    processors: u32,
    last: Mutex<(BootTime, Duration)>,
}

impl Load {
    #[must_use]
    pub fn new(processors: u32) -> Self {
        Self { processors: processors.max(1), last: Mutex::new((SystemClock.boot(), used())) }
    }

    /// In thousandths.
    #[must_use]
    pub fn permille(&self) -> u16 {
        let (now, used) = (SystemClock.boot(), used());
        let mut last = self.last.lock();
        let (passed, worked) = (now.since(last.0), used.saturating_sub(last.1));
        *last = (now, used);
        let share = worked.as_millis().saturating_mul(1000) / (passed.as_millis() * u128::from(self.processors)).max(1);
        u16::try_from(share.min(1000)).unwrap_or(1000)
    }
}

fn used() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
}

/// A random number for jitter, identifiers and election timeouts.
#[must_use]
pub fn random_u64() -> u64 {
    tidegate_certs::seal::random::<8>().map_or_else(|_| SystemClock.boot().as_nanos(), u64::from_le_bytes)
}
