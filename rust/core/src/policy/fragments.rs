//! First fragments that passed, for as long as their later ones may come.

use std::net::IpAddr;
use std::time::Duration;

use super::packet::{FragmentId, Packet};
use crate::Instant;

/// Fragments of a packet that come later than this after the first are not put together any more (RFC 8200, section 4.5).
const LIFETIME: Duration = Duration::from_secs(60);

/// Packets in fragments that are remembered at once. The oldest is forgotten first, and what is left of it is dropped.
const CAPACITY: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Fragments {
    passed: Vec<Passed>,
    /// The oldest, once all places are taken.
    oldest: usize,
}

#[derive(Debug)]
struct Passed {
    source: IpAddr,
    destination: IpAddr,
    id: FragmentId,
    until: Instant,
}

impl Fragments {
    /// A first fragment may pass.
    pub fn remember(&mut self, packet: &Packet<'_>, id: FragmentId, now: Instant) {
        let passed = Passed {
            source: packet.source,
            destination: packet.destination,
            id,
            until: now + LIFETIME,
        };
        if self.passed.len() < CAPACITY {
            self.passed.push(passed);
        } else if let Some(oldest) = self.passed.get_mut(self.oldest) {
            *oldest = passed;
            self.oldest = (self.oldest + 1) % CAPACITY;
        }
    }

    /// Whether the first fragment of a later one passed.
    pub fn has_passed(&self, packet: &Packet<'_>, id: FragmentId, now: Instant) -> bool {
        self.passed.iter().any(|passed| {
            passed.id == id
                && passed.source == packet.source
                && passed.destination == packet.destination
                && now < passed.until
        })
    }

    /// A first fragment was refused: what comes of a packet with the same identification is no part of an allowed one.
    pub fn forget(&mut self, packet: &Packet<'_>, id: FragmentId) {
        for passed in &mut self.passed {
            if passed.id == id
                && passed.source == packet.source
                && passed.destination == packet.destination
            {
                passed.until = Instant::default();
            }
        }
    }

    pub fn clear(&mut self) {
        *self = Fragments::default();
    }
}
