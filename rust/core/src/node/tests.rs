//! What only shows from inside: which peers a call touches, that the announced deadline is the earliest of all, and that no
//! receiver index is left behind.

use std::net::SocketAddr;
use std::time::Duration;

use connlib_boringtun::x25519::{PublicKey, StaticSecret};
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::peers::Peer;
use super::*;
use crate::{Event, Secret};

/// The private key of host `number`.
fn private_key(number: u32) -> [u8; 32] {
    let mut key = [7; 32];
    ChaCha20Rng::seed_from_u64(number.into()).fill_bytes(&mut key);
    key
}

fn public_key(number: u32) -> [u8; 32] {
    *PublicKey::from(&StaticSecret::from(private_key(number))).as_bytes()
}

fn address(number: u32) -> SocketAddr {
    SocketAddr::from((number.to_be_bytes(), 51820))
}

fn peer(number: u32) -> PeerConfig {
    PeerConfig {
        allowed_ips: vec![Prefix {
            address: inner(number).into(),
            length: 32,
        }],
        endpoint: Some(address(number)),
        ..PeerConfig::new(public_key(number))
    }
}

fn inner(number: u32) -> [u8; 4] {
    (0x0a00_0000 | number).to_be_bytes()
}

/// Host `number` with these peers.
fn node(number: u32, peers: impl IntoIterator<Item = PeerConfig>) -> Node {
    let config = NodeConfig {
        peers: peers.into_iter().collect(),
        handshake_limit: u64::MAX,
        ..NodeConfig::new(Secret::new(private_key(number)))
    };
    let rng = Box::new(ChaCha20Rng::seed_from_u64(number.into()));
    Node::new(
        config,
        Instant::from_nanos(0),
        Duration::from_secs(1_700_000_000),
        rng,
    )
    .unwrap()
}

fn packet(from: u32, to: u32) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(inner(from));
    packet.extend(inner(to));
    packet
}

/// Carries everything between two nodes at once, until nobody has anything to say.
fn exchange(a: (u32, &mut Node), b: (u32, &mut Node), now: Instant) {
    let (a, b) = ((address(a.0), a.1), (address(b.0), b.1));
    while !a.1.output.datagrams.is_empty() || !b.1.output.datagrams.is_empty() {
        for (from, to) in [(0, 1), (1, 0)] {
            let nodes = [(a.0, &mut *a.1), (b.0, &mut *b.1)];
            let [(source, sender), (_, receiver)] = match (from, to) {
                (0, 1) => nodes,
                _ => {
                    let [a, b] = nodes;
                    [b, a]
                }
            };
            for datagram in sender.output.datagrams.iter() {
                receiver.handle_datagram(source, datagram, now);
            }
            sender.clear_output();
        }
    }
}

#[test]
fn one_packet_touches_one_of_a_thousand_peers() {
    let mut node = node(0, (1..=1000).map(peer));
    let mut other = super::tests::node(500, [peer(0)]);
    let mut now = Instant::from_nanos(1);
    let touched = |node: &mut Node| std::mem::take(&mut node.touched);
    touched(&mut node);

    let slot = node.peers.find(&public_key(500)).unwrap();
    node.handle_packet(&packet(0, 500), now);
    assert_eq!(touched(&mut node), [slot]);
    exchange((0, &mut node), (500, &mut other), now);
    assert_eq!(
        node.stats(now)
            .peers
            .iter()
            .map(|peer| peer.tunnel.sessions)
            .sum::<usize>(),
        1
    );
    touched(&mut node);

    now += Duration::from_secs(1);
    other.handle_packet(&packet(500, 0), now);
    let datagram = other.output.datagrams.bytes.clone();
    node.handle_datagram(address(500), &datagram, now);
    assert_eq!(node.output.packets.len(), 1);
    assert_eq!(touched(&mut node), [slot]);

    // What is wrong touches nobody; what is due, only those whose time has come.
    node.handle_datagram(address(500), &datagram[..31], now);
    node.handle_packet(&packet(0, 2000), now);
    node.handle_timeout(now);
    assert_eq!(touched(&mut node), []);
    let first = node.next_timeout().unwrap();
    node.handle_timeout(first.at);
    assert_eq!(touched(&mut node), [slot]);
}

