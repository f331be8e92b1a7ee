//! The peers of a node: a slab, so that everything else can name a peer by a small number that stays the same.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use connlib_boringtun::Instant;
use connlib_boringtun::noise::{self, Indices, Role, Stats};

use super::config::PeerSettings;
use super::output::NodeEvent;
use super::path::Path;
use super::stats::{PeerDrops, Trouble};
use super::timestamps::{NONE, Timestamp};
use crate::bucket::Bucket;
use crate::policy::Filter;

/// A peer's place in the slab. A slot whose peer was removed is given out again.
pub(crate) type Slot = usize;

pub(crate) struct Peer {
    /// `None` once it has panicked, until the peer is removed.
    pub tunn: Option<noise::Tunn>,
    pub settings: PeerSettings,
    /// Where to send: as configured, until an authenticated datagram came from elsewhere.
    pub endpoint: Option<SocketAddr>,
    /// Where it was before, if that is news. Boxed, because hardly ever anybody moves.
    moves: Option<Box<Moves>>,
    /// From which address of ours; `None` leaves it to the system.
    pub source: Option<IpAddr>,
    pub drops: PeerDrops,
    pub trouble: Trouble,
    /// When something last came that only the peer can have sent.
    pub heard: Option<Instant>,
    /// The greatest timestamp of its initiations, which outlives the tunnel; zeros for none.
    pub timestamp: Timestamp,
    /// Its policy at work; `None` without one.
    pub filter: Option<Box<Filter>>,
}

/// The moves of a peer, from the first one until the last one is told and another one could be told at once.
struct Moves {
    /// The endpoint that was configured or told last.
    told: Option<SocketAddr>,
    bucket: Bucket<1, 1000>,
}

impl Peer {
    /// A peer as configured, with a tunnel that has done nothing yet.
    pub fn new(tunn: noise::Tunn, settings: PeerSettings) -> Self {
        let endpoint = settings.endpoint;
        let mut peer = Peer {
            tunn: None,
            settings,
            endpoint,
            moves: None,
            source: None,
            drops: PeerDrops::default(),
            trouble: Trouble::default(),
            heard: None,
            timestamp: NONE,
            filter: None,
        };
        peer.tunn = Some(tunn.with_persistent_keepalive(peer.keepalive()));
        peer
    }

    /// Whoever owns the node says where it is, and need not be told.
    pub fn place(&mut self, endpoint: SocketAddr) {
        self.source = None;
        self.endpoint = Some(endpoint);
        if let Some(moves) = &mut self.moves {
            moves.told = self.endpoint;
        }
    }

    /// Says where it is by now and what was refused, if that is news and its time has come.
    #[inline]
    pub fn tell(&mut self, now: Instant, events: &mut Vec<([u8; 32], NodeEvent)>) {
        let key = self.settings.public_key;
        if let Some(moves) = &mut self.moves {
            if self.endpoint == moves.told {
                if moves.bucket.is_full(now) {
                    self.moves = None;
                }
            } else if let Some(to) = self.endpoint
                && moves.bucket.take(now)
            {
                let from = moves.told.replace(to);
                events.push((key, NodeEvent::Roamed { from, to }));
            }
        }
        if let Some(filter) = &mut self.filter
            && let Some(refusal) = filter.take_refusal(now)
        {
            events.push((key, NodeEvent::Denied(refusal)));
        }
    }

    /// The way to it.
    pub fn path(&self) -> Option<Path> {
        let source = self.source;
        self.endpoint.map(|remote| Path { remote, source })
    }

    /// It is over there. True if it was somewhere else before.
    pub fn locate(&mut self, path: Path) -> bool {
        self.source = path.source;
        let before = self.endpoint.replace(path.remote);
        let moved = before != self.endpoint;
        if moved && self.moves.is_none() {
            self.moves = Some(Box::new(Moves {
                told: before,
                bucket: Bucket::default(),
            }));
        }
        moved
    }

    /// Whether packets for this peer could be sent, now or as soon as it comes to us.
    pub fn is_reachable(&self) -> bool {
        self.endpoint.is_some() || self.settings.role == Role::Responder
    }

    /// Gives its receiver indices back. Those of a tunnel that panicked were, at once.
    pub fn release_indices(&mut self, indices: &mut dyn Indices) {
        if let Some(tunn) = &mut self.tunn {
            tunn.release_indices(indices);
        }
    }

    /// How many packets its tunnel holds, those included that have waited for too long.
    pub fn waiting(&self) -> usize {
        self.tunn.as_ref().map_or(0, noise::Tunn::queued)
    }

    /// How many packets wait for a session.
    pub fn queued(&self, now: Instant) -> usize {
        self.stats(now).queued
    }

    /// What its tunnel has counted; nothing, if it has none.
    pub fn stats(&self, now: Instant) -> Stats {
        let stats = self.tunn.as_ref().map(|tunn| tunn.stats(now));
        stats.unwrap_or_default()
    }

    /// The keepalive that the tunnel should have now. One that would initiate waits for an endpoint: an initiation that
    /// cannot be sent would only be in the way of the peer's.
    pub fn keepalive(&self) -> Option<Duration> {
        self.settings
            .persistent_keepalive
            .filter(|_| self.is_reachable())
    }
}

#[derive(Default)]
pub(crate) struct Peers {
    /// Boxed, so that the places which the slab holds in reserve cost a pointer each.
    slots: Vec<Option<Box<Peer>>>,
    by_key: BTreeMap<[u8; 32], Slot>,
}

impl Peers {
    pub fn get(&self, slot: Slot) -> Option<&Peer> {
        self.slots.get(slot)?.as_deref()
    }

    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut Peer> {
        self.slots.get_mut(slot)?.as_deref_mut()
    }

    pub fn find(&self, public_key: &[u8; 32]) -> Option<Slot> {
        self.by_key.get(public_key).copied()
    }

    /// Slots in the order of the peers' public keys.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.by_key.values().copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.slots().filter_map(|slot| self.get(slot))
    }

    /// Slots without a peer, lowest first, never ending.
    pub fn vacant(&self) -> impl Iterator<Item = Slot> + '_ {
        (0..).filter(|slot| self.get(*slot).is_none())
    }

    /// Puts a peer into a vacant slot.
    pub fn insert(&mut self, slot: Slot, peer: Peer) {
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        self.by_key.insert(peer.settings.public_key, slot);
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(Box::new(peer));
        }
    }

    pub fn remove(&mut self, slot: Slot) -> Option<Box<Peer>> {
        let peer = self.slots.get_mut(slot)?.take()?;
        self.by_key.remove(&peer.settings.public_key);
        Some(peer)
    }
}
