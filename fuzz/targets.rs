//! What is fuzzed: the parsers; a session that gets genuine, forged and changed messages; and two nodes, of which the input
//! says who does what when, and what becomes of each datagram on the way.
//!
//! No input may make a target panic, and each asserts what must hold besides.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use connlib_boringtun::noise;
use connlib_core::{
    Instant, Node, NodeConfig, PeerConfig, Prefix, PublicKey, Role, Secret, StaticSecret,
};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

/// The wall clock at the beginning: 2026-01-01.
const UNIX_TIME: Duration = Duration::from_secs(1_767_225_600);

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 51820))
}

/// Host `number` of two, which is 10.0.0.`number` inside.
fn node(number: u8, role: Role, handshake_limit: u64) -> Node {
    let other = 3 - number;
    let public = PublicKey::from(&StaticSecret::from([other; 32]));
    let peer = PeerConfig {
        allowed_ips: vec![Prefix {
            address: [10, 0, 0, other].into(),
            length: 32,
        }],
        endpoint: Some(address(other)),
        role,
        ..PeerConfig::new(*public.as_bytes())
    };
    let config = NodeConfig {
        peers: vec![peer],
        handshake_limit,
        ..NodeConfig::new(Secret::new([number; 32]))
    };
    let rng = Box::new(ChaCha20Rng::from_seed([number; 32]));
    Node::new(config, Instant::from_nanos(0), UNIX_TIME, rng).expect("a good configuration")
}

/// An IPv4 packet of 24 bytes from one host to the other, which carries a number.
fn packet(from: u8, number: u32) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 24, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend([10, 0, 0, from, 10, 0, 0, 3 - from]);
    packet.extend(number.to_be_bytes());
    packet
}

/// Takes what a node has put out.
fn drain(node: &mut Node) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let output = node.output();
    assert_eq!(output.destinations.len(), output.datagrams.len());
    let datagrams = output.datagrams.iter().map(<[u8]>::to_vec).collect();
    let packets = output.packets.iter().map(<[u8]>::to_vec).collect();
    node.clear_output();
    node.take_events();
    (datagrams, packets)
}

/// Everything that looks at bytes before any key does.
pub fn parse(data: &[u8]) {
    if let Ok(message) = noise::Tunn::parse_incoming_packet(data) {
        let length = match message {
            noise::Packet::HandshakeInit(_) => data.len() == 148,
            noise::Packet::HandshakeResponse(_) => data.len() == 92,
            noise::Packet::PacketCookieReply(_) => data.len() == 64,
            noise::Packet::PacketData(_) => data.len() >= 32,
        };
        assert!(length && (1..=4).contains(&data[0]));
    }
    let version = data.first().map(|first| first >> 4);
    for address in [
        noise::Tunn::dst_address(data),
        noise::Tunn::src_address(data),
    ] {
        match address {
            Some(address) => assert_eq!(version, Some(if address.is_ipv4() { 4 } else { 6 })),
            None => assert!(data.len() < 40 || !matches!(version, Some(4 | 6))),
        }
    }
    // And the whole way in, from outside and from the device, where nobody has a session.
    let mut node = node(1, Role::Responder, 10);
    node.handle_datagram(address(2), data, Instant::from_nanos(1));
    node.handle_packet(data, Instant::from_nanos(1));
    let (datagrams, packets) = drain(&mut node);
    assert!(packets.is_empty());
    // Only who knows our public key can make us say something, and it is no longer than what came.
    assert!(
        datagrams
            .iter()
            .all(|datagram| datagram.len() <= data.len())
    );
}

/// Reads an input byte by byte; zeros when it is over.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// One of so many; `None` of none.
    fn index(&mut self, count: usize) -> Option<usize> {
        usize::from(self.byte()).checked_rem(count)
    }
}

/// Two nodes with a session between them.
fn connected() -> (Node, Node, Instant) {
    let (mut one, mut two) = (
        node(1, Role::Either, u64::MAX),
        node(2, Role::Either, u64::MAX),
    );
    let now = Instant::from_nanos(1);
    one.handle_packet(&packet(1, 0), now);
    for _ in 0..2 {
        for datagram in drain(&mut one).0 {
            two.handle_datagram(address(1), &datagram, now);
        }
        for datagram in two
            .output()
            .datagrams
            .iter()
            .map(<[u8]>::to_vec)
            .collect::<Vec<_>>()
        {
            one.handle_datagram(address(2), &datagram, now);
        }
        two.drain_datagrams(usize::MAX);
    }
    assert_eq!(drain(&mut two).1, [packet(1, 0)]);
    (one, two, now)
}

