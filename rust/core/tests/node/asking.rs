//! Flows that the owner of a node decides about: what is held, what comes of an answer, and every bound.

use std::sync::Arc;
use std::time::Duration;

use connlib_core::policy::{
    Action, Direction, FlowChange, Policy, Protocol, Question, Reason, Rule,
};
use connlib_core::{
    DropReason, NodeConfig, NodeEvent, NodeTimeoutReason, PeerConfig, PolicyStats, Role,
};

use crate::net::*;

pub fn udp(source: u16, destination: u16, number: u16) -> Vec<u8> {
    let words = [source, destination, 10, 0, number].map(u16::to_be_bytes);
    words.concat()
}

/// From host 1, the peer, to a port of host 2, the gateway; packet `number` of it.
pub fn request(port: u16, number: u16) -> Vec<u8> {
    between(1, 2, &udp(5000, port, number))
}

pub fn reply(port: u16, number: u16) -> Vec<u8> {
    between(2, 1, &udp(port, 5000, number))
}

/// Between port 5000 of host 1 and port 443 of host 2.
pub fn tcp(from: u8, to: u8, flags: u8) -> Vec<u8> {
    let ports = match from {
        1 => [0x13, 0x88, 1, 187],
        _ => [1, 187, 0x13, 0x88],
    };
    let header = [0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0, 0, 0, 0, 0, 0];
    let mut packet = between(from, to, &[&ports[..], &header].concat());
    packet[9] = 6;
    packet
}

/// Asks about UDP to port 443 and above, and denies the rest.
pub fn asking() -> Arc<Policy> {
    let rule = Rule {
        action: Action::Ask,
        protocol: Protocol::Udp,
        ports: vec![443..=u16::MAX],
        name: Some("web".into()),
        ..Rule::default()
    };
    // In the second place, so that it has a number of its own.
    let rules = vec![only_udp(1), rule];
    Arc::new(Policy::new(rules, Action::Deny, Action::Deny).unwrap())
}

fn only_udp(port: u16) -> Rule {
    Rule {
        protocol: Protocol::Udp,
        ports: vec![port..=port],
        ..Rule::default()
    }
}

pub fn simple(default: Action, outbound: Action) -> Arc<Policy> {
    Arc::new(Policy::new(vec![], default, outbound).unwrap())
}

pub fn gateway(policy: Option<Arc<Policy>>) -> NodeConfig {
    config(2, vec![PeerConfig { policy, ..peer(1) }])
}

/// Host 2 has this policy for host 1, and somebody who answers.
pub fn connected(policy: Arc<Policy>) -> Net {
    let mut net = Net::connected();
    apply(&mut net, gateway(Some(policy)));
    ask(&mut net, true);
    net
}

pub fn apply(net: &mut Net, config: NodeConfig) {
    let now = net.now;
    net.call(2, |node| node.apply(config, now)).unwrap();
}

pub fn ask(net: &mut Net, on: bool) {
    let now = net.now;
    net.call(2, |node| node.ask(on, now));
}

pub fn decide(net: &mut Net, id: u64, allow: bool) -> bool {
    let now = net.now;
    let decided = net.call(2, |node| node.decide(id, allow, now));
    net.run_for(0.1);
    decided
}

pub fn questions(net: &mut Net) -> Vec<Question> {
    net.call(2, |node| node.take_questions())
}

pub fn one_question(net: &mut Net) -> u64 {
    let questions = questions(net);
    assert_eq!(questions.len(), 1);
    questions[0].id
}

/// Sends from one host to the other, and returns what came out there.
pub fn arrives(net: &mut Net, from: u8, packet: &[u8]) -> Vec<Vec<u8>> {
    net.send(from, packet);
    net.run_for(0.1);
    received(net, 3 - from)
}

pub fn received(net: &mut Net, host: u8) -> Vec<Vec<u8>> {
    std::mem::take(&mut net.host(host).received)
}

pub fn numbers(net: &Net) -> PolicyStats {
    net.peer_stats(2, 1).policy.unwrap()
}

pub fn drops(net: &Net, reason: DropReason) -> u64 {
    net.drops(2, 1, reason)
}

/// That a packet was refused, as ICMP type 3 code 13 tells.
pub fn is_refusal(packet: &[u8]) -> bool {
    packet[9] == 1 && packet[20..22] == [3, 13]
}

