//! What is written down of what comes into the tunnels.

use connlib_core::{InputKind, Role};

use crate::net::*;

#[test]
fn nothing_is_recorded_unless_somebody_asks_for_it() {
    let mut net = Net::connected();
    assert_eq!(net.host(1).node.take_recorded(), (vec![], 0));
}

#[test]
fn what_a_tunnel_was_given_is_recorded_with_time_kind_size_and_whether_it_was_taken() {
    let mut net = Net::pair(Role::Initiator, Role::Responder);
    for number in [1, 2] {
        net.host(number).node.record(100);
    }
    net.send(1, &between(1, 2, b"hello"));
    net.run_until(seconds(1.0));
    let seen = |net: &mut Net, number| {
        let (inputs, missed) = net.host(number).node.take_recorded();
        assert_eq!(missed, 0);
        inputs
            .into_iter()
            .map(|input| (input.at, input.peer, input.kind, input.size, input.taken))
            .collect::<Vec<_>>()
    };
    let (one, two) = (public_key(1), public_key(2));
    // 20 + 5 bytes, padded to 32, and 32 of WireGuard.
    assert_eq!(
        seen(&mut net, 1),
        [
            (seconds(0.0), two, InputKind::Packet, 25, true),
            (seconds(0.04), two, InputKind::Response, 92, true),
        ]
    );
    assert_eq!(
        seen(&mut net, 2),
        [
            (seconds(0.02), one, InputKind::Initiation, 148, true),
            (seconds(0.06), one, InputKind::Data, 64, true),
        ]
    );

    net.run_until(seconds(10.06));
    let passive_keepalive = (seconds(10.06), one, InputKind::Timeout, 0, true);
    assert_eq!(seen(&mut net, 2), [passive_keepalive]);
    let asked = net.call(2, |node| node.initiate_handshake(&one, seconds(10.06)));
    assert!(asked.is_err(), "a responder");
    let refused = (seconds(10.06), one, InputKind::Handshake, 0, false);
    assert_eq!(seen(&mut net, 2), [refused]);
}

#[test]
fn what_is_no_peers_is_not_recorded() {
    let mut net = Net::connected();
    net.host(1).node.record(100);
    net.send(1, &between(1, 99, b"no route"));
    net.inject(1, address(2), &[4; 64]);
    assert_eq!(net.host(1).node.take_recorded(), (vec![], 0));
}

#[test]
fn beyond_the_capacity_inputs_are_counted_and_zero_ends_the_recording() {
    let mut net = Net::connected();
    net.host(1).node.record(2);
    for _ in 0..5 {
        net.send(1, &between(1, 2, b"hello"));
    }
    let (inputs, missed) = net.host(1).node.take_recorded();
    assert_eq!((inputs.len(), missed), (2, 3));
    net.send(1, &between(1, 2, b"hello"));
    let (inputs, missed) = net.host(1).node.take_recorded();
    assert_eq!((inputs.len(), missed), (1, 0));
    net.host(1).node.record(0);
    net.send(1, &between(1, 2, b"hello"));
    assert_eq!(net.host(1).node.take_recorded(), (vec![], 0));
}
