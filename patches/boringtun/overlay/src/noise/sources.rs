// SPDX-License-Identifier: BSD-3-Clause
//! How many handshake messages each source may send (paper, section 5.3: a cookie makes it possible to limit by address), and
//! how many cookies all of them together get.
//!
//! Only sources that have proved themselves by a cookie have a share, so that nobody can spend that of somebody else.

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

/// So often there is one cookie reply, whoever it goes to: 20,000 in a second. To make and send one costs ten times what a
/// message costs that is refused, and who invents sources sends as many as there is room for. Without a bound the packets of
/// the tunnels would find no processor, and each address that was invented would get a datagram of ours.
pub const REPLY_INTERVAL: Duration = Duration::from_micros(50);
/// So many cookie replies may leave at once.
pub const REPLY_BURST: u32 = 1_000;

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

/// What is left of the cookie replies.
#[derive(Debug, Default)]
pub struct Replies {
    /// When as many as may leave at once are left again.
    whole: Instant,
}

impl Replies {
    /// Takes one, or says that nothing is left.
    pub fn take(&mut self, now: Instant) -> bool {
        let whole = self.whole.max(now);
        let taken = whole.duration_since(now) <= REPLY_INTERVAL * (REPLY_BURST - 1);
        if taken {
            self.whole = whole + REPLY_INTERVAL;
        }
        taken
    }
}

fn source(address: IpAddr) -> Source {
    match address {
        IpAddr::V4(address) => (false, u64::from(u32::from(address))),
        IpAddr::V6(address) => (true, (u128::from(address) >> 64) as u64),
    }
}
