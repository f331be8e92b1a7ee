//! What can be had of the packets that go through a node, and of the keys to them.

use connlib_core::policy::{Action, Direction, Policy};
use connlib_core::{CaptureConfig, Captured, Layer, Missed, Node, PeerConfig, Role};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::net::*;

const BOTH: CaptureConfig = CaptureConfig {
    capacity: 1 << 20,
    outer: true,
    inner: true,
    snaplen: 65_535,
};

fn take(node: &mut Node) -> Vec<Captured> {
    let (packets, missed) = node.take_captured(usize::MAX);
    assert_eq!(missed, Missed::default());
    packets
}

/// What, which way, whose, and its bytes.
type Seen = (Layer, Direction, Option<[u8; 32]>, Vec<u8>);

fn seen(node: &mut Node) -> Vec<Seen> {
    let packets = take(node).into_iter();
    packets
        .map(|it| (it.layer, it.direction, it.peer, it.bytes.into()))
        .collect()
}

/// A kind of message instead of its bytes, and the size of what is inside.
fn kinds(node: &mut Node) -> Vec<(Layer, Direction, usize)> {
    let packets = take(node).into_iter();
    packets
        .map(|it| match it.layer {
            Layer::Inner => (it.layer, it.direction, it.size),
            Layer::Outer(_) => (it.layer, it.direction, it.bytes[0].into()),
        })
        .collect()
}

const HOST_1: Layer = Layer::Outer(SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
    51820,
));
const HOST_2: Layer = Layer::Outer(SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)),
    51820,
));
use Direction::{FromPeer, ToPeer};

#[test]
fn nothing_is_captured_unless_somebody_asks_for_it() {
    let mut net = Net::connected();
    net.send(1, &between(1, 2, b"hello"));
    assert!(!net.host(1).node.is_captured());
    assert_eq!(take(&mut net.host(1).node), []);
    assert_eq!(net.host(1).node.take_key_log().handshakes.iter().count(), 0);
}

#[test]
fn both_ends_see_every_message_and_every_packet_in_order() {
    let mut net = Net::pair(Role::Initiator, Role::Responder);
    for number in [1, 2] {
        net.host(number).node.capture(Some(BOTH));
        assert!(net.host(number).node.is_captured());
    }
    net.send(1, &between(1, 2, b"hello"));
    net.run_until(seconds(1.0));
    assert_eq!(
        kinds(&mut net.host(1).node),
        [
            (Layer::Inner, ToPeer, 25),
            (HOST_2, ToPeer, INITIATION.into()),
            (HOST_2, FromPeer, RESPONSE.into()),
            (HOST_2, ToPeer, DATA.into()),
        ]
    );
    assert_eq!(
        kinds(&mut net.host(2).node),
        [
            (HOST_1, FromPeer, INITIATION.into()),
            (HOST_1, ToPeer, RESPONSE.into()),
            (HOST_1, FromPeer, DATA.into()),
            (Layer::Inner, FromPeer, 25),
        ]
    );
    // What a deadline brings about: a keepalive.
    net.run_until(seconds(10.06));
    assert_eq!(
        kinds(&mut net.host(2).node),
        [(HOST_1, ToPeer, DATA.into())]
    );
}

#[test]
fn a_captured_packet_has_its_time_its_peer_its_first_bytes_and_its_size() {
    let mut net = Net::connected();
    let packet = between(1, 2, b"hello");
    net.host(1).node.capture(Some(CaptureConfig {
        snaplen: 21,
        ..BOTH
    }));
    net.log.clear();
    net.send(1, &packet);
    let sent = net.log.last().unwrap().bytes.clone();
    let (at, peer) = (net.now, Some(public_key(2)));
    assert_eq!(
        take(&mut net.host(1).node),
        [
            Captured {
                at,
                layer: Layer::Inner,
                direction: ToPeer,
                peer,
                bytes: packet[..21].into(),
                size: 25,
            },
            Captured {
                at,
                layer: HOST_2,
                direction: ToPeer,
                peer,
                bytes: sent[..21].into(),
                size: 64,
            },
        ]
    );
}

#[test]
fn of_what_several_calls_send_before_it_is_drained_each_is_captured_once_with_its_own_address() {
    let mut net = Net::new([(1, config(1, vec![peer(2), peer(3)]))]);
    let now = net.now;
    let node = &mut net.host(1).node;
    node.capture(Some(BOTH));
    for number in [2, 3] {
        node.initiate_handshake(&public_key(number), now).unwrap();
    }
    let sent: Vec<_> = node
        .output()
        .transmits()
        .zip([2, 3])
        .map(|((to, bytes), number)| {
            assert_eq!(to, address(number));
            let peer = Some(public_key(number));
            (Layer::Outer(to), ToPeer, peer, bytes.to_vec())
        })
        .collect();
    assert_eq!(sent.len(), 2);
    assert_eq!(seen(node), sent);
}

