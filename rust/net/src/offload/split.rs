//! From what was read to the packets that it stands for.

use super::bytes::{put, short, u16_at, u32_at};
use super::checksum::{complement, complement_not_zero, pseudo_header, sum};
use super::header::{GsoKind, VnetHeader};
use crate::ReadBatch;

const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// Where the flags of TCP are.
const FLAGS: usize = 13;

/// Why a packet with a header before it is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is shorter than its headers.
    Short,
    /// It is not as long as it says itself.
    Length,
    /// It is to be cut into what we did not ask for, or into pieces of no size.
    Kind,
    /// It is not of the protocol that it is to be cut as, or something between the headers is in the way.
    Protocol,
    /// It is a fragment.
    Fragment,
    /// Its checksum is to be written outside of it.
    Checksum,
}

impl Fault {
    pub const ALL: [Fault; 6] = [
        Fault::Short,
        Fault::Length,
        Fault::Kind,
        Fault::Protocol,
        Fault::Fragment,
        Fault::Checksum,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Fault::Short => "short",
            Fault::Length => "length",
            Fault::Kind => "kind",
            Fault::Protocol => "protocol",
            Fault::Fragment => "fragment",
            Fault::Checksum => "checksum",
        }
    }
}

/// How often each of them was met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultCounts([u64; Fault::ALL.len()]);

impl FaultCounts {
    pub fn add(&mut self, fault: Fault) {
        for (count, known) in self.0.iter_mut().zip(Fault::ALL) {
            *count += u64::from(known == fault);
        }
    }

    /// All of them, also those that were never met.
    pub fn iter(&self) -> impl Iterator<Item = (Fault, u64)> {
        Fault::ALL.into_iter().zip(self.0)
    }
}

/// How a packet that was read becomes packets. It goes with the packet that it was made for.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// None: the packet goes on as it is.
    headers: Option<Headers>,
    /// Where the next piece begins.
    at: usize,
    /// How many pieces there were before.
    count: u16,
    end: usize,
}

/// What each piece gets a copy of.
#[derive(Debug, Clone, Copy)]
struct Headers {
    kind: GsoKind,
    is_ipv4: bool,
    /// Where the header of TCP or UDP begins.
    transport: usize,
    length: usize,
    segment_size: usize,
    /// UDP without a checksum stays without.
    has_checksum: bool,
}

/// Looks at a packet that was read behind this header, and completes its checksum where it goes on as it is.
///
/// # Errors
/// What makes no sense about it, and cannot be passed on.
pub fn cut(header: &VnetHeader, packet: &mut [u8]) -> Result<Cut, Fault> {
    let whole = Cut {
        headers: None,
        at: 0,
        count: 0,
        end: packet.len(),
    };
    if header.is_superpacket() {
        match headers(header, packet) {
            Ok(headers) => {
                return Ok(Cut {
                    headers: Some(headers),
                    at: headers.length,
                    ..whole
                });
            }
            // What is no larger than one of its pieces would be needs no cutting.
            Err(fault) if packet.len() > usize::from(header.gso_size) => return Err(fault),
            Err(_) => {}
        }
    }
    if packet.is_empty() {
        return Err(Fault::Short);
    }
    if header.needs_checksum() {
        complete_checksum(header, packet).ok_or(Fault::Checksum)?;
    }
    Ok(whole)
}

impl Cut {
    /// Whether this is a superpacket.
    pub fn is_superpacket(&self) -> bool {
        self.headers.is_some()
    }

    /// How many packets there are still to come.
    pub fn remaining(&self) -> usize {
        let left = self.end.saturating_sub(self.at);
        match &self.headers {
            // A header without payload is one packet, too.
            Some(headers) => left
                .div_ceil(headers.segment_size)
                .max(usize::from(self.count == 0)),
            None => usize::from(self.count == 0),
        }
    }

    /// Appends the next packet. False: there is none any more.
    pub fn next(&mut self, packet: &[u8], batch: &mut ReadBatch) -> bool {
        if self.remaining() == 0 {
            return false;
        }
        let from = self.at;
        let start = batch.bytes.len();
        let written = match &self.headers {
            None => {
                self.at = self.end;
                batch.bytes.extend_from_slice(packet);
                Some(())
            }
            Some(headers) => {
                self.at = self.end.min(from.saturating_add(headers.segment_size));
                let piece = Piece {
                    offset: from.saturating_sub(headers.length),
                    number: self.count,
                    is_last: self.at == self.end,
                };
                headers.write(packet, from..self.at, piece, &mut batch.bytes)
            }
        };
        self.count = self.count.saturating_add(1);
        if written.is_none() {
            // It is not the packet that this was made for.
            batch.bytes.truncate(start);
            self.at = self.end;
            return false;
        }
        batch.lengths.push(batch.bytes.len() - start);
        true
    }
}

/// Where a piece was in the whole.
struct Piece {
    offset: usize,
    number: u16,
    is_last: bool,
}

