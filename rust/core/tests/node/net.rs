//! Nodes, a network in memory between them, and packets to send through it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use connlib_core::{
    DropReason, Instant, Node, NodeConfig, NodeEvent, NodeStats, PeerConfig, PeerStats, Prefix,
    PublicKey, Role, Secret, StaticSecret,
};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

/// The wall clock at the beginning of every test: 2026-01-01.
pub const UNIX_TIME: Duration = Duration::from_secs(1_767_225_600);

/// One-way latency, as in the engine's specification.
pub const LATENCY: Duration = Duration::from_millis(20);

pub const START: Instant = Instant::from_nanos(1_000_000_000_000);

/// First byte of each kind of message.
pub const INITIATION: u8 = 1;
pub const RESPONSE: u8 = 2;
pub const COOKIE_REPLY: u8 = 3;
pub const DATA: u8 = 4;

pub fn seconds(seconds: f64) -> Instant {
    START + Duration::from_secs_f64(seconds)
}

/// The private key of host `number`.
pub fn private_key(number: u8) -> Secret {
    Secret::new([number; 32])
}

pub fn public_key(number: u8) -> [u8; 32] {
    *PublicKey::from(&StaticSecret::from([number; 32])).as_bytes()
}

/// Host `number` on the outside.
pub fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 51820))
}

pub fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap();
    Prefix {
        address: address.parse().unwrap(),
        length: length.parse().unwrap(),
    }
}

/// Host `number` as a peer: found at its address, with 10.0.0.NUMBER and fd00::NUMBER inside.
pub fn peer(number: u8) -> PeerConfig {
    PeerConfig {
        allowed_ips: vec![
            prefix(&format!("10.0.0.{number}/32")),
            prefix(&format!("fd00::{number}/128")),
        ],
        endpoint: Some(address(number)),
        ..PeerConfig::new(public_key(number))
    }
}

pub fn config(number: u8, peers: Vec<PeerConfig>) -> NodeConfig {
    NodeConfig {
        peers,
        ..NodeConfig::new(private_key(number))
    }
}

pub fn node(config: NodeConfig) -> Node {
    let rng = Box::new(ChaCha20Rng::from_seed(*config.private_key));
    Node::new(config, START, UNIX_TIME, rng).unwrap()
}

/// A UDP packet from one inner address to another.
pub fn packet(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    match (source.parse().unwrap(), destination.parse().unwrap()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = (20 + payload.len()) as u16;
            let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet.extend(payload);
            packet
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut packet = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
            packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet.extend(payload);
            packet
        }
        _ => panic!("two families"),
    }
}

/// A packet between two hosts.
pub fn between(from: u8, to: u8, payload: &[u8]) -> Vec<u8> {
    packet(&format!("10.0.0.{from}"), &format!("10.0.0.{to}"), payload)
}

/// A datagram that was sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Sent {
    pub at: Instant,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub bytes: Vec<u8>,
}

impl Sent {
    pub fn kind(&self) -> u8 {
        self.bytes[0]
    }
}

pub struct Host {
    pub node: Node,
    pub address: SocketAddr,
    /// IP packets that came out of the tunnels.
    pub received: Vec<Vec<u8>>,
    pub events: Vec<([u8; 32], NodeEvent)>,
}

/// Hosts by number, and what is on its way between them.
pub struct Net {
    pub now: Instant,
    pub hosts: BTreeMap<u8, Host>,
    /// Everything that was ever sent, in order.
    pub log: Vec<Sent>,
    /// Datagrams for which this says true get lost.
    pub loses: fn(&Sent) -> bool,
    in_flight: BTreeMap<(Instant, usize), Sent>,
}

impl Net {
    pub fn new(configs: impl IntoIterator<Item = (u8, NodeConfig)>) -> Self {
        let host = |(number, config)| {
            let host = Host {
                node: node(config),
                address: address(number),
                received: Vec::new(),
                events: Vec::new(),
            };
            (number, host)
        };
        Net {
            now: START,
            hosts: configs.into_iter().map(host).collect(),
            log: Vec::new(),
            loses: |_| false,
            in_flight: BTreeMap::new(),
        }
    }

    /// Hosts 1 and 2, each other's peers; roles as given.
    pub fn pair(role1: Role, role2: Role) -> Self {
        let with = |number, role| PeerConfig {
            role,
            ..peer(number)
        };
        Net::new([
            (1, config(1, vec![with(2, role1)])),
            (2, config(2, vec![with(1, role2)])),
        ])
    }

