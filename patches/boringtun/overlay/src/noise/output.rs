// SPDX-License-Identifier: BSD-3-Clause
//! What a call into the engine brings about.

use super::data::Later;
use super::WireGuardError;

/// Packets one after the other in one buffer, which keeps its memory from one use to the next.
#[derive(Debug, Default)]
pub struct Packets {
    pub bytes: Vec<u8>,
    /// Length of each packet, in order; their sum is the length of `bytes`.
    pub lengths: Vec<usize>,
}

impl Packets {
    pub fn push(&mut self, packet: &[u8]) {
        self.bytes.extend_from_slice(packet);
        self.lengths.push(packet.len());
    }

    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.lengths.clear();
    }

    /// Keep the first `len` packets.
    pub fn truncate(&mut self, len: usize) {
        if let Some(gone) = self.lengths.get(len..) {
            let gone: usize = gone.iter().sum();
            self.bytes.truncate(self.bytes.len().saturating_sub(gone));
            self.lengths.truncate(len);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.bytes.as_slice();
        self.lengths.iter().map_while(move |length| {
            let (packet, after) = rest.split_at_checked(*length)?;
            rest = after;
            Some(packet)
        })
    }
}

/// What happened to a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The first initiation of an attempt was sent.
    HandshakeStarted,
    /// A session can carry data: the response came, or the peer's first packet on it.
    SessionEstablished { initiator: bool },
    /// The current session reached its age limit and was wiped.
    SessionExpired,
    /// An attempt ended without a session; so many queued packets were dropped with it.
    GaveUp { dropped: usize },
    /// Data went unanswered for keepalive timeout + rekey timeout, or a session ran out of messages that only the peer
    /// may renew.
    PeerSilent,
    /// The tunnel panicked, and is not called any more. Said by whoever called it.
    Poisoned,
    /// Queued packets were dropped.
    Dropped {
        reason: WireGuardError,
        count: usize,
    },
}

/// What calls bring about. Calls append; whoever drains it clears it.
#[derive(Debug, Default)]
pub struct Output {
    /// For the peer, in order.
    pub datagrams: Packets,
    /// The ECN field that the outer header of each of `datagrams` is to have (RFC 6040, section 4.1: that of the packet in
    /// it); 0 for those beyond its end.
    pub ecn: Vec<u8>,
    /// IP packets from the peer, in order.
    pub packets: Packets,
    pub events: Vec<Event>,
    /// Which of `datagrams` are still to be sealed.
    pub(super) later: Later,
}

impl Output {
    pub fn clear(&mut self) {
        self.datagrams.clear();
        self.ecn.clear();
        self.packets.clear();
        self.events.clear();
        self.forget_laid_out();
    }

    /// A packet was sealed at the end of the datagrams' bytes, into so many.
    #[inline]
    pub(super) fn sealed(&mut self, packet: &[u8], length: usize) {
        self.ecn.resize(self.datagrams.len(), 0);
        self.ecn.push(ecn(packet));
        self.datagrams.lengths.push(length);
    }
}

/// The ECN field of an IP packet's header (RFC 3168, section 5); 0 for what is neither IPv4 nor IPv6.
fn ecn(packet: &[u8]) -> u8 {
    match *packet {
        [first, second, ..] if first >> 4 == 4 => second & 3,
        [first, second, ..] if first >> 4 == 6 => second >> 4 & 3,
        _ => 0,
    }
}

/// What an accepted datagram was. All but `CookieReply` prove that the sender holds the peer's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    Initiation,
    Response,
    CookieReply,
    /// A data message. `invalid`: it is authentic, but what was in it is no IP packet.
    Transport {
        invalid: Option<WireGuardError>,
    },
}
