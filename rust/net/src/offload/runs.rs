//! What makes packets a run: those that the kernel would cut a superpacket into, byte for byte.

use super::bytes::{u16_at, u32_at};
use super::checksum::{RIGHT, fold, pseudo_header, sum};
use super::header::GsoKind;

const TCP: u8 = 6;
const UDP: u8 = 17;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const DONT_FRAGMENT: u16 = 0x4000;

/// TCP or UDP right behind an IP header, with nothing between them, and no fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    pub kind: GsoKind,
    pub is_ipv4: bool,
    /// Of addresses and ports.
    pub hash: u64,
}

/// A packet of a flow that may be part of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// Bytes before the payload.
    pub headers: usize,
    pub payload: usize,
    /// Nothing may follow it.
    pub is_last: bool,
}

impl Flow {
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        let is_ipv4 = match packet.first()? {
            0x45 => true,
            first if first >> 4 == 6 => false,
            _ => return None,
        };
        let (length, protocol) = if is_ipv4 {
            if u16_at(packet, 6)? & !DONT_FRAGMENT != 0 {
                return None;
            }
            (usize::from(u16_at(packet, 2)?), *packet.get(9)?)
        } else {
            (usize::from(u16_at(packet, 4)?) + 40, *packet.get(6)?)
        };
        if length != packet.len() {
            return None;
        }
        let kind = match (protocol, is_ipv4) {
            (TCP, true) => GsoKind::Tcp4,
            (TCP, false) => GsoKind::Tcp6,
            (UDP, _) => GsoKind::Udp,
            _ => return None,
        };
        let mut flow = Self {
            kind,
            is_ipv4,
            hash: 0,
        };
        let (words, _) = flow.identity(packet)?.as_chunks::<4>();
        for word in words {
            flow.hash = (flow.hash.rotate_left(23) ^ u64::from(u32::from_ne_bytes(*word)))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        Some(flow)
    }

    pub(super) fn transport(self) -> usize {
        if self.is_ipv4 { 20 } else { 40 }
    }

    /// Addresses and ports.
    fn identity(self, packet: &[u8]) -> Option<&[u8]> {
        if self.is_ipv4 {
            packet.get(12..24)
        } else {
            packet.get(8..44)
        }
    }

    /// Whether two packets are of this one.
    pub(super) fn is_same(self, other: Self, one: &[u8], another: &[u8]) -> bool {
        self == other && self.identity(one) == self.identity(another)
    }

    pub(super) fn addresses(self, packet: &[u8]) -> Option<&[u8]> {
        addresses(packet, self.is_ipv4)
    }

    /// The sum of what comes before the transport header in its checksum.
    pub(super) fn pseudo_header(self, packet: &[u8], length: u16) -> Option<u64> {
        let protocol = if self.kind.is_tcp() { TCP } else { UDP };
        Some(pseudo_header(self.addresses(packet)?, protocol, length))
    }

    /// What the packet is in a run. `None`: it travels alone.
    ///
    /// A packet with a checksum of zero has none (UDP), or has one that is written as the other zero when it is made again.
    pub(super) fn part(self, packet: &[u8]) -> Option<Part> {
        let segment = packet.get(self.transport()..)?;
        let (header, is_last) = if self.kind.is_tcp() {
            let (fixed, _) = segment.split_first_chunk::<20>()?;
            // Flags: what says more than "here is data" is nothing to be repeated or to be kept for the end.
            let alone = fixed[12] & 15 != 0 || fixed[13] & !PSH != ACK;
            if alone || fixed[16..18] == [0, 0] {
                return None;
            }
            (usize::from(fixed[12] >> 4) * 4, fixed[13] & PSH != 0)
        } else {
            let (fixed, _) = segment.split_first_chunk::<8>()?;
            let length = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
            if length != segment.len() || fixed[6..8] == [0, 0] {
                return None;
            }
            (8, false)
        };
        let payload = segment.len().checked_sub(header)?;
        if payload == 0 || self.kind.is_tcp() && header < 20 {
            return None;
        }
        Some(Part {
            headers: self.transport() + header,
            payload,
            is_last,
        })
    }

    /// Whether `packet` is what is cut from a superpacket with the headers of `head`, `before` packets and `offset` bytes
    /// behind it. Both are parts with so many bytes of headers.
    pub(super) fn follows(
        self,
        head: &[u8],
        packet: &[u8],
        headers: usize,
        before: u16,
        offset: u32,
    ) -> Option<bool> {
        let alike = if self.is_ipv4 {
            let identification = u16_at(head, 4)?.wrapping_add(before);
            // Service and congestion; time to live, and whether it may be fragmented: the kernel sends what it cuts itself
            // without DF, and numbers it.
            head.get(1)? == packet.get(1)?
                && u16_at(packet, 4)? == identification
                && head.get(6..9)? == packet.get(6..9)?
        } else {
            // Traffic class with congestion, flow label; hop limit.
            head.get(..4)? == packet.get(..4)? && head.get(7)? == packet.get(7)?
        };
        if !alike || !self.kind.is_tcp() {
            return Some(alike);
        }
        let (head, packet) = (
            head.get(self.transport()..headers)?,
            packet.get(self.transport()..headers)?,
        );
        let sequence = u32_at(head, 4)?.wrapping_add(offset);
        Some(
            u32_at(packet, 4)? == sequence
                // Acknowledgement, header length; window; urgent pointer and options.
                && head.get(8..13)? == packet.get(8..13)?
                && head.get(14..16)? == packet.get(14..16)?
                && head.get(18..)? == packet.get(18..)?,
        )
    }

    /// Whether its checksums are right. A superpacket says of its payload that it is.
    pub(super) fn is_sound(self, packet: &[u8]) -> Option<bool> {
        let (ip, segment) = packet.split_at_checked(self.transport())?;
        if self.is_ipv4 && fold(sum(ip)) != RIGHT {
            return Some(false);
        }
        let pseudo = self.pseudo_header(packet, u16::try_from(segment.len()).ok()?)?;
        Some(fold(pseudo + sum(segment)) == RIGHT)
    }
}

/// Both addresses of an IP packet.
pub(super) fn addresses(packet: &[u8], is_ipv4: bool) -> Option<&[u8]> {
    if is_ipv4 {
        packet.get(12..20)
    } else {
        packet.get(8..40)
    }
}
