//! Policies in a node: what a peer sends and is sent, what is counted, who is told, and what a change does.

use std::sync::Arc;
use std::time::Duration;

use connlib_core::policy::{Action, Policy, Protocol, Rule};
use connlib_core::{DropReason, InputKind, NodeConfig, PeerConfig, PolicyStats};

use crate::net::*;

/// UDP to port 443, with the length and no checksum.
fn question(port: u16) -> Vec<u8> {
    between(1, 2, &udp(5000, port))
}

fn reply(port: u16) -> Vec<u8> {
    between(2, 1, &udp(port, 5000))
}

fn udp(source: u16, destination: u16) -> Vec<u8> {
    let [ports, rest] = [[source, destination], [8, 0]].map(|pair| pair.map(u16::to_be_bytes));
    [ports, rest].concat().concat()
}

/// Allows UDP to this port, and nothing else.
fn only(port: u16) -> Arc<Policy> {
    let rule = Rule {
        action: Action::Allow,
        protocol: Protocol::Udp,
        ports: vec![port..=port],
        ..Rule::default()
    };
    Arc::new(Policy::new(vec![rule], Action::Deny, Action::Deny).unwrap())
}

/// Host 2, a gateway, with a policy for host 1.
fn gateway(policy: Option<Arc<Policy>>) -> NodeConfig {
    config(2, vec![PeerConfig { policy, ..peer(1) }])
}

fn connected(policy: Option<Arc<Policy>>) -> Net {
    let mut net = Net::connected();
    apply(&mut net, policy);
    net
}

fn apply(net: &mut Net, policy: Option<Arc<Policy>>) -> Vec<&'static str> {
    let now = net.now;
    let diff = net
        .call(2, |node| node.apply(gateway(policy), now))
        .unwrap();
    diff.changed
        .first()
        .map(|change| change.fields.clone())
        .unwrap_or_default()
}

/// Sends from one host to the other, and returns what came out there.
fn arrives(net: &mut Net, from: u8, packet: &[u8]) -> Vec<Vec<u8>> {
    net.send(from, packet);
    net.run_for(0.1);
    std::mem::take(&mut net.host(3 - from).received)
}

fn numbers(net: &Net) -> PolicyStats {
    net.peer_stats(2, 1).policy.unwrap()
}

#[test]
fn what_a_peer_may_not_reach_is_dropped_counted_and_answered_through_the_tunnel() {
    let mut net = connected(Some(only(443)));
    assert_eq!(arrives(&mut net, 1, &question(443)), [question(443)]);
    assert_eq!(arrives(&mut net, 1, &question(22)), [[]; 0]);
    assert_eq!(net.drops(2, 1, DropReason::Denied), 1);
    let answer = std::mem::take(&mut net.host(1).received).pop().unwrap();
    assert_eq!((answer[9], &answer[20..22]), (1, &[3, 13][..]));
    assert_eq!(answer[12..20], [10, 0, 0, 2, 10, 0, 0, 1]);
    assert_eq!(answer[28..], question(22));
    let expected = PolicyStats {
        flows: 1,
        evicted: 0,
        answered: 1,
        pending: 0,
        asked: 0,
    };
    assert_eq!(numbers(&net), expected);
    assert_eq!(net.stats(2).drops.total(), 0);
}

#[test]
fn what_is_for_a_peer_passes_as_an_answer_and_else_the_sender_is_told() {
    let mut net = connected(Some(only(443)));
    assert_eq!(arrives(&mut net, 2, &reply(443)), [[]; 0]);
    assert_eq!(net.drops(2, 1, DropReason::Denied), 1);
    // Told on the gateway's side: it comes out of the node there, and no datagram was sent.
    let answer = std::mem::take(&mut net.host(2).received).pop().unwrap();
    assert_eq!(answer[12..20], [10, 0, 0, 1, 10, 0, 0, 2]);
    assert_eq!(answer[28..], reply(443));
    assert_eq!(net.count(2, DATA), 0);
    arrives(&mut net, 1, &question(443));
    assert_eq!(arrives(&mut net, 2, &reply(443)), [reply(443)]);
    assert_eq!(net.drops(2, 1, DropReason::Denied), 1);
}

#[test]
fn a_source_address_of_somebody_else_is_no_matter_of_policy_and_makes_no_flow() {
    let mut net = connected(Some(only(443)));
    let forged = packet("10.0.0.9", "10.0.0.2", &udp(5000, 443));
    assert_eq!(arrives(&mut net, 1, &forged), [[]; 0]);
    assert_eq!(net.drops(2, 1, DropReason::SourceNotAllowed), 1);
    assert_eq!(net.drops(2, 1, DropReason::Denied), 0);
    assert_eq!(numbers(&net).flows, 0);
}