#[test]
fn peers_that_are_overdue_are_called_once_each_in_the_order_of_their_deadlines() {
    let mut node = node(0, (1..=100).map(peer));
    let now = Instant::from_nanos(1);
    for number in (1..=100).rev() {
        node.handle_packet(&packet(0, number), now);
    }
    let give_up = now + Duration::from_secs(90);
    let mut expected: Vec<_> = (0..100).collect();
    expected.sort_by_key(|slot| {
        (
            node.peers
                .get(*slot)
                .unwrap()
                .tunn
                .as_ref()
                .unwrap()
                .next_timeout(),
            *slot,
        )
    });
    node.clear_output();
    node.touched.clear();
    node.handle_timeout(give_up);
    assert_eq!(std::mem::take(&mut node.touched), expected);
    assert_eq!(node.next_timeout(), None);
    let gave_up = expected
        .iter()
        .map(|slot| node.peers.get(*slot).unwrap().settings.public_key);
    let events: Vec<_> = gave_up
        .map(|key| (key, Event::GaveUp { dropped: 1 }.into()))
        .collect();
    assert_eq!(node.take_events(), events);
}

#[test]
fn receiver_indices_are_given_back() {
    let mut a = node(1, [peer(2)]);
    let mut b = node(2, [peer(1)]);
    let mut now = Instant::from_nanos(1);
    for _ in 0..600 {
        now += Duration::from_secs(1);
        a.initiate_handshake(&public_key(2), now).unwrap();
        exchange((1, &mut a), (2, &mut b), now);
        assert!(a.indices.len() <= 5 && b.indices.len() <= 5);
    }
    assert!(!a.indices.is_empty() && !b.indices.is_empty());
    // Of removed peers and of tunnels made anew nothing is left.
    let config = |number, peers| NodeConfig {
        peers,
        ..NodeConfig::new(Secret::new(private_key(number)))
    };
    a.apply(config(1, vec![]), now).unwrap();
    b.apply(config(4, vec![peer(1)]), now).unwrap();
    assert!(a.indices.is_empty() && b.indices.is_empty());
    assert_eq!((a.next_timeout(), b.next_timeout()), (None, None));
}

#[test]
fn a_panic_in_the_middle_of_a_call_takes_back_what_that_call_had_put_out_and_no_more() {
    let mut hub = node(0, (1..=3).map(peer));
    let mut spokes: Vec<_> = (1..=3).map(|number| node(number, [peer(0)])).collect();
    let now = Instant::from_nanos(1);
    for (number, spoke) in (1..).zip(&mut spokes) {
        spoke.handle_packet(&packet(number, 0), now);
        exchange((number, spoke), (0, &mut hub), now);
    }
    let take_packets = |node: &mut Node| {
        let packets: Vec<_> = node.output.packets.iter().map(<[u8]>::to_vec).collect();
        node.clear_output();
        packets
    };
    assert_eq!(hub.stats(now).peers.len(), 3);
    hub.clear_output();

    // A batch: 1 has sent a packet, 2 fails with all kinds of output half done, 3 has sent a packet.
    let mut sent = |number: u32| {
        let spoke = &mut spokes[number as usize - 1];
        spoke.handle_packet(&packet(number, 0), now);
        let datagram = spoke.output.datagrams.bytes.clone();
        spoke.clear_output();
        datagram
    };
    let (first, second, third) = (sent(1), sent(2), sent(3));
    hub.handle_datagram(address(1), &first, now);
    hub.handle_packet(&packet(0, 1), now);
    let slot = hub.peers.find(&public_key(2)).unwrap();
    let indices = hub.indices.len();
    let result: Option<()> = hub.drive(slot, now, |tunn, env, out| {
        tunn.encapsulate(&packet(0, 2), env, out).unwrap();
        out.packets.push(b"a whole packet");
        out.packets.bytes.extend(b"half of one");
        out.datagrams.bytes.extend(b"half a datagram");
        out.events.push(Event::PeerSilent);
        panic!("in the middle");
    });
    hub.settle(slot, None);
    assert!(result.is_none());
    hub.handle_packet(&packet(0, 3), now);
    hub.handle_datagram(address(3), &third, now);

    assert_eq!(hub.take_events(), [(public_key(2), Event::Poisoned.into())]);
    let destinations: Vec<_> = hub.output.transmits().map(|(to, _)| to).collect();
    assert_eq!(destinations, [address(1), address(3)]);
    assert_eq!(take_packets(&mut hub), [packet(1, 0), packet(3, 0)]);
    // Its receiver index is free, so that what it is still sent finds nobody.
    assert_eq!(hub.indices.len(), indices - 1);
    hub.handle_datagram(address(2), &second, now);
    assert_eq!(hub.drops.get(DropReason::WrongIndex), 1);
    assert!(hub.output.is_empty());
}

