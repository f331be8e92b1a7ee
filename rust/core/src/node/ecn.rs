//! What an outer header says of congestion, handed on to the packet that was in the datagram: RFC 6040, section 4.2.

use super::Node;
use super::peers::Slot;
use crate::DropReason;

/// The ECN field (RFC 3168, section 5): who sent it does not look at it; or does, in one of two ways; or it met congestion.
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

impl Node {
    /// Hands on what the outer header of the last packet's datagram said of congestion on the way. False: the packet is of
    /// a sender that does not understand that, and is taken back (RFC 6040, section 4.2).
    #[inline]
    pub(super) fn check_mark(&mut self, slot: Slot, ecn: u8) -> bool {
        let packet = self.output.last_packet_mut();
        let told = packet.is_none_or(|packet| mark(packet, ecn));
        if !told {
            self.output.take_back_last_packet();
            self.drop_from(slot, DropReason::CongestionMark);
        }
        told
    }
}

/// Sets the field of an IP packet to what it and the `outer` one make together. False: the packet is to be dropped.
#[inline]
fn mark(packet: &mut [u8], outer: u8) -> bool {
    if outer & CE == NOT_ECT {
        return true;
    }
    let Some((inner, shift)) = field(packet) else {
        return true;
    };
    let combined = match (inner, outer & CE) {
        (NOT_ECT, CE) => return false,
        (ECT_0 | ECT_1, CE) => CE,
        (ECT_0, ECT_1) => ECT_1,
        _ => return true,
    };
    if combined != inner {
        set(packet, inner, combined, shift);
    }
    true
}

/// The field, and where it is in the second byte: IPv6's traffic class begins in the middle of the first.
fn field(packet: &[u8]) -> Option<(u8, u32)> {
    match *packet {
        [first, second, ..] if first >> 4 == 4 => Some((second & CE, 0)),
        [first, second, ..] if first >> 4 == 6 => Some((second >> 4 & CE, 4)),
        _ => None,
    }
}

fn set(packet: &mut [u8], inner: u8, combined: u8, shift: u32) {
    let is_ipv4 = shift == 0;
    if let Some(second) = packet.get_mut(1) {
        *second = *second & !(CE << shift) | combined << shift;
    }
    // IPv4's header has a checksum, of which the field is in the low byte of the first word: RFC 1624, equation 3.
    if is_ipv4
        && let Some(checksum) = packet
            .get_mut(10..12)
            .and_then(|two| <&mut [u8; 2]>::try_from(two).ok())
    {
        let before = u32::from(!u16::from_be_bytes(*checksum));
        let sum = before + u32::from(!u16::from(inner)) + u32::from(combined);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        *checksum = (!(sum as u16)).to_be_bytes();
    }
}
