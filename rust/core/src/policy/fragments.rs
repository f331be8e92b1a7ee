//! First fragments that passed, for as long as their later ones may come.
//!
//! A rule decided about what the first one holds, so that nothing may write over any of it: neither a later one (RFC 5722,
//! RFC 1858), nor another first one whose headers lie elsewhere.

use std::net::IpAddr;
use std::time::Duration;

use super::packet::{FragmentId, Packet, Part};
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
    part: Part,
    until: Instant,
}

impl Fragments {
    /// A first fragment may pass.
    pub fn remember(&mut self, packet: &Packet<'_>, id: FragmentId, now: Instant) {
        let passed = Passed {
            source: packet.source,
            destination: packet.destination,
            id,
            part: packet.part,
            until: now + LIFETIME,
        };
        if self.passed.len() < CAPACITY {
            self.passed.push(passed);
        } else if let Some(oldest) = self.passed.get_mut(self.oldest) {
            *oldest = passed;
            self.oldest = (self.oldest + 1) % CAPACITY;
        }
    }

    /// Whether the first fragment of a later one passed, and ends before this one begins.
    pub fn has_passed(&self, packet: &Packet<'_>, id: FragmentId, now: Instant) -> bool {
        let mut firsts = self.firsts(packet, id, now).peekable();
        firsts.peek().is_some() && firsts.all(|passed| passed.part.end <= packet.part.start)
    }

    /// Whether another first fragment of that packet passed, which has its headers elsewhere: of the two together, nobody
    /// knows what somebody else makes.
    pub fn contradict(&self, packet: &Packet<'_>, id: FragmentId, now: Instant) -> bool {
        self.firsts(packet, id, now)
            .any(|passed| passed.part != packet.part)
    }

    fn firsts(
        &self,
        packet: &Packet<'_>,
        id: FragmentId,
        now: Instant,
    ) -> impl Iterator<Item = &Passed> {
        let (source, destination) = (packet.source, packet.destination);
        self.passed.iter().filter(move |passed| {
            passed.id == id
                && passed.source == source
                && passed.destination == destination
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
