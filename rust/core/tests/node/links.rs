//! Handshakes and data between nodes; clocks; receiver indices.

use std::collections::BTreeSet;
use std::time::Duration;

use connlib_core::{DropReason, Event, NodeTimeoutReason, PeerConfig, Role, TimeoutReason};

use crate::net::*;

#[test]
fn the_first_packet_starts_a_handshake_and_arrives_after_three_latencies() {
    let mut net = Net::pair(Role::Initiator, Role::Responder);
    net.send(1, &between(1, 2, b"first"));
    net.run_until(START + LATENCY * 3);
    assert_eq!(net.host(2).received, [between(1, 2, b"first")]);
    let kinds: Vec<u8> = net.log.iter().map(Sent::kind).collect();
    assert_eq!(kinds, [INITIATION, RESPONSE, DATA]);
    let (one, two) = (public_key(1), public_key(2));
    assert_eq!(
        net.host(1).events,
        [
            (two, Event::HandshakeStarted.into()),
            (two, Event::SessionEstablished { initiator: true }.into())
        ]
    );
    assert_eq!(
        net.host(2).events,
        [(one, Event::SessionEstablished { initiator: false }.into())]
    );
}

#[test]
fn data_flows_both_ways_in_both_families() {
    let mut net = Net::connected();
    for payload in [&b""[..], b"x", &[7; 1400]] {
        for (from, to) in [(1, 2), (2, 1)] {
            let v4 = between(from, to, payload);
            let v6 = packet(&format!("fd00::{from}"), &format!("fd00::{to}"), payload);
            net.send(from, &v4);
            net.send(from, &v6);
            net.run_for(0.1);
            assert_eq!(std::mem::take(&mut net.host(to).received), [v4, v6]);
        }
    }
    assert_eq!(net.count(1, INITIATION) + net.count(2, INITIATION), 0);
    assert_eq!(net.stats(1).drops.total() + net.stats(2).drops.total(), 0);
    assert_eq!(net.peer_stats(2, 1).tunnel.rx_packets, 7);
}

#[test]
fn one_gateway_serves_many_clients_side_by_side() {
    let clients = 2..=41;
    let role = |role, number| PeerConfig {
        role,
        ..peer(number)
    };
    let gateway = config(
        1,
        clients.clone().map(|n| role(Role::Responder, n)).collect(),
    );
    let others = clients
        .clone()
        .map(|n| (n, config(n, vec![role(Role::Initiator, 1)])));
    let mut net = Net::new(others.chain([(1, gateway)]));
    for client in clients.clone() {
        net.send(client, &between(client, 1, &[client]));
    }
    net.run_for(1.0);
    let expected: BTreeSet<_> = clients.clone().map(|n| between(n, 1, &[n])).collect();
    assert_eq!(
        net.host(1)
            .received
            .iter()
            .cloned()
            .collect::<BTreeSet<_>>(),
        expected
    );
    for client in clients {
        net.send(1, &between(1, client, &[client]));
        net.run_for(0.1);
        assert_eq!(net.host(client).received, [between(1, client, &[client])]);
    }
    assert_eq!(net.count(1, INITIATION), 0);
    assert_eq!(net.stats(1).drops.total(), 0);
}

#[test]
fn queue_overflow_and_giving_up_are_counted_by_reason() {
    let mut net = Net::pair(Role::Either, Role::Either);
    net.loses = |_| true;
    for n in 0..300u16 {
        net.send(1, &between(1, 2, &n.to_be_bytes()));
    }
    assert_eq!(net.drops(1, 2, DropReason::QueueFull), 44);
    assert_eq!(net.peer_stats(1, 2).tunnel.queued, 256);
    net.run_for(100.0);
    assert_eq!(net.drops(1, 2, DropReason::GaveUp), 256);
    assert_eq!(
        net.host(1).events.last(),
        Some(&(public_key(2), Event::GaveUp { dropped: 256 }.into()))
    );
    assert_eq!(net.host(1).node.next_timeout(), None);
}

#[test]
fn a_deadline_names_its_reason_and_its_peer() {
    let mut net = Net::connected();
    net.send(1, &between(1, 2, b"ping"));
    net.run_for(0.5);
    let node = &net.host(2).node;
    assert_eq!(
        node.next_timeout().map(|timeout| timeout.reason),
        Some(NodeTimeoutReason::Tunnel(TimeoutReason::PassiveKeepalive))
    );
    assert_eq!(node.next_timeout_peer(), Some(public_key(1)));
}

#[test]
fn time_that_goes_backwards_stands_still() {
    let mut net = Net::connected();
    let later = net.now;
    net.now = seconds(0.0);
    let before = net.host(1).node.next_timeout();
    let now = net.now;
    net.call(1, |node| node.handle_timeout(now));
    assert_eq!(
        net.host(1).node.next_timeout(),
        before,
        "nothing is due earlier than before"
    );
    net.send(1, &between(1, 2, b"from the past"));
    assert!(
        net.host(1)
            .node
            .next_timeout()
            .is_some_and(|timeout| timeout.at >= later)
    );
    net.now = later;
    net.run_for(0.5);
    assert_eq!(net.host(2).received, [between(1, 2, b"from the past")]);
}

#[test]
fn six_hundred_rekeys_never_reuse_a_receiver_index() {
    let mut net = Net::connected();
    for _ in 0..600 {
        let now = net.now;
        net.call(1, |node| node.initiate_handshake(&public_key(2), now))
            .unwrap();
        net.run_for(1.0);
    }
    for (host, kind) in [(1, INITIATION), (2, RESPONSE)] {
        assert_eq!(net.count(host, kind), 600);
        let own = |sent: &&Sent| sent.source == address(host) && sent.kind() == kind;
        let indices: BTreeSet<_> = net
            .log
            .iter()
            .filter(own)
            .map(|sent| sent.bytes[4..8].to_vec())
            .collect();
        assert_eq!(indices.len(), 600);
    }
    net.send(2, &between(2, 1, b"still there"));
    net.run_for(0.5);
    assert_eq!(net.host(1).received, [between(2, 1, b"still there")]);
}

#[test]
fn equal_seeds_give_equal_traces() {
    let run = || {
        let mut net = Net::pair(Role::Either, Role::Either);
        net.loses = |sent| {
            sent.bytes
                .iter()
                .fold(0u8, |sum, byte| sum.wrapping_add(*byte))
                < 64
        };
        for n in 0..400u16 {
            net.send(
                1 + (n % 2) as u8,
                &between(1 + (n % 2) as u8, 2 - (n % 2) as u8, &n.to_be_bytes()),
            );
            net.run_for(0.9);
        }
        net.log
    };
    let first = run();
    assert!(
        first
            .iter()
            .filter(|sent| sent.kind() == INITIATION)
            .count()
            > 2
    );
    assert_eq!(first, run());
}

#[test]
fn a_stepped_wall_clock_does_not_stop_new_handshakes() {
    let mut net = Net::connected();
    for unix_time in [Duration::ZERO, UNIX_TIME * 2, UNIX_TIME] {
        let now = net.now;
        net.call(1, |node| node.set_unix_time(unix_time, now));
        net.call(1, |node| node.initiate_handshake(&public_key(2), now))
            .unwrap();
        net.run_for(1.0);
        assert_eq!(
            net.peer_stats(1, 2).tunnel.session_age,
            Some(Duration::from_secs(1) - LATENCY * 2)
        );
    }
    assert_eq!(net.drops(2, 1, DropReason::ReplayedInitiation), 0);
}
