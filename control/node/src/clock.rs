//! The one place of the project that reads the system's clocks and draws random numbers that are no secrets.

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

/// A random number for jitter, identifiers and election timeouts.
#[must_use]
pub fn random_u64() -> u64 {
    tidegate_certs::seal::random::<8>().map_or_else(|_| SystemClock.boot().as_nanos(), u64::from_le_bytes)
}
