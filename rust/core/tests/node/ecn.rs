//! What routers say of congestion, carried over the tunnel: RFC 6040, sections 4.1 and 4.2.

use connlib_core::{DropReason, Role};

use crate::net::*;

const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// Both families.
const ADDRESSES: [(&str, &str); 2] = [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")];

/// A packet of a DSCP that is not to be touched, 46, with a right checksum.
fn marked((source, destination): (&str, &str), ecn: u8) -> Vec<u8> {
    let class = 46 << 2 | ecn;
    let mut packet = packet(source, destination, b"payload");
    if packet[0] >> 4 == 6 {
        packet[0] |= class >> 4;
        packet[1] |= class << 4;
    } else {
        packet[1] = class;
        set_checksum(&mut packet);
    }
    packet
}

fn set_checksum(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let checksum = !sum(&packet[..20]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// The ones' complement sum of 16-bit words: 0xffff over a header with a right checksum.
fn sum(header: &[u8]) -> u16 {
    let words = header
        .chunks(2)
        .map(|two| u32::from(two[0]) << 8 | u32::from(two[1]));
    let sum: u32 = words.sum();
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// What the outer headers of the datagrams are to say that host 1 sends now.
fn outer(net: &mut Net, packet: &[u8]) -> Vec<u8> {
    let now = net.now;
    let mut outer = Vec::new();
    net.call(1, |node| {
        node.handle_packet(packet, now);
        outer.extend(node.output().ecn.clone());
        assert_eq!(node.output().ecn.len(), node.output().datagrams.len());
    });
    outer
}

#[test]
fn a_datagram_is_marked_as_the_packet_in_it() {
    for addresses in ADDRESSES {
        let mut net = Net::connected();
        for ecn in [NOT_ECT, ECT_1, ECT_0, CE] {
            assert_eq!(outer(&mut net, &marked(addresses, ecn)), [ecn]);
        }
    }
}

#[test]
fn handshakes_are_not_marked_and_packets_that_waited_keep_their_marks() {
    let mut net = Net::pair(Role::Either, Role::Either);
    let marks = [ECT_0, NOT_ECT, CE, ECT_1, NOT_ECT];
    for (count, ecn) in marks.into_iter().enumerate() {
        let sent = outer(&mut net, &marked(ADDRESSES[0], ecn));
        assert_eq!(
            sent,
            vec![NOT_ECT; usize::from(count == 0)],
            "an initiation"
        );
    }
    net.loses = |sent| sent.kind() != INITIATION;
    net.run_for(0.03);
    let response = net.log.iter().find(|sent| sent.kind() == RESPONSE).unwrap();
    let (from, bytes) = (response.source, response.bytes.clone());
    let now = net.now;
    let mut ecn = Vec::new();
    net.call(1, |node| {
        node.handle_datagram(from, &bytes, now);
        ecn.extend(node.output().ecn.clone());
    });
    assert_eq!(ecn, marks);
}

#[test]
fn what_was_drained_takes_its_mark_along() {
    let mut net = Net::connected();
    let now = net.now;
    net.call(1, |node| {
        for ecn in [CE, NOT_ECT, ECT_0] {
            node.handle_packet(&marked(ADDRESSES[0], ecn), now);
        }
        node.drain_datagrams(1);
        assert_eq!(node.output().ecn, [NOT_ECT, ECT_0]);
        node.drain_datagrams(usize::MAX);
        assert!(node.output().ecn.is_empty());
    });
}

#[test]
fn marks_of_the_way_reach_the_packet_and_its_checksum_stays_right() {
    // RFC 6040, figure 4: inner, outer, and what comes out.
    let table = [
        (
            NOT_ECT,
            [
                (NOT_ECT, Some(NOT_ECT)),
                (ECT_0, Some(NOT_ECT)),
                (ECT_1, Some(NOT_ECT)),
                (CE, None),
            ],
        ),
        (
            ECT_0,
            [
                (NOT_ECT, Some(ECT_0)),
                (ECT_0, Some(ECT_0)),
                (ECT_1, Some(ECT_1)),
                (CE, Some(CE)),
            ],
        ),
        (
            ECT_1,
            [
                (NOT_ECT, Some(ECT_1)),
                (ECT_0, Some(ECT_1)),
                (ECT_1, Some(ECT_1)),
                (CE, Some(CE)),
            ],
        ),
        (
            CE,
            [
                (NOT_ECT, Some(CE)),
                (ECT_0, Some(CE)),
                (ECT_1, Some(CE)),
                (CE, Some(CE)),
            ],
        ),
    ];
    for addresses in ADDRESSES {
        for (inner, row) in table {
            for (outer, expected) in row {
                let mut net = Net::connected();
                net.loses = |_| true;
                net.send(1, &marked(addresses, inner));
                let sent = net.log.pop().unwrap();
                let now = net.now;
                net.call(2, |node| {
                    node.handle_marked_datagram(sent.source.into(), outer, &sent.bytes, now);
                });
                let received = &net.host(2).received;
                let expected: Vec<_> = expected.iter().map(|ecn| marked(addresses, *ecn)).collect();
                assert_eq!(*received, expected, "{inner} in {outer}");
                let dropped = net.drops(2, 1, DropReason::CongestionMark);
                assert_eq!(dropped, u64::from(expected.is_empty()));
            }
        }
    }
}

#[test]
fn a_checksum_stays_right_whatever_it_was() {
    let mut net = Net::connected();
    net.loses = |_| true;
    for id in 0..=u16::MAX {
        let mut packet = marked(ADDRESSES[0], ECT_0);
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        set_checksum(&mut packet);
        if id % 257 != 0 && packet[10] != 0xff && packet[10] != 0 {
            continue; // the edges are what can go wrong, and a sample of the rest
        }
        net.send(1, &packet);
        let sent = net.log.pop().unwrap();
        let now = net.now;
        net.call(2, |node| {
            node.handle_marked_datagram(sent.source.into(), CE, &sent.bytes, now)
        });
        let received = net.host(2).received.pop().unwrap();
        assert_eq!(sum(&received[..20]), 0xffff, "{id}");
        assert_eq!(received[1] & 3, CE);
    }
}
