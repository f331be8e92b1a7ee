//! What a call puts out is its caller's, if the caller says where: several callers do not take each other's.

use connlib_core::{Event, NodeEvent, NodeOutput};

use crate::net::*;

#[test]
fn what_a_call_puts_out_is_its_callers_behind_what_others_put_out() {
    let mut net = Net::connected();
    let now = net.now;
    let (first, second) = (between(1, 2, b"first"), between(1, 2, b"second"));
    let node = &mut net.host(1).node;
    node.handle_packet(&first, now);
    let mut here = NodeOutput::default();
    for _ in 0..2 {
        node.putting_out(&mut here, |node| node.handle_packets([&*second], now));
    }
    assert!(node.output().is_empty());
    assert_eq!(here.datagrams.len(), 3);
    let (lengths, places) = (&here.datagrams.lengths, &here.destinations);
    let sealed = [&first, &second, &second].map(|one| one.len().next_multiple_of(16) + 32);
    assert_eq!(*lengths, sealed);
    assert_eq!(*places, [address(2); 3]);
    assert_eq!((here.sources.len(), here.ecn.len()), (3, 3));

    // What is put out meanwhile comes behind.
    node.handle_packet(&first, now);
    assert_eq!(
        (node.output().datagrams.len(), here.datagrams.len()),
        (1, 3)
    );
    node.move_output(&mut here);
    let counters: Vec<u8> = here.datagrams.iter().map(|one| one[8]).collect();
    assert_eq!(counters, [0, 1, 2, 3].map(|more| counters[0] + more));
}

#[test]
fn packets_go_where_the_call_says_and_events_stay_in_order() {
    let mut net = Net::connected();
    let now = net.now;
    let packet = between(1, 2, b"text");
    let sender = &mut net.host(1).node;
    sender.handle_packet(&packet, now);
    let datagram = sender.output().datagrams.bytes.clone();
    let node = &mut net.host(2).node;
    let mut here = NodeOutput::default();
    node.initiate_handshake(&public_key(1), now).unwrap();
    let before = node.output().events.len();
    assert!(before > 0);
    node.putting_out(&mut here, |node| {
        node.handle_datagrams([(address(1).into(), 0, &*datagram)], now);
        node.panic_in(&public_key(1), now).unwrap();
    });
    assert_eq!(here.packets.iter().collect::<Vec<_>>(), [&*packet]);
    assert!(here.events.is_empty());
    let events = &node.output().events;
    assert!(events.len() > before);
    assert!(matches!(
        events.last(),
        Some((_, NodeEvent::Tunnel(Event::Poisoned)))
    ));
    assert!(node.output().packets.is_empty());
}
