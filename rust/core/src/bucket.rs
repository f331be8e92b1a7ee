//! How often something may be done.

use std::time::Duration;

use crate::Instant;

/// A token bucket, as the instant at which it is full again: `AT_ONCE` times at once, and once more each `MILLIS`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bucket<const AT_ONCE: u32, const MILLIS: u64> {
    full: Instant,
}

impl<const AT_ONCE: u32, const MILLIS: u64> Bucket<AT_ONCE, MILLIS> {
    const INTERVAL: Duration = Duration::from_millis(MILLIS);

    /// Whether nothing is missing from it: a new one would do as well.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full <= now
    }

    /// Whether it may be done now. It is taken as done then.
    pub fn take(&mut self, now: Instant) -> bool {
        let from = self.full.max(now);
        if from > now + Self::INTERVAL * AT_ONCE.saturating_sub(1) {
            return false;
        }
        self.full = from + Self::INTERVAL;
        true
    }
}
