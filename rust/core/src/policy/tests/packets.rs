//! Packets that nobody sends in good faith.

use proptest::prelude::*;

use super::super::packet::{Content, parse};
use super::*;

fn unparseable(packet: &[u8]) -> bool {
    let open = policy(&[], Action::Allow, Action::Allow);
    let verdict = open.decide_packet(packet);
    assert_eq!(Gate::new(open.clone()).sends(packet), verdict);
    verdict == denied(Reason::Unparseable)
}

/// One packet of each kind that is read to its end.
fn samples() -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (peer, far, icmp_number, unreachable) in [(PEER, FAR, 1, 3), (PEER6, FAR6, 58, 1)] {
        packets.push(ip(peer, far, 6, &tcp(1, 2, SYN)));
        packets.push(ip(peer, far, 17, &udp(1, 2)));
        packets.push(ip(
            peer,
            far,
            icmp_number,
            &icmp(if icmp_number == 1 { 8 } else { 128 }, 1),
        ));
        let quoted = ip(far, peer, 6, &tcp(1, 2, SYN));
        packets.push(ip(peer, far, icmp_number, &error(unreachable, &quoted)));
    }
    packets.push(with_extensions(
        &[0, 43, 60, 51, 135, 139, 140],
        17,
        &udp(1, 2),
    ));
    let header = fragment_header(17, 0, true, 1);
    packets.push(ip(PEER6, FAR6, 44, &[header, udp(1, 2)].concat()));
    packets
}

/// Extension headers of 8 bytes each. The first two bytes of each are the next one's number and its own length.
fn with_extensions(extensions: &[u8], last: u8, payload: &[u8]) -> Vec<u8> {
    let mut chain = Vec::new();
    for (place, _) in extensions.iter().enumerate() {
        let next = extensions.get(place + 1).copied().unwrap_or(last);
        chain.extend([next, 0, 0, 0, 0, 0, 0, 0]);
    }
    chain.extend(payload);
    let first = extensions.first().copied().unwrap_or(last);
    ip(PEER6, FAR6, first, &chain)
}

#[test]
fn a_packet_that_ends_too_early_is_refused_at_every_length() {
    for packet in samples() {
        assert!(!unparseable(&packet), "{packet:02x?}");
        for length in 0..packet.len() {
            assert!(unparseable(&packet[..length]), "{length} of {packet:02x?}");
        }
        // Bytes beyond the packet are no part of it.
        let padded = [packet.clone(), vec![0xff; 32]].concat();
        assert_eq!(
            parse(&padded).map(|packet| packet.flow()),
            parse(&packet).map(|packet| packet.flow())
        );
    }
}

#[test]
fn a_transport_header_that_is_cut_off_is_refused() {
    for (peer, far, icmp_number) in [(PEER, FAR, 1), (PEER6, FAR6, 58)] {
        for (number, least) in [(6, 20), (17, 8), (icmp_number, 8)] {
            for length in 0..=least {
                let packet = ip(peer, far, number, &vec![0; length]);
                assert_eq!(unparseable(&packet), length < least, "{number}, {length}");
                if peer == PEER {
                    // RFC 1858: a first fragment that is too short for its ports.
                    let packet = fragment(packet, 0, true);
                    assert_eq!(unparseable(&packet), length < least, "{number}, {length}");
                }
            }
        }
        // What has no ports needs none, and ICMP of the other family is only a number.
        for number in [47, 50, 59, if icmp_number == 1 { 58 } else { 1 }] {
            assert!(!unparseable(&ip(peer, far, number, b"")));
        }
    }
}

#[test]
fn lengths_that_contradict_each_other_are_refused() {
    let good = ip(PEER, FAR, 17, &udp(1, 2));
    for (place, value) in [
        (0, 0x44),
        (0, 0x46),
        (0, 0x4f),
        (3, 19),
        (3, 27),
        (3, 29),
        (0, 0x35),
        (0, 0x75),
    ] {
        let mut packet = good.clone();
        packet[place] = value;
        assert!(unparseable(&packet), "{place}: {value:#x}");
    }
    let mut packet = ip(PEER6, FAR6, 17, &udp(1, 2));
    for (length, expected) in [(7, true), (8, false), (9, true)] {
        packet[5] = length;
        assert_eq!(unparseable(&packet), expected);
    }
}

/// A packet with options of IPv4.
fn with_options(options: &[u8]) -> Vec<u8> {
    let mut packet = ip(PEER, FAR, 17, &[options, &udp(1, 2)].concat());
    packet[0] = 0x45 + (options.len() / 4) as u8;
    packet
}

