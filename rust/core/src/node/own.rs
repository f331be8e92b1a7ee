//! Datagrams of ours that come back as packets, because the machine's routes lead a peer's endpoint into the tunnel.
//!
//! Each would be sealed and sent again, larger every time, for ever. They are told by what only they have: they are for the
//! peer's own endpoint, and carry an index of ours, or one on which the peer receives. Another WireGuard inside this one, even
//! to the same address and port, has other indices.

use std::net::{IpAddr, SocketAddr};

use super::Node;
use super::peers::Slot;

const UDP: u8 = 17;
const UDP_HEADER: usize = 8;
const IPV6_HEADER: usize = 40;
/// IPv6's header for fragments, which stands before that of UDP if there is one.
const FRAGMENT: u8 = 44;
const FRAGMENT_HEADER: usize = 8;

impl Node {
    /// Whether a packet for a peer, with this destination, is a datagram that this node has sent to that peer.
    ///
    /// Of one in fragments that is the first. The others are sealed once more, and come back as ones that are whole.
    #[inline]
    pub(super) fn is_own(&self, slot: Slot, destination: IpAddr, packet: &[u8]) -> bool {
        let endpoint = self.peers.get(slot).and_then(|peer| peer.endpoint);
        endpoint.is_some_and(|endpoint| {
            endpoint.ip() == destination && self.was_sent_to(slot, endpoint, packet)
        })
    }

    #[cold]
    fn was_sent_to(&self, slot: Slot, endpoint: SocketAddr, packet: &[u8]) -> bool {
        let Some((port, message)) = udp(packet) else {
            return false;
        };
        let (Some(kind), Some(index)) = (word(message, 0), word(message, 4)) else {
            return false;
        };
        port == endpoint.port()
            && match kind {
                // The sender's index.
                1 | 2 => self.indices.owner(index) == Some(slot),
                // The receiver's.
                4 => self
                    .peers
                    .get(slot)
                    .and_then(|peer| peer.tunn.as_ref())
                    .is_some_and(|tunn| tunn.sends_on(index)),
                // A cookie reply answers somebody, and never leads to another one.
                _ => false,
            }
    }
}

fn word(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*message.get(at..)?.first_chunk()?))
}

/// The destination port of a UDP packet, or of the first fragment of one, and what follows its header.
fn udp(packet: &[u8]) -> Option<(u16, &[u8])> {
    let big_endian = |at: usize| Some(u16::from_be_bytes(*packet.get(at..)?.first_chunk()?));
    let (protocol, at, offset) = match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet.first()? & 15) * 4;
            (*packet.get(9)?, header, big_endian(6)? & 0x1fff)
        }
        _ if *packet.get(6)? == FRAGMENT => {
            let header = IPV6_HEADER + FRAGMENT_HEADER;
            (
                *packet.get(IPV6_HEADER)?,
                header,
                big_endian(IPV6_HEADER + 2)? >> 3,
            )
        }
        _ => (*packet.get(6)?, IPV6_HEADER, 0),
    };
    if protocol != UDP || offset != 0 {
        return None;
    }
    Some((big_endian(at + 2)?, packet.get(at + UDP_HEADER..)?))
}
