//! What a node counts.

use std::net::SocketAddr;
use std::time::Duration;

use connlib_boringtun::noise::{self, Stats};

use super::Node;
use super::peers::Slot;
use crate::{DropReason, Instant, Timeout};

/// How many packets and datagrams went no further, by reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropCounts([u64; DropReason::ALL.len()]);

impl Default for DropCounts {
    fn default() -> Self {
        DropCounts([0; DropReason::ALL.len()])
    }
}

impl DropCounts {
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The reasons that occurred, in the order of `DropReason::ALL`, with how often.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        let all = DropReason::ALL.iter().copied();
        all.map(|reason| (reason, self.get(reason)))
            .filter(|(_, count)| *count > 0)
    }

    pub(crate) fn add(&mut self, reason: DropReason) {
        self.add_many(reason, 1);
    }

    pub(crate) fn add_all(&mut self, others: &DropCounts) {
        for (counter, other) in self.0.iter_mut().zip(others.0) {
            *counter = counter.saturating_add(other);
        }
    }

    pub(crate) fn add_many(&mut self, reason: DropReason, count: usize) {
        if let Some(counter) = self.0.get_mut(reason as usize) {
            *counter = counter.saturating_add(count as u64);
        }
    }
}

/// The same of one peer: a reason that did not occur costs nothing, for there are many reasons and many peers.
#[derive(Debug, Default)]
pub(crate) struct PeerDrops(Vec<(DropReason, u64)>);

impl PeerDrops {
    pub fn counts(&self) -> DropCounts {
        let mut counts = DropCounts::default();
        for (reason, count) in &self.0 {
            if let Some(counter) = counts.0.get_mut(*reason as usize) {
                *counter = *count;
            }
        }
        counts
    }

    pub fn add(&mut self, reason: DropReason) {
        self.add_many(reason, 1);
    }

    pub fn add_many(&mut self, reason: DropReason, count: usize) {
        if count == 0 {
            return;
        }
        let count = count as u64;
        match self.0.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, counter)) => *counter = counter.saturating_add(count),
            None => {
                self.0.reserve_exact(1);
                self.0.push((reason, count));
            }
        }
    }
}

/// What went wrong since the last session was established, for whoever wants to know why there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trouble {
    /// Authentic by their index, and not readable: the preshared keys differ, or somebody forges.
    pub unreadable: u32,
    /// Packets from an inner address that is not the peer's.
    pub source_not_allowed: u32,
    /// Cookie replies: the peer is under load.
    pub cookie_replies: u32,
    /// Attempts that ended without a session.
    pub gave_up: u32,
    /// Packets that a mark of congestion on their way has cost.
    pub congestion_marks: u32,
}

impl Trouble {
    pub(crate) fn note(&mut self, reason: DropReason) {
        let counter = match reason {
            DropReason::InvalidAeadTag => &mut self.unreadable,
            DropReason::SourceNotAllowed => &mut self.source_not_allowed,
            DropReason::CongestionMark => &mut self.congestion_marks,
            _ => return,
        };
        *counter = counter.saturating_add(1);
    }
}

/// One peer in numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PeerStats {
    pub public_key: [u8; 32],
    /// Where its datagrams are sent; `None` until it is configured or the peer comes to us.
    pub endpoint: Option<SocketAddr>,
    pub tunnel: Stats,
    pub drops: DropCounts,
    /// `None` for a peer without a policy.
    pub policy: Option<PolicyStats>,
    /// Time since anything came that only the peer can have sent.
    pub heard: Option<Duration>,
    pub trouble: Trouble,
    /// What its tunnel does next by itself.
    pub next_timeout: Option<Timeout>,
    /// Its tunnel panicked.
    pub poisoned: bool,
}

/// A peer's policy in numbers. What it refused is counted among the peer's drops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyStats {
    /// Flows that are known now.
    pub flows: usize,
    /// Flows that gave way to newer ones before their time.
    pub evicted: u64,
    /// ICMP messages that told a sender of a refusal.
    pub answered: u64,
    /// Flows that wait for the hook's answer now.
    pub pending: usize,
    /// Flows that the hook was asked about.
    pub asked: u64,
}

/// A node in numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeStats {
    /// In the order of the public keys.
    pub peers: Vec<PeerStats>,
    /// What could not be put down to a peer, and what was counted for peers that were removed.
    pub drops: DropCounts,
}

impl Node {
    /// Everything that is counted. A peer whose tunnel panicked counts from zero.
    pub fn stats(&self, now: Instant) -> NodeStats {
        let slots = self.peers.slots();
        NodeStats {
            peers: slots.filter_map(|slot| self.stats_of(slot, now)).collect(),
            drops: self.drops,
        }
    }

    /// What is counted of one peer; `None` for an unknown one.
    pub fn peer_stats(&self, public_key: &[u8; 32], now: Instant) -> Option<PeerStats> {
        self.stats_of(self.peers.find(public_key)?, now)
    }

    /// Where peers are, as far as that is known, in the order of their public keys.
    pub fn endpoints(&self) -> impl Iterator<Item = ([u8; 32], SocketAddr)> + '_ {
        let peers = self.peers.iter();
        peers.filter_map(|peer| Some((peer.settings.public_key, peer.endpoint?)))
    }

    fn stats_of(&self, slot: Slot, now: Instant) -> Option<PeerStats> {
        let now = self.clock.max(now);
        let peer = self.peers.get(slot)?;
        Some(PeerStats {
            public_key: peer.settings.public_key,
            endpoint: peer.endpoint,
            tunnel: peer.stats(now),
            drops: peer.drops.counts(),
            policy: self.policy_stats(slot, peer, now),
            heard: peer.heard.map(|at| now.duration_since(at)),
            trouble: peer.trouble,
            next_timeout: peer.tunn.as_ref().and_then(noise::Tunn::next_timeout),
            poisoned: peer.tunn.is_none(),
        })
    }
}