    /// Hosts 1 and 2 with a session that 1 initiated and both have used; the log is empty.
    pub fn connected() -> Self {
        let mut net = Net::pair(Role::Either, Role::Either);
        net.send(1, &between(1, 2, b"hello"));
        net.run_for(1.0);
        assert_eq!(net.host(2).received, [between(1, 2, b"hello")]);
        net.host(2).received.clear();
        net.log.clear();
        net
    }

    pub fn host(&mut self, number: u8) -> &mut Host {
        self.hosts.get_mut(&number).unwrap()
    }

    /// Gives a host an IP packet to send.
    pub fn send(&mut self, number: u8, packet: &[u8]) {
        let now = self.now;
        self.call(number, |node| node.handle_packet(packet, now));
    }

    /// Gives a host a datagram, past the network. Returns what it answers at once.
    pub fn inject(&mut self, number: u8, source: SocketAddr, datagram: &[u8]) -> Vec<Sent> {
        let now = self.now;
        let logged = self.log.len();
        self.call(number, |node| node.handle_datagram(source, datagram, now));
        self.log[logged..].to_vec()
    }

    /// Calls a node, and puts what comes of it on its way.
    pub fn call<T>(&mut self, number: u8, call: impl FnOnce(&mut Node) -> T) -> T {
        let host = self.hosts.get_mut(&number).unwrap();
        let result = call(&mut host.node);
        for (destination, datagram) in host.node.output().transmits() {
            let sent = Sent {
                at: self.now,
                source: host.address,
                destination,
                bytes: datagram.to_vec(),
            };
            if !(self.loses)(&sent) {
                self.in_flight
                    .insert((self.now + LATENCY, self.log.len()), sent.clone());
            }
            self.log.push(sent);
        }
        host.received
            .extend(host.node.output().packets.iter().map(<[u8]>::to_vec));
        host.events.extend(host.node.take_events());
        host.node.clear_output();
        result
    }

    pub fn run_for(&mut self, seconds: f64) {
        self.run_until(self.now + Duration::from_secs_f64(seconds));
    }

    /// Goes from one announced instant and arrival to the next, up to and including `end`.
    pub fn run_until(&mut self, end: Instant) {
        loop {
            let arrival = self.in_flight.first_key_value().map(|((at, _), _)| *at);
            let timeout =
                |(number, host): (&u8, &Host)| Some((host.node.next_timeout()?.at, *number));
            let timeout = self.hosts.iter().filter_map(timeout).min();
            match (arrival, timeout) {
                (Some(at), timeout) if at <= end && timeout.is_none_or(|(due, _)| at <= due) => {
                    self.now = at;
                    let (_, datagram) = self.in_flight.pop_first().unwrap();
                    self.deliver(datagram);
                }
                (_, Some((at, number))) if at <= end => {
                    self.now = at;
                    self.call(number, |node| node.handle_timeout(at));
                    let next = self.host(number).node.next_timeout();
                    assert!(
                        next.is_none_or(|next| next.at > at),
                        "a deadline that was met is announced again"
                    );
                }
                _ => break,
            }
        }
        self.now = end;
    }

    fn deliver(&mut self, datagram: Sent) {
        let here = |(number, host): (&u8, &Host)| {
            (host.address == datagram.destination).then_some(*number)
        };
        if let Some(number) = self.hosts.iter().find_map(here) {
            let now = self.now;
            self.call(number, |node| {
                node.handle_datagram(datagram.source, &datagram.bytes, now)
            });
        }
    }

    /// How many messages of a kind a host sent.
    pub fn count(&self, source: u8, kind: u8) -> usize {
        let source = self.hosts[&source].address;
        self.log
            .iter()
            .filter(|sent| sent.source == source && sent.kind() == kind)
            .count()
    }

    pub fn stats(&self, number: u8) -> NodeStats {
        self.hosts[&number].node.stats(self.now)
    }

    /// What host `number` knows of its peer `peer`.
    pub fn peer_stats(&self, number: u8, peer: u8) -> PeerStats {
        let key = public_key(peer);
        self.stats(number)
            .peers
            .into_iter()
            .find(|stats| stats.public_key == key)
            .unwrap()
    }

    pub fn endpoint(&self, number: u8, peer: u8) -> Option<SocketAddr> {
        self.peer_stats(number, peer).endpoint
    }

    /// How often host `number` dropped something of this peer's for this reason.
    pub fn drops(&self, number: u8, peer: u8, reason: DropReason) -> u64 {
        self.peer_stats(number, peer).drops.get(reason)
    }
}
