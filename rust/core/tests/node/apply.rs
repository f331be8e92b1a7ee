//! From one configuration to the next.

use std::net::SocketAddr;
use std::time::Duration;

use connlib_core::{
    ConfigDiff, ConfigError, DropReason, NodeConfig, PeerChange, PeerConfig, Role, Secret, Stats,
    TimerConfig,
};

use crate::net::*;

/// Hosts 1, 2 and 3; 2 and 3 are connected to 1, which both initiated.
fn hub() -> Net {
    let mut net = Net::new([
        (1, hub_config()),
        (2, config(2, vec![peer(1)])),
        (3, config(3, vec![peer(1)])),
    ]);
    for spoke in [2, 3] {
        net.send(spoke, &between(spoke, 1, b"hello"));
    }
    net.run_for(1.0);
    assert_eq!(net.host(1).received.len(), 2);
    net.host(1).received.clear();
    net.log.clear();
    net
}

fn hub_config() -> NodeConfig {
    config(1, vec![peer(2), peer(3)])
}

fn apply(net: &mut Net, config: NodeConfig) -> Result<ConfigDiff, ConfigError> {
    let now = net.now;
    net.call(1, |node| node.apply(config, now))
}

fn changed(number: u8, fields: &[&'static str]) -> PeerChange {
    PeerChange {
        public_key: public_key(number),
        fields: fields.to_vec(),
    }
}

/// Whether data passes between 1 and this host, both ways, without a handshake.
fn has_session(net: &mut Net, number: u8) -> bool {
    let handshakes = |net: &Net| {
        net.log
            .iter()
            .filter(|sent| sent.kind() == INITIATION)
            .count()
    };
    let before = handshakes(net);
    net.send(1, &between(1, number, b"there"));
    net.send(number, &between(number, 1, b"back"));
    net.run_for(0.1);
    let there = std::mem::take(&mut net.host(number).received) == [between(1, number, b"there")];
    let back = std::mem::take(&mut net.host(1).received) == [between(number, 1, b"back")];
    there && back && handshakes(net) == before
}

#[test]
fn the_same_configuration_changes_nothing() {
    let mut net = hub();
    let next = net.host(1).node.next_timeout();
    let mut same = hub_config();
    same.peers.reverse();
    same.peers[0].allowed_ips.reverse();
    same.peers[0].allowed_ips.push(prefix("10.0.0.3/32"));
    same.peers[1].persistent_keepalive = Some(Duration::ZERO);
    assert_eq!(apply(&mut net, same), Ok(ConfigDiff::default()));
    assert!(ConfigDiff::default().is_empty());
    assert_eq!(net.host(1).node.next_timeout(), next);
    assert!(net.log.is_empty());
    assert!(has_session(&mut net, 2) && has_session(&mut net, 3));
}

#[test]
fn a_removed_peer_is_gone_and_the_others_go_on() {
    let mut net = hub();
    let diff = apply(&mut net, config(1, vec![peer(3)])).unwrap();
    assert_eq!(
        diff,
        ConfigDiff {
            removed: vec![public_key(2)],
            ..ConfigDiff::default()
        }
    );
    assert!(has_session(&mut net, 3));
    net.send(1, &between(1, 2, b"nobody"));
    net.send(2, &between(2, 1, b"from nobody"));
    net.run_for(20.0);
    let drops = net.stats(1).drops;
    assert_eq!(drops.get(DropReason::NoRoute), 1);
    assert_eq!(
        drops.get(DropReason::WrongIndex),
        1,
        "its receiver index is nobody's"
    );
    assert!(
        drops.get(DropReason::UnknownPeer) >= 1,
        "and neither is its key"
    );
    assert_eq!(net.stats(1).peers.len(), 1);
    assert!(net.host(1).received.is_empty());
}

#[test]
fn an_added_peer_can_be_reached_and_takes_the_place_of_a_removed_one() {
    let mut net = hub();
    apply(&mut net, config(1, vec![peer(3)])).unwrap();
    let diff = apply(&mut net, config(1, vec![peer(3), peer(2)])).unwrap();
    assert_eq!(
        diff,
        ConfigDiff {
            added: vec![public_key(2)],
            ..ConfigDiff::default()
        }
    );
    assert!(has_session(&mut net, 3));
    net.send(1, &between(1, 2, b"again"));
    net.run_for(1.0);
    assert_eq!(
        std::mem::take(&mut net.host(2).received),
        [between(1, 2, b"again")]
    );
    assert!(has_session(&mut net, 2));
}

#[test]
fn other_settings_of_a_peer_change_while_its_session_goes_on() {
    let mut net = hub();
    let mut new = hub_config();
    new.peers[0] = PeerConfig {
        allowed_ips: vec![prefix("10.0.0.2/31"), prefix("10.2.0.0/16")],
        preshared_key: Some(Secret::new([5; 32])),
        persistent_keepalive: Some(Duration::from_secs(25)),
        ..peer(2)
    };
    let diff = apply(&mut net, new).unwrap();
    let fields = ["preshared_key", "allowed_ips", "persistent_keepalive"];
    assert_eq!(
        diff,
        ConfigDiff {
            changed: vec![changed(2, &fields)],
            ..ConfigDiff::default()
        }
    );
    // Switched on with a session: a keepalive at once.
    assert_eq!((net.log.len(), net.log[0].bytes.len()), (1, 32));
    assert!(has_session(&mut net, 2) && has_session(&mut net, 3));
    net.send(1, &between(1, 3, b"the longer prefix"));
    net.send(2, &packet("10.2.9.9", "10.0.0.1", b"newly allowed"));
    net.send(2, &packet("fd00::2", "fd00::1", b"no longer allowed"));
    net.run_for(0.1);
    assert_eq!(net.host(3).received, [between(1, 3, b"the longer prefix")]);
    assert_eq!(
        net.host(1).received,
        [packet("10.2.9.9", "10.0.0.1", b"newly allowed")]
    );
    // The next handshake has the new preshared key, of which the peer knows nothing.
    let now = net.now;
    net.call(1, |node| node.initiate_handshake(&public_key(2), now))
        .unwrap();
    net.run_for(1.0);
    assert_eq!(net.drops(1, 2, DropReason::InvalidAeadTag), 1);
    // Back again: off is off.
    let diff = apply(&mut net, hub_config()).unwrap();
    assert_eq!(diff.changed, [changed(2, &fields)]);
}

#[test]
fn an_endpoint_that_did_not_change_does_not_undo_roaming() {
    let elsewhere = SocketAddr::from(([203, 0, 113, 5], 4500));
    let mut net = hub();
    net.host(2).address = elsewhere;
    assert!(!has_session(&mut net, 2), "the hub does not know yet");
    assert!(has_session(&mut net, 2));
    assert_eq!(net.endpoint(1, 2), Some(elsewhere));

    let mut new = hub_config();
    new.peers[0].role = Role::Responder;
    assert_eq!(
        apply(&mut net, new.clone()).unwrap().changed,
        [changed(2, &["role"])]
    );
    assert_eq!(net.endpoint(1, 2), Some(elsewhere));
    // Nothing said is nothing known against it.
    new.peers[0].endpoint = None;
    assert_eq!(
        apply(&mut net, new.clone()).unwrap().changed,
        [changed(2, &["endpoint"])]
    );
    assert_eq!(net.endpoint(1, 2), Some(elsewhere));
    // What is said anew holds.
    new.peers[0].endpoint = Some(address(2));
    assert_eq!(
        apply(&mut net, new).unwrap().changed,
        [changed(2, &["endpoint"])]
    );
    assert_eq!(net.endpoint(1, 2), Some(address(2)));
}

#[test]
fn a_changed_role_holds_at_once_and_the_session_goes_on() {
    let mut net = hub();
    let mut new = hub_config();
    new.peers[0].role = Role::Initiator;
    let diff = apply(&mut net, new).unwrap();
    assert_eq!(
        diff,
        ConfigDiff {
            changed: vec![changed(2, &["role"])],
            ..ConfigDiff::default()
        }
    );
    assert!(has_session(&mut net, 2));
    assert!(has_session(&mut net, 3));
    let now = net.now;
    net.call(2, |node| node.initiate_handshake(&public_key(1), now))
        .unwrap();
    net.run_for(0.1);
    assert_eq!(net.drops(1, 2, DropReason::Role), 1);
}

#[test]
fn another_private_key_makes_all_tunnels_anew() {
    let mut net = hub();
    let diff = apply(
        &mut net,
        NodeConfig {
            private_key: private_key(4),
            ..hub_config()
        },
    )
    .unwrap();
    assert_eq!(
        diff,
        ConfigDiff {
            node: vec!["private_key"],
            ..ConfigDiff::default()
        }
    );
    assert_eq!(net.host(1).node.public_key(), public_key(4));
    assert!(
        net.stats(1)
            .peers
            .iter()
            .all(|peer| peer.tunnel.sessions == 0)
    );
    // The others know the old key only.
    net.send(2, &between(2, 1, b"old"));
    let now = net.now;
    net.call(2, |node| node.initiate_handshake(&public_key(1), now))
        .unwrap();
    net.run_for(0.1);
    let drops = net.stats(1).drops;
    assert_eq!(
        (
            drops.get(DropReason::WrongIndex),
            drops.get(DropReason::InvalidMac)
        ),
        (1, 1)
    );
    // Once they learn the new one, all is well.
    let renamed = PeerConfig {
        public_key: public_key(4),
        ..peer(1)
    };
    net.call(2, |node| node.apply(config(2, vec![renamed]), now))
        .unwrap();
    net.send(2, &between(2, 1, b"new"));
    net.run_for(1.0);
    assert_eq!(net.host(1).received, [between(2, 1, b"new")]);
}

#[test]
fn what_was_counted_of_peers_that_stay_is_counted_on_after_another_private_key() {
    let mut net = hub();
    net.send(1, &between(1, 2, b"one"));
    net.send(2, &between(2, 1, b"two"));
    net.run_for(1.0);
    let before = net.peer_stats(1, 2).tunnel;
    assert!(before.tx_bytes > 0 && before.rx_bytes > 0);
    let new = NodeConfig {
        private_key: private_key(4),
        ..hub_config()
    };
    apply(&mut net, new).unwrap();
    let after = net.peer_stats(1, 2).tunnel;
    assert_eq!(
        Stats {
            sessions: 0,
            session_age: None,
            loss: 0.0,
            rtt: None,
            ..before
        },
        after
    );
    let now = net.now;
    let renamed = PeerConfig {
        public_key: public_key(4),
        ..peer(1)
    };
    net.call(2, |node| node.apply(config(2, vec![renamed]), now))
        .unwrap();
    net.send(2, &between(2, 1, b"new"));
    net.run_for(1.0);
    let later = net.peer_stats(1, 2).tunnel;
    // 148 bytes of initiation and 92 of response; a packet is padded to 16 bytes, with 32 of header and tag.
    assert_eq!(later.tx_bytes, before.tx_bytes + 92);
    assert_eq!(later.rx_bytes, before.rx_bytes + 148 + 32 + 32);
    assert_eq!(later.rx_packets, before.rx_packets + 1);
}

#[test]
fn other_settings_of_the_node_are_named() {
    let mut net = hub();
    let limited = NodeConfig {
        handshake_limit: 7,
        ..hub_config()
    };
    assert_eq!(apply(&mut net, limited).unwrap().node, ["handshake_limit"]);
    assert!(
        has_session(&mut net, 2),
        "that is no reason to lose a session"
    );
    let timers = TimerConfig {
        rekey_timeout: Duration::from_secs(1),
        ..TimerConfig::default()
    };
    let new = NodeConfig {
        mtu: 1280,
        timers,
        ..hub_config()
    };
    assert_eq!(
        apply(&mut net, new).unwrap().node,
        ["mtu", "timers", "handshake_limit"]
    );
}

#[test]
fn packets_that_wait_in_a_tunnel_made_anew_are_counted() {
    let mut net = hub();
    net.loses = |_| true;
    net.run_for(200.0);
    net.send(1, &between(1, 2, b"waiting"));
    let new = NodeConfig {
        private_key: private_key(4),
        ..hub_config()
    };
    apply(&mut net, new).unwrap();
    assert_eq!(net.drops(1, 2, DropReason::NoSession), 1);
}

#[test]
fn packets_that_wait_leave_when_a_responder_may_initiate() {
    let mut net = hub();
    net.run_for(200.0);
    let mut new = hub_config();
    new.peers[0].role = Role::Responder;
    apply(&mut net, new).unwrap();
    net.send(1, &between(1, 2, b"waiting"));
    net.run_for(1.0);
    assert_eq!(net.peer_stats(1, 2).tunnel.queued, 1);
    apply(&mut net, hub_config()).unwrap();
    net.run_for(1.0);
    assert_eq!(net.peer_stats(1, 2).tunnel.queued, 0);
    assert_eq!(net.host(2).received, [between(1, 2, b"waiting")]);
}

#[test]
fn what_waits_for_a_removed_peer_is_counted_for_the_node() {
    let mut net = hub();
    net.loses = |_| true;
    net.run_for(200.0);
    net.send(1, &between(1, 2, b"waiting"));
    let mut new = hub_config();
    new.peers.remove(0);
    apply(&mut net, new).unwrap();
    assert_eq!(net.stats(1).drops.get(DropReason::NoSession), 1);
}

#[test]
fn a_wrong_configuration_is_refused_whole() {
    let (two, three) = (public_key(2), public_key(3));
    let with = |change: fn(&mut NodeConfig)| {
        let mut new = hub_config();
        // Something else that would be seen if it were not all or nothing.
        new.peers.push(peer(8));
        new.peers[0].allowed_ips.push(prefix("10.8.0.0/16"));
        new.mtu = 1300;
        change(&mut new);
        new
    };
    let low_order = {
        let mut key = [0; 32];
        key[0] = 1;
        key
    };
    let too_long = prefix("10.0.0.0/33");
    let too_long_v6 = prefix("fd00::/129");
    let cases = [
        (
            with(|new| new.peers.push(peer(2))),
            ConfigError::DuplicatePeer { public_key: two },
        ),
        (
            with(|new| new.peers.push(peer(1))),
            ConfigError::OwnKey {
                public_key: public_key(1),
            },
        ),
        (
            with(|new| new.peers.push(PeerConfig::new([0; 32]))),
            ConfigError::InvalidKey {
                public_key: [0; 32],
            },
        ),
        (
            with(|new| {
                let mut key = [0; 32];
                key[0] = 1;
                new.peers.push(PeerConfig::new(key));
            }),
            ConfigError::InvalidKey {
                public_key: low_order,
            },
        ),
        (
            // Host bits do not hide it.
            with(|new| new.peers[1].allowed_ips.push(prefix("10.8.1.1/16"))),
            ConfigError::DuplicatePrefix {
                prefix: prefix("10.8.0.0/16"),
                first: two,
                second: three,
            },
        ),
        (
            with(|new| new.peers[1].allowed_ips.push(prefix("10.0.0.0/33"))),
            ConfigError::PrefixLength {
                prefix: too_long,
                public_key: three,
            },
        ),
        (
            with(|new| new.peers[1].allowed_ips.push(prefix("fd00::/129"))),
            ConfigError::PrefixLength {
                prefix: too_long_v6,
                public_key: three,
            },
        ),
        (
            with(|new| new.peers[1].persistent_keepalive = Some(Duration::MAX)),
            ConfigError::Keepalive { public_key: three },
        ),
        (
            with(|new| new.timers.rekey_timeout = Duration::MAX),
            ConfigError::Timer {
                name: "rekey_timeout",
            },
        ),
        (
            // 10 s, 5 s and the jitter of a retry.
            with(|new| new.timers.reject_after_time = Duration::from_millis(15_333)),
            ConfigError::RejectedTooSoon,
        ),
        (
            with(|new| new.private_key = private_key(2)),
            ConfigError::OwnKey { public_key: two },
        ),
    ];
    let mut net = hub();
    let before = (net.stats(1), net.host(1).node.next_timeout());
    for (config, error) in cases {
        assert_eq!(apply(&mut net, config), Err(error));
        assert!(!error.to_string().is_empty());
        assert_eq!(
            (net.stats(1), net.host(1).node.next_timeout()),
            before,
            "{error}"
        );
    }
    assert!(has_session(&mut net, 2) && has_session(&mut net, 3));
    net.send(1, &packet("10.0.0.1", "10.8.0.1", b"nobody's"));
    assert_eq!(
        net.stats(1).drops.iter().collect::<Vec<_>>(),
        [(DropReason::NoRoute, 1)]
    );
}
