// SPDX-License-Identifier: BSD-3-Clause
//! How many handshake messages each source may send (paper, section 5.3: a cookie makes it possible to limit by address).
//!
//! Only sources that have proved themselves by a cookie get here, so that nobody can spend the share of somebody else.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::sleepyinstant::Instant;

/// A source gets one message back so often: 20 in a second.
pub const INTERVAL: Duration = Duration::from_millis(50);
/// So many messages may come at once.
pub const BURST: u32 = 5;
/// So many sources are known at once. While there are as many, others are refused; a source is known for 250 ms at least.
pub const MOST_SOURCES: usize = 65_536;
/// How often sources that have their whole share again are forgotten.
const SWEEP: Duration = Duration::from_secs(1);

/// Whoever has one address of an IPv6 network has all of its /64.
type Source = (bool, u64);

/// What is left of the share of each source.
#[derive(Debug, Default)]
pub struct Sources {
    /// When a source has its whole share again; who is missing has it now.
    whole: BTreeMap<Source, Instant>,
    swept: Instant,
}

impl Sources {
    /// Takes a message out of the share of a source, or says that nothing is left of it.
    pub fn take(&mut self, address: IpAddr, now: Instant) -> bool {
        if now.duration_since(self.swept) >= SWEEP {
            self.whole.retain(|_, whole| *whole > now);
            self.swept = now;
        }
        let source = source(address);
        let known = self.whole.get(&source).copied();
        let whole = known.map_or(now, |whole| whole.max(now));
        let room = known.is_some() || self.whole.len() < MOST_SOURCES;
        let taken = room && whole.duration_since(now) <= INTERVAL * (BURST - 1);
        if taken {
            self.whole.insert(source, whole + INTERVAL);
        }
        taken
    }

    /// How many sources are known.
    pub fn len(&self) -> usize {
        self.whole.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.whole.is_empty()
    }
}

fn source(address: IpAddr) -> Source {
    match address {
        IpAddr::V4(address) => (false, u64::from(u32::from(address))),
        IpAddr::V6(address) => (true, (u128::from(address) >> 64) as u64),
    }
}
