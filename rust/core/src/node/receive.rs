//! What comes from UDP: whose it is, what its tunnel makes of it, and what becomes of the packet in it.

use connlib_boringtun::noise::handshake::parse_handshake_anon;
use connlib_boringtun::noise::rate_limiter::Verdict;
use connlib_boringtun::noise::{self, Opened, Packet, Received};

use super::Node;
use super::apply::Common;
use super::path::Path;
use super::peers::Slot;
use super::record::InputKind;
use crate::{DropReason, Instant};

/// A datagram as it came.
#[derive(Clone, Copy)]
pub(super) struct Arrived<'a> {
    pub from: Path,
    pub ecn: u8,
    pub datagram: &'a [u8],
}

impl Node {
    /// A datagram from UDP: from a peer, or from anybody.
    pub fn handle_datagram(&mut self, from: impl Into<Path>, datagram: &[u8], now: Instant) {
        self.handle_marked_datagram(from.into(), 0, datagram, now);
    }

    /// The same, with the ECN field of its IP header. What that says of congestion on the way reaches the receiver of the
    /// packet in it (RFC 6040).
    pub fn handle_marked_datagram(&mut self, from: Path, ecn: u8, datagram: &[u8], now: Instant) {
        let arrived = Arrived {
            from,
            ecn,
            datagram,
        };
        self.handle_arrived(arrived, None, now);
    }

    /// The same, for one that may have been opened ahead.
    pub(super) fn handle_arrived(
        &mut self,
        arrived: Arrived<'_>,
        opened: Option<Opened<'_>>,
        now: Instant,
    ) {
        let Arrived { from, datagram, .. } = arrived;
        let now = self.advance(now);
        self.refuse_overdue(now);
        let verdict = self
            .limiter
            .verify_packet(Some(from.remote), datagram, now, &mut *self.rng);
        let found = match verdict {
            Ok(packet) => self.recipient(&packet).map(|slot| (slot, packet)),
            Err(Verdict::CookieReply(reply)) => {
                self.capture_received(None, from.remote, datagram);
                let before = self.output.destinations.len();
                self.output.push_datagram(from, &reply);
                self.capture_sent(None, before);
                return self.drops.add(DropReason::CookieReplySent);
            }
            Err(Verdict::Error(error)) => Err(error.into()),
        };
        let slot = found.as_ref().ok().map(|(slot, _)| *slot);
        self.capture_received(slot, from.remote, datagram);
        match found {
            Ok((slot, packet)) => self.receive(slot, arrived, packet, opened, now),
            Err(reason) => self.drops.add(reason),
        }
    }

    /// Which peer a datagram is for.
    fn recipient(&self, packet: &Packet<'_>) -> Result<Slot, DropReason> {
        let index = match packet {
            Packet::HandshakeInit(initiation) => {
                let Common {
                    private, public, ..
                } = &self.common;
                let half = parse_handshake_anon(private, public, initiation)?;
                return self
                    .peers
                    .find(&half.peer_static_public)
                    .ok_or(DropReason::UnknownPeer);
            }
            Packet::HandshakeResponse(packet) => packet.receiver_idx,
            Packet::PacketCookieReply(packet) => packet.receiver_idx,
            Packet::PacketData(packet) => packet.receiver_idx,
        };
        self.indices.owner(index).ok_or(DropReason::WrongIndex)
    }

    fn receive(
        &mut self,
        slot: Slot,
        arrived: Arrived<'_>,
        packet: Packet<'_>,
        opened: Option<Opened<'_>>,
        now: Instant,
    ) {
        let Arrived {
            from,
            ecn,
            datagram,
        } = arrived;
        let packets = self.output.packets.len();
        let kind = InputKind::of(&packet);
        let received = self.drive(slot, now, |tunn, env, out| {
            let received = match (packet, opened) {
                (Packet::PacketData(packet), Some(opened)) => {
                    tunn.handle_opened(packet, opened, env, out)
                }
                (packet, _) => tunn.handle_verified_packet(packet, env, out),
            };
            received.map_err(DropReason::from)
        });
        let received = received.unwrap_or(Err(DropReason::PeerPoisoned));
        if kind == InputKind::Initiation {
            self.note_received_timestamp(slot);
        }
        self.note_received(slot, &received, now);
        self.record_input(slot, kind, datagram.len(), received.is_ok());
        let (destination, moves) = match received {
            Ok(Received::Transport { invalid }) => {
                if let Some(error) = invalid {
                    self.drop_from(slot, error.into());
                }
                if self.output.packets.len() > packets
                    && self.check_mark(slot, ecn)
                    && self.check_source(slot)
                    && self.check_received(slot, now)
                {
                    self.capture_delivered(slot);
                }
                (None, true)
            }
            Ok(Received::Response) => (None, true),
            Ok(Received::Initiation) => (Some(from), false),
            Ok(Received::CookieReply) => (None, false),
            Err(reason) => {
                self.drop_from(slot, reason);
                (None, false)
            }
        };
        let moved = moves
            && self
                .peers
                .get_mut(slot)
                .is_some_and(|peer| peer.locate(from));
        self.settle(slot, destination);
        if moved {
            self.adjust_keepalive(slot, now);
        }
    }

    #[inline]
    fn note_received(&mut self, slot: Slot, received: &Result<Received, DropReason>, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot) else {
            return;
        };
        match received {
            // Anybody who saw our initiation can have sent it.
            Ok(Received::CookieReply) => {
                peer.trouble.cookie_replies = peer.trouble.cookie_replies.saturating_add(1);
            }
            Ok(_) => peer.heard = Some(now),
            Err(_) => {}
        }
    }

    /// Whether the source address of the last packet is the peer's. It is taken back if not.
    pub(super) fn check_source(&mut self, slot: Slot) -> bool {
        let source = self.output.last_packet().and_then(noise::Tunn::src_address);
        let belongs = source.and_then(|source| self.routes.longest_match(source)) == Some(slot);
        if !belongs {
            self.output.take_back_last_packet();
            self.drop_from(slot, DropReason::SourceNotAllowed);
        }
        belongs
    }
}
