//! Timestamps of initiations outlive tunnels, peers and processes (faults 7, 22 and 33).

use std::net::SocketAddr;
use std::time::Duration;

use connlib_core::{DropReason, Instant, Node, NodeConfig, PeerConfig, Role};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::net::*;

const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// Timestamps by public key.
type Stamps = Vec<([u8; 32], [u8; 12])>;

fn elsewhere() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 5], 4500))
}

/// TAI64N by hand: 1970 is 2^62 + 37.
fn tai64n(unix_time: Duration) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&(0x4000_0000_0000_0025 + unix_time.as_secs()).to_be_bytes());
    bytes[8..].copy_from_slice(&unix_time.subsec_nanos().to_be_bytes());
    bytes
}

/// The wall clock that was never set.
fn true_time(now: Instant) -> Duration {
    UNIX_TIME + now.duration_since(START)
}

fn kept(net: &mut Net, number: u8) -> (Stamps, Stamps) {
    let node = &net.host(number).node;
    (node.received_timestamps(), node.sent_timestamps())
}

/// The process of a host ends, and another one starts at this wall clock, with what was kept.
fn restart(
    net: &mut Net,
    number: u8,
    config: NodeConfig,
    unix_time: Duration,
    kept: &(Stamps, Stamps),
) {
    let rng = Box::new(ChaCha20Rng::seed_from_u64(100 + u64::from(number)));
    let mut node = Node::new(config, net.now, unix_time, rng).unwrap();
    node.restore_timestamps(&kept.0, &kept.1, net.now).unwrap();
    net.host(number).node = node;
}

/// Host 2 has answered an initiation of host 1, which is returned.
fn recorded() -> (Net, Vec<u8>) {
    let mut net = Net::pair(Role::Either, Role::Either);
    net.send(1, &between(1, 2, b"hello"));
    let initiation = net.log[0].bytes.clone();
    net.run_for(30.0);
    assert_eq!(net.host(2).received, [between(1, 2, b"hello")]);
    net.log.clear();
    (net, initiation)
}

fn two() -> NodeConfig {
    config(2, vec![peer(1)])
}

fn assert_refused(net: &mut Net, initiation: &[u8]) {
    let before = net.drops(2, 1, DropReason::ReplayedInitiation);
    for _ in 0..3 {
        assert!(net.inject(2, elsewhere(), initiation).is_empty());
        net.run_for(1.0);
    }
    assert_eq!(net.drops(2, 1, DropReason::ReplayedInitiation), before + 3);
    assert_eq!(net.endpoint(2, 1), Some(address(1)));
}

#[test]
fn an_initiation_that_is_replayed_after_a_restart_gets_no_answer() {
    let (mut net, initiation) = recorded();
    let kept = kept(&mut net, 2);
    let now = true_time(net.now);
    restart(&mut net, 2, two(), now, &kept);
    assert_refused(&mut net, &initiation);
    // The peer itself comes in.
    net.run_for(200.0);
    net.send(1, &between(1, 2, b"again"));
    net.run_for(1.0);
    assert!(net.host(2).received.contains(&between(1, 2, b"again")));
}

#[test]
fn where_timestamps_are_lost_a_replay_gets_one_answer_and_data_goes_where_it_went() {
    let (mut net, initiation) = recorded();
    let now = true_time(net.now);
    restart(&mut net, 2, two(), now, &(vec![], vec![]));
    let answers = net.inject(2, elsewhere(), &initiation);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].kind(), RESPONSE);
    // No larger than what asked for it.
    assert!(answers[0].bytes.len() <= initiation.len());
    assert_refused(&mut net, &initiation);
    // Nothing confirms that session: what waits leaves on one that the peer itself makes, and nothing else goes elsewhere.
    net.send(2, &between(2, 1, b"waits"));
    net.run_for(10.0);
    assert_eq!(net.host(1).received, [between(2, 1, b"waits")]);
    let data: Vec<_> = net.log.iter().filter(|sent| sent.kind() == DATA).collect();
    assert!(!data.is_empty() && data.iter().all(|sent| sent.destination != elsewhere()));
    let to_elsewhere = net.log.iter().filter(|s| s.destination == elsewhere());
    assert_eq!(to_elsewhere.count(), 1);
    assert_eq!(net.endpoint(2, 1), Some(address(1)));
}

#[test]
fn a_replay_is_refused_after_the_private_key_changed_and_changed_back() {
    let (mut net, initiation) = recorded();
    for private_key in [private_key(9), private_key(2)] {
        let now = net.now;
        let config = NodeConfig {
            private_key,
            ..two()
        };
        net.call(2, |node| node.apply(config, now)).unwrap();
    }
    assert_refused(&mut net, &initiation);
}

#[test]
fn a_replay_is_refused_after_the_peer_was_removed_and_added() {
    let (mut net, initiation) = recorded();
    for config in [config(2, vec![]), two()] {
        let now = net.now;
        net.call(2, |node| node.apply(config, now)).unwrap();
    }
    assert_refused(&mut net, &initiation);
}