/// Nodes 0 and 1 with a session that both have used, and nothing in their outputs; 0 has another peer.
fn connected() -> (Node, Node, Instant) {
    let responder = PeerConfig {
        role: crate::Role::Responder,
        ..peer(1)
    };
    let (mut hub, mut spoke) = (node(0, [responder, peer(2)]), node(1, [peer(0)]));
    let now = Instant::from_nanos(1);
    spoke.handle_packet(&packet(1, 0), now);
    exchange((0, &mut hub), (1, &mut spoke), now);
    for node in [&mut hub, &mut spoke] {
        node.clear_output();
    }
    (hub, spoke, now)
}

/// In the midst of a batch, two packets are laid out, then the call does something to a third one, then comes a fourth.
fn batch_with(hub: &mut Node, now: Instant, call: impl FnOnce(&mut Node)) {
    hub.always_together();
    hub.seal_later();
    hub.handle_packet(&packet(0, 1), now);
    hub.handle_packet(&packet(0, 1), now);
    let sealed = hub.output.datagrams.bytes.clone();
    call(hub);
    hub.handle_packet(&packet(0, 1), now);
    assert!(
        hub.output.datagrams.bytes.starts_with(&sealed),
        "they are not sealed yet"
    );
    hub.output.tunnels.seal_now(&mut hub.encryption.engine);
    assert!(!hub.output.datagrams.bytes.starts_with(&sealed));
}

fn opened(spoke: &mut Node, hub: &Node, now: Instant) -> usize {
    for datagram in hub.output.datagrams.iter() {
        spoke.handle_datagram(address(0), datagram, now);
    }
    spoke.output.packets.len()
}

#[test]
fn a_panic_in_the_middle_of_a_batch_takes_back_what_was_laid_out_by_its_call_and_no_more() {
    let (mut hub, mut spoke, now) = connected();
    let slot = hub.peers.find(&public_key(1)).unwrap();
    batch_with(&mut hub, now, |hub| {
        hub.drive(slot, now, |tunn, env, out| {
            tunn.encapsulate(&packet(0, 1), env, out).unwrap();
            panic!("a panic that a test asked for")
        });
        hub.settle(slot, None);
        // In the place of what was taken back comes an initiation.
        hub.handle_packet(&packet(0, 2), now);
    });
    // The peer of the last one is gone by then.
    assert_eq!(hub.output.datagrams.lengths[2..], [148]);
    assert_eq!(opened(&mut spoke, &hub, now), 2);
    let mut other = node(2, [peer(0)]);
    let initiation = hub.output.datagrams.iter().last().unwrap();
    other.handle_datagram(address(0), initiation, now);
    assert_eq!(other.output.datagrams.lengths, [92], "it is as it was");
}

#[test]
fn what_was_laid_out_for_a_peer_without_an_endpoint_is_taken_back_and_what_follows_is_sealed() {
    let (mut hub, mut spoke, now) = connected();
    let slot = hub.peers.find(&public_key(1)).unwrap();
    batch_with(&mut hub, now, |hub| {
        let endpoint = hub.peers.get_mut(slot).unwrap().endpoint.take();
        hub.handle_packet(&packet(0, 1), now);
        assert_eq!(hub.output.datagrams.len(), 2);
        hub.peers.get_mut(slot).unwrap().endpoint = endpoint;
    });
    assert_eq!(hub.output.datagrams.len(), 3);
    assert_eq!(opened(&mut spoke, &hub, now), 3);
}

#[test]
fn a_session_that_ends_in_the_middle_of_a_batch_still_seals_what_was_laid_out() {
    let (mut hub, mut spoke, now) = connected();
    let slot = hub.peers.find(&public_key(1)).unwrap();
    batch_with(&mut hub, now, |hub| {
        let peer = hub.peers.get_mut(slot).unwrap();
        let mut indices = crate::indices::Owned {
            table: &mut hub.indices,
            owner: slot,
        };
        peer.tunn.as_mut().unwrap().release_indices(&mut indices);
    });
    assert_eq!(
        hub.output.datagrams.len(),
        2,
        "the last one waits for a session"
    );
    assert_eq!(opened(&mut spoke, &hub, now), 2);
}