#[test]
fn options_are_read_over_and_source_routes_are_refused() {
    for options in [
        &[1, 1, 1, 0][..],
        &[0, 131, 131, 131],
        &[148, 4, 0, 0],
        &[7, 7, 4, 0, 0, 0, 0, 1],
        &[1; 40],
    ] {
        let packet = with_options(options);
        let flow = parse(&packet).unwrap().flow().unwrap();
        assert_eq!(flow.transport, Transport::Udp(2), "{options:?}");
    }
    for options in [
        &[131, 7, 4, 10, 0, 0, 9, 0][..],
        &[1, 137, 7, 4, 10, 0, 0, 9],
        &[148, 4, 0, 0, 131, 3, 4, 0],
        // Lengths of 0, 1, and beyond the header.
        &[148, 0, 0, 0],
        &[148, 1, 0, 0],
        &[148, 5, 0, 0],
        &[1, 1, 1, 148],
    ] {
        assert!(unparseable(&with_options(options)), "{options:?}");
    }
}

#[test]
fn extension_headers_are_read_over_up_to_eight() {
    for count in 0..=9 {
        let packet = with_extensions(&vec![60; count], 6, &tcp(1, 443, SYN));
        match parse(&packet) {
            Ok(packet) => assert_eq!(packet.flow().unwrap().transport, Transport::Tcp(443)),
            Err(_) => assert_eq!(count, 9),
        }
    }
    // Longer than they are, and a chain that never ends.
    let mut long = with_extensions(&[60], 17, &udp(1, 2));
    long[41] = 255;
    assert!(unparseable(&long));
    assert!(unparseable(&with_extensions(&[0; 180], 0, b"")));
}

#[test]
fn a_routing_header_that_is_not_used_up_is_refused() {
    let mut packet = with_extensions(&[43], 17, &udp(1, 2));
    assert!(!unparseable(&packet));
    packet[43] = 1;
    assert!(unparseable(&packet));
}

#[test]
fn a_fragment_that_could_write_over_the_header_of_tcp_is_refused() {
    for (offset, refused) in [(8, true), (16, true), (24, false)] {
        let packet = fragment(ip(PEER, FAR, 6, &[0; 64]), offset, false);
        assert_eq!(parse(&packet).is_err(), refused);
        let header = fragment_header(6, offset, false, 1);
        let packet = ip(PEER6, FAR6, 44, &[header, vec![0; 64]].concat());
        assert_eq!(parse(&packet).is_err(), refused);
    }
}

#[test]
fn a_second_fragment_header_is_refused_and_an_only_one_without_more_is_none() {
    let twice = [
        fragment_header(44, 0, true, 1),
        fragment_header(17, 0, true, 2),
        udp(1, 2),
    ];
    assert!(unparseable(&ip(PEER6, FAR6, 44, &twice.concat())));
    let atomic = [fragment_header(17, 0, false, 1), udp(1, 2)].concat();
    let atomic = ip(PEER6, FAR6, 44, &atomic);
    let packet = parse(&atomic).unwrap();
    assert_eq!(packet.fragmented, None);
    assert!(matches!(
        packet.content,
        Content::Ports { destination: 2, .. }
    ));
}

proptest! {
    #[test]
    fn no_bytes_make_a_filter_panic_and_nothing_unreadable_is_answered(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 1..20),
        versions in prop::collection::vec(any::<bool>(), 20),
        outward in any::<bool>(),
    ) {
        let mut gate = Gate::new(policy(&[], Action::Allow, Action::Allow));
        let mut answer = Vec::new();
        for (mut packet, v4) in packets.into_iter().zip(versions) {
            if let Some(first) = packet.first_mut() {
                *first = if v4 { 0x40 | *first & 7 } else { 0x60 };
            }
            let verdict = if outward { gate.gets(&packet) } else { gate.sends(&packet) };
            let answered = write_refusal(&packet, &mut answer);
            prop_assert!(!(answered && verdict.reason == Reason::Unparseable));
            prop_assert!(answer.len() <= 1280);
        }
    }

    #[test]
    fn changed_packets_make_no_panic(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let samples = samples();
        let mut packet = which.get(&samples).clone();
        for (place, value) in changes {
            let place = place.index(packet.len());
            packet[place] = value;
        }
        packet.truncate(cut.index(packet.len() + 1));
        let mut gate = Gate::usual();
        let _ = (gate.sends(&packet), gate.gets(&packet));
        let mut answer = Vec::new();
        write_refusal(&packet, &mut answer);
    }
}
