//! The owner of a node takes back what was answered about a peer's flows.

use connlib_core::policy::{Action, Direction, EndReason, FlowChange, Reason};
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
    assert_eq!(arrives(&mut net, 1, &request(443, 2)), [[]; 0]);
    let id = one_question(&mut net);
    assert!(decide(&mut net, id, true));
    assert!(received(&mut net, 2).contains(&request(443, 2)));
}

/// A flow of the peer's, or of the network behind us, that was allowed and then asked about again.
fn asked_again(default: Action, outbound: Action, first: &[u8], answer: &[u8]) -> Net {
    let mut net = connected(simple(default, outbound));
    let by_peer = default == Action::Ask;
    let (from, to) = if by_peer { (1, 2) } else { (2, 1) };
    arrives(&mut net, from, first);
    let id = one_question(&mut net);
    assert!(decide(&mut net, id, true));
    assert_eq!(received(&mut net, to), [first]);
    assert_eq!(arrives(&mut net, to, answer), [answer]);
    ask_again(&mut net);
    assert_eq!((numbers(&net).flows, numbers(&net).pending), (0, 0));
    net
}

#[test]
fn what_answers_a_flow_asks_about_that_flow_once_more_though_its_own_side_may_begin_any() {
    let (ack, pair) = (0x10, [Action::Allow, Action::Deny]);
    for other in pair {
        for (first, answer) in [
            (request(443, 0), reply(443, 1)),
            (tcp(1, 2, 2), tcp(2, 1, ack)),
        ] {
            for allow in [true, false] {
                let mut net = asked_again(Action::Ask, other, &first, &answer);
                assert_eq!(arrives(&mut net, 2, &answer), [[]; 0]);
                assert_eq!(arrives(&mut net, 2, &answer), [[]; 0]);
                let question = questions(&mut net).pop().unwrap();
                assert_eq!(question.header.direction, Direction::FromPeer);
                assert_eq!(question.header.destination.to_string(), "10.0.0.2");
                assert_eq!(question.header.ports.unwrap().destination, 443);
                assert!(decide(&mut net, question.id, allow));
                let came = received(&mut net, 1);
                match allow {
                    true => assert_eq!(came, [&answer[..], &answer]),
                    false => assert_eq!(came, [[]; 0]),
                }
                // It is a flow of the peer's, whose policy decides about it.
                apply(&mut net, gateway(Some(simple(Action::Deny, other))));
                assert_eq!(numbers(&net).flows, 0);
                assert_eq!(arrives(&mut net, 2, &answer), [[]; 0]);
                net.host(2).received.clear();
                let last = request(443, 9);
                arrives(&mut net, 1, &last);
                assert!(!received(&mut net, 2).contains(&last));
                assert_eq!(questions(&mut net), []);
            }
        }
    }
}

#[test]
fn the_same_goes_for_a_flow_of_this_side_that_the_peer_answers() {
    for (first, answer) in [
        (reply(443, 0), request(443, 1)),
        (tcp(2, 1, 2), tcp(1, 2, 0x10)),
    ] {
        let mut net = asked_again(Action::Allow, Action::Ask, &first, &answer);
        assert_eq!(arrives(&mut net, 1, &answer), [[]; 0]);
        let question = questions(&mut net).pop().unwrap();
        assert_eq!(question.header.direction, Direction::ToPeer);
        assert!(decide(&mut net, question.id, true));
        assert_eq!(received(&mut net, 2), [&answer[..]]);
        apply(&mut net, gateway(Some(simple(Action::Allow, Action::Deny))));
        assert_eq!(arrives(&mut net, 1, &answer), [[]; 0]);
    }
}

#[test]
fn what_was_held_of_such_a_flow_falls_with_it_and_is_not_held_for_another_question() {
    let mut net = asked_again(Action::Ask, Action::Allow, &request(443, 0), &reply(443, 1));
    arrives(&mut net, 2, &reply(443, 2));
    arrives(&mut net, 1, &request(443, 3));
    one_question(&mut net);
    net.run_for(5.0);
    assert_eq!(drops(&net, DropReason::Unanswered), 2);
    assert_eq!(numbers(&net).pending, 0);
    assert_eq!(questions(&mut net), []);
}