#[test]
fn a_flow_is_asked_about_once_and_what_it_sends_meanwhile_comes_out_in_order_when_allowed() {
    let mut net = connected(asking());
    net.call(2, |node| node.log_flows(10));
    for number in 0..3 {
        assert_eq!(arrives(&mut net, 1, &request(443, number)), [[]; 0]);
    }
    let asked = questions(&mut net);
    assert_eq!(asked.len(), 1);
    let Question {
        peer,
        header,
        rule,
        rule_name,
        id,
    } = asked[0].clone();
    assert_eq!(
        (peer, rule, rule_name.as_deref()),
        (public_key(1), Some(1), Some("web"))
    );
    assert_eq!(header.direction, Direction::FromPeer);
    assert_eq!(header.protocol, Some(17));
    assert_eq!(header.source.to_string(), "10.0.0.1");
    assert_eq!(header.destination.to_string(), "10.0.0.2");
    assert_eq!(
        header.ports.map(|ports| (ports.source, ports.destination)),
        Some((5000, 443))
    );
    assert_eq!(questions(&mut net), [], "it is handed out once");
    assert_eq!(
        (
            numbers(&net).pending,
            numbers(&net).asked,
            numbers(&net).flows
        ),
        (1, 1, 0)
    );
    assert!(decide(&mut net, id, true));
    assert_eq!(
        received(&mut net, 2),
        [request(443, 0), request(443, 1), request(443, 2)]
    );
    // A flow like any other, from here on.
    assert_eq!(arrives(&mut net, 1, &request(443, 3)), [request(443, 3)]);
    assert_eq!(arrives(&mut net, 2, &reply(443, 4)), [reply(443, 4)]);
    assert_eq!(
        (
            numbers(&net).pending,
            numbers(&net).asked,
            numbers(&net).flows
        ),
        (0, 1, 1)
    );
    assert_eq!(net.peer_stats(2, 1).drops.total(), 0);
    assert!(!decide(&mut net, id, false), "it was answered");
    let now = net.now;
    let (records, _) = net.call(2, |node| node.take_flows(now));
    let verdicts: Vec<_> = records
        .iter()
        .map(|record| (record.change, record.verdict.reason))
        .collect();
    assert_eq!(
        verdicts,
        [(FlowChange::Began { id: 1 }, Reason::Hook { rule: Some(1) })]
    );
    assert_eq!(records[0].rule_name.as_deref(), Some("web"));
}

#[test]
fn what_answers_a_pending_flow_joins_its_queue_and_goes_to_the_peer_after_it() {
    let mut net = connected(simple(Action::Deny, Action::Ask));
    assert_eq!(arrives(&mut net, 2, &reply(443, 0)), [[]; 0]);
    assert_eq!(
        arrives(&mut net, 1, &request(443, 1)),
        [[]; 0],
        "of the same flow"
    );
    assert_eq!(arrives(&mut net, 2, &reply(443, 2)), [[]; 0]);
    assert_eq!(questions(&mut net)[0].header.direction, Direction::ToPeer);
    assert!(decide(&mut net, 1, true));
    assert_eq!(received(&mut net, 1), [reply(443, 0), reply(443, 2)]);
    assert_eq!(received(&mut net, 2), [request(443, 1)]);
    assert_eq!(net.peer_stats(2, 1).drops.total(), 0);
}

#[test]
fn a_flow_that_is_refused_is_dropped_counted_told_once_and_not_asked_about_for_ten_seconds() {
    let mut net = connected(asking());
    net.host(2).events.clear();
    for number in 0..3 {
        arrives(&mut net, 1, &request(443, number));
    }
    let id = one_question(&mut net);
    assert!(decide(&mut net, id, false));
    let answers = received(&mut net, 1);
    assert_eq!(answers.len(), 1);
    assert!(is_refusal(&answers[0]));
    // It quotes the first packet.
    assert_eq!(answers[0][28..], request(443, 0));
    assert_eq!(drops(&net, DropReason::Denied), 3);
    let told = |net: &mut Net| -> Vec<_> {
        let events = std::mem::take(&mut net.host(2).events).into_iter();
        events
            .filter_map(|(_, event)| match event {
                NodeEvent::Denied(refusal) => Some((refusal.verdict.reason, refusal.count)),
                _ => None,
            })
            .collect()
    };
    assert_eq!(told(&mut net), [(Reason::Hook { rule: Some(1) }, 3)]);
    // Like what a rule refuses, from then on.
    net.run_for(9.8);
    assert_eq!(arrives(&mut net, 1, &request(443, 3)), [[]; 0]);
    assert!(is_refusal(&received(&mut net, 1)[0]));
    assert_eq!(drops(&net, DropReason::Denied), 4);
    assert_eq!(questions(&mut net), []);
    net.run_for(0.2);
    arrives(&mut net, 1, &request(443, 4));
    assert_eq!(questions(&mut net).len(), 1);
    assert_eq!(drops(&net, DropReason::Denied), 4);
}

