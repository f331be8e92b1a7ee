//! Cryptokey routing: who gets a packet, and from whom it may come.

use connlib_core::{DropReason, PeerConfig, Role};

use crate::net::*;

/// Host 1 with the peers 2 and 3, both connected. 2 has a whole network, out of which 3 has one address.
fn hub() -> Net {
    let wide = PeerConfig {
        allowed_ips: vec![prefix("10.0.0.0/24"), prefix("fd00::/64")],
        ..peer(2)
    };
    let hub = config(1, vec![wide, peer(3)]);
    let spoke = |n| {
        // A spoke sends everything to the hub, and believes it everything.
        let everything = vec![prefix("0.0.0.0/0"), prefix("::/0")];
        (
            n,
            config(
                n,
                vec![PeerConfig {
                    allowed_ips: everything,
                    ..peer(1)
                }],
            ),
        )
    };
    let mut net = Net::new([(1, hub), spoke(2), spoke(3)]);
    for spoke in [2, 3] {
        net.send(spoke, &between(spoke, 1, b"hello"));
        net.run_for(1.0);
    }
    assert_eq!(net.host(1).received.len(), 2);
    net.host(1).received.clear();
    net
}

#[test]
fn the_longest_prefix_decides_where_a_packet_goes() {
    let mut net = hub();
    net.send(1, &between(1, 3, b"three"));
    net.send(1, &between(1, 4, b"anybody else"));
    net.send(1, &packet("fd00::1", "fd00::3", b"three"));
    net.send(1, &packet("fd00::1", "fd00::4", b"anybody else"));
    net.run_for(1.0);
    assert_eq!(
        net.host(2).received,
        [
            between(1, 4, b"anybody else"),
            packet("fd00::1", "fd00::4", b"anybody else")
        ]
    );
    assert_eq!(
        net.host(3).received,
        [
            between(1, 3, b"three"),
            packet("fd00::1", "fd00::3", b"three")
        ]
    );
}

#[test]
fn a_packet_from_another_peers_address_is_never_delivered() {
    let mut net = hub();
    for _ in 0..100 {
        net.send(2, &between(3, 1, b"as three"));
        net.send(2, &packet("fd00::3", "fd00::1", b"as three"));
        net.send(3, &between(2, 1, b"as two"));
        net.send(3, &packet("2001:db8::1", "fd00::1", b"as a stranger"));
    }
    net.run_for(1.0);
    assert_eq!(net.host(1).received, Vec::<Vec<u8>>::new());
    assert_eq!(net.drops(1, 2, DropReason::SourceNotAllowed), 200);
    assert_eq!(net.drops(1, 3, DropReason::SourceNotAllowed), 200);
    net.send(2, &between(77, 1, b"as itself"));
    net.run_for(1.0);
    assert_eq!(net.host(1).received, [between(77, 1, b"as itself")]);
}

#[test]
fn the_source_is_checked_by_both_sides() {
    let mut net = Net::connected();
    net.send(1, &packet("10.0.0.9", "10.0.0.2", b"not one"));
    net.send(2, &packet("10.0.0.9", "10.0.0.1", b"not two"));
    net.run_for(1.0);
    assert!(net.host(1).received.is_empty() && net.host(2).received.is_empty());
    assert_eq!(net.drops(1, 2, DropReason::SourceNotAllowed), 1);
    assert_eq!(net.drops(2, 1, DropReason::SourceNotAllowed), 1);
}

#[test]
fn packets_that_belong_to_nobody_are_counted() {
    let mut net = Net::connected();
    net.send(1, &between(1, 9, b"to nobody"));
    net.send(1, &packet("fd00::1", "fd00::9", b"to nobody"));
    net.send(1, &[]);
    net.send(1, &[0x45; 19]);
    net.send(1, &[0x60; 39]);
    net.send(1, &[0x55; 60]);
    let drops = net.stats(1).drops;
    let counted: Vec<_> = drops.iter().collect();
    assert_eq!(counted, [(DropReason::NoRoute, 2), (DropReason::NotIp, 4)]);
    assert!(net.log.is_empty());
}

