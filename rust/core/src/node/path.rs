//! The way between a peer and this machine: the peer's address, and which of ours it uses.
//!
//! A machine may have many addresses. Who was reached at one of them answers from it: from another one the answer would not
//! pass what is between (a translation of addresses, the peer's own filter), or would move the peer's idea of where we are.
//! Like an endpoint, the address is learned from what is authenticated only.
//!
//! It is forgotten, so that the system chooses again, when
//! - the peer is located anew by whoever owns the node,
//! - the system has refused it ([`Node::source_refused`]),
//! - the peer does not answer: it may be what is wrong,
//! - something has changed that the node does not see ([`Node::forget_sources`]).

use std::net::{IpAddr, SocketAddr};

use connlib_boringtun::noise::{self, TimeoutReason};

use super::Node;
use super::peers::Slot;

/// The way of a datagram, in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The other end.
    pub remote: SocketAddr,
    /// Our address: the one that a datagram was sent to, or is to be sent from. `None`: unknown, or any.
    pub source: Option<IpAddr>,
}

impl From<SocketAddr> for Path {
    fn from(remote: SocketAddr) -> Self {
        Path {
            remote,
            source: None,
        }
    }
}

impl Node {
    /// Lets the system choose from which address each peer is sent to, until the peer is heard again: the sockets, their mark,
    /// or the machine's routes have changed.
    pub fn forget_sources(&mut self) {
        for slot in self.peers.slots().collect::<Vec<_>>() {
            if let Some(peer) = self.peers.get_mut(slot) {
                peer.source = None;
            }
        }
    }

    /// The system did not send from this address, but from one of its choice: peers there are not sent to from it any more.
    pub fn source_refused(&mut self, remote: SocketAddr, source: IpAddr) {
        for slot in self.peers.slots().collect::<Vec<_>>() {
            if let Some(peer) = self.peers.get_mut(slot)
                && (peer.endpoint, peer.source) == (Some(remote), Some(source))
            {
                peer.source = None;
            }
        }
    }

    /// What is due for a peer may say that it does not answer.
    pub(super) fn doubt_source(&mut self, slot: Slot) {
        let Some(peer) = self.peers.get_mut(slot) else {
            return;
        };
        let reason = peer.tunn.as_ref().and_then(noise::Tunn::next_timeout);
        if let Some(TimeoutReason::HandshakeRetry | TimeoutReason::DeadPeer) =
            reason.map(|timeout| timeout.reason)
        {
            peer.source = None;
        }
    }
}
