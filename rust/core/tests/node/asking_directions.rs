//! Where a policy asks about one direction of a flow only, or the owner of the node answers for one: the other is judged
//! by itself.

use connlib_core::policy::{Action, Direction};
use connlib_core::{DropReason, NodeConfig};

use crate::asking::*;

fn host2(default: Action, outbound: Action) -> NodeConfig {
    gateway(Some(simple(default, outbound)))
}

#[test]
fn what_may_pass_by_itself_begins_the_flow_and_what_waits_goes_on_before_it() {
    let mut net = connected(simple(Action::Allow, Action::Ask));
    for number in 0..2 {
        assert_eq!(arrives(&mut net, 2, &reply(443, number)), [[]; 0]);
    }
    let id = one_question(&mut net);
    assert_eq!(arrives(&mut net, 1, &request(443, 2)), [request(443, 2)]);
    assert_eq!(received(&mut net, 1), [reply(443, 0), reply(443, 1)]);
    assert_eq!((numbers(&net).flows, numbers(&net).pending), (1, 0));
    assert!(!decide(&mut net, id, false), "nothing waits for it");
    assert_eq!(arrives(&mut net, 2, &reply(443, 3)), [reply(443, 3)]);

    let mut net = connected(simple(Action::Ask, Action::Allow));
    assert_eq!(arrives(&mut net, 1, &request(443, 0)), [[]; 0]);
    let id = one_question(&mut net);
    assert_eq!(arrives(&mut net, 2, &reply(443, 1)), [reply(443, 1)]);
    assert_eq!(received(&mut net, 2), [request(443, 0)]);
    assert!(!decide(&mut net, id, false));
    assert_eq!(net.peer_stats(2, 1).drops.total(), 0);
}

#[test]
fn a_flow_that_began_so_is_one_of_the_side_that_began_it() {
    let mut net = connected(simple(Action::Allow, Action::Ask));
    arrives(&mut net, 2, &reply(443, 0));
    arrives(&mut net, 1, &request(443, 1));
    apply(&mut net, host2(Action::Allow, Action::Deny));
    assert_eq!(numbers(&net).flows, 1, "the peer may begin it");
    apply(&mut net, host2(Action::Ask, Action::Allow));
    assert_eq!(numbers(&net).flows, 0);
}

#[test]
fn what_may_pass_and_begins_nothing_leaves_the_question_open() {
    let mut net = connected(simple(Action::Allow, Action::Ask));
    let (syn, rst) = (tcp(2, 1, 2), tcp(1, 2, 4));
    arrives(&mut net, 2, &syn);
    let id = one_question(&mut net);
    assert_eq!(arrives(&mut net, 1, &rst), [rst]);
    assert_eq!((numbers(&net).pending, numbers(&net).flows), (1, 0));
    assert!(decide(&mut net, id, true));
    assert_eq!(received(&mut net, 1), [syn]);
}

#[test]
fn a_refusal_holds_for_the_direction_that_was_asked_about() {
    let mut net = connected(simple(Action::Ask, Action::Ask));
    arrives(&mut net, 2, &reply(443, 0));
    let id = one_question(&mut net);
    assert!(decide(&mut net, id, false));
    arrives(&mut net, 1, &request(443, 1));
    let question = questions(&mut net).pop().unwrap();
    assert_eq!(question.header.direction, Direction::FromPeer);
    assert!(decide(&mut net, question.id, false));
    for number in 2..4 {
        arrives(&mut net, 2, &reply(443, number));
        arrives(&mut net, 1, &request(443, number));
    }
    assert_eq!(questions(&mut net), []);
    assert_eq!(drops(&net, DropReason::Denied), 6);
}

#[test]
fn what_was_held_of_the_other_direction_is_judged_by_itself_once_a_flow_is_refused() {
    let mut net = connected(simple(Action::Ask, Action::Ask));
    arrives(&mut net, 2, &reply(443, 0));
    arrives(&mut net, 1, &request(443, 1));
    let id = one_question(&mut net);
    assert!(decide(&mut net, id, false));
    assert_eq!(drops(&net, DropReason::Denied), 1);
    let question = questions(&mut net).pop().unwrap();
    assert_eq!(question.header.direction, Direction::FromPeer);
    net.host(2).received.clear();
    assert!(decide(&mut net, question.id, true));
    assert_eq!(received(&mut net, 2), [request(443, 1)]);

    // Where it is refused, too, its own sender is told.
    let mut net = connected(simple(Action::Deny, Action::Ask));
    arrives(&mut net, 2, &reply(443, 0));
    arrives(&mut net, 1, &request(443, 1));
    let id = one_question(&mut net);
    assert!(decide(&mut net, id, false));
    assert_eq!(drops(&net, DropReason::Denied), 2);
    for (host, refused) in [(1, request(443, 1)), (2, reply(443, 0))] {
        let answers = received(&mut net, host);
        assert_eq!(answers.len(), 1);
        assert!(is_refusal(&answers[0]));
        assert_eq!(answers[0][28..], refused);
    }
}

#[test]
fn nothing_is_held_for_longer_than_two_questions() {
    let mut net = connected(simple(Action::Ask, Action::Ask));
    arrives(&mut net, 2, &reply(443, 0));
    arrives(&mut net, 1, &request(443, 1));
    net.run_for(5.0);
    assert_eq!(drops(&net, DropReason::Unanswered), 1);
    arrives(&mut net, 2, &reply(443, 2));
    net.run_for(5.0);
    assert_eq!(drops(&net, DropReason::Unanswered), 2);
    net.run_for(5.0);
    assert_eq!(drops(&net, DropReason::Unanswered), 3);
    assert_eq!(numbers(&net).pending, 0);
}

#[test]
fn a_changed_policy_that_lets_the_other_direction_pass_releases_what_waits() {
    let mut net = connected(simple(Action::Ask, Action::Ask));
    arrives(&mut net, 2, &reply(443, 0));
    arrives(&mut net, 1, &request(443, 1));
    let id = one_question(&mut net);
    apply(&mut net, host2(Action::Allow, Action::Ask));
    net.run_for(0.1);
    assert_eq!(received(&mut net, 2), [request(443, 1)]);
    assert_eq!(received(&mut net, 1), [reply(443, 0)]);
    assert!(!decide(&mut net, id, false));
    assert_eq!(questions(&mut net), []);
    // It denies what was asked about, and not the rest.
    arrives(&mut net, 2, &reply(444, 0));
    apply(&mut net, host2(Action::Ask, Action::Ask));
    arrives(&mut net, 1, &request(444, 1));
    apply(&mut net, host2(Action::Allow, Action::Deny));
    net.run_for(0.1);
    assert_eq!(drops(&net, DropReason::Denied), 1);
    let came = received(&mut net, 2);
    assert!(came.contains(&request(444, 1)) && came.iter().any(|packet| is_refusal(packet)));
}
