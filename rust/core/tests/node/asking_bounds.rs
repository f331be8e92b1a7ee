//! What is held for the owner of a node to decide about has bounds, and whatever happens to it, nothing of it is lost
//! uncounted.

use std::collections::BTreeMap;
use std::time::Duration;

use connlib_core::policy::{Action, Direction, EndReason, FlowChange};
use connlib_core::{DropReason, Instant, Node, PeerConfig};
use proptest::prelude::*;

use crate::asking::*;
use crate::net::*;

#[test]
fn a_flow_holds_eight_packets_and_the_rest_is_dropped_in_silence_and_counted() {
    let mut net = connected(asking());
    for number in 0..11 {
        arrives(&mut net, 1, &request(443, number));
    }
    assert_eq!(drops(&net, DropReason::PendingFull), 3);
    assert_eq!(received(&mut net, 1), [[]; 0]);
    let id = one_question(&mut net);
    assert!(decide(&mut net, id, true));
    let expected: Vec<_> = (0..8).map(|number| request(443, number)).collect();
    assert_eq!(received(&mut net, 2), expected);
}

#[test]
fn a_peer_has_sixty_four_pending_flows_and_a_node_a_thousand_and_twenty_four() {
    let mut net = connected(asking());
    for port in 0..70 {
        net.send(1, &request(1000 + port, 0));
    }
    net.run_for(0.1);
    assert_eq!((numbers(&net).pending, numbers(&net).asked), (64, 0));
    assert_eq!(drops(&net, DropReason::PendingFull), 6);
    let ids: Vec<_> = questions(&mut net)
        .iter()
        .map(|question| question.id)
        .collect();
    assert_eq!(ids, (1..=64).collect::<Vec<_>>());
    assert_eq!(numbers(&net).asked, 64, "counted as they are handed out");
    assert!(decide(&mut net, 17, false));
    arrives(&mut net, 1, &request(2000, 0));
    assert_eq!(numbers(&net).pending, 64);

    // 17 peers, whose flows start on the node's side: nothing has to come from them.
    let outbound = Some(simple(Action::Deny, Action::Ask));
    let peers = (10..27).map(|number| PeerConfig {
        policy: outbound.clone(),
        ..peer(number)
    });
    let mut hub = node(config(9, peers.collect()));
    hub.ask(true, START);
    for number in 10..27 {
        for port in 0..64 {
            hub.handle_packet(&between(9, number, &udp(1000 + port, 443, 0)), START);
        }
    }
    assert_eq!(hub.take_questions().len(), 1024);
    let stats = hub.stats(START).peers;
    let full: u64 = stats
        .iter()
        .map(|peer| peer.drops.get(DropReason::PendingFull))
        .sum();
    assert_eq!(full, 64);
    hub.handle_timeout(START + Duration::from_secs(5));
    let stats = hub.stats(START).peers;
    let over: u64 = stats
        .iter()
        .map(|peer| peer.drops.get(DropReason::Unanswered))
        .sum();
    assert_eq!(over, 1024);
}

#[test]
fn a_peer_holds_a_mebibyte_and_a_node_sixteen() {
    let outbound = Some(simple(Action::Deny, Action::Ask));
    let peers = (10..30).map(|number| PeerConfig {
        policy: outbound.clone(),
        ..peer(number)
    });
    let mut hub = node(config(9, peers.collect()));
    hub.ask(true, START);
    let mut large = udp(1, 443, 0);
    large.resize(65_000 - 20, 0);
    for number in 10..30 {
        for port in 0..20u16 {
            large[..2].copy_from_slice(&port.to_be_bytes());
            hub.handle_packet(&between(9, number, &large), START);
        }
    }
    let pending: Vec<_> = hub
        .stats(START)
        .peers
        .iter()
        .map(|peer| peer.policy.unwrap().pending)
        .collect();
    // 16 packets of 65,000 bytes go into 2^20, and 258 into 2^24: the peers came in the order of their numbers.
    assert_eq!(pending.iter().max(), Some(&16));
    assert_eq!(pending.iter().sum::<usize>(), 258);
    // What is released makes room, for a peer that has others pending, too.
    let open = hub.take_questions();
    let mut asked = open
        .iter()
        .filter(|question| question.peer == public_key(10));
    let first = asked.next().unwrap();
    assert!(hub.decide(first.id, false, START));
    large[..2].copy_from_slice(&99u16.to_be_bytes());
    hub.handle_packet(&between(9, 10, &large), START);
    assert_eq!(hub.take_questions().len(), 1);
    for question in open {
        hub.decide(question.id, false, START);
    }
    hub.handle_packet(&between(9, 29, &large), START);
    assert_eq!(hub.take_questions().len(), 1);
}

/// A node with peers from 10 on, towards which it asks. What `refuses` counts are the questions that a packet from a port to
/// one of them brings about; the answer is no.
struct Hub(Node);