#[test]
fn a_question_waits_five_seconds_to_the_instant_and_its_flow_is_refused_then() {
    let mut net = connected(asking());
    net.send(1, &request(443, 0));
    net.run_until(net.now + LATENCY);
    let came = net.now;
    let id = one_question(&mut net);
    let next = net.host(2).node.next_timeout().unwrap();
    assert_eq!(next.at, came + Duration::from_secs(5));
    assert_eq!(next.reason, NodeTimeoutReason::Unanswered);
    assert_eq!(net.host(2).node.next_timeout_peer(), Some(public_key(1)));
    net.run_until(came + (Duration::from_secs(5) - Duration::from_nanos(1)));
    assert_eq!(drops(&net, DropReason::Unanswered), 0);
    net.run_until(next.at);
    assert_eq!(
        (
            drops(&net, DropReason::Unanswered),
            drops(&net, DropReason::Denied)
        ),
        (1, 0)
    );
    assert!(!decide(&mut net, id, true), "too late");
    assert!(is_refusal(&received(&mut net, 1)[0]));
    assert_eq!(numbers(&net).pending, 0);
    // The hook has not refused it: it is asked again.
    arrives(&mut net, 1, &request(443, 1));
    assert_eq!(questions(&mut net).len(), 1);
}

#[test]
fn an_answer_at_the_instant_at_which_a_question_is_over_is_too_late() {
    let mut net = connected(asking());
    net.send(1, &request(443, 0));
    net.run_until(net.now + LATENCY);
    let id = one_question(&mut net);
    let end = net.now + Duration::from_secs(5);
    assert!(!net.call(2, |node| node.decide(id, true, end)));
    assert_eq!(drops(&net, DropReason::Unanswered), 1);
}

#[test]
fn a_packet_that_comes_at_the_instant_at_which_a_question_is_over_asks_anew() {
    let mut net = connected(simple(Action::Ask, Action::Ask));
    net.send(1, &request(443, 0));
    net.run_until(net.now + LATENCY);
    let id = one_question(&mut net);
    let end = net.now + Duration::from_secs(5);
    net.call(2, |node| node.handle_packet(&reply(443, 1), end));
    assert_eq!(drops(&net, DropReason::Unanswered), 1);
    assert!(one_question(&mut net) > id);
    assert_eq!(numbers(&net).pending, 1);
}

#[test]
fn without_somebody_who_answers_what_would_be_asked_about_is_refused_at_once() {
    let mut net = connected(asking());
    ask(&mut net, false);
    assert_eq!(arrives(&mut net, 1, &request(443, 0)), [[]; 0]);
    assert!(is_refusal(&received(&mut net, 1)[0]));
    assert_eq!(drops(&net, DropReason::Denied), 1);
    assert_eq!(questions(&mut net), []);
    ask(&mut net, true);
    arrives(&mut net, 1, &request(443, 1));
    let id = one_question(&mut net);
    ask(&mut net, false);
    assert_eq!(drops(&net, DropReason::Denied), 2);
    assert!(!decide(&mut net, id, true));
}

#[test]
fn what_starts_no_flow_is_refused_and_not_asked_about() {
    let mut net = connected(simple(Action::Ask, Action::Ask));
    let mut packet = |payload: &[u8], protocol: u8| {
        let mut packet = between(1, 2, payload);
        packet[9] = protocol;
        arrives(&mut net, 1, &packet);
        (questions(&mut net).len(), drops(&net, DropReason::Denied))
    };
    let tcp = |flags| {
        [
            &[0x13, 0x88, 1, 187, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags],
            &[0; 6][..],
        ]
        .concat()
    };
    // RST, and an answer to a SYN that nobody sent.
    assert_eq!(packet(&tcp(4), 6), (0, 1));
    assert_eq!(packet(&tcp(18), 6), (0, 2));
    // An echo reply, and a redirect.
    assert_eq!(packet(&[0, 0, 0, 0, 0, 7, 0, 1], 1), (0, 3));
    assert_eq!(packet(&[5, 0, 0, 0, 0, 0, 0, 0], 1), (0, 4));
    assert_eq!(packet(&[8, 0, 0, 0, 0, 7, 0, 1], 1), (1, 4));
    assert_eq!(packet(&tcp(2), 6), (1, 4));
}

