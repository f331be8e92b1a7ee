//! Reading an IP packet as far as a policy needs: addresses, protocol, ports, kind of ICMP message, fragment.
//!
//! What two readers could understand differently is refused: a header that is cut off (also by a fragment that is too short,
//! RFC 1858 and RFC 7112), a fragment that could write over the transport header of an earlier one (RFC 3128; what the
//! earlier one held is in `fragments.rs`), and a destination that is not the last one (source routes of RFC 791 and RFC 8200).

use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Flow, ICMP, ICMPV6, TCP, Transport, UDP};

/// IPv6 extension headers that are read before giving up; each may legitimately come once (RFC 8200, section 4.1).
const MAX_EXTENSIONS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

const TCP_HEADER: usize = 20;
const SHORT_HEADER: usize = 8;

/// Not an IP packet, cut off, or readable in more than one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unparseable;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub content: Content<'a>,
    /// By what later fragments will name it, if it is the first of several.
    pub fragmented: Option<FragmentId>,
    pub part: Part,
}

/// What a fragment holds of the packet that is put together of several, in bytes of what can be cut (RFC 8200, section 4.5;
/// for IPv4, of all behind the header).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub start: usize,
    pub end: usize,
    /// Where the transport header begins, if it is in this part.
    pub transport: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content<'a> {
    Ports {
        protocol: u8,
        source: u16,
        destination: u16,
        /// TCP's; none for UDP.
        flags: u8,
    },
    /// A question over ICMP or its answer: echo or timestamp.
    Query {
        kind: u8,
        /// The type of the question.
        question: u8,
        id: u16,
    },
    /// An ICMP error, with what it quotes.
    Error {
        kind: u8,
        quoted: &'a [u8],
    },
    /// Another ICMP message.
    Message {
        kind: u8,
    },
    Other {
        protocol: u8,
    },
    /// A fragment other than the first.
    Later(FragmentId),
}

/// What fragments of one packet have in common beside their addresses (RFC 791, section 3.2; RFC 8200, section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FragmentId {
    id: u32,
    /// For IPv6, where it is not part of it, 0.
    protocol: u8,
}

impl FragmentId {
    /// The protocol, where it is said.
    pub fn protocol(&self) -> Option<u8> {
        (self.protocol != 0).then_some(self.protocol)
    }
}

impl Content<'_> {
    /// Whether it answers a question.
    pub fn is_answer(&self) -> bool {
        matches!(*self, Content::Query { kind, question, .. } if kind != question)
    }
}

impl Flow {
    /// Whether there is such a flow: of ICMP, only questions start one.
    pub(super) fn starts(&self) -> bool {
        match self.transport {
            Transport::Icmp(kind) => question_of(self.destination.is_ipv4(), kind) == Some(kind),
            _ => true,
        }
    }
}

impl Packet<'_> {
    /// What rules look at; `None` for a fragment that does not say.
    pub fn flow(&self) -> Option<Flow> {
        let transport = match self.content {
            Content::Ports {
                protocol: TCP,
                destination,
                ..
            } => Transport::Tcp(destination),
            Content::Ports { destination, .. } => Transport::Udp(destination),
            Content::Query { kind, .. }
            | Content::Error { kind, .. }
            | Content::Message { kind } => Transport::Icmp(kind),
            Content::Other { protocol } => Transport::Other(protocol),
            Content::Later(_) => return None,
        };
        Some(Flow {
            destination: self.destination,
            transport,
        })
    }

    /// TCP's; none of others.
    pub fn flags(&self) -> u8 {
        match self.content {
            Content::Ports { flags, .. } => flags,
            _ => 0,
        }
    }

    /// Whether a flow may begin with it: what answers or ends something starts none.
    pub fn starts(&self) -> bool {
        let flags = self.flags();
        match self.content {
            Content::Ports { .. } | Content::Other { .. } => {
                flags & RST == 0 && flags & (SYN | ACK) != SYN | ACK
            }
            Content::Query { .. } => !self.content.is_answer(),
            Content::Error { .. } | Content::Message { .. } | Content::Later(_) => false,
        }
    }

    /// Whether a TCP connection begins with it.
    pub fn opens(&self) -> bool {
        self.flags() & (SYN | ACK | RST) == SYN
    }

    /// Whether it is a message that no ICMP error may answer (RFC 1122, section 3.2.2; RFC 4443, section 2.4).
    pub fn is_error_or_redirect(&self) -> bool {
        match (self.content, self.destination) {
            (Content::Error { .. }, _) => true,
            // Source quench and redirect.
            (Content::Message { kind }, IpAddr::V4(_)) => matches!(kind, 4 | 5),
            // Errors are below 128; 137 is redirect.
            (Content::Message { kind }, IpAddr::V6(_)) => kind < 128 || kind == 137,
            _ => false,
        }
    }
}

/// A whole packet, or a whole fragment.
pub(super) fn parse(packet: &[u8]) -> Result<Packet<'_>, Unparseable> {
    read(packet, false).ok_or(Unparseable)
}

/// A packet as an ICMP error quotes it: its beginning, which is at least the IP header and 8 bytes (RFC 792).
pub(super) fn parse_quoted(packet: &[u8]) -> Result<Packet<'_>, Unparseable> {
    read(packet, true).ok_or(Unparseable)
}

fn read(packet: &[u8], quoted: bool) -> Option<Packet<'_>> {
    match packet.first()? >> 4 {
        4 => read_v4(packet, quoted),
        6 => read_v6(packet, quoted),
        _ => None,
    }
}

