//! Where a peer is: learned from what is authenticated, and from nothing else.

use std::net::SocketAddr;
use std::time::Duration;

use connlib_core::{DropReason, NodeConfig, PeerConfig, Role};

use crate::net::*;

/// Somewhere else, where nobody is.
fn elsewhere() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 5], 4500))
}

/// The last message of a kind that a host sent.
fn last(net: &Net, source: u8, kind: u8) -> Sent {
    let source = net.hosts[&source].address;
    let own = |sent: &&Sent| sent.source == source && sent.kind() == kind;
    net.log.iter().rev().find(own).unwrap().clone()
}

#[test]
fn a_peer_that_moves_is_followed_after_one_authenticated_datagram() {
    let mut net = Net::connected();
    net.run_until(seconds(30.0));
    net.log.clear();
    net.host(1).address = elsewhere();
    net.send(1, &between(1, 2, b"from elsewhere"));
    net.run_for(0.1);
    assert_eq!(net.endpoint(2, 1), Some(elsewhere()));
    net.send(2, &between(2, 1, b"answer"));
    net.run_for(0.1);
    assert_eq!(last(&net, 2, DATA).destination, elsewhere());
    assert_eq!(net.host(1).received, [between(2, 1, b"answer")]);
    assert_eq!(net.count(1, INITIATION) + net.count(2, INITIATION), 0);
}

#[test]
fn a_packet_with_a_wrong_inner_source_moves_the_endpoint_all_the_same() {
    let mut net = Net::connected();
    net.host(1).address = elsewhere();
    net.send(
        1,
        &packet("10.0.0.9", "10.0.0.2", b"authentic, and not allowed"),
    );
    net.run_for(0.1);
    assert_eq!(net.drops(2, 1, DropReason::SourceNotAllowed), 1);
    assert_eq!(net.endpoint(2, 1), Some(elsewhere()));
}

#[test]
fn a_packet_that_is_not_ip_inside_moves_the_endpoint_all_the_same() {
    let mut net = Net::connected();
    net.host(1).address = elsewhere();
    let mut lying = between(1, 2, b"");
    lying[3] = 19;
    net.send(1, &lying);
    net.run_for(0.1);
    assert_eq!(net.drops(2, 1, DropReason::InvalidPacket), 1);
    assert_eq!(net.endpoint(2, 1), Some(elsewhere()));
}

#[test]
fn forged_and_repeated_data_never_moves_the_endpoint() {
    let mut net = Net::connected();
    net.send(1, &between(1, 2, b"genuine"));
    let genuine = last(&net, 1, DATA).bytes;
    net.run_for(0.1);
    assert!(net.inject(2, elsewhere(), &genuine).is_empty());
    for at in [10, 15, 16, genuine.len() - 1] {
        // A counter that was not seen yet, or the window would refuse it before anything is decrypted.
        let mut forged = genuine.clone();
        forged[9] = 4;
        forged[at] ^= 1;
        assert!(net.inject(2, elsewhere(), &forged).is_empty());
    }
    let mut stray = genuine;
    stray[4] ^= 1;
    assert!(net.inject(2, elsewhere(), &stray).is_empty());
    assert_eq!(net.endpoint(2, 1), Some(address(1)));
    let drops = net.peer_stats(2, 1).drops;
    let expected = [
        (DropReason::InvalidAeadTag, 4),
        (DropReason::DuplicateCounter, 1),
    ];
    assert_eq!(drops.iter().collect::<Vec<_>>(), expected);
    assert_eq!(
        net.stats(2).drops.get(DropReason::WrongIndex),
        1,
        "nobody's index is nobody's fault"
    );
}

#[test]
fn the_answer_to_an_initiation_goes_where_it_came_from_and_the_endpoint_stays() {
    let mut net = Net::connected();
    let now = net.now;
    net.loses = |_| true;
    net.call(1, |node| node.initiate_handshake(&public_key(2), now))
        .unwrap();
    let initiation = last(&net, 1, INITIATION).bytes;
    let answer = net.inject(2, elsewhere(), &initiation);
    assert_eq!(answer.len(), 1);
    assert_eq!(
        (answer[0].kind(), answer[0].destination),
        (RESPONSE, elsewhere())
    );
    assert_eq!(net.endpoint(2, 1), Some(address(1)));
    net.send(2, &between(2, 1, b"on the old session"));
    assert_eq!(last(&net, 2, DATA).destination, address(1));
}

#[test]
fn a_response_moves_the_endpoint_and_what_it_releases_goes_there() {
    let mut net = Net::pair(Role::Either, Role::Either);
    net.loses = |_| true;
    net.send(1, &between(1, 2, b"waiting"));
    let initiation = last(&net, 1, INITIATION).bytes;
    let response = net.inject(2, address(1), &initiation).remove(0).bytes;
    let mut forged = response.clone();
    forged[59] ^= 1;
    assert!(net.inject(1, elsewhere(), &forged).is_empty());
    assert_eq!(net.endpoint(1, 2), Some(address(2)));
    let flushed = net.inject(1, elsewhere(), &response);
    assert_eq!(flushed.len(), 1);
    assert_eq!(
        (flushed[0].kind(), flushed[0].destination),
        (DATA, elsewhere())
    );
    assert_eq!(net.endpoint(1, 2), Some(elsewhere()));
}