impl Hub {
    fn new(peers: std::ops::Range<u8>) -> Self {
        let outbound = Some(simple(Action::Deny, Action::Ask));
        let peers = peers.map(|number| PeerConfig {
            policy: outbound.clone(),
            ..peer(number)
        });
        let mut hub = node(config(9, peers.collect()));
        hub.ask(true, START);
        Hub(hub)
    }

    fn refuses(&mut self, peer: u8, port: u16) -> usize {
        let Hub(hub) = self;
        hub.handle_packet(&between(9, peer, &udp(port, 443, 0)), START);
        let questions = hub.take_questions();
        for question in &questions {
            assert!(hub.decide(question.id, false, START));
        }
        hub.clear_output();
        questions.len()
    }
}

#[test]
fn of_more_refusals_of_a_peer_than_are_remembered_its_oldest_is_forgotten_and_asked_about_again() {
    let mut hub = Hub::new(10..12);
    assert_eq!(hub.refuses(11, 0), 1);
    assert!((0..512).all(|port| hub.refuses(10, port) == 1));
    assert!((0..512).all(|port| hub.refuses(10, port) == 0));
    assert_eq!(hub.refuses(10, 512), 1);
    assert_eq!((hub.refuses(10, 1), hub.refuses(10, 512)), (0, 0));
    assert_eq!(hub.refuses(10, 0), 1);
    // A scan pushes out nobody else's.
    assert!((1000..10_000).all(|port| hub.refuses(10, port) == 1));
    assert_eq!(hub.refuses(11, 0), 0);
}

#[test]
fn of_more_refusals_than_are_remembered_in_all_the_oldest_is_forgotten() {
    let mut hub = Hub::new(10..28);
    for peer in 10..26 {
        assert!((0..512).all(|port| hub.refuses(peer, port) == 1));
    }
    assert!((10..26).all(|peer| hub.refuses(peer, 0) == 0));
    assert_eq!((hub.refuses(26, 0), hub.refuses(27, 0)), (1, 1));
    assert_eq!((hub.refuses(26, 0), hub.refuses(10, 2)), (0, 0));
    assert_eq!((hub.refuses(10, 0), hub.refuses(10, 1)), (1, 1));
}

#[test]
fn what_is_refused_and_pending_of_one_peer_is_not_touched_by_a_change_of_another() {
    let mut hub = Hub::new(10..13);
    for peer in 10..13 {
        assert_eq!(hub.refuses(peer, 1), 1);
    }
    for peer in 10..13 {
        hub.0
            .handle_packet(&between(9, peer, &udp(2, 443, 0)), START);
    }
    let asking = Some(simple(Action::Deny, Action::Ask));
    let open = Some(simple(Action::Deny, Action::Allow));
    let peers = [(10, &asking), (11, &open), (12, &asking)].map(|(number, policy)| PeerConfig {
        policy: policy.clone(),
        ..peer(number)
    });
    hub.0.apply(config(9, peers.to_vec()), START).unwrap();
    let pending: usize = hub
        .0
        .stats(START)
        .peers
        .iter()
        .map(|peer| peer.policy.unwrap().pending)
        .sum();
    assert_eq!(pending, 2);
    assert_eq!(hub.0.take_questions().len(), 2);
    assert_eq!((hub.refuses(10, 1), hub.refuses(12, 1)), (0, 0));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// By the peer or not, of which flow.
    Send(bool, u16),
    /// The nth of the open questions.
    Decide(usize, bool),
    Wait(u64),
    Ask(bool),
    AskAgain,
    /// What the policy says about what comes from the peer, and what goes to it; or there is none.
    Change(Option<(Action, Action)>),
}

fn step() -> impl Strategy<Value = Step> {
    let action = prop::sample::select(vec![Action::Allow, Action::Deny, Action::Ask]);
    let actions = prop::option::weighted(0.9, (action.clone(), action));
    prop_oneof![
        20 => (any::<bool>(), 0..6u16).prop_map(|(by_peer, flow)| Step::Send(by_peer, flow)),
        6 => (0..8usize, any::<bool>()).prop_map(|(nth, allow)| Step::Decide(nth, allow)),
        3 => prop::sample::select(vec![1, 1000, 4000, 5000, 10_000]).prop_map(Step::Wait),
        1 => prop::bool::weighted(0.9).prop_map(Step::Ask),
        2 => Just(Step::AskAgain),
        2 => actions.prop_map(Step::Change),
    ]
}

type Actions = Option<(Action, Action)>;

/// What the policy says about flows that the peer begins, or this side.
fn own(actions: Actions, by_peer: bool) -> Action {
    actions.map_or(Action::Allow, |(default, outbound)| match by_peer {
        true => default,
        false => outbound,
    })
}