#[test]
fn an_authentic_packet_that_lies_about_its_length_is_counted_and_not_delivered() {
    let mut net = Net::connected();
    let mut lying = between(1, 2, b"short");
    lying[2..4].copy_from_slice(&1000u16.to_be_bytes());
    net.send(1, &lying);
    net.run_for(1.0);
    assert!(net.host(2).received.is_empty());
    assert_eq!(net.drops(2, 1, DropReason::InvalidPacket), 1);
}

#[test]
fn padding_is_taken_off() {
    let mut net = Net::connected();
    let mut padded = between(1, 2, b"thirteen more");
    let packet = padded.clone();
    padded.extend([0; 13]);
    net.send(1, &padded);
    net.run_for(1.0);
    assert_eq!(net.host(2).received, [packet]);
}

#[test]
fn a_packet_that_no_datagram_would_carry_is_dropped_and_counted() {
    let mut net = Net::connected();
    // 28 bytes of headers; 32 more sealed: 65,504 of the 65,507 that UDP carries over IPv4.
    net.send(1, &between(1, 2, &[0; 65_472 - 20]));
    net.send(1, &between(1, 2, &[0; 65_473 - 20]));
    net.run_for(1.0);
    assert_eq!(
        net.log.iter().map(|sent| sent.bytes.len()).max(),
        Some(65_504)
    );
    assert_eq!(net.host(2).received.len(), 1);
    assert_eq!(net.drops(1, 2, DropReason::TooLarge), 1);
}

#[test]
fn what_waited_for_a_client_is_dropped_when_it_becomes_ours_to_start_and_we_know_not_where_to() {
    let client = |role| PeerConfig {
        role,
        endpoint: None,
        ..peer(2)
    };
    for role in [Role::Either, Role::Initiator] {
        let mut net = Net::new([(1, config(1, vec![client(Role::Responder)]))]);
        net.send(1, &between(1, 2, b"waits"));
        net.call(1, |node| {
            let config = config(1, vec![client(role)]);
            node.apply(config, seconds(1.0)).unwrap();
        });
        assert_eq!(net.drops(1, 2, DropReason::NoEndpoint), 1);
        let tunnel = net.peer_stats(1, 2).tunnel;
        assert_eq!((tunnel.initiations_sent, tunnel.queued), (0, 0));
        assert!(!tunnel.handshake_pending);
        assert_eq!(net.host(1).node.next_timeout(), None);
        assert_eq!(net.host(1).events, []);
    }
}

#[test]
fn a_responders_packets_wait_for_a_client_that_is_nowhere_yet() {
    let client = |role| PeerConfig {
        role,
        endpoint: None,
        ..peer(2)
    };
    let other = || {
        (
            2,
            config(
                2,
                vec![PeerConfig {
                    role: Role::Initiator,
                    ..peer(1)
                }],
            ),
        )
    };
    let mut net = Net::new([(1, config(1, vec![client(Role::Responder)])), other()]);
    let packets: Vec<_> = (0..3).map(|n| between(1, 2, &[n])).collect();
    packets.iter().for_each(|packet| net.send(1, packet));
    assert!(net.log.is_empty());
    net.send(2, &between(2, 1, b"here I am"));
    net.run_for(1.0);
    assert_eq!(net.host(2).received, packets);
    assert_eq!(net.drops(1, 2, DropReason::NoEndpoint), 0);

    // Whoever would have to initiate cannot, and says so.
    let mut net = Net::new([(1, config(1, vec![client(Role::Either)])), other()]);
    packets.iter().for_each(|packet| net.send(1, packet));
    assert_eq!(net.drops(1, 2, DropReason::NoEndpoint), 3);
    assert_eq!(net.host(1).node.next_timeout(), None);
    net.send(2, &between(2, 1, b"here I am"));
    net.run_for(1.0);
    net.send(1, &packets[0]);
    net.run_for(1.0);
    assert_eq!(net.host(2).received, packets[..1]);
}