#[test]
fn what_is_refused_is_captured_too() {
    let mut net = Net::connected();
    net.host(1).node.capture(Some(BOTH));
    let stranger = address(9);
    net.inject(1, stranger, &[4; 64]);
    net.inject(1, stranger, b"");
    net.send(1, &between(1, 99, b"no route"));
    net.send(1, b"no packet");
    let outer = |data: &[u8]| (Layer::Outer(stranger), FromPeer, None, data.to_vec());
    let inner = |data: &[u8]| (Layer::Inner, ToPeer, None, data.to_vec());
    assert_eq!(
        seen(&mut net.host(1).node),
        [
            outer(&[4; 64]),
            outer(b""),
            inner(&between(1, 99, b"no route")),
            inner(b"no packet"),
        ]
    );
}

#[test]
fn a_cookie_reply_is_captured_after_the_initiation_that_it_answers() {
    let mut net = Net::pair(Role::Either, Role::Either);
    net.loses = |_| true;
    net.send(1, &between(1, 2, b"hello"));
    let initiation = net.log[0].bytes.clone();
    let mut limited = config(2, vec![peer(1)]);
    limited.handshake_limit = 0;
    let now = net.now;
    net.call(2, |node| node.apply(limited, now)).unwrap();
    net.host(2).node.capture(Some(BOTH));
    net.inject(2, address(1), &initiation);
    assert_eq!(
        kinds(&mut net.host(2).node),
        [
            (HOST_1, FromPeer, INITIATION.into()),
            (HOST_1, ToPeer, COOKIE_REPLY.into()),
        ]
    );
}

#[test]
fn a_packet_that_a_policy_takes_back_is_not_delivered_and_its_answer_is_captured() {
    let deny = Policy::new(vec![], Action::Deny, Action::Deny).unwrap();
    let strict = PeerConfig {
        policy: Some(Arc::new(deny)),
        ..peer(1)
    };
    let mut net = Net::new([(1, config(1, vec![peer(2)])), (2, config(2, vec![strict]))]);
    net.host(2).node.capture(Some(BOTH));
    net.send(1, &between(1, 2, b"8 bytes.and more"));
    net.run_for(1.0);
    assert!(net.host(2).received.is_empty());
    let inner = |net: &mut Net| {
        let all = seen(&mut net.host(2).node).into_iter();
        all.filter(|(layer, ..)| *layer == Layer::Inner)
            .collect::<Vec<_>>()
    };
    let [(_, ToPeer, whose, answer)] = &inner(&mut net)[..] else {
        panic!("the answer alone")
    };
    assert_eq!(*whose, Some(public_key(1)));
    assert_eq!(net.host(1).received, std::slice::from_ref(answer));

    // The other way round the answer goes to the TUN device.
    net.send(2, &between(2, 1, b"8 bytes.and more"));
    let [(_, ToPeer, _, packet), (_, FromPeer, _, answer)] = &inner(&mut net)[..] else {
        panic!("a packet and an answer")
    };
    assert_eq!(*packet, between(2, 1, b"8 bytes.and more"));
    assert_eq!(net.host(2).received, std::slice::from_ref(answer));
}

#[test]
fn outer_and_inner_are_captured_each_on_its_own() {
    for (outer, inner) in [(true, false), (false, true)] {
        let mut net = Net::connected();
        net.host(1).node.capture(Some(CaptureConfig {
            outer,
            inner,
            ..BOTH
        }));
        net.send(1, &between(1, 2, b"hello"));
        let layers: Vec<_> = take(&mut net.host(1).node)
            .iter()
            .map(|packet| packet.layer)
            .collect();
        assert_eq!(layers, [if inner { Layer::Inner } else { HOST_2 }]);
    }
}

#[test]
fn a_capture_of_neither_layer_keeps_what_waits_and_adds_nothing() {
    let mut net = Net::connected();
    net.host(1).node.capture(Some(BOTH));
    net.send(1, &between(1, 2, b"hello"));
    net.host(1).node.capture(Some(CaptureConfig {
        outer: false,
        inner: false,
        ..BOTH
    }));
    net.send(1, &between(1, 2, b"hello"));
    assert_eq!(
        kinds(&mut net.host(1).node),
        [(Layer::Inner, ToPeer, 25), (HOST_2, ToPeer, 4)]
    );
    net.host(1).node.capture(None);
    net.host(1).node.capture(Some(BOTH));
    assert_eq!(take(&mut net.host(1).node), []);
}

#[test]
fn beyond_the_capacity_packets_are_counted_and_what_is_taken_makes_room() {
    let mut net = Net::connected();
    let one = size_of::<Captured>() + 64;
    net.host(1).node.capture(Some(CaptureConfig {
        capacity: 2 * one,
        inner: false,
        ..BOTH
    }));
    for _ in 0..5 {
        net.send(1, &between(1, 2, b"hello"));
    }
    let (packets, missed) = net.host(1).node.take_captured(1);
    assert_eq!((packets.len(), missed), (1, Missed { outer: 3, inner: 0 }));
    for _ in 0..2 {
        net.send(1, &between(1, 2, b"hello"));
    }
    let (packets, missed) = net.host(1).node.take_captured(usize::MAX);
    assert_eq!((packets.len(), missed), (2, Missed { outer: 1, inner: 0 }));

    net.send(1, &between(1, 2, b"hello"));
    net.host(1).node.capture(None);
    net.send(1, &between(1, 2, b"hello"));
    assert_eq!(take(&mut net.host(1).node), []);
}

