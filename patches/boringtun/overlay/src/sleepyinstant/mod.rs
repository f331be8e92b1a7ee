// SPDX-License-Identifier: BSD-3-Clause

//! The instant of the fork: a value that the caller hands in, on a clock that the caller chose.
//!
//! Upstream's type of this name reads the machine's clock. Here nothing does, so there is no `now()` and no `elapsed()`:
//! an engine that cannot ask for the time can be driven through a simulated day in a second.

use std::convert::TryFrom;
use std::ops::{Add, AddAssign};
use std::time::Duration;

/// Nanoseconds since the epoch of the caller's monotonic clock.
///
/// Arithmetic saturates, so that no clock, however wrong, makes the engine panic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The instant `nanos` nanoseconds after the clock's epoch.
    pub const fn from_nanos(nanos: u64) -> Self {
        Instant(nanos)
    }

    /// Nanoseconds since the clock's epoch.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time since `earlier`; zero if `earlier` is later.
    pub fn duration_since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, rhs: Duration) -> Instant {
        let nanos = u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX);
        Instant(self.0.saturating_add(nanos))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, rhs: Duration) {
        *self = *self + rhs;
    }
}
