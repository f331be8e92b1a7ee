//! Where a node keeps what it is given and gives, packet by packet, for whoever wants to look into it, and the keys to it.

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;

use connlib_boringtun::noise;
use connlib_boringtun::x25519::StaticSecret;
use rand_core::{CryptoRngCore, RngCore};

use super::Node;
use super::config::PeerSettings;
use super::peers::Slot;
use crate::key_log::{HandshakeKeys, KeyLog, Noting};
use crate::policy::Direction;
use crate::{Instant, Secret};

/// What is captured, and how much of it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureConfig {
    /// Bytes of memory that packets which wait to be taken out may occupy.
    pub capacity: usize,
    /// Datagrams, from UDP, whatever becomes of them, and for UDP.
    pub outer: bool,
    /// IP packets, from the TUN device, whatever becomes of them, and for it; and answers to what a policy refused.
    pub inner: bool,
    /// How many bytes of each are kept.
    pub snaplen: usize,
}

/// On which side of a tunnel something was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// A datagram, with the address of the other end.
    Outer(SocketAddr),
    /// An IP packet.
    Inner,
}

/// One packet or datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    pub at: Instant,
    pub layer: Layer,
    pub direction: Direction,
    /// The public key of whose it is, if it is a peer's. For a datagram that came, this is what it says: it may be forged.
    pub peer: Option<[u8; 32]>,
    /// Its first bytes.
    pub bytes: Box<[u8]>,
    /// How many bytes it had.
    pub size: usize,
}

/// How many packets had no room.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Missed {
    pub outer: u64,
    pub inner: u64,
}

/// Packets that nobody took out yet.
pub(super) struct Captor {
    config: CaptureConfig,
    packets: VecDeque<Captured>,
    /// Bytes of memory that they occupy.
    used: usize,
    missed: Missed,
}

impl Captor {
    fn push(
        &mut self,
        at: Instant,
        layer: Layer,
        direction: Direction,
        peer: Option<[u8; 32]>,
        data: &[u8],
    ) {
        let (wanted, missed) = match layer {
            Layer::Outer(_) => (self.config.outer, &mut self.missed.outer),
            Layer::Inner => (self.config.inner, &mut self.missed.inner),
        };
        if !wanted {
            return;
        }
        let kept = data.get(..self.config.snaplen).unwrap_or(data);
        let used = self.used + footprint(kept);
        if used > self.config.capacity {
            *missed += 1;
            return;
        }
        self.used = used;
        self.packets.push_back(Captured {
            at,
            layer,
            direction,
            peer,
            bytes: kept.into(),
            size: data.len(),
        });
    }

    fn take(&mut self, limit: usize) -> (Vec<Captured>, Missed) {
        let count = limit.min(self.packets.len());
        let taken: Vec<_> = self.packets.drain(..count).collect();
        let freed: usize = taken.iter().map(|packet| footprint(&packet.bytes)).sum();
        self.used = self.used.saturating_sub(freed);
        (taken, mem::take(&mut self.missed))
    }
}

fn footprint(bytes: &[u8]) -> usize {
    mem::size_of::<Captured>() + bytes.len()
}

/// What `Node::take_key_log` gives: keys, and what can be read with all that were given.
pub struct KeysTaken {
    pub handshakes: KeyLog,
    /// Public keys of peers that have a session by now whose keys are in the log. Each is said once.
    pub readable: Vec<[u8; 32]>,
}

/// The keys of a node's handshakes since somebody wants them.
#[derive(Default)]
pub(super) struct NodeKeyLog {
    handshakes: KeyLog,
    /// Peers with which a handshake has begun since then.
    begun: BTreeSet<[u8; 32]>,
    /// Those of them that have had a session since.
    readable: BTreeSet<[u8; 32]>,
    untold: Vec<[u8; 32]>,
}

impl NodeKeyLog {
    /// The generator for a call of a peer's tunnel.
    pub fn noting<'a, R: CryptoRngCore + ?Sized>(
        &'a mut self,
        rng: &'a mut R,
        own: &'a StaticSecret,
        settings: &'a PeerSettings,
    ) -> Noting<&'a mut R, impl FnMut(&[u8; 32]) + 'a>
    where
        &'a mut R: RngCore,
    {
        Noting::new(rng, move |ephemeral| {
            let preshared = settings.preshared_key.iter();
            self.begun.insert(settings.public_key);
            self.handshakes.add(HandshakeKeys {
                own: Secret::new(own.to_bytes()),
                peer: settings.public_key,
                ephemeral: Secret::new(*ephemeral),
                preshared: preshared.map(|key| Arc::new(key.clone())).collect(),
            });
        })
    }

    pub fn add_preshared(&mut self, settings: &PeerSettings) {
        if let Some(key) = &settings.preshared_key {
            self.handshakes.add_preshared(&settings.public_key, key);
        }
    }

    #[cold]
    pub fn established(&mut self, peer: [u8; 32]) {
        if self.begun.contains(&peer) && self.readable.insert(peer) {
            self.untold.push(peer);
        }
    }
}

