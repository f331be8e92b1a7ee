//! Superpackets stand for the same bytes: what is merged and cut again, here and by a segmenter that shares no line with the
//! library, is what there was, in order within each flow.

mod reference;
mod source;

use std::collections::BTreeMap;

use connlib_net::offload::{Coalescer, GsoKind, GsoKinds, VnetHeader, Write, cut};
use connlib_net::{Packets, ReadBatch};
use proptest::prelude::*;

use source::{Script, Source, Traffic, XorShift, complete};

/// What is written to a device, and how many superpackets of it were.
struct Written {
    /// With `None`, a packet as it is.
    writes: Vec<(Option<VnetHeader>, Vec<u8>)>,
}

fn coalesced(packets: &[Vec<u8>], coalescer: &mut Coalescer) -> Written {
    let bytes = packets.concat();
    let lengths: Vec<usize> = packets.iter().map(Vec::len).collect();
    let packets = Packets {
        bytes: &bytes,
        lengths: &lengths,
    };
    coalescer.plan(packets, GsoKinds::ALL);
    let mut writes = Vec::new();
    for write in coalescer.writes(packets) {
        writes.push(match write {
            Write::Packet(packet) => (None, packet.to_vec()),
            Write::Superpacket(superpacket) => {
                let mut whole = superpacket.headers().to_vec();
                superpacket
                    .payloads()
                    .for_each(|part| whole.extend_from_slice(part));
                (Some(superpacket.header), whole)
            }
        });
    }
    Written { writes }
}

/// The packets that `cut` makes.
fn pieces(header: &VnetHeader, packet: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut packet = packet.to_vec();
    let mut cut = cut(header, &mut packet).ok()?;
    let count = cut.remaining();
    let mut batch = ReadBatch::default();
    while cut.next(&packet, &mut batch) {}
    assert_eq!(batch.len(), count);
    assert_eq!(cut.remaining(), 0);
    Some(batch.iter().map(<[u8]>::to_vec).collect())
}

/// Addresses, and the ports where it is plain TCP or UDP that is no fragment.
fn flow(packet: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
    let at = |range: std::ops::Range<usize>| packet.get(range).map(<[u8]>::to_vec);
    match packet.first() {
        Some(0x45) if packet.len() >= 24 => {
            let fragment = packet[6] & 0xbf != 0 || packet[7] != 0;
            let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            let plain = !fragment && length == packet.len() && matches!(packet[9], 6 | 17);
            let ports = plain.then(|| [&packet[9..10], &packet[20..24]].concat());
            (at(12..20).unwrap(), ports)
        }
        Some(first) if first >> 4 == 4 => (at(12..20).unwrap_or_default(), None),
        Some(first) if first >> 4 == 6 => {
            let length = packet.len() >= 44
                && usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40 == packet.len();
            let plain = length && matches!(packet[6], 6 | 17);
            let ports = plain.then(|| [&packet[6..7], &packet[40..44]].concat());
            (at(8..40).unwrap_or_default(), ports)
        }
        _ => (Vec::new(), None),
    }
}

type Ordered<'a> = BTreeMap<(Vec<u8>, Option<Vec<u8>>), Vec<&'a [u8]>>;

/// The packets of each flow in order; and those between the same addresses, of which one that is of no flow keeps its place.
fn in_order<'a>(packets: impl Iterator<Item = &'a [u8]>) -> (Ordered<'a>, Ordered<'a>) {
    let (mut flows, mut pairs) = (Ordered::new(), Ordered::new());
    let mut count = BTreeMap::new();
    for packet in packets {
        let (addresses, ports) = flow(packet);
        let odd = count.entry(addresses.clone()).or_insert(0u32);
        *odd += u32::from(ports.is_none());
        let period = Some(odd.to_be_bytes().to_vec());
        pairs
            .entry((addresses.clone(), period))
            .or_default()
            .push(packet);
        flows.entry((addresses, ports)).or_default().push(packet);
    }
    // Between two of those, the order of the flows is free.
    pairs.values_mut().for_each(|packets| packets.sort());
    (flows, pairs)
}

/// Merges, cuts and compares. How many packets were merged.
fn check(packets: &[Vec<u8>], coalescer: &mut Coalescer) -> usize {
    let written = coalesced(packets, coalescer);
    let mut delivered = Vec::new();
    let mut merged = 0;
    for (header, packet) in &written.writes {
        let Some(header) = header else {
            delivered.push(packet.clone());
            continue;
        };
        let length = packet.len();
        assert!(length <= 65_535 && header.needs_checksum() && header.gso_size > 0);
        let cut = pieces(header, packet).expect("a good superpacket");
        assert_eq!(cut, reference::segments(packet, header.gso_size.into()));
        assert!((2..=64).contains(&cut.len()));
        // What a kernel without a need to cut makes of it: a large packet, the checksum of which is right.
        let whole = VnetHeader {
            gso_type: 0,
            gso_size: 0,
            ..*header
        };
        let whole = pieces(&whole, packet).unwrap();
        assert!(whole.len() == 1 && reference::is_sound(&whole[0]));
        merged += cut.len();
        delivered.extend(cut);
    }
    assert_eq!(delivered.len(), packets.len());
    let before = in_order(packets.iter().map(Vec::as_slice));
    assert!(before == in_order(delivered.iter().map(Vec::as_slice)));
    merged
}

