//! A bug of ours in one peer's tunnel: that peer stops, the others do not notice (fault 28).

use connlib_core::{DropReason, Event, NodeConfig, PeerConfig};

use crate::net::*;

/// Hosts 1, 2 and 3; 2 and 3 are connected to 1, which keeps both alive; then the tunnel of 2 panics in 1.
fn poisoned() -> Net {
    let mut net = Net::new([
        (1, hub_config()),
        (2, config(2, vec![peer(1)])),
        (3, config(3, vec![peer(1)])),
    ]);
    for spoke in [2, 3] {
        net.send(spoke, &between(spoke, 1, b"hello"));
    }
    net.run_for(1.0);
    net.host(1).received.clear();
    net.host(1).events.clear();
    let now = net.now;
    net.call(1, |node| node.panic_in(&public_key(2), now))
        .unwrap();
    net
}

fn hub_config() -> NodeConfig {
    let keepalive = |number| PeerConfig {
        persistent_keepalive: Some(std::time::Duration::from_secs(25)),
        ..peer(number)
    };
    config(1, vec![keepalive(2), keepalive(3)])
}

#[test]
fn the_peer_is_silent_and_what_is_for_it_is_counted() {
    let mut net = poisoned();
    assert_eq!(
        net.host(1).events,
        [(public_key(2), Event::Poisoned.into())]
    );
    net.log.clear();
    net.send(1, &between(1, 2, b"there"));
    assert_eq!(net.drops(1, 2, DropReason::PeerPoisoned), 1);
    let now = net.now;
    let refused = net.call(1, |node| node.initiate_handshake(&public_key(2), now));
    assert_eq!(refused, Err(DropReason::PeerPoisoned));
    // Data on the session that is gone, and later initiations.
    net.send(2, &between(2, 1, b"back"));
    net.run_for(60.0);
    assert_eq!(net.stats(1).drops.get(DropReason::WrongIndex), 1);
    assert!(net.drops(1, 2, DropReason::PeerPoisoned) >= 8);
    let to_2 = net.log.iter().filter(|sent| sent.destination == address(2));
    assert_eq!(to_2.count(), 0);
    assert!(net.host(1).received.is_empty());
    // Settings of a peer that stopped can be changed, which does not start it.
    let mut changed = hub_config();
    changed.peers[0].persistent_keepalive = None;
    changed.peers[0].preshared_key = Some(private_key(9));
    let now = net.now;
    net.call(1, |node| node.apply(changed, now)).unwrap();
    net.call(1, |node| {
        node.set_endpoint(&public_key(2), address(2), true, now)
    })
    .unwrap();
    net.call(1, |node| node.set_unix_time(UNIX_TIME, now));
    net.send(1, &between(1, 2, b"there"));
    assert_eq!(
        net.log
            .iter()
            .filter(|sent| sent.destination == address(2))
            .count(),
        0
    );
}

#[test]
fn the_others_go_on() {
    let mut net = poisoned();
    for second in 0..300u16 {
        net.send(1, &between(1, 3, &second.to_be_bytes()));
        net.send(3, &between(3, 1, &second.to_be_bytes()));
        net.run_for(1.0);
    }
    assert_eq!(net.host(1).received.len(), 300);
    assert_eq!(net.host(3).received.len(), 300);
    // Through two renewals of the session, on time.
    assert!(net.count(1, INITIATION) + net.count(3, INITIATION) >= 2);
}

#[test]
fn a_peer_that_is_removed_and_added_again_works() {
    let mut net = poisoned();
    let now = net.now;
    net.call(1, |node| node.apply(config(1, vec![peer(3)]), now))
        .unwrap();
    net.call(1, |node| node.apply(hub_config(), now)).unwrap();
    net.run_for(1.0);
    net.send(1, &between(1, 2, b"there"));
    net.send(2, &between(2, 1, b"back"));
    net.run_for(1.0);
    assert_eq!(net.host(2).received, [between(1, 2, b"there")]);
    assert_eq!(net.host(1).received, [between(2, 1, b"back")]);
}

#[test]
fn a_new_private_key_makes_its_tunnel_anew_too() {
    let mut net = poisoned();
    let now = net.now;
    let other_key = NodeConfig {
        private_key: private_key(7),
        ..hub_config()
    };
    net.call(1, |node| node.apply(other_key, now)).unwrap();
    net.send(1, &between(1, 2, b"there"));
    assert_eq!(net.drops(1, 2, DropReason::PeerPoisoned), 0);
    assert_eq!(net.peer_stats(1, 2).tunnel.queued, 1);
}

#[test]
fn packets_that_waited_in_the_tunnel_are_counted() {
    let mut net = Net::new([(1, config(1, vec![peer(2)]))]);
    net.send(1, &between(1, 2, b"one"));
    net.send(1, &between(1, 2, b"two"));
    let now = net.now;
    net.call(1, |node| node.panic_in(&public_key(2), now))
        .unwrap();
    assert_eq!(net.drops(1, 2, DropReason::PeerPoisoned), 2);
    assert_eq!(net.host(1).node.next_timeout(), None);
    let stranger = net.call(1, |node| node.panic_in(&public_key(5), now));
    assert_eq!(stranger, Err(DropReason::UnknownPeer));
}