/// The ephemeral public keys to the private ones of a log.
fn ephemerals(node: &mut Node) -> Vec<[u8; 32]> {
    let taken = node.take_key_log();
    let keys = taken.handshakes.iter();
    keys.map(|keys| {
        let secret = connlib_core::StaticSecret::from(*keys.ephemeral);
        *connlib_core::PublicKey::from(&secret).as_bytes()
    })
    .collect()
}

#[test]
fn the_keys_of_handshakes_are_kept_while_somebody_wants_them_and_until_they_are_taken() {
    let mut net = Net::pair(Role::Either, Role::Either);
    for number in [1, 2] {
        net.host(number).node.log_keys(true);
    }
    net.send(1, &between(1, 2, b"hello"));
    net.run_for(1.0);
    let sent = |net: &Net, kind: u8, range: std::ops::Range<usize>| {
        let mut found = net.log.iter().filter(|sent| sent.kind() == kind);
        let last = found.next_back().unwrap();
        <[u8; 32]>::try_from(&last.bytes[range]).unwrap()
    };
    let initiation = sent(&net, INITIATION, 8..40);
    let response = sent(&net, RESPONSE, 12..44);
    assert_eq!(ephemerals(&mut net.host(1).node), [initiation]);
    assert_eq!(ephemerals(&mut net.host(2).node), [response]);
    assert_eq!(ephemerals(&mut net.host(2).node), [[0; 32]; 0]);

    net.host(1).node.log_keys(false);
    let (now, peer) = (net.now, public_key(2));
    net.call(1, |node| node.initiate_handshake(&peer, now))
        .unwrap();
    net.run_for(1.0);
    assert_eq!(ephemerals(&mut net.host(1).node), [[0; 32]; 0]);
    net.host(1).node.log_keys(true);
    assert_eq!(ephemerals(&mut net.host(1).node), [[0; 32]; 0]);
}

#[test]
fn a_peer_is_readable_from_its_next_session_on() {
    let mut net = Net::connected();
    net.host(1).node.log_keys(true);
    net.send(1, &between(1, 2, b"hello"));
    net.run_for(1.0);
    let readable = |net: &mut Net| net.host(1).node.take_key_log().readable;
    assert_eq!(readable(&mut net), [[0; 32]; 0]);
    // The response is under way for 20 ms: a handshake alone is nothing yet.
    let (now, peer) = (net.now, public_key(2));
    net.call(1, |node| node.initiate_handshake(&peer, now))
        .unwrap();
    assert_eq!(readable(&mut net), [[0; 32]; 0]);
    net.run_for(1.0);
    assert_eq!(readable(&mut net), [peer]);
    assert_eq!(readable(&mut net), [[0; 32]; 0]);
}

#[test]
fn a_session_whose_handshake_began_before_is_not_readable() {
    let mut net = Net::pair(Role::Either, Role::Either);
    net.send(1, &between(1, 2, b"hello"));
    net.host(1).node.log_keys(true);
    net.run_for(1.0);
    assert_eq!(net.host(2).received.len(), 1);
    let taken = net.host(1).node.take_key_log();
    assert_eq!(taken.handshakes.iter().count(), 0);
    assert_eq!(taken.readable, [[0; 32]; 0]);
}

#[test]
fn the_keys_of_a_handshake_are_those_that_the_node_had_then_and_every_preshared_key_it_may_end_with()
 {
    let mut net = Net::pair(Role::Either, Role::Either);
    net.loses = |_| true;
    net.host(1).node.log_keys(true);
    net.send(1, &between(1, 2, b"hello"));
    let with = |own: u8, shared: [u8; 32]| {
        let shared = PeerConfig {
            preshared_key: Some(connlib_core::Secret::new(shared)),
            ..peer(2)
        };
        config(own, vec![shared])
    };
    for shared in [[7; 32], [8; 32]] {
        let now = net.now;
        net.call(1, |node| node.apply(with(1, shared), now))
            .unwrap();
    }
    // Another private key makes every tunnel anew.
    let now = net.now;
    net.call(1, |node| node.apply(with(3, [8; 32]), now))
        .unwrap();
    net.send(1, &between(1, 2, b"hello"));
    let taken = net.host(1).node.take_key_log();
    let keys: Vec<_> = taken
        .handshakes
        .iter()
        .map(|keys| {
            assert_eq!(keys.peer, public_key(2));
            let preshared = keys.preshared.iter().map(|key| key[0]);
            (keys.own[0], preshared.collect::<Vec<_>>())
        })
        .collect();
    assert_eq!(keys, [(1, vec![7, 8]), (3, vec![8])]);
}