#[test]
fn nothing_of_a_forged_datagram_is_left_in_the_output_of_a_batch() {
    let (mut hub, mut spoke, now) = connected();
    let mut marked = packet(1, 0);
    marked[2..4].copy_from_slice(&420u16.to_be_bytes());
    marked.resize(420, 0xa5);
    for _ in 0..9 {
        spoke.handle_packet(&marked, now);
    }
    let mut forged: Vec<Vec<u8>> = spoke.output.datagrams.iter().map(<[u8]>::to_vec).collect();
    forged
        .iter_mut()
        .for_each(|datagram| *datagram.last_mut().unwrap() ^= 1);
    hub.always_together();
    let path = Path::from(address(1));
    hub.handle_datagrams(forged.iter().map(|datagram| (path, 0, &datagram[..])), now);
    assert!(hub.output.is_empty());
    let peers = hub.stats(now).peers.into_iter();
    let forged: u64 = peers
        .map(|peer| peer.drops.get(DropReason::InvalidAeadTag))
        .sum();
    assert_eq!(forged, 9);
    // Nor in the memory in which they were opened.
    let written = 9 * (432 + 16);
    let memory = hub
        .opening
        .bytes
        .spare_capacity_mut()
        .get(..written)
        .unwrap();
    // SAFETY: so many bytes were copied there, and the memory was not given back since.
    let memory: Vec<u8> = memory
        .iter()
        .map(|byte| unsafe { byte.assume_init() })
        .collect();
    assert_eq!(memory, vec![0; written]);
}

