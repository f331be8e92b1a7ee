//! What a flow is known by.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};

use super::header::{Direction, Header, Ports};
use super::packet::{Content, Packet};
use super::{Flow, TCP, Transport, UDP};

/// One flow, the same for both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub slot: usize,
    pub protocol: u8,
    /// The peer's end.
    peer: IpAddr,
    /// The end in the network behind us.
    far: IpAddr,
    peer_port: u16,
    far_port: u16,
}

impl Key {
    /// What is less than every flow of a peer, and not less than those of the peers in lower slots.
    pub fn first_of(slot: usize) -> Self {
        let least = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Key {
            slot,
            protocol: 0,
            peer: least,
            far: least,
            peer_port: 0,
            far_port: 0,
        }
    }

    /// The flow that a packet belongs to, if it is of a kind that flows are made of.
    pub fn of(packet: &Packet<'_>, slot: usize, direction: Direction) -> Option<Self> {
        let (protocol, source_port, destination_port) = match packet.content {
            Content::Ports {
                protocol,
                source,
                destination,
                ..
            } => (protocol, source, destination),
            // Questions of the two sides are different flows, though both may pick the same identifier.
            Content::Query { question, id, .. } => {
                let from_peer = direction == Direction::FromPeer;
                let asked_by_peer = from_peer != packet.content.is_answer();
                let question = (u16::from(question) << 1) | u16::from(asked_by_peer);
                let protocol = match packet.source {
                    IpAddr::V4(_) => super::ICMP,
                    IpAddr::V6(_) => super::ICMPV6,
                };
                match direction {
                    Direction::FromPeer => (protocol, id, question),
                    Direction::ToPeer => (protocol, question, id),
                }
            }
            Content::Other { protocol } => (protocol, 0, 0),
            Content::Error { .. } | Content::Message { .. } | Content::Later(_) => return None,
        };
        let source = (packet.source, source_port);
        let destination = (packet.destination, destination_port);
        let ((peer, peer_port), (far, far_port)) = match direction {
            Direction::FromPeer => (source, destination),
            Direction::ToPeer => (destination, source),
        };
        Some(Key {
            slot,
            protocol,
            peer,
            far,
            peer_port,
            far_port,
        })
    }

    /// What rules would look at, if the peer starts it.
    pub fn flow(&self) -> Flow {
        Flow {
            destination: self.far,
            transport: match (self.protocol, self.far) {
                (TCP, _) => Transport::Tcp(self.far_port),
                (UDP, _) => Transport::Udp(self.far_port),
                (super::ICMP, IpAddr::V4(_)) | (super::ICMPV6, IpAddr::V6(_)) => {
                    Transport::Icmp((self.far_port >> 1) as u8)
                }
                (protocol, _) => Transport::Other(protocol),
            },
        }
    }

    /// What its first packet said, as far as the key tells; `by_peer`: the peer sent it.
    pub fn header(&self, by_peer: bool) -> Header {
        let flow = self.flow();
        let (peer, far) = ((self.peer, self.peer_port), (self.far, self.far_port));
        let (direction, source, destination) = match by_peer {
            true => (Direction::FromPeer, peer, far),
            false => (Direction::ToPeer, far, peer),
        };
        let (ports, icmp_type) = match flow.transport {
            Transport::Tcp(_) | Transport::Udp(_) => {
                let ports = Ports {
                    source: source.1,
                    destination: destination.1,
                };
                (Some(ports), None)
            }
            Transport::Icmp(kind) => (None, Some(kind)),
            Transport::Other(_) => (None, None),
        };
        Header {
            direction,
            protocol: Some(self.protocol),
            source: source.0,
            destination: destination.0,
            ports,
            icmp_type,
        }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (peer, far) = (bits(self.peer), bits(self.far));
        let ports = (u64::from(self.peer_port) << 16) | u64::from(self.far_port);
        let family = (u64::from(self.far.is_ipv4()) << 8) | u64::from(self.protocol);
        for word in [
            peer as u64,
            far as u64,
            ports | (family << 32),
            self.slot as u64,
        ] {
            state.write_u64(word);
        }
        if self.far.is_ipv6() {
            state.write_u64((peer >> 64) as u64);
            state.write_u64((far >> 64) as u64);
        }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}