#[test]
fn a_policy_that_is_changed_meanwhile_decides_if_it_can_and_else_the_question_stays() {
    let mut net = connected(asking());
    let pending = |net: &mut Net, port| {
        arrives(net, 1, &request(port, 0));
        one_question(net)
    };
    // It allows.
    let id = pending(&mut net, 443);
    apply(&mut net, gateway(Some(simple(Action::Allow, Action::Deny))));
    assert_eq!(received(&mut net, 2), [request(443, 0)]);
    assert!(!decide(&mut net, id, false));
    assert_eq!(numbers(&net).flows, 1);
    // A flow that a rule let begin, and about which the new one asks, has to be asked about.
    apply(&mut net, gateway(Some(asking())));
    assert_eq!(numbers(&net).flows, 0);
    // It denies.
    let id = pending(&mut net, 444);
    apply(&mut net, gateway(Some(simple(Action::Deny, Action::Deny))));
    net.run_for(0.1);
    assert_eq!(
        (drops(&net, DropReason::Denied), numbers(&net).pending),
        (1, 0)
    );
    assert!(is_refusal(&received(&mut net, 1)[0]));
    assert!(!decide(&mut net, id, true));
    // It asks, too.
    apply(&mut net, gateway(Some(asking())));
    let id = pending(&mut net, 445);
    apply(&mut net, gateway(Some(simple(Action::Ask, Action::Deny))));
    assert_eq!(questions(&mut net), [], "the hook has been told");
    assert!(decide(&mut net, id, true));
    assert_eq!(received(&mut net, 2), [request(445, 0)]);
    // What the hook has let begin goes on while the policy asks.
    apply(&mut net, gateway(Some(asking())));
    assert_eq!(numbers(&net).flows, 1);
    // There is none.
    let id = pending(&mut net, 446);
    apply(&mut net, gateway(None));
    assert_eq!(received(&mut net, 2), [request(446, 0)]);
    assert!(!decide(&mut net, id, false));
}

#[test]
fn a_refusal_by_the_hook_is_forgotten_when_the_policy_changes() {
    let mut net = connected(asking());
    arrives(&mut net, 1, &request(443, 0));
    let id = one_question(&mut net);
    decide(&mut net, id, false);
    apply(&mut net, gateway(Some(simple(Action::Ask, Action::Deny))));
    arrives(&mut net, 1, &request(443, 1));
    assert_eq!(questions(&mut net).len(), 1);
}

#[test]
fn a_peer_that_is_removed_takes_along_what_is_held_of_it_counted_and_what_was_refused() {
    let mut net = connected(asking());
    arrives(&mut net, 1, &request(443, 0));
    let refused = one_question(&mut net);
    decide(&mut net, refused, false);
    for number in 0..2 {
        arrives(&mut net, 1, &request(444, number));
    }
    let id = one_question(&mut net);
    apply(&mut net, config(2, vec![]));
    assert_eq!(net.stats(2).drops.get(DropReason::Unanswered), 2);
    assert!(!decide(&mut net, id, true));
    assert_eq!(net.host(2).node.next_timeout(), None);
    apply(&mut net, gateway(Some(asking())));
    assert_eq!(numbers(&net), PolicyStats::default());
    net.host(1).received.clear();
    net.run_for(20.0);
    arrives(&mut net, 1, &request(443, 1));
    assert_eq!(questions(&mut net).len(), 1);
}

#[test]
fn what_is_released_obeys_the_routes_of_that_moment() {
    let mut net = connected(simple(Action::Ask, Action::Ask));
    arrives(&mut net, 1, &request(443, 0));
    arrives(&mut net, 2, &reply(9, 0));
    let elsewhere = PeerConfig {
        allowed_ips: vec![prefix("10.9.0.1/32")],
        policy: Some(simple(Action::Ask, Action::Ask)),
        ..peer(1)
    };
    apply(&mut net, config(2, vec![elsewhere]));
    for question in questions(&mut net) {
        assert!(decide(&mut net, question.id, true));
    }
    assert_eq!(
        (received(&mut net, 1).len(), received(&mut net, 2).len()),
        (0, 0)
    );
    assert_eq!(drops(&net, DropReason::SourceNotAllowed), 1);
    assert_eq!(drops(&net, DropReason::NoRoute), 1);
}

