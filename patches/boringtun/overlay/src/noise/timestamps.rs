// SPDX-License-Identifier: BSD-3-Clause
//! The timestamps of initiations (section 5.1), which may outlive the tunnel: what they look like, and who keeps them can
//! ask for them and give them back.

use super::Tunn;
use std::time::Duration;

/// What TAI64 calls 1970, as every implementation has it.
const TAI64_BASE: u64 = (1 << 62) + 37;

/// A time since 1970 as TAI64N: seconds and nanoseconds, the greater byte first, so that bytes compare as times do.
pub fn tai64n(unix_time: Duration) -> [u8; 12] {
    let mut stamp = [0; 12];
    let (seconds, nanoseconds) = stamp.split_at_mut(8);
    let since = unix_time.as_secs().saturating_add(TAI64_BASE);
    seconds.copy_from_slice(&since.to_be_bytes());
    nanoseconds.copy_from_slice(&unix_time.subsec_nanos().to_be_bytes());
    stamp
}

/// The time since 1970 of a TAI64N timestamp; `None` for one that is none, or is before 1970.
pub fn unix_time(tai64n: [u8; 12]) -> Option<Duration> {
    let [a, b, c, d, e, f, g, h, nanoseconds @ ..] = tai64n;
    let seconds = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    let nanoseconds = u32::from_be_bytes(nanoseconds);
    let valid = seconds < 1 << 63 && nanoseconds < 1_000_000_000;
    let since = seconds.checked_sub(TAI64_BASE)?;
    valid.then(|| Duration::new(since, nanoseconds))
}

impl Tunn {
    /// The greatest timestamp of the peer's valid initiations, as it came; zeros if there was none.
    pub fn received_timestamp(&self) -> [u8; 12] {
        self.handshake.received_timestamp()
    }

    /// Answer only initiations of a later timestamp from now on; zeros for any.
    pub fn set_received_timestamp(&mut self, timestamp: &[u8; 12]) {
        self.handshake.set_received_timestamp(timestamp);
    }

    /// The timestamp of our last initiation, since 1970; zero if there was none.
    #[inline]
    pub fn sent_timestamp(&self) -> Duration {
        self.handshake.sent_timestamp()
    }

    /// The timestamps of our initiations are later than this one, whatever the wall clock shows.
    pub fn send_after(&mut self, timestamp: Duration) {
        self.handshake.send_after(timestamp);
    }
}