impl Headers {
    fn write(
        &self,
        packet: &[u8],
        payload: std::ops::Range<usize>,
        piece: Piece,
        bytes: &mut Vec<u8>,
    ) -> Option<()> {
        let start = bytes.len();
        bytes.extend_from_slice(packet.get(..self.length)?);
        bytes.extend_from_slice(packet.get(payload)?);
        let segment = bytes.get_mut(start..)?;
        let length = segment.len();
        let (ip, segment) = segment.split_at_mut_checked(self.transport)?;
        let pseudo = if self.is_ipv4 {
            put(ip, 2, short(length)?.to_be_bytes())?;
            let identification = u16_at(ip, 4)?.wrapping_add(piece.number);
            put(ip, 4, identification.to_be_bytes())?;
            put(ip, 10, [0, 0])?;
            put(ip, 10, complement(sum(ip)))?;
            ip.get(12..20)?
        } else {
            put(ip, 4, short(length.checked_sub(40)?)?.to_be_bytes())?;
            ip.get(8..40)?
        };
        let length = short(segment.len())?;
        if self.kind.is_tcp() {
            let sequence = u32_at(segment, 4)?.wrapping_add(u32::try_from(piece.offset).ok()?);
            put(segment, 4, sequence.to_be_bytes())?;
            let flags = segment.get_mut(FLAGS)?;
            if piece.number > 0 {
                *flags &= !CWR;
            }
            if !piece.is_last {
                *flags &= !(FIN | PSH);
            }
            put(segment, 16, [0, 0])?;
            let sum = pseudo_header(pseudo, TCP, length) + sum(segment);
            put(segment, 16, complement_not_zero(sum))
        } else {
            put(segment, 4, length.to_be_bytes())?;
            put(segment, 6, [0, 0])?;
            if !self.has_checksum {
                return Some(());
            }
            let sum = pseudo_header(pseudo, UDP, length) + sum(segment);
            put(segment, 6, complement_not_zero(sum))
        }
    }
}

/// The headers of a superpacket.
fn headers(header: &VnetHeader, packet: &[u8]) -> Result<Headers, Fault> {
    let kind = header.kind().ok_or(Fault::Kind)?;
    if header.gso_size == 0 {
        return Err(Fault::Kind);
    }
    let is_ipv4 = match packet.first().ok_or(Fault::Short)? >> 4 {
        4 => true,
        6 => false,
        _ => return Err(Fault::Protocol),
    };
    if kind == GsoKind::Tcp4 && !is_ipv4 || kind == GsoKind::Tcp6 && is_ipv4 {
        return Err(Fault::Protocol);
    }
    let (protocol, transport) = if is_ipv4 {
        ipv4_payload(packet)?
    } else {
        ipv6_payload(packet)?
    };
    if protocol != if kind.is_tcp() { TCP } else { UDP } {
        return Err(Fault::Protocol);
    }
    let segment = packet.get(transport..).ok_or(Fault::Short)?;
    let mut has_checksum = true;
    let transport_header = if kind.is_tcp() {
        let offset = usize::from(*segment.get(12).ok_or(Fault::Short)? >> 4) * 4;
        if offset < 20 {
            return Err(Fault::Length);
        }
        offset
    } else {
        let checksum = u16_at(segment, 6).ok_or(Fault::Short)?;
        has_checksum = !is_ipv4 || header.needs_checksum() || checksum != 0;
        8
    };
    if segment.len() < transport_header {
        return Err(Fault::Short);
    }
    Ok(Headers {
        kind,
        is_ipv4,
        transport,
        length: transport + transport_header,
        segment_size: header.gso_size.into(),
        has_checksum,
    })
}

/// The protocol of what an IPv4 packet carries, and where that begins. Options are copied into each piece.
fn ipv4_payload(packet: &[u8]) -> Result<(u8, usize), Fault> {
    let (fixed, _) = packet.split_first_chunk::<20>().ok_or(Fault::Short)?;
    let header_length = usize::from(fixed[0] & 15) * 4;
    if header_length < 20 {
        return Err(Fault::Length);
    }
    if usize::from(u16::from_be_bytes([fixed[2], fixed[3]])) != packet.len() {
        return Err(Fault::Length);
    }
    if u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff != 0 {
        return Err(Fault::Fragment);
    }
    if header_length > packet.len() {
        return Err(Fault::Short);
    }
    Ok((fixed[9], header_length))
}

/// The same of an IPv6 packet. What may stand between the headers and says nothing of this packet's contents, options, is
/// copied into each piece.
fn ipv6_payload(packet: &[u8]) -> Result<(u8, usize), Fault> {
    const HOP_BY_HOP: u8 = 0;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    let (fixed, payload) = packet.split_first_chunk::<40>().ok_or(Fault::Short)?;
    if usize::from(u16::from_be_bytes([fixed[4], fixed[5]])) != payload.len() {
        return Err(Fault::Length);
    }
    let (mut protocol, mut at) = (fixed[6], 40);
    while matches!(protocol, HOP_BY_HOP | DESTINATION) {
        let (extension, _) = packet
            .get(at..)
            .and_then(|rest| rest.split_first_chunk::<2>())
            .ok_or(Fault::Short)?;
        protocol = extension[0];
        at += (usize::from(extension[1]) + 1) * 8;
    }
    if protocol == FRAGMENT {
        return Err(Fault::Fragment);
    }
    Ok((protocol, at))
}

/// Makes the checksum of which the packet holds the pseudo-header's part. `None`: it would be outside.
fn complete_checksum(header: &VnetHeader, packet: &mut [u8]) -> Option<()> {
    let covered = packet.get_mut(usize::from(header.checksum_start)..)?;
    let at = usize::from(header.checksum_offset);
    let checksum = complement_not_zero(sum(covered));
    put(covered, at, checksum)
}