#[test]
fn what_is_released_for_a_peer_without_a_session_waits_for_one() {
    let policy = Some(simple(Action::Deny, Action::Ask));
    let mut net = Net::new([
        (1, config(1, vec![peer(2)])),
        (2, config(2, vec![PeerConfig { policy, ..peer(1) }])),
    ]);
    ask(&mut net, true);
    assert_eq!(arrives(&mut net, 2, &reply(443, 0)), [[]; 0]);
    assert_eq!(net.log, [], "no handshake for what may not pass");
    assert!(decide(&mut net, 1, true));
    assert_eq!(received(&mut net, 1), [reply(443, 0)]);
}

#[test]
fn a_responder_whose_peer_is_away_keeps_what_is_released_as_it_keeps_the_rest() {
    let policy = Some(simple(Action::Deny, Action::Ask));
    let away = PeerConfig {
        policy,
        role: Role::Responder,
        endpoint: None,
        ..peer(1)
    };
    let mut net = Net::new([(2, config(2, vec![away]))]);
    ask(&mut net, true);
    net.send(2, &reply(443, 0));
    assert!(decide(&mut net, 1, true));
    assert_eq!(net.peer_stats(2, 1).tunnel.queued, 1);
}

#[test]
fn of_a_packet_in_fragments_the_first_is_asked_about_and_the_later_ones_pass_after_it() {
    let mut net = connected(asking());
    let fragment = |offset: u16, more: bool| {
        let mut packet = request(443, 0);
        let field = (offset / 8) | (u16::from(more) << 13);
        packet[6..8].copy_from_slice(&field.to_be_bytes());
        packet
    };
    arrives(&mut net, 1, &fragment(0, true));
    // The first one has not passed yet.
    arrives(&mut net, 1, &fragment(16, false));
    assert_eq!(drops(&net, DropReason::Denied), 1);
    let id = one_question(&mut net);
    assert!(decide(&mut net, id, true));
    assert_eq!(received(&mut net, 2), [fragment(0, true)]);
    assert_eq!(
        arrives(&mut net, 1, &fragment(16, false)),
        [fragment(16, false)]
    );
}

#[test]
fn a_first_fragment_that_was_held_is_refused_if_one_that_contradicts_it_has_passed_meanwhile() {
    let allow = Rule {
        action: Action::Allow,
        ..only_udp(53)
    };
    let asking = Rule {
        action: Action::Ask,
        ..only_udp(443)
    };
    let policy = Policy::new(vec![allow, asking], Action::Deny, Action::Deny);
    let mut net = connected(Arc::new(policy.unwrap()));
    let first = |port, more: &[u8]| {
        let mut packet = between(1, 2, &[&udp(5000, port, 0), more].concat());
        packet[6..8].copy_from_slice(&0x2000u16.to_be_bytes());
        packet
    };
    arrives(&mut net, 1, &first(443, b""));
    let id = one_question(&mut net);
    let other = first(53, b"another length");
    assert_eq!(arrives(&mut net, 1, &other), [other]);
    assert!(decide(&mut net, id, true));
    assert_eq!(received(&mut net, 2), Vec::<Vec<u8>>::new());
    assert_eq!(drops(&net, DropReason::Denied), 1);
}

#[test]
fn a_connection_that_is_held_with_its_end_is_known_as_a_closed_one() {
    let mut net = connected(simple(Action::Ask, Action::Deny));
    let tcp = |flags| {
        let header = [0x13, 0x88, 1, 187, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags];
        let mut packet = between(1, 2, &[&header[..], &[0; 6]].concat());
        packet[9] = 6;
        packet
    };
    let (syn, rst) = (tcp(2), tcp(4));
    for packet in [&syn, &rst, &syn] {
        arrives(&mut net, 1, packet);
    }
    let id = one_question(&mut net);
    assert!(decide(&mut net, id, true));
    // A SYN where a connection was closed is a new flow, and is asked about as one.
    assert_eq!(received(&mut net, 2), [syn.clone(), rst]);
    let id = one_question(&mut net);
    assert!(decide(&mut net, id, true));
    assert_eq!(received(&mut net, 2), [syn]);
    assert_eq!(numbers(&net).flows, 1);
}
