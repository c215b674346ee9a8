//! The clocks of one host: they read the simulation's true time, at a rate and from a start of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use tidegate_control_types::planted::Bug;
use tidegate_control_types::{BootTime, Clock, WallTime};

/// The one true time, in nanoseconds since the simulation began.
#[derive(Clone, Default)]
pub struct Truth(Arc<AtomicU64>);

impl Truth {
    #[must_use]
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn set(&self, nanos: u64) {
        self.0.store(nanos, Ordering::Relaxed);
    }
}

pub struct HostClock {
    truth: Truth,
    /// What CLOCK_BOOTTIME read when the simulation began.
    booted: u64,
    /// Parts in a million by which it runs faster than true time.
    drift_ppm: i64,
    /// Milliseconds by which the wall clock is off.
    wall_off: AtomicI64,
    /// How long the host was suspended so far. CLOCK_BOOTTIME goes on meanwhile; CLOCK_MONOTONIC would not.
    suspended: AtomicU64,
}

const WALL_START_MS: i64 = 1_800_000_000_000;

impl HostClock {
    #[must_use]
    pub fn new(truth: Truth, booted: u64, drift_ppm: i64) -> Arc<Self> {
        Arc::new(Self { truth, booted, drift_ppm, wall_off: AtomicI64::new(0), suspended: AtomicU64::new(0) })
    }

    pub fn jump_wall(&self, milliseconds: i64) {
        self.wall_off.store(milliseconds, Ordering::Relaxed);
    }

    pub fn was_suspended(&self, nanos: u64) {
        self.suspended.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl Clock for HostClock {
    fn boot(&self) -> BootTime {
        let mut true_time = self.truth.now();
        if Bug::ClockStandsStill.is_planted() {
            true_time = true_time.saturating_sub(self.suspended.load(Ordering::Relaxed));
        }
        let off = i128::from(true_time) * i128::from(self.drift_ppm) / 1_000_000;
        let nanos = i128::from(self.booted) + i128::from(true_time) + off;
        BootTime::from_nanos(u64::try_from(nanos).unwrap_or(0))
    }

    fn wall(&self) -> WallTime {
        let ms = i64::try_from(self.truth.now() / 1_000_000).unwrap_or(0);
        WallTime(u64::try_from(WALL_START_MS + ms + self.wall_off.load(Ordering::Relaxed)).unwrap_or(0))
    }
}
