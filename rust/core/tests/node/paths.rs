//! From which address of ours a peer is sent to: the one that it has reached, as long as that may be right.

use std::net::IpAddr;

use connlib_core::{Node, Path};

use crate::net::*;

/// Addresses of host 2.
const ASKED: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 22));
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 23));

fn from(number: u8, asked: IpAddr) -> Path {
    Path {
        remote: address(number),
        source: Some(asked),
    }
}

/// Gives host 2 what host 1 has sent last, as sent to this address of it. Returns from where it answers.
fn hand_over(net: &mut Net, asked: IpAddr) -> Vec<Option<IpAddr>> {
    let datagram = net.log.last().unwrap().bytes.clone();
    let now = net.now;
    net.call(2, |node| {
        node.handle_datagram(from(1, asked), &datagram, now);
        node.output().sources.clone()
    })
}

/// From where host 2 sends a packet to host 1.
fn source(net: &mut Net) -> Option<IpAddr> {
    let now = net.now;
    let sources = net.call(2, |node| {
        node.handle_packet(&between(2, 1, b"to the peer"), now);
        node.output().sources.clone()
    });
    assert_eq!(sources.len(), 1);
    sources[0]
}

/// Hosts 1 and 2 with a session, in which 1 has reached 2 at `ASKED`; whatever is sent from now on gets lost.
fn reached() -> Net {
    let mut net = Net::connected();
    net.loses = |_| true;
    assert_eq!(source(&mut net), None);
    net.send(1, &between(1, 2, b"to an address"));
    hand_over(&mut net, ASKED);
    net
}

#[test]
fn a_peer_is_sent_to_from_the_address_that_it_has_reached_last() {
    let mut net = reached();
    assert_eq!(source(&mut net), Some(ASKED));
    net.send(1, &between(1, 2, b"to another one"));
    hand_over(&mut net, OTHER);
    assert_eq!(source(&mut net), Some(OTHER));
    net.send(1, &between(1, 2, b"as seen by a socket that does not say"));
    let datagram = net.log.last().unwrap().bytes.clone();
    net.inject(2, address(1), &datagram);
    assert_eq!(source(&mut net), None);
}

#[test]
fn an_initiation_is_answered_from_where_it_came_to_and_moves_nothing() {
    let mut net = reached();
    net.run_for(1.0);
    net.call(1, |node| {
        node.initiate_handshake(&public_key(2), seconds(2.0))
    })
    .unwrap();
    assert_eq!(net.log.last().unwrap().kind(), INITIATION);
    assert_eq!(hand_over(&mut net, OTHER), [Some(OTHER)]);
    assert_eq!(source(&mut net), Some(ASKED));
}

#[test]
fn what_is_not_authentic_teaches_no_address() {
    let mut net = reached();
    net.send(1, &between(1, 2, b"genuine"));
    hand_over(&mut net, ASKED);
    // Once more, and changed.
    hand_over(&mut net, OTHER);
    net.log.last_mut().unwrap().bytes[20] ^= 1;
    hand_over(&mut net, OTHER);
    assert_eq!(source(&mut net), Some(ASKED));
}

#[test]
fn a_cookie_comes_from_the_address_that_was_asked() {
    let mut server = config(2, vec![peer(1)]);
    server.handshake_limit = 0;
    let mut net = Net::new([(1, config(1, vec![peer(2)])), (2, server)]);
    net.loses = |_| true;
    net.send(1, &between(1, 2, b"hello"));
    assert_eq!(hand_over(&mut net, ASKED), [Some(ASKED)]);
    assert_eq!(net.log.last().unwrap().kind(), COOKIE_REPLY);
}

#[test]
fn an_address_that_may_be_wrong_is_forgotten_until_the_peer_is_heard_again() {
    let located = |node: &mut Node| {
        let now = seconds(1.0);
        node.set_endpoint(&public_key(1), address(1), true, now)
            .unwrap();
    };
    let moved = |node: &mut Node| {
        let mut there = peer(1);
        there.endpoint = Some(address(9));
        node.apply(config(2, vec![there]), seconds(1.0)).unwrap();
    };
    let all = |node: &mut Node| node.forget_sources();
    let refused = |node: &mut Node| node.source_refused(address(1), ASKED);
    let events: [&dyn Fn(&mut Node); 4] = [&located, &moved, &all, &refused];
    for event in events {
        let mut net = reached();
        net.call(2, |node| event(node));
        assert_eq!(source(&mut net), None);
        net.send(1, &between(1, 2, b"again"));
        hand_over(&mut net, ASKED);
        assert_eq!(source(&mut net), Some(ASKED));
    }
}

#[test]
fn what_was_refused_on_another_way_is_kept() {
    let mut net = reached();
    net.call(2, |node| {
        node.source_refused(address(3), ASKED);
        node.source_refused(address(1), OTHER);
        node.apply(config(2, vec![peer(1)]), seconds(1.0)).unwrap();
    });
    assert_eq!(source(&mut net), Some(ASKED));
}

#[test]
fn a_peer_that_does_not_answer_is_tried_from_any_address() {
    let mut net = reached();
    assert_eq!(source(&mut net), Some(ASKED));
    // Keepalive timeout and rekey timeout, 10 s and 5 s, after a packet that got no answer.
    net.run_for(14.9);
    assert_eq!(net.count(2, INITIATION), 0);
    net.run_for(1.0);
    assert_eq!(net.count(2, INITIATION), 1);
    assert_eq!(source(&mut net), None);
}