#[test]
fn a_connection_that_this_side_begins_in_the_place_of_one_that_was_revoked_asks_nobody() {
    let (syn, ack) = (2, 0x10);
    let mut net = asked_again(Action::Ask, Action::Allow, &tcp(1, 2, syn), &tcp(2, 1, ack));
    let again = tcp(2, 1, syn);
    assert_eq!(arrives(&mut net, 2, &again), [again]);
    let answer = tcp(1, 2, syn | ack);
    assert_eq!(arrives(&mut net, 1, &answer), [answer]);
    assert_eq!(questions(&mut net), []);
}

#[test]
fn what_is_told_of_a_refused_answer_is_the_flow_that_it_was() {
    let mut net = asked_again(Action::Ask, Action::Allow, &request(443, 0), &reply(443, 1));
    net.call(2, |node| node.log_flows(10));
    apply(&mut net, gateway(Some(simple(Action::Deny, Action::Allow))));
    arrives(&mut net, 2, &reply(443, 2));
    let now = net.now;
    let (records, _) = net.call(2, |node| node.take_flows(now));
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].header.direction, Direction::FromPeer);
    assert_eq!(records[0].verdict.reason, Reason::Default);
    // Whoever sent it is told so.
    let answers = received(&mut net, 2);
    assert!(is_refusal(&answers[0]));
    assert_eq!(answers[0][28..], reply(443, 2));
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

fn withdrawn(net: &mut Net) -> Vec<u64> {
    net.call(2, |node| node.take_withdrawn())
}

#[test]
fn whoever_looks_for_an_answer_hears_of_the_questions_that_need_none_any_more() {
    let mut net = connected(simple(Action::Ask, Action::Allow));
    for port in 443..450 {
        arrives(&mut net, 1, &request(port, 0));
    }
    let ids: Vec<_> = questions(&mut net).iter().map(|asked| asked.id).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5, 6, 7]);
    // Whoever has answered knows it.
    assert!(decide(&mut net, 1, true));
    assert!(decide(&mut net, 2, false));
    assert_eq!(withdrawn(&mut net), []);
    // What is let pass by itself.
    arrives(&mut net, 2, &reply(445, 1));
    assert_eq!(withdrawn(&mut net), [3]);
    ask_again(&mut net);
    assert_eq!(withdrawn(&mut net), [4, 5, 6, 7]);
    assert_eq!(withdrawn(&mut net), []);
    // Of those that nobody took yet, nobody looks for an answer.
    ask_again(&mut net);
    assert_eq!(withdrawn(&mut net), []);
    assert_eq!(questions(&mut net).len(), 4);
    apply(&mut net, gateway(Some(simple(Action::Deny, Action::Ask))));
    assert_eq!(withdrawn(&mut net).len(), 4);
    // Over in time.
    arrives(&mut net, 2, &reply(460, 0));
    one_question(&mut net);
    net.run_for(5.0);
    assert_eq!(withdrawn(&mut net), []);
    for port in 461..463 {
        arrives(&mut net, 2, &reply(port, 0));
        let id = one_question(&mut net);
        match port {
            461 => ask(&mut net, false),
            _ => apply(&mut net, config(2, vec![])),
        }
        assert_eq!(withdrawn(&mut net), [id]);
        ask(&mut net, true);
    }
}

#[test]
fn withdrawn_questions_that_nobody_takes_do_not_pile_up() {
    let mut net = connected(asking());
    for port in 443..445 {
        arrives(&mut net, 1, &request(port, 0));
    }
    for _ in 0..10 {
        assert_eq!(questions(&mut net).len(), 2);
        ask_again(&mut net);
    }
    assert_eq!(withdrawn(&mut net).len(), 2);
}
