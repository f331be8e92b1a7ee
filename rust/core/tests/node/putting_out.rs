//! What a call puts out is its caller's, if the caller says where: several callers do not take each other's.

use connlib_core::{Event, NodeEvent, NodeOutput};

use crate::net::*;

#[test]
fn what_a_call_puts_out_elsewhere_is_not_mixed_with_what_others_put_out() {
    let mut net = Net::connected();
    let now = net.now;
    let (first, second) = (between(1, 2, b"first"), between(1, 2, b"second"));
    let node = &mut net.host(1).node;
    node.handle_packet(&first, now);
    let mut here = NodeOutput::default();
    for _ in 0..2 {
        node.putting_out(&mut here, |node| node.handle_packets([&*second], now));
    }
    assert_eq!(node.output().datagrams.len(), 1);
    assert_eq!(here.datagrams.len(), 2);
    let (lengths, places) = (&here.datagrams.lengths, &here.destinations);
    assert_eq!(*lengths, [second.len().next_multiple_of(16) + 32; 2]);
    assert_eq!(*places, [address(2); 2]);
    assert_eq!((here.sources.len(), here.ecn.len()), (2, 2));

    // Counters rise from call to call, wherever the datagrams went.
    node.move_output(&mut here);
    assert!(node.output().is_empty());
    assert_eq!(here.datagrams.len(), 3);
    let counters = here.datagrams.iter().map(|one| one[8]);
    let counters: Vec<u8> = counters.collect();
    assert_eq!(counters[0] + 1, counters[1]);
    assert_eq!(counters[2] + 1, counters[0]);
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
