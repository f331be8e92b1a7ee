//! The ICMP message that tells a sender that its packet was refused: destination unreachable, administratively prohibited
//! (RFC 1812, section 5.2.7.1: type 3, code 13; RFC 4443, section 3.1: type 1, code 1).
//!
//! Its source is the destination of the refused packet. A router would take an address of its own (RFC 1812, section 4.3.2.4),
//! but a node has none that it knows of, and only an address that the receiver expects from this tunnel passes the receiver's
//! cryptokey routing. A host that refuses a packet itself answers from the same address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::packet::{Content, Packet, parse};
use super::{ICMP, ICMPV6};

/// The longest ICMP error over IPv4 (RFC 1812, section 4.3.2.3), and over IPv6 (RFC 4443, section 2.4: the least MTU).
const LONGEST_V4: usize = 576;
const LONGEST_V6: usize = 1280;

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const ICMP_HEADER: usize = 8;

const HOPS: u8 = 64;
/// Precedence 6, "internetwork control" (RFC 1812, section 4.3.2.5).
const PRECEDENCE: u8 = 0xc0;
const DO_NOT_FRAGMENT: u8 = 0x40;

/// Writes the answer to a refused packet into `answer`. False, and nothing, if it must not be answered.
pub(crate) fn write(packet: &[u8], answer: &mut Vec<u8>) -> bool {
    answer.clear();
    let Ok(parsed) = parse(packet) else {
        return false;
    };
    if !may_be_answered(&parsed) {
        return false;
    }
    match (parsed.source, parsed.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            write_v4(source, destination, packet, answer);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            write_v6(source, destination, packet, answer);
        }
        _ => return false,
    }
    true
}

/// RFC 1122, section 3.2.2, and RFC 4443, section 2.4 (e): no answer to an ICMP error, to a fragment other than the first, to
/// what was for many, or to who is not one host.
fn may_be_answered(packet: &Packet<'_>) -> bool {
    let is_one_host = |address: IpAddr| {
        let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
        !address.is_unspecified()
            && !address.is_loopback()
            && !address.is_multicast()
            && !is_broadcast
    };
    !packet.is_error_or_redirect()
        && !matches!(packet.content, Content::Later(_))
        && is_one_host(packet.source)
        && is_one_host(packet.destination)
}

fn write_v4(source: Ipv4Addr, destination: Ipv4Addr, packet: &[u8], answer: &mut Vec<u8>) {
    let quoted = first(packet, LONGEST_V4 - V4_HEADER - ICMP_HEADER);
    let total = (V4_HEADER + ICMP_HEADER + quoted.len()) as u16;
    let [length_high, length_low] = total.to_be_bytes();
    let [d0, d1, d2, d3] = destination.octets();
    let [s0, s1, s2, s3] = source.octets();
    // Without fragments, there is no need for an identification (RFC 6864). Where it came from is where it goes.
    let header = |[high, low]: [u8; 2]| -> [u8; V4_HEADER] {
        [
            0x45,
            PRECEDENCE,
            length_high,
            length_low,
            0,
            0,
            DO_NOT_FRAGMENT,
            0,
            HOPS,
            ICMP,
            high,
            low,
            d0,
            d1,
            d2,
            d3,
            s0,
            s1,
            s2,
            s3,
        ]
    };
    answer.extend(header(checksum(&[&header([0, 0])])));
    let [high, low] = checksum(&[&[3, 13, 0, 0, 0, 0, 0, 0], quoted]);
    answer.extend([3, 13, high, low, 0, 0, 0, 0]);
    answer.extend(quoted);
}

fn write_v6(source: Ipv6Addr, destination: Ipv6Addr, packet: &[u8], answer: &mut Vec<u8>) {
    let quoted = first(packet, LONGEST_V6 - V6_HEADER - ICMP_HEADER);
    let [high, low] = ((ICMP_HEADER + quoted.len()) as u16).to_be_bytes();
    answer.extend([0x60, 0, 0, 0, high, low, ICMPV6, HOPS]);
    answer.extend(destination.octets());
    answer.extend(source.octets());
    // The pseudo-header (RFC 8200, section 8.1) comes first.
    let sum = checksum(&[
        &destination.octets(),
        &source.octets(),
        &[0, 0, high, low, 0, 0, 0, ICMPV6],
        &[1, 1, 0, 0, 0, 0, 0, 0],
        quoted,
    ]);
    let [high, low] = sum;
    answer.extend([1, 1, high, low, 0, 0, 0, 0]);
    answer.extend(quoted);
}

fn first(packet: &[u8], most: usize) -> &[u8] {
    packet.get(..most).unwrap_or(packet)
}

/// RFC 1071. All parts but the last have an even number of bytes.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = 0u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += match pair {
            [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
            [high] => u32::from(*high) << 8,
            _ => 0,
        };
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
