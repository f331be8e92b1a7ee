//! What is told of peers beside what happens in their tunnels: that they moved, that they were refused; and the flow log.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use connlib_core::policy::{
    Action, Direction, EndReason, FlowChange, FlowRecord, Policy, Protocol, Reason, Rule,
};
use connlib_core::{NodeEvent, PeerConfig, Role};

use crate::net::*;

fn place(number: u16) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 5], number))
}

/// Where host 1 was told to have moved, by what host 2 says.
fn moves(net: &mut Net) -> Vec<(Option<SocketAddr>, SocketAddr)> {
    let events = std::mem::take(&mut net.host(2).events);
    let moved = events.into_iter().filter_map(|(peer, event)| {
        assert_eq!(peer, public_key(1));
        match event {
            NodeEvent::Roamed { from, to } => Some((from, to)),
            _ => None,
        }
    });
    moved.collect()
}

/// Host 1 sends something from there.
fn sends_from(net: &mut Net, place: SocketAddr) {
    net.host(1).address = place;
    net.send(1, &between(1, 2, b"from somewhere"));
    net.run_for(0.05);
}

#[test]
fn a_peer_whose_address_is_learned_for_the_first_time_comes_from_nowhere() {
    let anywhere = PeerConfig {
        endpoint: None,
        role: Role::Responder,
        ..peer(1)
    };
    let mut net = Net::new([
        (1, config(1, vec![peer(2)])),
        (2, config(2, vec![anywhere])),
    ]);
    net.send(1, &between(1, 2, b"hello"));
    net.run_for(2.0);
    assert_eq!(moves(&mut net), [(None, address(1))]);
    sends_from(&mut net, place(1));
    assert_eq!(moves(&mut net), [(Some(address(1)), place(1))]);
}

#[test]
fn a_peer_that_stays_where_it_was_configured_is_not_told_to_have_moved() {
    let mut net = Net::connected();
    net.run_for(300.0);
    assert_eq!(moves(&mut net), []);
}

#[test]
fn an_endpoint_that_is_set_is_no_news() {
    let mut net = Net::connected();
    let now = net.now;
    net.call(2, |node| {
        node.set_endpoint(&public_key(1), place(1), true, now)
            .unwrap();
    });
    let moved = PeerConfig {
        endpoint: Some(place(2)),
        ..peer(1)
    };
    net.call(2, |node| node.apply(config(2, vec![moved]), now))
        .unwrap();
    net.run_for(0.5);
    assert_eq!(moves(&mut net), []);
    // It is told from there that it moves.
    sends_from(&mut net, place(3));
    assert_eq!(moves(&mut net), [(Some(place(2)), place(3))]);
}

#[test]
fn what_anybody_can_send_tells_no_move() {
    let mut net = Net::connected();
    net.send(1, &between(1, 2, b"genuine"));
    let genuine = net.log.last().unwrap().bytes.clone();
    net.run_for(2.0);
    net.inject(2, place(1), &genuine);
    net.run_for(20.0);
    assert_eq!(moves(&mut net), []);
}

#[test]
fn a_peer_that_moves_with_every_datagram_is_told_once_a_second_and_where_it_is_at_last() {
    let mut net = Net::connected();
    for number in 1..=200 {
        sends_from(&mut net, place(number));
    }
    let told = moves(&mut net);
    // Ten seconds, and the first at once.
    assert!((10..=11).contains(&told.len()), "{told:?}");
    assert_eq!(told[0], (Some(address(1)), place(1)));
    for pair in told.windows(2) {
        assert_eq!(Some(pair[0].1), pair[1].0, "one leads to the next");
    }
    // It says no more itself: the next call that concerns it tells the rest.
    net.run_for(1.0);
    net.host(2).events.clear();
    net.send(2, &between(2, 1, b"answer"));
    let rest = moves(&mut net);
    let known = told.last().unwrap().1;
    match rest.as_slice() {
        [] => assert_eq!(known, place(200)),
        [(from, to)] => assert_eq!((*from, *to), (Some(known), place(200))),
        more => panic!("{more:?}"),
    }
}

#[test]
fn a_peer_that_is_back_within_a_second_has_not_moved_further() {
    let mut net = Net::connected();
    for there in [place(1), place(2), place(1)] {
        sends_from(&mut net, there);
    }
    net.run_for(5.0);
    sends_from(&mut net, place(1));
    assert_eq!(moves(&mut net), [(Some(address(1)), place(1))]);
}

fn udp(source: u16, destination: u16) -> Vec<u8> {
    let [ports, rest] = [[source, destination], [8, 0]].map(|pair| pair.map(u16::to_be_bytes));
    [ports, rest].concat().concat()
}

fn web() -> Arc<Policy> {
    let rule = |action, port, name: &str| Rule {
        action,
        protocol: Protocol::Udp,
        ports: vec![port..=port],
        name: Some(name.into()),
        ..Rule::default()
    };
    let rules = vec![
        rule(Action::Allow, 443, "web"),
        rule(Action::Deny, 22, "no shell"),
    ];
    Arc::new(Policy::new(rules, Action::Deny, Action::Deny).unwrap())
}

/// Host 2 has a policy for host 1.
fn guarded() -> Net {
    let mut net = Net::connected();
    let now = net.now;
    let policy = Some(web());
    net.call(2, |node| {
        node.apply(config(2, vec![PeerConfig { policy, ..peer(1) }]), now)
    })
    .unwrap();
    net.host(2).events.clear();
    net
}

/// Direction, destination port, why, the rule's name, how many.
type Denied = (Direction, u16, Reason, Option<String>, u64);

