//! The handshake rate limiter (paper, section 5.4.7), for a whole node.

use std::net::SocketAddr;

use connlib_core::{DropReason, NodeConfig};

use crate::net::*;

/// Hosts 1 and 2, of which 2 answers `limit` handshake messages a second without a cookie.
fn limited(limit: u64) -> Net {
    let server = NodeConfig {
        handshake_limit: limit,
        ..config(2, vec![peer(1)])
    };
    Net::new([(1, config(1, vec![peer(2)])), (2, server)])
}

fn cookies(net: &Net) -> u64 {
    net.stats(2).drops.get(DropReason::CookieReplySent)
}

#[test]
fn under_load_an_initiation_is_answered_once_it_carries_the_cookie() {
    let mut net = limited(0);
    net.send(1, &between(1, 2, b"hello"));
    net.run_until(seconds(4.9));
    assert_eq!(
        (
            net.count(1, INITIATION),
            net.count(2, COOKIE_REPLY),
            net.count(2, RESPONSE)
        ),
        (1, 1, 0)
    );
    net.run_until(seconds(5.5));
    assert_eq!(
        (
            net.count(1, INITIATION),
            net.count(2, COOKIE_REPLY),
            net.count(2, RESPONSE)
        ),
        (2, 1, 1)
    );
    assert_eq!(net.host(2).received, [between(1, 2, b"hello")]);
    assert_eq!(cookies(&net), 1);
    let cookie = net
        .log
        .iter()
        .find(|sent| sent.kind() == COOKIE_REPLY)
        .unwrap();
    assert_eq!((cookie.bytes.len(), cookie.destination), (64, address(1)));
}

#[test]
fn a_cookie_is_worth_nothing_from_another_port_or_address() {
    let mut net = limited(0);
    net.send(1, &between(1, 2, b"hello"));
    net.run_until(seconds(4.9));
    let elsewhere = [
        SocketAddr::from(([192, 0, 2, 1], 51821)),
        SocketAddr::from(([192, 0, 2, 9], 51820)),
    ];
    for source in elsewhere {
        net.host(1).address = source;
        let initiations = net
            .log
            .iter()
            .filter(|sent| sent.kind() == INITIATION)
            .count();
        net.run_for(5.4);
        let sent = net
            .log
            .iter()
            .filter(|sent| sent.kind() == INITIATION)
            .count();
        assert_eq!(sent, initiations + 1);
        assert_eq!(net.count(2, RESPONSE), 0);
    }
    assert_eq!(cookies(&net), 3);
    // From where the last cookie was given out to, it is answered.
    net.run_for(5.4);
    assert_eq!((net.count(2, RESPONSE), cookies(&net)), (1, 3));
}

#[test]
fn the_eleventh_of_a_second_gets_a_cookie_and_a_second_later_all_is_forgotten() {
    let mut net = limited(10);
    for n in 0..11 {
        net.now = seconds(f64::from(n) * 0.09);
        let now = net.now;
        // Another attempt each time: the node is told to, and its attempt ends with the response.
        net.call(1, |node| node.initiate_handshake(&public_key(2), now))
            .unwrap();
        net.run_for(0.08);
    }
    assert_eq!(
        (
            net.count(1, INITIATION),
            net.count(2, RESPONSE),
            cookies(&net)
        ),
        (11, 10, 1)
    );
    net.run_until(seconds(12.0));
    assert_eq!(
        (net.count(2, RESPONSE), cookies(&net)),
        (11, 1),
        "the retry is answered"
    );
}

#[test]
fn the_limit_counts_all_peers_together_and_no_data() {
    let clients = 2..=13;
    let gateway = NodeConfig {
        handshake_limit: 10,
        ..config(1, clients.clone().map(peer).collect())
    };
    let others = clients.clone().map(|n| (n, config(n, vec![peer(1)])));
    let mut net = Net::new(others.chain([(1, gateway)]));
    for client in clients {
        net.send(client, &between(client, 1, b"hello"));
    }
    net.run_for(0.1);
    let drops = net.stats(1).drops;
    assert_eq!(
        drops.iter().collect::<Vec<_>>(),
        [(DropReason::CookieReplySent, 2)]
    );
    assert_eq!(net.host(1).received.len(), 10);
    for n in 0..100u8 {
        net.send(2, &between(2, 1, &[n]));
    }
    net.run_for(0.1);
    assert_eq!(net.host(1).received.len(), 110);
}

#[test]
fn an_invalid_mac1_costs_no_share_of_the_limit() {
    let mut net = limited(10);
    net.loses = |_| true;
    net.send(1, &between(1, 2, b"hello"));
    let initiation = net.log[0].bytes.clone();
    for at in 0..100 {
        let mut forged = initiation.clone();
        forged[16 + at] ^= 1;
        assert!(net.inject(2, address(1), &forged).is_empty());
    }
    assert_eq!(
        net.stats(2).drops.iter().collect::<Vec<_>>(),
        [(DropReason::InvalidMac, 100)]
    );
    assert_eq!(net.inject(2, address(1), &initiation).len(), 1);
}