/// The flows that were revoked, by the flow log: who began each, and when a packet of it was seen last.
#[derive(Default)]
struct Revoked(BTreeMap<u16, (bool, Instant)>);

impl Revoked {
    fn read(&mut self, net: &mut Net, actions: Actions) {
        let now = net.now;
        let (records, missed) = net.call(2, |node| node.take_flows(now));
        assert_eq!(missed, 0);
        for record in records {
            let by_peer = record.header.direction == Direction::FromPeer;
            let ports = record.header.ports.unwrap();
            let port = match by_peer {
                true => ports.destination,
                false => ports.source,
            };
            match record.change {
                FlowChange::Began { .. } => self.0.remove(&(port - 443)),
                FlowChange::Ended(end) if end.why == EndReason::Revoked => {
                    self.0.insert(port - 443, (by_peer, now))
                }
                _ => None,
            };
        }
        self.0
            .retain(|_, (by_peer, _)| own(actions, *by_peer) != Action::Allow);
    }

    /// Whether a packet of the other side than the one that began it may not pass, whatever its side may begin.
    fn holds(&mut self, flow: u16, by_peer: bool, now: Instant) -> bool {
        let Some((began, seen)) = self.0.get_mut(&flow) else {
            return false;
        };
        let (holds, is_other) = (now < *seen + Duration::from_secs(120), *began != by_peer);
        *seen = now;
        if !holds {
            self.0.remove(&flow);
        }
        holds && is_other
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_comes_and_is_answered_each_packet_comes_out_once_and_in_order_or_is_counted(
        steps in prop::collection::vec(step(), 1..150)
    ) {
        let mut actions = Some((Action::Ask, Action::Ask));
        let mut net = connected(simple(Action::Ask, Action::Ask));
        // The session stays: whoever sends has one.
        let mut sent: BTreeMap<(bool, u16), u16> = BTreeMap::new();
        let mut open = Vec::new();
        let mut questions_of: BTreeMap<u64, usize> = BTreeMap::new();
        let mut revoked = Revoked::default();
        net.call(2, |node| node.log_flows(1000));
        for step in steps {
            match step {
                Step::Send(by_peer, flow) => {
                    let number = sent.entry((by_peer, flow)).or_default();
                    let packet = match by_peer {
                        true => request(443 + flow, *number),
                        false => reply(443 + flow, *number),
                    };
                    *number += 1;
                    let (from, to) = if by_peer { (1, 2) } else { (2, 1) };
                    let is_revoked = revoked.holds(flow, by_peer, net.now);
                    net.send(from, &packet);
                    net.run_for(0.05);
                    let passed = net.host(to).received.contains(&packet);
                    if is_revoked {
                        prop_assert!(!passed);
                    } else if own(actions, by_peer) == Action::Allow {
                        // Nothing else is asked, and it waits for nobody.
                        prop_assert!(passed);
                    }
                }
                Step::Decide(nth, allow) => {
                    if let Some(id) = open.get(nth).copied() {
                        decide(&mut net, id, allow);
                    }
                }
                Step::Wait(millis) => net.run_for(millis as f64 / 1000.0),
                Step::Ask(on) => ask(&mut net, on),
                Step::AskAgain => {
                    let now = net.now;
                    net.call(2, |node| node.ask_again(&public_key(1), now)).unwrap();
                    net.run_for(0.05);
                }
                Step::Change(to) => {
                    actions = to;
                    apply(&mut net, gateway(to.map(|(default, outbound)| simple(default, outbound))));
                    net.run_for(0.05);
                }
            }
            revoked.read(&mut net, actions);
            for question in questions(&mut net) {
                *questions_of.entry(question.id).or_default() += 1;
                open.push(question.id);
            }
            if let Some(policy) = net.peer_stats(2, 1).policy {
                prop_assert!(policy.pending <= 6);
            }
        }
        // What was held of a direction that was not asked about may be asked about in its turn.
        net.run_for(11.0);
        prop_assert!(questions_of.values().all(|count| *count == 1));
        let pending = net.peer_stats(2, 1).policy.map_or(0, |policy| policy.pending);
        prop_assert_eq!(pending, 0);

        let mut out = 0;
        for (host, by_peer) in [(2, true), (1, false)] {
            let mut last: BTreeMap<u16, u16> = BTreeMap::new();
            for packet in received(&mut net, host).iter().filter(|packet| packet[9] == 17) {
                let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
                let (flow, number) = (word(if by_peer { 22 } else { 20 }), word(28));
                if let Some(before) = last.insert(flow, number) {
                    prop_assert!(before < number, "{} after {} of {}", number, before, flow);
                }
                out += 1;
            }
        }
        let counted = net.peer_stats(2, 1).drops.total();
        let all: u16 = sent.values().sum();
        prop_assert_eq!(out + counted, u64::from(all));
    }
}