#[test]
fn a_replay_is_refused_after_the_peer_failed_and_was_added_anew() {
    let (mut net, initiation) = recorded();
    let now = net.now;
    net.call(2, |node| node.panic_in(&public_key(1), now))
        .unwrap();
    for config in [config(2, vec![]), two()] {
        net.call(2, |node| node.apply(config, now)).unwrap();
    }
    assert_refused(&mut net, &initiation);
}

#[test]
fn what_was_kept_waits_for_a_peer_that_is_not_configured_yet_and_for_a_key_that_is_not_set_yet() {
    let (mut net, initiation) = recorded();
    let kept = kept(&mut net, 2);
    let now = true_time(net.now);
    restart(&mut net, 2, config(9, vec![]), now, &kept);
    let now = net.now;
    net.call(2, |node| node.apply(two(), now)).unwrap();
    assert_refused(&mut net, &initiation);
}

#[test]
fn only_valid_initiations_that_were_not_seen_before_are_remembered() {
    let (mut net, initiation) = recorded();
    let before = kept(&mut net, 2);
    assert_eq!(before.0, [(public_key(1), tai64n(UNIX_TIME))]);
    let version = net.host(2).node.timestamps_version();
    assert_refused(&mut net, &initiation);
    let mut forged = initiation;
    forged[100] ^= 1;
    net.inject(2, elsewhere(), &forged);
    net.send(1, &between(1, 2, b"data"));
    net.run_for(1.0);
    assert_eq!(kept(&mut net, 2), before);
    assert_eq!(net.host(2).node.timestamps_version(), version);
    net.run_for(200.0);
    net.send(1, &between(1, 2, b"a new session"));
    net.run_for(1.0);
    assert!(kept(&mut net, 2).0[0].1 > before.0[0].1);
    assert!(net.host(2).node.timestamps_version() > version);
}

#[test]
fn after_a_restart_with_a_clock_that_was_set_back_the_peer_takes_our_initiation() {
    for (keeps, is_taken) in [(true, true), (false, false)] {
        let (mut net, _) = recorded();
        let kept = match keeps {
            true => kept(&mut net, 1),
            false => Default::default(),
        };
        let now = true_time(net.now) - YEAR;
        restart(&mut net, 1, config(1, vec![peer(2)]), now, &kept);
        net.send(1, &between(1, 2, b"again"));
        net.run_for(1.0);
        let taken = net.host(2).received.contains(&between(1, 2, b"again"));
        assert_eq!(taken, is_taken);
    }
}

#[test]
fn it_does_so_too_if_the_last_initiations_were_not_written_down() {
    let mut net = Net::pair(Role::Either, Role::Either);
    net.send(1, &between(1, 2, b"hello"));
    net.run_for(1.0);
    let version = net.host(1).node.timestamps_version();
    let kept = kept(&mut net, 1);
    // The next one is so soon after that it does not count as a change.
    net.run_for(55.0);
    let now = net.now;
    net.call(1, |node| node.initiate_handshake(&public_key(2), now))
        .unwrap();
    net.run_for(1.0);
    assert_eq!(net.host(1).node.timestamps_version(), version);
    assert_eq!(net.count(1, INITIATION), 2);
    restart(
        &mut net,
        1,
        config(1, vec![peer(2)]),
        UNIX_TIME - YEAR,
        &kept,
    );
    net.send(1, &between(1, 2, b"again"));
    net.run_for(1.0);
    assert!(net.host(2).received.contains(&between(1, 2, b"again")));
}

#[test]
fn a_clock_that_is_right_is_used_as_it_is() {
    let (mut net, _) = recorded();
    let kept = kept(&mut net, 1);
    assert_eq!(kept.1, [(public_key(1), tai64n(UNIX_TIME))]);
    let now = true_time(net.now);
    restart(&mut net, 1, config(1, vec![peer(2)]), now, &kept);
    let now = net.now;
    net.call(1, |node| node.initiate_handshake(&public_key(2), now))
        .unwrap();
    // 30 s after the first one, rounded down to 2^24 ns.
    assert_eq!(
        net.host(1).node.sent_timestamps(),
        [(public_key(1), tai64n(UNIX_TIME + Duration::from_secs(30)))]
    );
}

#[test]
fn retries_count_as_a_change_once_a_minute() {
    let mut net = Net::pair(Role::Either, Role::Either);
    net.loses = |_| true;
    let mut versions = vec![];
    for _ in 0..8 {
        net.send(1, &between(1, 2, b"nobody hears it"));
        net.run_for(30.0);
        versions.push(net.host(1).node.timestamps_version());
    }
    assert!(net.count(1, INITIATION) > 40);
    assert_eq!(versions, [1, 1, 2, 2, 3, 3, 4, 4]);
}