#[test]
fn a_change_takes_effect_at_once_and_leaves_the_session_alone() {
    let mut net = connected(None);
    assert_eq!(net.peer_stats(2, 1).policy, None);
    assert_eq!(arrives(&mut net, 1, &question(22)), [question(22)]);
    assert_eq!(apply(&mut net, Some(only(22))), ["policy"]);
    assert_eq!(apply(&mut net, Some(only(22))), [""; 0]);
    assert_eq!(arrives(&mut net, 1, &question(22)), [question(22)]);
    assert_eq!(arrives(&mut net, 2, &reply(22)), [reply(22)]);
    assert_eq!(numbers(&net).flows, 1);
    // The same policy again, from elsewhere, ends nothing.
    apply(&mut net, Some(only(22)));
    assert_eq!(numbers(&net).flows, 1);
    assert_eq!(apply(&mut net, Some(only(443))), ["policy"]);
    assert_eq!(numbers(&net).flows, 0);
    assert_eq!(arrives(&mut net, 2, &reply(22)), [[]; 0]);
    // The gateway's side was told.
    net.host(2).received.clear();
    assert_eq!(arrives(&mut net, 1, &question(22)), [[]; 0]);
    assert_eq!(net.drops(2, 1, DropReason::Denied), 2);
    assert_eq!(apply(&mut net, None), ["policy"]);
    net.host(1).received.clear();
    assert_eq!(arrives(&mut net, 2, &reply(22)), [reply(22)]);
    assert_eq!(net.count(1, INITIATION) + net.count(2, INITIATION), 0);
    assert_eq!(net.drops(2, 1, DropReason::Denied), 2);
}

#[test]
fn a_peer_that_is_removed_takes_its_flows_along() {
    let mut net = connected(Some(only(443)));
    arrives(&mut net, 1, &question(443));
    let now = net.now;
    net.call(2, |node| node.apply(config(2, vec![]), now))
        .unwrap();
    apply(&mut net, Some(only(443)));
    assert_eq!(numbers(&net), PolicyStats::default());
    net.run_for(20.0);
    assert_eq!(arrives(&mut net, 2, &reply(443)), [[]; 0]);
}

#[test]
fn a_flood_of_refused_packets_is_answered_ten_times_and_then_ten_times_a_second() {
    let mut net = connected(Some(only(443)));
    for _ in 0..500 {
        net.send(1, &question(22));
    }
    net.run_for(0.05);
    assert_eq!(net.host(1).received.len(), 10);
    for _ in 0..40 {
        net.send(1, &question(22));
        net.run_for(0.025);
    }
    net.run_for(0.1);
    assert_eq!(net.host(1).received.len(), 20);
    assert_eq!(net.drops(2, 1, DropReason::Denied), 540);
    assert_eq!(numbers(&net).answered, 20);
    // On the gateway's side the same ten are for both.
    net.run_for(1.0);
    for _ in 0..500 {
        net.send(2, &reply(22));
    }
    net.send(1, &question(22));
    net.run_for(0.05);
    assert_eq!(net.host(2).received.len(), 10);
    assert_eq!(net.host(1).received.len(), 20);
    assert_eq!(net.drops(2, 1, DropReason::Denied), 1041);
}

#[test]
fn flows_end_in_a_node_when_their_time_is_over() {
    let mut net = connected(Some(only(443)));
    arrives(&mut net, 1, &question(443));
    // 0.02 s on the way, of 0.1 s that passed.
    net.run_for(119.9);
    assert_eq!(numbers(&net).flows, 1);
    net.run_for(0.1);
    assert_eq!(numbers(&net).flows, 0);
}

#[test]
fn an_answer_is_an_input_of_the_tunnel_and_is_recorded_as_one() {
    let mut net = connected(Some(only(443)));
    net.call(2, |node| node.record(10));
    arrives(&mut net, 1, &question(22));
    let (inputs, _) = net.call(2, |node| node.take_recorded());
    let kinds: Vec<_> = inputs
        .iter()
        .map(|input| (input.kind, input.size))
        .collect();
    // 28 bytes, padded to 32, in 32 bytes of envelope; and the answer of as much and 28 bytes more.
    assert_eq!(kinds, [(InputKind::Data, 64), (InputKind::Packet, 56)]);
}

#[test]
fn nodes_without_a_policy_draw_no_randomness_for_one() {
    let trace = |policy: Option<Arc<Policy>>| {
        let mut net = Net::connected();
        if policy.is_some() {
            apply(&mut net, policy);
        }
        let now = net.now;
        net.call(2, |node| node.initiate_handshake(&public_key(1), now))
            .unwrap();
        net.run_for(1.0);
        net.log
    };
    assert_eq!(trace(None), trace(None));
    assert_ne!(trace(None), trace(Some(only(443))));
}

#[test]
fn with_a_policy_of_its_own_each_peer_gets_what_is_its() {
    let with = |number, policy| PeerConfig {
        policy,
        ..peer(number)
    };
    let hub = config(
        9,
        vec![
            with(1, Some(only(443))),
            with(2, Some(only(22))),
            with(3, None),
        ],
    );
    let spokes = (1..=3).map(|number| (number, config(number, vec![peer(9)])));
    let mut net = Net::new(spokes.chain([(9, hub)]));
    for number in 1..=3 {
        for port in [22, 443] {
            net.send(number, &between(number, 9, &udp(number.into(), port)));
        }
    }
    net.run_for(1.0);
    let mut received = std::mem::take(&mut net.host(9).received);
    received.sort();
    let mut expected = vec![
        between(1, 9, &udp(1, 443)),
        between(2, 9, &udp(2, 22)),
        between(3, 9, &udp(3, 22)),
        between(3, 9, &udp(3, 443)),
    ];
    expected.sort();
    assert_eq!(received, expected);
    let denied = |number| net.drops(9, number, DropReason::Denied);
    assert_eq!([denied(1), denied(2), denied(3)], [1, 1, 0]);
    assert_eq!(net.now, START + Duration::from_secs(1));
}