fn read_v4(packet: &[u8], quoted: bool) -> Option<Packet<'_>> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let total = usize::from(u16_at(packet, 2)?);
    if header < 20 || total < header || (total > packet.len() && !quoted) {
        return None;
    }
    if is_source_routed(packet.get(20..header)?)? {
        return None;
    }
    let protocol = *packet.get(9)?;
    let content = packet.get(header..total.min(packet.len()))?;
    let fragment = u16_at(packet, 6)?;
    let (more, offset) = (fragment & 0x2000 != 0, usize::from(fragment & 0x1fff) * 8);
    let part = Part {
        start: offset,
        end: offset + content.len(),
        transport: 0,
    };
    let id = FragmentId {
        id: u16_at(packet, 4)?.into(),
        protocol,
    };
    Some(Packet {
        source: Ipv4Addr::from(bytes_at::<4>(packet, 12)?).into(),
        destination: Ipv4Addr::from(bytes_at::<4>(packet, 16)?).into(),
        content: match offset {
            0 => transport(protocol, content, true, quoted)?,
            _ => later(protocol, offset, id)?,
        },
        fragmented: (more && offset == 0).then_some(id),
        part,
    })
}

/// Whether options of an IPv4 header send the packet elsewhere first; `None` if they are cut off.
fn is_source_routed(mut options: &[u8]) -> Option<bool> {
    while let Some((kind, rest)) = options.split_first() {
        match *kind {
            // The end of the options, and padding.
            0 => break,
            1 => options = rest,
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return Some(true),
            _ => {
                let length = usize::from(*rest.first()?);
                if length < 2 {
                    return None;
                }
                options = options.get(length..)?;
            }
        }
    }
    Some(false)
}

fn read_v6(packet: &[u8], quoted: bool) -> Option<Packet<'_>> {
    let end = 40 + usize::from(u16_at(packet, 4)?);
    if end > packet.len() && !quoted {
        return None;
    }
    let mut next = *packet.get(6)?;
    let mut content = packet.get(40..end.min(packet.len()))?;
    let mut fragmented = None;
    let mut part = Part {
        start: 0,
        end: content.len(),
        transport: 0,
    };
    let mut extensions = 0;
    let mut has_fragment_header = false;
    let content = loop {
        let length = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HOST_IDENTITY | SHIM6 => {
                (usize::from(*content.get(1)?) + 1) * 8
            }
            AUTHENTICATION => (usize::from(*content.get(1)?) + 2) * 4,
            FRAGMENT => 8,
            protocol => break transport(protocol, content, false, quoted)?,
        };
        extensions += 1;
        if extensions > MAX_EXTENSIONS {
            return None;
        }
        // With segments left, the destination in the header is not the last one.
        if next == ROUTING && *content.get(3)? != 0 {
            return None;
        }
        if next == FRAGMENT {
            // A packet has one fragment header at most.
            if mem::replace(&mut has_fragment_header, true) {
                return None;
            }
            let fragment = u16_at(content, 2)?;
            let (more, offset) = (fragment & 1 != 0, usize::from(fragment & 0xfff8));
            let id = FragmentId {
                id: u32::from_be_bytes(bytes_at(content, 4)?),
                protocol: 0,
            };
            part = Part {
                start: offset,
                end: offset + content.len().checked_sub(length)?,
                transport: 0,
            };
            if offset != 0 {
                break later(*content.first()?, offset, id)?;
            }
            fragmented = more.then_some(id);
        } else if has_fragment_header {
            part.transport += length;
        }
        next = *content.first()?;
        content = content.get(length..)?;
    };
    Some(Packet {
        source: Ipv6Addr::from(bytes_at::<16>(packet, 8)?).into(),
        destination: Ipv6Addr::from(bytes_at::<16>(packet, 24)?).into(),
        content,
        fragmented,
        part,
    })
}

fn later(protocol: u8, offset: usize, id: FragmentId) -> Option<Content<'static>> {
    (protocol != TCP || offset >= TCP_HEADER).then_some(Content::Later(id))
}

fn transport(protocol: u8, content: &[u8], v4: bool, quoted: bool) -> Option<Content<'_>> {
    // A quotation may end after 8 bytes.
    let needed = match protocol {
        TCP if !quoted => TCP_HEADER,
        TCP | UDP => SHORT_HEADER,
        ICMP if v4 => SHORT_HEADER,
        ICMPV6 if !v4 => SHORT_HEADER,
        _ => 0,
    };
    if content.len() < needed {
        return None;
    }
    Some(match (protocol, v4) {
        (TCP | UDP, _) => Content::Ports {
            protocol,
            source: u16_at(content, 0)?,
            destination: u16_at(content, 2)?,
            flags: match (protocol, quoted) {
                (TCP, false) => *content.get(13)?,
                _ => 0,
            },
        },
        (ICMP, true) | (ICMPV6, false) => icmp(content, v4)?,
        _ => Content::Other { protocol },
    })
}

fn icmp(content: &[u8], v4: bool) -> Option<Content<'_>> {
    let kind = *content.first()?;
    Some(match (v4, kind) {
        (true, 3 | 11 | 12) | (false, 1..=4) => {
            let quoted = content.get(8..)?;
            Content::Error { kind, quoted }
        }
        _ => match question_of(v4, kind) {
            Some(question) => Content::Query {
                kind,
                question,
                id: u16_at(content, 4)?,
            },
            None => Content::Message { kind },
        },
    })
}

/// The type of the question that an ICMP message asks or answers.
fn question_of(v4: bool, kind: u8) -> Option<u8> {
    match (v4, kind) {
        (true, 0 | 8) => Some(8),
        (true, 13 | 14) => Some(13),
        (false, 128 | 129) => Some(128),
        _ => None,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_be_bytes)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