#[test]
fn what_was_sent_with_another_private_key_is_that_keys_alone() {
    let (mut net, _) = recorded();
    let now = net.now;
    let changed = |number| NodeConfig {
        private_key: private_key(number),
        ..config(1, vec![peer(2)])
    };
    net.call(1, |node| node.set_unix_time(UNIX_TIME - YEAR, now));
    net.call(1, |node| node.apply(changed(9), now)).unwrap();
    net.call(1, |node| node.initiate_handshake(&public_key(2), now))
        .unwrap();
    let stamps = kept(&mut net, 1).1;
    assert_eq!(
        stamps,
        [
            (public_key(1), tai64n(UNIX_TIME)),
            (public_key(9), tai64n(UNIX_TIME - YEAR))
        ]
    );
    net.run_for(1.0);
    let now = net.now;
    net.call(1, |node| node.apply(changed(1), now)).unwrap();
    net.send(1, &between(1, 2, b"again"));
    net.run_for(1.0);
    assert!(net.host(2).received.contains(&between(1, 2, b"again")));
}

#[test]
fn a_new_peer_is_sent_later_timestamps_than_any_before() {
    // It may be one that was removed, and knows them.
    let (mut net, _) = recorded();
    let now = net.now;
    net.call(1, |node| node.set_unix_time(UNIX_TIME - YEAR, now));
    for config in [config(1, vec![]), config(1, vec![peer(2)])] {
        net.call(1, |node| node.apply(config, now)).unwrap();
    }
    net.send(1, &between(1, 2, b"again"));
    net.run_for(1.0);
    assert!(net.host(2).received.contains(&between(1, 2, b"again")));
}

#[test]
fn restoring_never_goes_back_and_takes_all_or_nothing() {
    let (mut net, initiation) = recorded();
    let now = net.now;
    let before = kept(&mut net, 2);
    let older = [(public_key(1), tai64n(UNIX_TIME - YEAR))];
    let node = &mut net.host(2).node;
    node.restore_timestamps(&older, &[], now).unwrap();
    let later = [(public_key(7), tai64n(UNIX_TIME))];
    let mut nanoseconds = tai64n(UNIX_TIME);
    nanoseconds[8..].copy_from_slice(&1_000_000_000_u32.to_be_bytes());
    for wrong in [[0; 12], [0xff; 12], nanoseconds] {
        let sent = [(public_key(8), tai64n(UNIX_TIME)), (public_key(9), wrong)];
        assert_eq!(
            node.restore_timestamps(&later, &sent, now),
            Err(public_key(9))
        );
    }
    assert_eq!(kept(&mut net, 2), before);
    assert_refused(&mut net, &initiation);
    let own = [(public_key(1), tai64n(UNIX_TIME - YEAR))];
    let before = kept(&mut net, 1);
    let node = &mut net.host(1).node;
    node.restore_timestamps(&[], &own, now).unwrap();
    assert_eq!(kept(&mut net, 1), before);
}

#[test]
fn of_peers_that_are_not_configured_so_many_are_remembered() {
    let mut node = node(two());
    let key = |number: u32| {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        key
    };
    let stamp = tai64n(UNIX_TIME);
    let many: Stamps = (0..5000).map(|number| (key(number), stamp)).collect();
    node.restore_timestamps(&many, &many, START).unwrap();
    // The oldest are gone.
    assert_eq!(node.received_timestamps(), many[5000 - 4096..]);
    assert_eq!(node.sent_timestamps(), many[5000 - 8..]);
    // A peer that is configured is not among them, and takes nobody's place.
    let own = [(public_key(1), stamp)];
    node.restore_timestamps(&own, &[], START).unwrap();
    let all = node.received_timestamps();
    assert_eq!(all.len(), 4097);
    assert_eq!(all.last(), own.last());
}

#[test]
fn a_peer_that_is_forgotten_may_begin_again() {
    let (mut net, initiation) = recorded();
    let version = net.host(2).node.timestamps_version();
    assert!(net.host(2).node.forget_timestamp(&public_key(1)));
    assert!(!net.host(2).node.forget_timestamp(&public_key(1)));
    assert_eq!(kept(&mut net, 2).0, []);
    assert_eq!(net.host(2).node.timestamps_version(), version + 1);
    assert_eq!(net.inject(2, elsewhere(), &initiation).len(), 1);
    assert_refused(&mut net, &initiation);
    // One that is not configured as well.
    let now = net.now;
    net.call(2, |node| node.apply(config(2, vec![]), now))
        .unwrap();
    assert!(net.host(2).node.forget_timestamp(&public_key(1)));
    assert!(!net.host(2).node.forget_timestamp(&public_key(1)));
    let responder = PeerConfig {
        role: Role::Responder,
        ..peer(1)
    };
    net.call(2, |node| node.apply(config(2, vec![responder]), now))
        .unwrap();
    assert_eq!(net.inject(2, elsewhere(), &initiation).len(), 1);
}