#[test]
fn a_million_packets_that_are_merged_and_cut_are_the_same_packets() {
    let mut coalescer = Coalescer::default();
    let (mut total, mut merged, mut round) = (0, 0, 0u64);
    while total < 1_000_000 {
        round += 1;
        let mut source = XorShift(round.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut traffic = Traffic::new(&mut source);
        let count = 1 + source.below(500);
        let packets: Vec<_> = (0..count).map(|_| traffic.next(&mut source)).collect();
        total += packets.len();
        merged += check(&packets, &mut coalescer);
    }
    // Else nothing was tried.
    assert!(merged > total / 3, "{merged} of {total}");
}

proptest! {
    #[test]
    fn few_packets_that_are_merged_and_cut_are_the_same_packets(
        script in prop::collection::vec(any::<u8>(), 0..300)
    ) {
        let mut source = Script(&script);
        let mut traffic = Traffic::new(&mut source);
        let mut packets = Vec::new();
        while !source.0.is_empty() && packets.len() < 100 {
            packets.push(traffic.next(&mut source));
        }
        check(&packets, &mut Coalescer::default());
    }

    #[test]
    fn any_bytes_are_merged_and_cut_without_harm(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..20)
    ) {
        check(&packets, &mut Coalescer::default());
    }
}

/// A superpacket as the kernel gives it.
fn superpacket(source: &mut impl Source) -> (VnetHeader, Vec<u8>) {
    let (is_ipv4, is_tcp) = (source.below(2) == 0, source.below(2) == 0);
    let options = source.below(3) as usize;
    let protocol = if is_tcp { 6 } else { 17 };
    let mut packet = if is_ipv4 {
        let options = options * 4;
        let mut packet = vec![
            0x45 + options as u8 / 4,
            2,
            0,
            0,
            0xff,
            0xf0,
            0x40,
            0,
            64,
            protocol,
        ];
        packet.extend([0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(vec![1; options]);
        packet
    } else {
        let mut packet = vec![0x60, 0x20, 0, 0, 0, 0, protocol, 64];
        packet.extend([[0xfd; 16], [0xfe; 16]].concat());
        for _ in 0..options {
            let inner = std::mem::replace(&mut packet[6], [0, 60][source.below(2) as usize]);
            packet.splice(40..40, [inner, 0, 1, 4, 0, 0, 0, 0]);
        }
        packet
    };
    let transport = packet.len();
    packet.extend([0, 9, 0, 8]);
    if is_tcp {
        let options = source.below(11) as u8;
        packet.extend([0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 1]);
        packet.extend([
            (5 + options) << 4,
            source.below(256) as u8,
            1,
            0,
            0,
            0,
            0,
            0,
        ]);
        packet.extend(vec![1; usize::from(options) * 4]);
    } else {
        packet.extend([0, 0, 0, 0]);
    }
    let size = 1 + source.below(2000) as u16;
    let room = (65_535 - packet.len() as u32).min(u32::from(size) * 70);
    let payload = source.below(1 + room);
    packet.extend((0..payload).map(|at| (at * 7) as u8));
    let length = packet.len() as u16;
    if is_ipv4 {
        packet[2..4].copy_from_slice(&length.to_be_bytes());
    } else {
        packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
    }
    let header = VnetHeader {
        flags: 1,
        gso_type: match (is_tcp, is_ipv4) {
            (true, true) => 1 | (source.below(2) as u8) << 7,
            (true, false) => 4 | (source.below(2) as u8) << 7,
            (false, _) => 5,
        },
        header_length: source.below(100) as u16,
        gso_size: size,
        checksum_start: transport as u16,
        checksum_offset: if is_tcp { 16 } else { 6 },
    };
    (header, packet)
}

#[test]
fn what_the_kernel_gives_is_cut_as_the_reference_cuts_it() {
    let mut source = XorShift(1);
    let mut total = 0;
    while total < 100_000 {
        let (header, packet) = superpacket(&mut source);
        let cut = pieces(&header, &packet).unwrap();
        assert_eq!(cut, reference::segments(&packet, header.gso_size.into()));
        assert!(cut.iter().all(|packet| reference::is_sound(packet)));
        total += cut.len();
    }
}

#[test]
fn a_superpacket_that_lies_makes_no_more_than_its_segments() {
    let mut source = XorShift(2);
    let mut refused = 0;
    for _ in 0..20_000 {
        let (mut header, mut packet) = superpacket(&mut source);
        let mut bytes = header.to_bytes();
        for _ in 0..1 + source.below(3) {
            if source.below(2) == 0 {
                bytes[source.below(10) as usize] = source.below(256) as u8;
            } else {
                let place = source.below(packet.len().min(80) as u32) as usize;
                packet[place] = source.below(256) as u8;
            }
        }
        if source.one_in(4) {
            packet.truncate(source.below(packet.len() as u32) as usize);
        }
        header = VnetHeader::from_bytes(&bytes);
        let Some(cut) = pieces(&header, &packet) else {
            refused += 1;
            continue;
        };
        let size = usize::from(header.gso_size.max(1));
        assert!(cut.len() <= packet.len().div_ceil(size).max(1));
        assert!(cut.iter().all(|piece| piece.len() <= packet.len()));
    }
    assert!(refused > 5_000, "{refused}");
}

#[test]
fn a_checksum_that_was_left_to_us_is_made_and_one_that_was_made_stays() {
    let mut source = XorShift(3);
    for _ in 0..2_000 {
        let (header, packet) = superpacket(&mut source);
        if packet.len() > 9_000 {
            continue;
        }
        let (transport, at) = (
            usize::from(header.checksum_start),
            usize::from(header.checksum_start + header.checksum_offset),
        );
        let plain = VnetHeader {
            gso_type: 0,
            ..header
        };
        let protocol = if header.checksum_offset == 16 { 6 } else { 17 };
        let mut expected = packet.clone();
        expected[at..at + 2].fill(0);
        let addresses = reference::addresses(&packet);
        let sum = reference::transport_checksum(addresses, protocol, &expected[transport..]);
        expected[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        let mut partial = packet.clone();
        // The kernel leaves the sum of what precedes the segment there.
        let length = (packet.len() - transport) as u16;
        let pseudo = [addresses, &[0, protocol], &length.to_be_bytes()].concat();
        let sum = !reference::checksum(&pseudo);
        partial[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(pieces(&plain, &partial).unwrap(), [expected]);
        let none = VnetHeader::default();
        assert_eq!(pieces(&none, &partial).unwrap(), [partial]);
    }
}

#[test]
fn a_datagram_without_a_checksum_is_cut_into_such() {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend([10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2, 0, 0, 0, 0]);
    packet.extend([7; 100]);
    packet[3] = packet.len() as u8;
    let header = VnetHeader {
        gso_type: 5,
        gso_size: 40,
        ..VnetHeader::default()
    };
    let cut = pieces(&header, &packet).unwrap();
    let lengths: Vec<_> = cut.iter().map(Vec::len).collect();
    assert_eq!(lengths, [68, 68, 48]);
    assert!(cut.iter().all(|packet| packet[26..28] == [0, 0]));
    assert!(cut.iter().all(|packet| reference::is_sound(packet)));
}

#[test]
fn a_checksum_of_zero_stays_what_it_is() {
    for (is_ipv4, is_tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut packets = Vec::new();
        for number in 0..5u8 {
            let mut packet = if is_ipv4 {
                let mut packet = vec![0x45, 0, 0, 0, 0, number, 0x40, 0, 64];
                packet.extend([if is_tcp { 6 } else { 17 }, 0, 0]);
                packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
                packet
            } else {
                let mut packet = vec![0x60, 0, 0, 0, 0, 0, if is_tcp { 6 } else { 17 }, 64];
                packet.extend([7; 32]);
                packet
            };
            packet.extend([0, 1, 0, 2]);
            if is_tcp {
                packet.extend([0, 0, 0, number * 4, 0, 0, 0, 0]);
                packet.extend([0x50, 0x10, 1, 0, 0, 0, 0, 0]);
            } else {
                packet.extend([0, 12, 0, 0]);
            }
            let at = packet.len() - if is_tcp { 4 } else { 2 };
            packet.extend([1, 2, 0, 0]);
            complete(&mut packet, is_ipv4, is_tcp);
            if number == 2 {
                // What is missing to the sum goes into the payload.
                let checksum = [packet[at], packet[at + 1]];
                let end = packet.len() - 2;
                packet[end..].copy_from_slice(&checksum);
                complete(&mut packet, is_ipv4, is_tcp);
                assert_eq!(packet[at..at + 2], [0xff, 0xff]);
                packet[at..at + 2].fill(0);
            }
            packets.push(packet);
        }
        assert_eq!(check(&packets, &mut Coalescer::default()), 4);
    }
}

#[test]
fn kinds_that_are_switched_off_are_not_merged() {
    let mut source = XorShift(4);
    let mut coalescer = Coalescer::default();
    for _ in 0..200 {
        let mut traffic = Traffic::new(&mut source);
        let packets: Vec<_> = (0..100).map(|_| traffic.next(&mut source)).collect();
        let bytes = packets.concat();
        let lengths: Vec<usize> = packets.iter().map(Vec::len).collect();
        let packets = Packets {
            bytes: &bytes,
            lengths: &lengths,
        };
        let udp = GsoKinds {
            udp: true,
            ..GsoKinds::NONE
        };
        coalescer.plan(packets, udp);
        for write in coalescer.writes(packets) {
            if let Write::Superpacket(superpacket) = write {
                assert_eq!(superpacket.kind, GsoKind::Udp);
            }
        }
        coalescer.plan(packets, GsoKinds::NONE);
        let all: Vec<_> = coalescer
            .writes(packets)
            .map(|write| match write {
                Write::Packet(packet) => packet.to_vec(),
                Write::Superpacket(superpacket) => panic!("{superpacket:?}"),
            })
            .collect();
        assert_eq!(all.concat(), bytes);
    }
}
