//! Many packets or datagrams in one call. What comes of it is the same as one by one; sealing and opening are done together,
//! by the engine that the node was given, if that is faster.
//!
//! Packets are laid out in the output, header and all, and sealed before anybody sees it. Data messages are opened ahead,
//! out of a copy, by the keys that their sessions have when they come; then each is handled in its turn, as if nobody had looked
//! into it, and only there is decided whether it is new, whose it is, and what becomes of it. A message of a handshake changes
//! sessions, so that everything before it is handled first.

use std::mem;

use connlib_aead::{Batch, Chosen, MOST};
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

/// Datagrams that wait to be handled, each with its number among those that are opened ahead.
struct Waiting<'a> {
    places: [Option<(Arrived<'a>, Option<usize>)>; MOST],
    count: usize,
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
        let opens_ahead = self.works_together();
        let mut opening = mem::take(&mut self.opening);
        let mut waiting = Waiting {
            places: [None; MOST],
            count: 0,
        };
        for (from, ecn, datagram) in datagrams {
            let arrived = Arrived {
                from,
                ecn,
                datagram,
            };
            match noise::Tunn::parse_incoming_packet(datagram) {
                Ok(Packet::PacketData(packet)) if opens_ahead => {
                    let number = self.open_ahead(&packet, &mut opening);
                    if let Some(place) = waiting.places.get_mut(waiting.count) {
                        *place = Some((arrived, number));
                        waiting.count += 1;
                    }
                    if waiting.count == MOST {
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
        self.opening = opening;
        self.output.tunnels.seal_now(&mut self.encryption.engine);
    }

    /// From now on packets are laid out only. What is captured has to be sealed at once.
    pub(super) fn seal_later(&mut self) {
        if self.works_together() && !self.is_captured() {
            self.output.tunnels.seal_later();
        }
    }

    #[inline]
    fn seal_much(&mut self) {
        if self.output.tunnels.has_much_to_seal() {
            self.output
                .tunnels
                .seal_laid_out(&mut self.encryption.engine);
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

    fn handle_waiting(&mut self, waiting: &mut Waiting<'_>, opening: &mut Opening, now: Instant) {
        if waiting.count == 0 {
            return;
        }
        self.encryption
            .engine
            .open(&mut opening.batch, &mut opening.bytes);
        for place in waiting.places.iter_mut().take(waiting.count) {
            if let Some((arrived, number)) = place.take() {
                let opened = number.and_then(|number| opening.opened(number));
                self.handle_arrived(arrived, opened, now);
                self.seal_much();
            }
        }
        waiting.count = 0;
        opening.clear();
    }
}