/// A session's receiving end: genuine messages, changed ones, and whatever bytes with its own index on them.
pub fn decapsulate(data: &[u8]) {
    let (mut one, mut two, mut now) = connected();
    let mut script = Script(data);
    let mut genuine: Vec<Vec<u8>> = Vec::new();
    let mut delivered = BTreeSet::new();
    one.handle_packet(&packet(1, 1), now);
    genuine.extend(drain(&mut one).0);
    let index = genuine[0][4..8].to_vec();
    while !script.0.is_empty() {
        let is_genuine;
        let datagram = match script.byte() % 6 {
            // As it is.
            0 => {
                is_genuine = false;
                let length = script.byte();
                script.bytes(length.into()).to_vec()
            }
            // Behind the header of a data message to this session.
            1 => {
                is_genuine = false;
                let mut datagram = vec![4, 0, 0, 0];
                datagram.extend(&index);
                let length = script.byte();
                datagram.extend(script.bytes(length.into()));
                datagram
            }
            // Sealed by the peer: a packet with anything behind the addresses, and a length that may be a lie.
            2 => {
                is_genuine = true;
                let mut inner = packet(1, 1 + genuine.len() as u32);
                inner[0] = 0x40 | script.byte() & 15;
                inner[3] = script.byte();
                let length = script.byte();
                inner.extend(script.bytes(length.into()));
                one.handle_packet(&inner, now);
                let (datagrams, _) = drain(&mut one);
                let Some(data) = datagrams.into_iter().find(|datagram| datagram[0] == 4) else {
                    continue;
                };
                genuine.push(data.clone());
                data
            }
            // One that was sent before.
            3 => {
                is_genuine = true;
                let Some(nth) = script.index(genuine.len()) else {
                    continue;
                };
                genuine[nth].clone()
            }
            // The same, with one byte changed.
            4 => {
                let Some(nth) = script.index(genuine.len()) else {
                    continue;
                };
                let mut datagram = genuine[nth].clone();
                let place = script.index(datagram.len()).unwrap_or(0);
                let change = script.byte();
                datagram[place] ^= change;
                is_genuine = change == 0;
                datagram
            }
            _ => {
                now += Duration::from_millis(u64::from(script.byte()) * 100);
                two.handle_timeout(now);
                drain(&mut two);
                continue;
            }
        };
        two.handle_datagram(address(1), &datagram, now);
        let (_, packets) = drain(&mut two);
        if !packets.is_empty() {
            assert!(is_genuine && packets.len() == 1);
            // Each counter once.
            assert!(delivered.insert(datagram[..16].to_vec()));
            assert_eq!(packets[0][12..16], [10, 0, 0, 1]);
        }
    }
}

/// Two nodes from their first packet on. The input calls them, and is the network between them and the clock.
pub fn handshake(data: &[u8]) {
    let mut script = Script(data);
    let first = script.byte();
    let role = |bits| match bits & 3 {
        0 | 3 => Role::Either,
        1 => Role::Initiator,
        _ => Role::Responder,
    };
    let limit = if first & 16 == 0 { u64::MAX } else { 2 };
    let roles = [role(first), role(first >> 2)];
    let mut nodes = [node(1, roles[0], limit), node(2, roles[1], limit)];
    let mut on_the_way: Vec<(usize, Vec<u8>)> = Vec::new();
    let mut seen: Vec<(usize, Vec<u8>)> = Vec::new();
    let mut offered = 0;
    let mut arrived = BTreeSet::new();
    let mut now = Instant::from_nanos(1);
    while !script.0.is_empty() {
        let action = script.byte();
        let host = usize::from(action >> 7);
        let node = &mut nodes[host];
        let peer = *PublicKey::from(&StaticSecret::from([2 - host as u8; 32])).as_bytes();
        match action & 7 {
            0 => {
                offered += 1;
                node.handle_packet(&packet(host as u8 + 1, offered), now);
            }
            1 => drop(node.initiate_handshake(&peer, now)),
            2 => node.handle_timeout(now),
            // To the next deadline, or past it.
            3 => {
                let next = nodes.iter().filter_map(Node::next_timeout).min();
                now = next.map_or(now, |next| next.at.max(now));
                now += Duration::from_millis(u64::from(script.byte()) * 16);
            }
            4 | 5 => {
                let Some(nth) = script.index(on_the_way.len()) else {
                    continue;
                };
                let (to, datagram) = on_the_way.remove(nth);
                nodes[to].handle_datagram(address(2 - to as u8), &datagram, now);
            }
            // Changed on the way, which stays on its way as it was.
            6 => {
                let Some(nth) = script.index(on_the_way.len()) else {
                    continue;
                };
                let (to, mut datagram) = on_the_way[nth].clone();
                let place = script.index(datagram.len()).unwrap_or(0);
                datagram[place] ^= script.byte();
                nodes[to].handle_datagram(address(2 - to as u8), &datagram, now);
            }
            // Once more, from wherever, to whomever.
            _ => {
                let Some(nth) = script.index(seen.len()) else {
                    continue;
                };
                let from = address(script.byte());
                node.handle_datagram(from, &seen[nth].1, now);
            }
        }
        for (host, node) in nodes.iter_mut().enumerate() {
            let (datagrams, packets) = drain(node);
            for datagram in datagrams {
                assert!(
                    roles[host] != Role::Responder || datagram[0] != 1,
                    "a responder initiates"
                );
                assert!(
                    roles[host] != Role::Initiator || datagram[0] != 2,
                    "an initiator answers"
                );
                seen.push((1 - host, datagram.clone()));
                on_the_way.push((1 - host, datagram));
            }
            for packet in packets {
                assert_eq!(packet[..20], self::packet(2 - host as u8, 0)[..20]);
                assert!(arrived.insert((host, packet)), "a packet arrives twice");
            }
            let stats = node.stats(now);
            assert!(stats.peers[0].tunnel.sessions <= 3);
            assert!(stats.peers[0].tunnel.queued <= 256);
        }
    }
}