#[test]
fn what_a_peer_had_queued_is_counted_once_when_a_call_that_queues_or_sends_panics() {
    // 1 has a session and an empty queue, 2 has none and three packets that wait.
    let mut hub = node(0, (1..=2).map(peer));
    let mut spoke = node(1, [peer(0)]);
    let now = Instant::from_nanos(1);
    spoke.handle_packet(&packet(1, 0), now);
    exchange((1, &mut spoke), (0, &mut hub), now);
    for _ in 0..3 {
        hub.handle_packet(&packet(0, 2), now);
    }
    for (number, waiting) in [(1, 0), (2, 3)] {
        let slot = hub.peers.find(&public_key(number)).unwrap();
        assert_eq!(
            hub.peers.get(slot).unwrap().tunn.as_ref().unwrap().queued(),
            waiting
        );
        // The call takes a packet, and fails only after that. The packet of the call is its caller's to count.
        let result: Option<()> = hub.drive(slot, now, |tunn, env, out| {
            tunn.encapsulate(&packet(0, number), env, out).unwrap();
            panic!("afterwards");
        });
        hub.settle(slot, None);
        assert!(result.is_none());
        let drops = hub.peers.get(slot).unwrap().drops.counts();
        assert_eq!(drops.get(DropReason::PeerPoisoned), waiting as u64);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Packet(u32),
    Datagram(u32, usize),
    Initiate(u32),
    Timeout,
    Keepalive(u32, u64),
    Remove(u32),
    Wait(u64),
    Back(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let peer = 1..=6u32;
    prop_oneof![
        4 => peer.clone().prop_map(Step::Packet),
        4 => (peer.clone(), 0..4usize).prop_map(|(peer, nth)| Step::Datagram(peer, nth)),
        2 => peer.clone().prop_map(Step::Initiate),
        2 => Just(Step::Timeout),
        1 => (peer.clone(), 0..40u64).prop_map(|(peer, seconds)| Step::Keepalive(peer, seconds)),
        1 => peer.prop_map(Step::Remove),
        3 => (0..60_000u64).prop_map(Step::Wait),
        1 => (0..10_000u64).prop_map(Step::Back),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_announced_deadline_is_the_earliest_of_all_peers(steps in prop::collection::vec(step(), 1..80)) {
        let mut peers: Vec<_> = (1..=6).map(peer).collect();
        let mut hub = node(0, peers.clone());
        let mut spokes: Vec<_> = (1..=6).map(|number| node(number, [peer(0)])).collect();
        let mut now = Instant::from_nanos(1);
        let mut latest = now;
        for step in steps {
            match step {
                Step::Packet(to) => hub.handle_packet(&packet(0, to), now),
                Step::Initiate(to) => drop(hub.initiate_handshake(&public_key(to), now)),
                Step::Timeout => hub.handle_timeout(now),
                Step::Datagram(from, nth) => {
                    // The spoke hears what was sent to it, sends a packet of its own, and one of its datagrams comes back.
                    let spoke = &mut spokes[from as usize - 1];
                    for (destination, datagram) in hub.output.transmits() {
                        if destination == address(from) {
                            spoke.handle_datagram(address(0), datagram, now);
                        }
                    }
                    hub.clear_output();
                    spoke.handle_packet(&packet(from, 0), now);
                    if let Some(datagram) = spoke.output.datagrams.iter().nth(nth) {
                        hub.handle_datagram(address(from), datagram, now);
                    }
                    spoke.clear_output();
                }
                Step::Keepalive(number, seconds) => {
                    for peer in peers.iter_mut().filter(|peer| peer.public_key == public_key(number)) {
                        peer.persistent_keepalive = Some(Duration::from_secs(seconds));
                    }
                }
                Step::Remove(number) => match peers.iter().position(|peer| peer.public_key == public_key(number)) {
                    Some(position) => drop(peers.remove(position)),
                    None => peers.push(peer(number)),
                },
                Step::Wait(milliseconds) => now += Duration::from_millis(milliseconds),
                Step::Back(milliseconds) => {
                    now = Instant::from_nanos(now.as_nanos().saturating_sub(milliseconds * 1_000_000));
                }
            }
            let config = NodeConfig {
                peers: peers.clone(),
                handshake_limit: u64::MAX,
                ..NodeConfig::new(Secret::new(private_key(0)))
            };
            hub.apply(config, now).unwrap();
            latest = latest.max(now);

            let earliest = hub.peers.iter().filter_map(|peer| peer.tunn.as_ref()?.next_timeout()).map(|timeout| timeout.at).min();
            prop_assert_eq!(hub.next_timeout().map(|timeout| timeout.at), earliest.map(|at| at.max(latest)));
            let named = hub.next_timeout_peer().and_then(|key| hub.peers.find(&key));
            let own = named.and_then(|slot| hub.peers.get(slot)).and_then(|peer| peer.tunn.as_ref()?.next_timeout());
            prop_assert_eq!(own.map(|timeout| timeout.at), earliest);
            prop_assert_eq!(hub.output.destinations.len(), hub.output.datagrams.len());
            prop_assert_eq!(hub.waiting, hub.peers.iter().map(Peer::waiting).sum::<usize>());
        }
    }
}

#[test]
fn what_waits_for_peers_that_are_not_there_is_bounded_for_all_together() {
    let count = 1000;
    let mut hub = node(0, (1..=count).map(peer));
    let now = Instant::from_nanos(1);
    let wait = |hub: &mut Node, now| {
        for number in 1..=count {
            for _ in 0..300 {
                hub.handle_packet(&packet(0, number), now);
                hub.clear_output();
            }
        }
    };
    wait(&mut hub, now);
    // The first 32 have as many as one may; of each other one, the first waits, which brought its handshake about.
    assert_eq!(MOST_WAITING, 32 * 256);
    let waiting = |hub: &Node| hub.peers.iter().map(Peer::waiting).sum::<usize>();
    assert_eq!(waiting(&hub), MOST_WAITING + 968);
    let full: u64 = hub
        .peers
        .iter()
        .map(|peer| peer.drops.counts().get(DropReason::QueueFull))
        .sum();
    assert_eq!(full, 300_000 - (8192 + 968));
    assert!(hub.peers.iter().all(|peer| peer.waiting() >= 1));

    // One that comes gets what waited for it, and makes room for others.
    let mut spoke = node(1, [peer(0)]);
    spoke.handle_packet(&packet(1, 0), now);
    exchange((1, &mut spoke), (0, &mut hub), now);
    assert_eq!(hub.waiting, waiting(&hub));
    assert_eq!(hub.waiting, MOST_WAITING + 968 - 256);

    // So do those that are given up, and those that are removed.
    let removed: Vec<_> = (1..=count / 2).map(peer).collect();
    let config = NodeConfig {
        peers: removed,
        handshake_limit: u64::MAX,
        ..NodeConfig::new(Secret::new(private_key(0)))
    };
    hub.apply(config, now).unwrap();
    assert_eq!(hub.waiting, waiting(&hub));
    let mut late = now;
    while let Some(next) = hub.next_timeout().filter(|_| hub.waiting > 0) {
        late = next.at;
        hub.handle_timeout(late);
        hub.clear_output();
    }
    assert_eq!((hub.waiting, waiting(&hub)), (0, 0));
    hub.handle_packet(&packet(0, 2), late);
    hub.handle_packet(&packet(0, 2), late);
    assert_eq!(hub.waiting, 2);
}