#[test]
fn an_initiation_replayed_a_thousand_times_is_not_answered_and_moves_nothing() {
    let mut net = Net::connected();
    let now = net.now;
    net.call(1, |node| node.initiate_handshake(&public_key(2), now))
        .unwrap();
    let initiation = last(&net, 1, INITIATION).bytes;
    net.run_for(1.0);
    net.log.clear();
    for n in 0..1000u16 {
        let source = SocketAddr::from(([203, 0, 113, 5], 1024 + n));
        assert!(net.inject(2, source, &initiation).is_empty());
        // Slowly: the load limit has nothing to do with it.
        net.run_for(0.05);
    }
    assert_eq!(net.count(2, RESPONSE), 0);
    assert_eq!(net.endpoint(2, 1), Some(address(1)));
    assert_eq!(net.drops(2, 1, DropReason::ReplayedInitiation), 1000);
}

#[test]
fn a_genuine_cookie_reply_from_elsewhere_never_moves_the_endpoint() {
    let loaded = NodeConfig {
        handshake_limit: 0,
        ..config(2, vec![peer(1)])
    };
    let mut net = Net::new([(1, config(1, vec![peer(2)])), (2, loaded)]);
    net.loses = |_| true;
    net.send(1, &between(1, 2, b"waiting"));
    let initiation = last(&net, 1, INITIATION).bytes;
    let cookie = net.inject(2, address(1), &initiation).remove(0).bytes;
    assert_eq!(cookie[0], COOKIE_REPLY);
    assert!(net.inject(1, elsewhere(), &cookie).is_empty());
    assert_eq!(net.endpoint(1, 2), Some(address(2)));
    // It was understood, nonetheless: the next initiation has a MAC2.
    net.run_for(6.0);
    assert_ne!(last(&net, 1, INITIATION).bytes[132..], [0; 16]);
    assert_eq!(
        net.stats(1).drops.total() + net.peer_stats(1, 2).drops.total(),
        0
    );
}

#[test]
fn an_initiation_from_a_stranger_is_counted_and_not_answered() {
    let mut net = Net::new([
        (1, config(1, vec![peer(2)])),
        (2, config(2, vec![])),
        (3, config(3, vec![])),
    ]);
    net.send(1, &between(1, 2, b"hello"));
    let initiation = last(&net, 1, INITIATION).bytes;
    assert!(net.inject(2, address(1), &initiation).is_empty());
    assert_eq!(
        net.stats(2).drops.iter().collect::<Vec<_>>(),
        [(DropReason::UnknownPeer, 1)]
    );
    // For another node's key, it does not even have a valid MAC1.
    assert!(net.inject(3, address(1), &initiation).is_empty());
    assert_eq!(
        net.stats(3).drops.iter().collect::<Vec<_>>(),
        [(DropReason::InvalidMac, 1)]
    );
}

#[test]
fn a_keepalive_waits_for_an_endpoint_and_acts_once_there_is_one() {
    let interval = Some(Duration::from_secs(25));
    let nowhere = PeerConfig {
        persistent_keepalive: interval,
        endpoint: None,
        ..peer(2)
    };
    let mut net = Net::new([(1, config(1, vec![nowhere])), (2, config(2, vec![peer(1)]))]);
    net.run_for(1000.0);
    assert!(net.log.is_empty());
    let now = net.now;
    let refused = net.call(1, |node| node.initiate_handshake(&public_key(2), now));
    assert_eq!(refused, Err(DropReason::NoEndpoint));
    net.call(1, |node| {
        node.set_endpoint(&public_key(2), address(2), true, now)
    })
    .unwrap();
    assert_eq!(net.count(1, INITIATION), 1);
    net.run_for(60.0);
    // The one that confirms the session, and two that are due.
    assert_eq!(net.peer_stats(1, 2).tunnel.keepalives_sent, 3);
}

#[test]
fn a_keepalive_of_a_new_node_is_due_at_once() {
    let kept = PeerConfig {
        persistent_keepalive: Some(Duration::from_secs(25)),
        ..peer(2)
    };
    let mut net = Net::new([(1, config(1, vec![kept])), (2, config(2, vec![peer(1)]))]);
    assert!(net.log.is_empty());
    assert_eq!(
        net.host(1).node.next_timeout().map(|timeout| timeout.at),
        Some(START)
    );
    net.run_for(1.0);
    assert_eq!(net.count(1, INITIATION), 1);
    assert_eq!(net.peer_stats(2, 1).tunnel.sessions, 1);
}

#[test]
fn commands_about_a_stranger_are_refused() {
    let mut net = Net::connected();
    let (now, stranger) = (net.now, public_key(9));
    let node = &mut net.host(1).node;
    assert_eq!(
        node.initiate_handshake(&stranger, now),
        Err(DropReason::UnknownPeer)
    );
    assert_eq!(
        node.set_endpoint(&stranger, address(9), true, now),
        Err(DropReason::UnknownPeer)
    );
    let mut net = Net::pair(Role::Responder, Role::Responder);
    let refused = net.call(1, |node| node.initiate_handshake(&public_key(2), now));
    assert_eq!(refused, Err(DropReason::Role));
}