fn denied(net: &mut Net) -> Vec<Denied> {
    let events = std::mem::take(&mut net.host(2).events);
    let denied = events.into_iter().filter_map(|(peer, event)| {
        assert_eq!(peer, public_key(1));
        match event {
            NodeEvent::Denied(refusal) => Some((
                refusal.header.direction,
                refusal.header.ports.unwrap().destination,
                refusal.verdict.reason,
                refusal.rule_name.map(|name| name.to_string()),
                refusal.count,
            )),
            _ => None,
        }
    });
    denied.collect()
}

#[test]
fn the_first_refusal_is_told_at_once_with_the_rule_and_a_flood_once_a_second() {
    let mut net = guarded();
    let shell = |port| between(1, 2, &udp(port, 22));
    let rule = (Reason::Rule(1), Some("no shell".to_string()));
    let event = |count| (Direction::FromPeer, 22, rule.0, rule.1.clone(), count);
    net.send(1, &shell(1));
    net.run_for(0.03);
    assert_eq!(denied(&mut net), [event(1)]);
    for port in 0..500 {
        net.send(1, &shell(port));
        net.run_for(0.001);
    }
    assert_eq!(denied(&mut net), []);
    // A packet that may pass tells it, too.
    net.run_for(1.0);
    net.send(1, &between(1, 2, &udp(5000, 443)));
    net.run_for(0.1);
    assert_eq!(denied(&mut net), [event(500)]);
    net.run_for(30.0);
    assert_eq!(denied(&mut net), []);
}

#[test]
fn the_end_of_a_flood_is_told_when_the_tunnel_next_has_something_to_do() {
    let mut net = guarded();
    for port in 0..500 {
        net.send(1, &between(1, 2, &udp(port, 22)));
    }
    net.run_for(0.1);
    // Keepalives of either side come after ten seconds at the latest.
    net.run_for(11.0);
    let counts: Vec<_> = denied(&mut net).iter().map(|event| event.4).collect();
    assert_eq!(counts, [1, 499]);
}

#[test]
fn what_is_for_a_peer_and_refused_is_told_without_a_datagram() {
    let mut net = guarded();
    net.send(2, &between(2, 1, &udp(443, 5000)));
    let event = (Direction::ToPeer, 5000, Reason::Outbound, None, 1);
    assert_eq!(denied(&mut net), [event]);
}

#[test]
fn a_peer_without_a_policy_has_no_flow_log_and_one_with_it_has() {
    let mut net = guarded();
    net.host(2).node.log_flows(100);
    net.host(1).node.log_flows(100);
    for port in [443, 22] {
        net.send(1, &between(1, 2, &udp(5000, port)));
    }
    net.run_for(200.0);
    let now = net.now;
    let (records, missed) = net.host(2).node.take_flows(now);
    let said: Vec<_> = records
        .iter()
        .map(|record| {
            let FlowRecord { peer, change, .. } = record;
            assert_eq!(*peer, public_key(1));
            let change = match change {
                FlowChange::Began { .. } => "began",
                FlowChange::Denied { .. } => "denied",
                FlowChange::Ended(end) => {
                    assert_eq!(end.why, EndReason::Expired);
                    assert_eq!((end.from_peer.packets, end.from_peer.bytes), (1, 28));
                    "ended"
                }
            };
            (change, record.rule_name.as_deref())
        })
        .collect();
    assert_eq!(
        said,
        [
            ("began", Some("web")),
            ("denied", Some("no shell")),
            ("ended", Some("web"))
        ]
    );
    assert_eq!(missed, 0);
    assert_eq!(net.host(1).node.take_flows(now), (vec![], 0));
}

#[test]
fn a_flow_that_nothing_reminds_the_node_of_ends_in_the_log_when_it_is_asked_for() {
    let mut net = guarded();
    net.host(2).node.log_flows(100);
    net.send(1, &between(1, 2, &udp(5000, 443)));
    net.run_for(0.02);
    let now = net.now;
    let node = &mut net.host(2).node;
    assert_eq!(node.take_flows(now).0.len(), 1);
    let later = now + Duration::from_secs(120);
    let before = now + Duration::from_nanos(119_999_999_999);
    assert_eq!(node.take_flows(before).0, []);
    let (records, _) = node.take_flows(later);
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].at, later);
}

#[test]
fn a_peer_that_comes_into_a_log_that_is_kept_is_in_it_and_one_that_goes_is_not() {
    let mut net = Net::connected();
    net.host(2).node.log_flows(100);
    let now = net.now;
    let apply = |net: &mut Net, policy| {
        net.call(2, |node| {
            node.apply(config(2, vec![PeerConfig { policy, ..peer(1) }]), now)
        })
        .unwrap();
        net.send(1, &between(1, 2, &udp(5000, 443)));
        net.run_for(0.1);
        let now = net.now;
        let records = net.host(2).node.take_flows(now).0;
        records
            .iter()
            .map(|record| matches!(record.change, FlowChange::Began { .. }))
            .collect::<Vec<_>>()
    };
    assert_eq!(apply(&mut net, Some(web())), [true]);
    assert_eq!(apply(&mut net, None), [false], "it ends with the policy");
    assert_eq!(apply(&mut net, None), [true; 0]);
    assert_eq!(apply(&mut net, Some(web())), [true]);
}

#[test]
fn the_wall_clock_of_an_instant_is_known_before_and_after_it_was_set() {
    let mut net = Net::connected();
    let node = &mut net.host(1).node;
    assert_eq!(
        node.unix_time_at(seconds(5.0)),
        UNIX_TIME + Duration::from_secs(5)
    );
    node.set_unix_time(UNIX_TIME, seconds(100.0));
    assert_eq!(
        node.unix_time_at(seconds(101.0)),
        UNIX_TIME + Duration::from_secs(1)
    );
    assert_eq!(
        node.unix_time_at(seconds(99.0)),
        UNIX_TIME - Duration::from_secs(1)
    );
}
