//! Who talks to whom, for events and for the flow log.

use std::net::{IpAddr, Ipv4Addr};

use connlib_boringtun::noise::Tunn;

use super::packet::{Content, Packet};
use super::{ICMP, ICMPV6};

/// Which way a packet goes, as seen from this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Out of the tunnel.
    FromPeer,
    /// Into the tunnel.
    ToPeer,
}

impl Direction {
    pub(super) fn opposite(self) -> Self {
        match self {
            Direction::FromPeer => Direction::ToPeer,
            Direction::ToPeer => Direction::FromPeer,
        }
    }
}

/// What the first packet of a flow says of it: the source is whoever sent that packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub direction: Direction,
    /// Its number; `None` if the packet does not say, or could not be read.
    pub protocol: Option<u8>,
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Of TCP and UDP.
    pub ports: Option<Ports>,
    /// Of ICMP and ICMPv6.
    pub icmp_type: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    pub source: u16,
    pub destination: u16,
}

impl Header {
    pub(super) fn of(packet: &Packet<'_>, direction: Direction) -> Self {
        let icmp = match packet.source {
            IpAddr::V4(_) => ICMP,
            IpAddr::V6(_) => ICMPV6,
        };
        let (protocol, ports, icmp_type) = match packet.content {
            Content::Ports {
                protocol,
                source,
                destination,
                ..
            } => {
                let ports = Ports {
                    source,
                    destination,
                };
                (Some(protocol), Some(ports), None)
            }
            Content::Query { kind, .. }
            | Content::Error { kind, .. }
            | Content::Message { kind } => (Some(icmp), None, Some(kind)),
            Content::Other { protocol } => (Some(protocol), None, None),
            Content::Later(id) => (id.protocol(), None, None),
        };
        Header {
            direction,
            protocol,
            source: packet.source,
            destination: packet.destination,
            ports,
            icmp_type,
        }
    }

    /// Of a packet that could not be read any further.
    pub(super) fn of_unreadable(packet: &[u8], direction: Direction) -> Self {
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Header {
            direction,
            protocol: None,
            source: Tunn::src_address(packet).unwrap_or(nobody),
            destination: Tunn::dst_address(packet).unwrap_or(nobody),
            ports: None,
            icmp_type: None,
        }
    }
}
