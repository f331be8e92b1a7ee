//! connlib's engine in its three forms: `Tunn` with and without a copy, and `Node` around it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use connlib_core::aead::{self, Choice};
use connlib_core::{
    Instant, Limits, Node, NodeConfig, Output, PeerConfig, Prefix, PublicKey, Rng, Role, Settings,
    StaticSecret, TimerConfig, Tunn, TunnConfig,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use zeroize::Zeroizing;

use crate::Failure;
use crate::workload::{BATCH, Engine, INNER, complete, packet};

/// Before the packet in a buffer that is sealed in place.
const HEADER: usize = 16;
/// Behind it: padding and tag.
const TRAILER: usize = 32;
const NOW: Instant = Instant::from_nanos(1_000_000_000);
const UNIX_TIME: Duration = Duration::from_secs(1_700_000_000);

fn rng(seed: u8) -> Rng {
    Box::new(ChaCha20Rng::from_seed([seed; 32]))
}

fn public_key(private: [u8; 32]) -> [u8; 32] {
    *PublicKey::from(&StaticSecret::from(private)).as_bytes()
}

/// The MTU at which a packet of that size is not padded beyond it, as on a real interface.
fn mtu(size: usize) -> usize {
    size.max(1420)
}

fn tunnel(own: u8, other: u8, size: usize) -> Result<Tunn, Failure> {
    let config = TunnConfig {
        private_key: Zeroizing::new([own; 32]),
        peer_public_key: public_key([other; 32]),
        preshared_key: None,
        persistent_keepalive: None,
        unix_time: UNIX_TIME,
        settings: Settings {
            role: Role::Either,
            timers: TimerConfig::default(),
            limits: Limits::default(),
            mtu: mtu(size),
        },
        indices: None,
        rate_limiter: None,
    };
    Tunn::new(config, NOW, rng(own)).map_err(|reason| format!("no tunnel: {reason:?}").into())
}

/// Two tunnels with a session between them.
fn connected(size: usize) -> Result<[Tunn; 2], Failure> {
    let mut tunnels = [tunnel(1, 2, size)?, tunnel(2, 1, size)?];
    let mut out = Output::default();
    if let Some(reason) = tunnels[0].initiate_handshake(NOW, &mut out) {
        return Err(format!("no initiation: {reason:?}").into());
    }
    // Initiation, response, keepalive.
    for receiver in [1, 0, 1] {
        let mut answer = Output::default();
        for datagram in out.datagrams.iter() {
            if let Some(reason) = tunnels[receiver].decapsulate(datagram, None, NOW, &mut answer) {
                return Err(format!("no session: {reason:?}").into());
            }
        }
        out = answer;
    }
    Ok(tunnels)
}

/// `Tunn::encapsulate` and `Tunn::decapsulate`: what goes in is borrowed, what comes out is contiguous.
pub struct Tunnels {
    tunnels: [Tunn; 2],
    packet: Vec<u8>,
    sealed: Output,
    opened: Output,
}

impl Tunnels {
    pub fn new(size: usize) -> Result<Self, Failure> {
        let (sealed, opened) = (Output::default(), Output::default());
        Ok(Tunnels {
            tunnels: connected(size)?,
            packet: packet(size),
            sealed,
            opened,
        })
    }
}

impl Engine for Tunnels {
    fn seal(&mut self) -> Result<(), Failure> {
        self.sealed.clear();
        for _ in 0..BATCH {
            if let Some(reason) = self.tunnels[0].encapsulate(&self.packet, NOW, &mut self.sealed) {
                return Err(format!("sealing: {reason:?}").into());
            }
        }
        complete(self.sealed.datagrams.len())
    }

    fn open(&mut self) -> Result<(), Failure> {
        self.opened.clear();
        for datagram in self.sealed.datagrams.iter() {
            if let Some(reason) = self.tunnels[1].decapsulate(datagram, None, NOW, &mut self.opened)
            {
                return Err(format!("opening: {reason:?}").into());
            }
        }
        complete(self.opened.packets.len())
    }
}

/// `Tunn::seal_in_place` and `Tunn::open_in_place`.
pub struct InPlace {
    tunnels: [Tunn; 2],
    size: usize,
    buffers: Vec<Vec<u8>>,
    lengths: Vec<usize>,
    out: Output,
}

impl InPlace {
    pub fn new(size: usize) -> Result<Self, Failure> {
        let mut buffer = vec![0; HEADER];
        buffer.extend(packet(size));
        buffer.extend([0; TRAILER]);
        let (buffers, lengths) = (vec![buffer; BATCH], vec![0; BATCH]);
        Ok(InPlace {
            tunnels: connected(size)?,
            size,
            buffers,
            lengths,
            out: Output::default(),
        })
    }
}

impl Engine for InPlace {
    fn seal(&mut self) -> Result<(), Failure> {
        for (buffer, length) in self.buffers.iter_mut().zip(&mut self.lengths) {
            *length = self.tunnels[0]
                .seal_in_place(buffer, self.size, NOW, &mut self.out)
                .map_err(|reason| format!("sealing: {reason:?}"))?;
        }
        Ok(())
    }

    fn open(&mut self) -> Result<(), Failure> {
        let mut opened = 0;
        for (buffer, length) in self.buffers.iter_mut().zip(&self.lengths) {
            let packet = self.tunnels[1]
                .open_in_place(&mut buffer[..*length], NOW, &mut self.out)
                .map_err(|reason| format!("opening: {reason:?}"))?;
            opened += usize::from(packet.len() == self.size);
        }
        complete(opened)
    }
}

/// How a node is given packets.
#[derive(Clone, Copy)]
pub enum Way {
    /// By `handle_packet` and `handle_datagram`.
    OneByOne,
    /// By `handle_packets` and `handle_datagrams`, with this encryption.
    Batch(Choice),
    /// The same with ring, that nevertheless seals and opens together.
    Together,
}

/// `Node`: routing, the index table and the counters come on top.
pub struct Nodes {
    in_batches: bool,
    nodes: [Node; 2],
    addresses: [SocketAddr; 2],
    packet: Vec<u8>,
}

impl Nodes {
    pub fn new(size: usize, way: Way) -> Result<Self, Failure> {
        let addresses = [
            SocketAddr::from(([127, 0, 0, 1], 1)),
            SocketAddr::from(([127, 0, 0, 1], 2)),
        ];
        let nodes = [node(0, addresses[1], size)?, node(1, addresses[0], size)?];
        let mut pair = Nodes {
            in_batches: !matches!(way, Way::OneByOne),
            nodes,
            addresses,
            packet: packet(size),
        };
        for node in &mut pair.nodes {
            match way {
                Way::OneByOne => {}
                Way::Batch(choice) => node.set_encryption(aead::choose(choice)?),
                Way::Together => node.always_together(),
            }
        }
        pair.nodes[0].handle_packet(&pair.packet, NOW);
        for receiver in [1, 0, 1] {
            pair.deliver(receiver);
        }
        pair.nodes[1].clear_output();
        Ok(pair)
    }

    /// Hand one node what the other one wants sent.
    fn deliver(&mut self, receiver: usize) {
        let [one, other] = &mut self.nodes;
        let (from, to) = if receiver == 1 {
            (one, other)
        } else {
            (other, one)
        };
        let address = self.addresses[1 - receiver];
        let datagrams = from.output().transmits().map(|(_, datagram)| datagram);
        if self.in_batches {
            let datagrams = datagrams.map(|datagram| (address.into(), 0, datagram));
            to.handle_datagrams(datagrams, NOW);
        } else {
            datagrams.for_each(|datagram| to.handle_datagram(address, datagram, NOW));
        }
        from.clear_output();
    }
}

fn node(own: usize, endpoint: SocketAddr, size: usize) -> Result<Node, Failure> {
    let keys = [[1; 32], [2; 32]];
    let mut peer = PeerConfig::new(public_key(keys[1 - own]));
    peer.allowed_ips = vec![Prefix {
        address: IpAddr::from(INNER[1 - own]),
        length: 32,
    }];
    peer.endpoint = Some(endpoint);
    let mut config = NodeConfig::new(Zeroizing::new(keys[own]));
    config.peers = vec![peer];
    config.mtu = mtu(size);
    Node::new(config, NOW, UNIX_TIME, rng(own as u8))
        .map_err(|error| format!("no node: {error}").into())
}

impl Engine for Nodes {
    fn seal(&mut self) -> Result<(), Failure> {
        let node = &mut self.nodes[0];
        let packets = std::iter::repeat_n(self.packet.as_slice(), BATCH);
        if self.in_batches {
            node.handle_packets(packets, NOW);
        } else {
            packets.for_each(|packet| node.handle_packet(packet, NOW));
        }
        complete(self.nodes[0].output().datagrams.len())
    }

    fn open(&mut self) -> Result<(), Failure> {
        self.deliver(1);
        let opened = self.nodes[1].output().packets.len();
        self.nodes[1].clear_output();
        complete(opened)
    }
}
