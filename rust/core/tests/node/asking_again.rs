//! The owner of a node takes back what was answered about a peer's flows.

use connlib_core::policy::{Action, EndReason, FlowChange};
use connlib_core::{DropReason, PeerConfig};

use crate::asking::*;
use crate::net::*;

fn ask_again(net: &mut Net) {
    let now = net.now;
    net.call(2, |node| node.ask_again(&public_key(1), now))
        .unwrap();
    net.run_for(0.1);
}

#[test]
fn flows_that_were_allowed_end_and_the_next_packet_asks() {
    let mut net = connected(asking());
    net.call(2, |node| node.log_flows(10));
    arrives(&mut net, 1, &request(443, 0));
    let id = one_question(&mut net);
    decide(&mut net, id, true);
    ask_again(&mut net);
    assert_eq!(numbers(&net).flows, 0);
    let now = net.now;
    let (records, _) = net.call(2, |node| node.take_flows(now));
    let FlowChange::Ended(end) = records[1].change else {
        panic!("{:?}", records[1]);
    };
    assert_eq!((end.id, end.why), (1, EndReason::Revoked));
    received(&mut net, 2);
    // Neither the peer nor what answers it.
    assert_eq!(arrives(&mut net, 2, &reply(443, 1)), [[]; 0]);
    assert!(is_refusal(&received(&mut net, 2)[0]));
    assert_eq!(arrives(&mut net, 1, &request(443, 2)), [[]; 0]);
    let id = one_question(&mut net);
    assert!(decide(&mut net, id, true));
    assert!(received(&mut net, 2).contains(&request(443, 2)));
}

#[test]
fn flows_that_the_policy_lets_pass_by_itself_by_now_go_on() {
    let mut net = connected(asking());
    for port in [443, 444] {
        arrives(&mut net, 1, &request(port, 0));
        let id = one_question(&mut net);
        decide(&mut net, id, true);
    }
    apply(&mut net, gateway(Some(simple(Action::Allow, Action::Deny))));
    ask_again(&mut net);
    assert_eq!(numbers(&net).flows, 2);
}

#[test]
fn refusals_are_forgotten() {
    let mut net = connected(asking());
    arrives(&mut net, 1, &request(443, 0));
    let id = one_question(&mut net);
    decide(&mut net, id, false);
    ask_again(&mut net);
    arrives(&mut net, 1, &request(443, 1));
    one_question(&mut net);
}

#[test]
fn an_answer_that_is_on_the_way_is_ignored_and_its_flow_is_asked_about_once_more() {
    let mut net = connected(asking());
    for number in 0..2 {
        arrives(&mut net, 1, &request(443, number));
    }
    let before = one_question(&mut net);
    net.run_for(4.0);
    ask_again(&mut net);
    assert!(!decide(&mut net, before, true));
    let id = one_question(&mut net);
    // It has its own five seconds.
    net.run_for(4.0);
    assert!(decide(&mut net, id, true));
    assert_eq!(received(&mut net, 2), [request(443, 0), request(443, 1)]);
    assert_eq!(net.peer_stats(2, 1).drops.total(), 0);
}

#[test]
fn later_fragments_of_a_packet_that_was_allowed_do_not_pass_any_more() {
    let mut net = connected(asking());
    let fragment = |offset: u16, more: bool| {
        let mut packet = request(443, 0);
        let field = (offset / 8) | (u16::from(more) << 13);
        packet[6..8].copy_from_slice(&field.to_be_bytes());
        packet
    };
    arrives(&mut net, 1, &fragment(0, true));
    let id = one_question(&mut net);
    decide(&mut net, id, true);
    ask_again(&mut net);
    received(&mut net, 2);
    assert_eq!(arrives(&mut net, 1, &fragment(16, false)), [[]; 0]);
    assert_eq!(drops(&net, DropReason::Denied), 1);
}

#[test]
fn it_concerns_one_peer_and_one_that_is_not_known_is_an_error() {
    let outbound = Some(simple(Action::Deny, Action::Ask));
    let peers = [10, 11, 12].map(|number| PeerConfig {
        policy: outbound.clone(),
        ..peer(number)
    });
    let mut hub = node(config(9, [&peers[..], &[peer(13)]].concat()));
    hub.ask(true, START);
    for number in 10..13 {
        for port in 1..4 {
            hub.handle_packet(&between(9, number, &udp(port, 443, 0)), START);
        }
    }
    for question in hub.take_questions() {
        let port = question.header.ports.unwrap().source;
        if port < 3 {
            assert!(hub.decide(question.id, port == 1, START));
        }
    }
    hub.ask_again(&public_key(11), START).unwrap();
    hub.ask_again(&public_key(13), START).unwrap();
    let unknown = hub.ask_again(&public_key(14), START);
    assert_eq!(unknown, Err(DropReason::UnknownPeer));
    let peers = hub.stats(START).peers;
    for (number, flows) in [(10, 1), (11, 0), (12, 1)] {
        let mut peers = peers.iter();
        let peer = peers.find(|peer| peer.public_key == public_key(number));
        let policy = peer.unwrap().policy.unwrap();
        assert_eq!((policy.flows, policy.pending), (flows, 1));
    }
    for number in 10..13 {
        hub.handle_packet(&between(9, number, &udp(2, 443, 0)), START);
    }
    let asked: Vec<_> = hub
        .take_questions()
        .iter()
        .map(|question| (question.peer, question.header.ports.unwrap().source))
        .collect();
    assert_eq!(asked, [(public_key(11), 3), (public_key(11), 2)]);
}