impl Node {
    /// Keeps from now on what goes through the node, for `take_captured`; `None` ends it and drops what waits. What waits
    /// while another capture goes on stays: one of neither layer ends it with everything that it has.
    pub fn capture(&mut self, config: Option<CaptureConfig>) {
        let going_on = self.captor.take();
        self.captor = config.map(|config| match going_on {
            Some(captor) => Captor { config, ..captor },
            None => Captor {
                config,
                packets: VecDeque::new(),
                used: 0,
                missed: Missed::default(),
            },
        });
    }

    pub fn is_captured(&self) -> bool {
        self.captor.is_some()
    }

    /// The first packets that wait, at most `limit`, and how many had no room since the last call.
    pub fn take_captured(&mut self, limit: usize) -> (Vec<Captured>, Missed) {
        let captor = self.captor.as_mut();
        captor.map(|captor| captor.take(limit)).unwrap_or_default()
    }

    /// Keeps from now on the keys of every handshake that begins or is answered, for `take_key_log`; off, it wipes them.
    ///
    /// Whoever has them can read everything of the sessions that come of these handshakes, and be this end.
    pub fn log_keys(&mut self, on: bool) {
        if on {
            self.key_log.get_or_insert_default();
        } else {
            self.key_log = None;
        }
    }

    /// The keys since the last call; nothing, if they are not kept.
    pub fn take_key_log(&mut self) -> KeysTaken {
        let log = self.key_log.as_deref_mut();
        let (handshakes, readable) = log
            .map(|log| (mem::take(&mut log.handshakes), mem::take(&mut log.untold)))
            .unwrap_or_default();
        KeysTaken {
            handshakes,
            readable,
        }
    }

    // Inside. Each costs a branch while nothing is captured.

    /// Of a packet from the TUN device.
    #[inline]
    pub(super) fn capture_read(&mut self, packet: &[u8]) {
        if self.captor.is_some() {
            let destination = noise::Tunn::dst_address(packet);
            let slot = destination.and_then(|to| self.routes.longest_match(to));
            self.keep(Layer::Inner, Direction::ToPeer, slot, packet);
        }
    }

    /// Of a packet for a peer that the node made itself.
    #[inline]
    pub(super) fn capture_made(&mut self, slot: Slot, packet: &[u8]) {
        if self.captor.is_some() {
            self.keep(Layer::Inner, Direction::ToPeer, Some(slot), packet);
        }
    }

    /// Of the last packet of the output, which goes to the TUN device.
    #[inline]
    pub(super) fn capture_delivered(&mut self, slot: Slot) {
        if self.captor.is_some() {
            let packet: Box<[u8]> = self.output.last_packet().unwrap_or_default().into();
            self.keep(Layer::Inner, Direction::FromPeer, Some(slot), &packet);
        }
    }

    /// Of a datagram that came.
    #[inline]
    pub(super) fn capture_received(
        &mut self,
        slot: Option<Slot>,
        source: SocketAddr,
        datagram: &[u8],
    ) {
        if self.captor.is_some() {
            self.keep(Layer::Outer(source), Direction::FromPeer, slot, datagram);
        }
    }

    /// Of the datagrams of the output behind the first `before`.
    #[inline]
    pub(super) fn capture_sent(&mut self, slot: Option<Slot>, before: usize) {
        if let Some(captor) = &mut self.captor {
            let peer = slot.and_then(|slot| self.peers.get(slot));
            let peer = peer.map(|peer| peer.settings.public_key);
            for (destination, datagram) in self.output.transmits_from(before) {
                let layer = Layer::Outer(destination);
                captor.push(self.clock, layer, Direction::ToPeer, peer, datagram);
            }
        }
    }

    #[cold]
    fn keep(&mut self, layer: Layer, direction: Direction, slot: Option<Slot>, data: &[u8]) {
        if let Some(captor) = &mut self.captor {
            let peer = slot.and_then(|slot| self.peers.get(slot));
            let peer = peer.map(|peer| peer.settings.public_key);
            captor.push(self.clock, layer, direction, peer, data);
        }
    }
}
