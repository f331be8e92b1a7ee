//! Many packets or datagrams in one call. What comes of it is the same as one by one; sealing and opening are done together,
//! by the engine that the node was given, if that is faster.
//!
//! Packets are laid out in the output, header and all, and sealed before anybody sees it. Data messages are opened ahead,
//! out of a copy, by the keys that their sessions have when they come; then each is handled in its turn, as if nobody had looked
//! into it, and only there is decided whether it is new, whose it is, and what becomes of it. A message of a handshake changes
//! sessions, so that everything before it is handled first.

use std::mem;

use connlib_aead::{Batch, Chosen};
use connlib_boringtun::noise::{self, Opened, Packet};

use super::Node;
use super::path::Path;
use super::receive::Arrived;
use crate::Instant;

/// Data messages that are opened ahead.
#[derive(Default)]
pub(super) struct Opening {
    batch: Batch,
    /// Their ciphertexts, and then what was in them.
    pub(super) bytes: Vec<u8>,
    /// Memory for those that wait to be handled.
    waiting: Vec<Waiting<'static>>,
    /// Even where the engine gains nothing by it: for tests.
    always: bool,
}

impl Opening {
    fn opened(&self, number: usize) -> Option<Opened<'_>> {
        Some(Opened {
            key: self.batch.key(number)?,
            text: self.batch.text(number, &self.bytes),
        })
    }

    fn clear(&mut self) {
        self.batch.clear();
        self.bytes.clear();
    }
}

/// A datagram that waits to be handled.
struct Waiting<'a> {
    arrived: Arrived<'a>,
    /// Its number among those that are opened ahead, if it is one of them.
    number: Option<usize>,
}

/// The memory of datagrams that were handled, for others.
fn emptied<'a>(mut waiting: Vec<Waiting<'_>>) -> Vec<Waiting<'a>> {
    waiting.clear();
    // What is collected has the size of what it is collected from, and takes its place.
    waiting.into_iter().map_while(|_| None).collect()
}

impl Node {
    /// Lets another engine seal and open what comes in batches. Nothing else changes.
    pub fn set_encryption(&mut self, chosen: Chosen) {
        self.encryption = chosen;
    }

    /// What seals and opens what comes in batches, and why it is that.
    pub fn encryption(&self) -> &Chosen {
        &self.encryption
    }

    /// Seals and opens together whatever the engine is, for tests of what follows.
    #[doc(hidden)]
    pub fn always_together(&mut self) {
        self.opening.always = true;
    }

    /// Whether it is worth while: ring gains nothing by it, and loses a copy.
    fn works_together(&self) -> bool {
        self.opening.always || self.encryption.engine.gains_by_batches()
    }

    /// IP packets from the TUN device, as [`handle_packet`](Node::handle_packet) takes them one by one.
    pub fn handle_packets<'a>(
        &mut self,
        packets: impl IntoIterator<Item = &'a [u8]>,
        now: Instant,
    ) {
        self.seal_later();
        for packet in packets {
            self.handle_packet(packet, now);
            self.seal_much();
        }
        self.output.tunnels.seal_now(&mut self.encryption.engine);
    }

    /// Datagrams from UDP, each with the ECN field of its IP header, as
    /// [`handle_marked_datagram`](Node::handle_marked_datagram) takes them one by one.
    pub fn handle_datagrams<'a>(
        &mut self,
        datagrams: impl IntoIterator<Item = (Path, u8, &'a [u8])>,
        now: Instant,
    ) {
        self.seal_later();
        let datagrams = datagrams.into_iter().map(|(from, ecn, datagram)| Arrived {
            from,
            ecn,
            datagram,
        });
        if self.works_together() {
            self.handle_ahead(datagrams, now);
        } else {
            for arrived in datagrams {
                self.handle_arrived(arrived, None, now);
            }
        }
        self.output.tunnels.seal_now(&mut self.encryption.engine);
    }

    fn handle_ahead<'a>(&mut self, datagrams: impl Iterator<Item = Arrived<'a>>, now: Instant) {
        let most = self.encryption.engine.most();
        let mut opening = mem::take(&mut self.opening);
        let mut waiting = emptied(mem::take(&mut opening.waiting));
        for arrived in datagrams {
            match noise::Tunn::parse_incoming_packet(arrived.datagram) {
                Ok(Packet::PacketData(packet)) => {
                    let number = self.open_ahead(&packet, &mut opening);
                    waiting.push(Waiting { arrived, number });
                    if waiting.len() >= most {
                        self.handle_waiting(&mut waiting, &mut opening, now);
                    }
                }
                _ => {
                    self.handle_waiting(&mut waiting, &mut opening, now);
                    self.handle_arrived(arrived, None, now);
                    self.seal_much();
                }
            }
        }
        self.handle_waiting(&mut waiting, &mut opening, now);
        opening.waiting = emptied(waiting);
        self.opening = opening;
    }

    /// From now on packets are laid out only. What is captured has to be sealed at once.
    pub(super) fn seal_later(&mut self) {
        if self.works_together() && !self.is_captured() {
            self.output.tunnels.seal_later();
        }
    }

    #[inline]
    fn seal_much(&mut self) {
        let engine = &mut self.encryption.engine;
        if self.output.tunnels.has_much_to_seal(engine) {
            self.output.tunnels.seal_laid_out(engine);
        }
    }

    /// Puts a data message among those that are opened ahead, unless it would be dropped without being opened.
    fn open_ahead(&self, packet: &noise::PacketData<'_>, opening: &mut Opening) -> Option<usize> {
        let slot = self.indices.owner(packet.receiver_idx)?;
        let key = self.peers.get(slot)?.tunn.as_ref()?.opener(packet)?;
        let start = opening.bytes.len();
        opening.bytes.extend_from_slice(packet.ciphertext());
        let range = start..opening.bytes.len();
        Some(opening.batch.push(key, packet.counter(), range))
    }

    fn handle_waiting(
        &mut self,
        waiting: &mut Vec<Waiting<'_>>,
        opening: &mut Opening,
        now: Instant,
    ) {
        if waiting.is_empty() {
            return;
        }
        self.encryption
            .engine
            .open(&mut opening.batch, &mut opening.bytes);
        for Waiting { arrived, number } in waiting.drain(..) {
            let opened = number.and_then(|number| opening.opened(number));
            self.handle_arrived(arrived, opened, now);
            self.seal_much();
        }
        opening.clear();
    }
}
