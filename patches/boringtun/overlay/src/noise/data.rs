// SPDX-License-Identifier: BSD-3-Clause
//! Data messages (paper, section 5.4.6): laid out and sealed, opened and told apart. Which session they are for, and what
//! they bring about, is in `tunnel.rs`.
//!
//! Both ways there are two forms. One seals or opens at once. The other is for many packets: those to be sealed are laid out
//! in the output, `Later` notes where, and all of them are sealed together; those that came are opened together, by the
//! keys that `opener` names, before each of them is handled as if nobody had looked into it (`handle_opened`). So what is
//! known of a packet may be had ahead, but what is decided about it is decided in its turn, once, here.

use super::{
    ip_length, Env, Output, Packet, PacketData, Received, Tunn, WireGuardError, DATA_HEADER_SZ,
    DATA_OVERHEAD_SZ,
};
use connlib_aead::{Batch, Engine, Failed, Key};
use std::sync::Arc;

/// Sealed packets are padded to a multiple of this (section 5.4.6).
const PADDING: usize = 16;

/// Packets in `Output::datagrams` that were laid out and are not sealed yet.
#[derive(Debug, Default)]
pub(super) struct Later {
    is_on: bool,
    batch: Batch,
}

impl Output {
    /// From now on, packets are laid out only, and `seal_laid_out` seals them. Nobody may see the datagrams before.
    pub fn seal_later(&mut self) {
        self.later.is_on = true;
    }

    /// Whether so many packets are laid out that the engine would seal more of them no faster together.
    #[inline]
    pub fn has_much_to_seal(&self, engine: &Engine) -> bool {
        self.later.batch.len() >= engine.most()
    }

    /// Seal what is laid out.
    pub fn seal_laid_out(&mut self, engine: &mut Engine) {
        engine.seal(&mut self.later.batch, &mut self.datagrams.bytes);
        self.later.batch.clear();
    }

    /// As `seal_laid_out`, and from now on packets are sealed at once.
    pub fn seal_now(&mut self, engine: &mut Engine) {
        self.seal_laid_out(engine);
        self.later.is_on = false;
    }

    /// Datagrams were taken back: what was laid out in them is not to be sealed.
    pub fn forget_taken_back(&mut self) {
        self.later.batch.truncate(self.datagrams.bytes.len());
    }

    pub(super) fn forget_laid_out(&mut self) {
        self.later.batch.clear();
    }
}

/// What was found in a data message when it was opened ahead.
#[derive(Clone, Copy, Debug)]
pub struct Opened<'a> {
    pub key: &'a Arc<Key>,
    /// What was in it; `None` if it is not authentic.
    pub text: Option<&'a [u8]>,
}

impl PacketData<'_> {
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// What is to be opened.
    pub fn ciphertext(&self) -> &[u8] {
        self.encrypted_encapsulated_packet
    }
}

/// The length of what a data message held: 0 for a keepalive.
#[inline]
fn inner_length(opened: &[u8]) -> Result<usize, WireGuardError> {
    match opened {
        [] => Ok(0),
        packet => ip_length(packet),
    }
}

impl Tunn {
    /// As `encapsulate`, in the caller's buffer: 16 bytes of space, the packet, and space for padding and 16 bytes more.
    /// Returns the length of the datagram.
    ///
    /// # Errors
    /// `NoCurrentSession`: nothing was done, and `encapsulate` would queue the packet. `DestinationBufferTooSmall`.
    pub fn seal_in_place(
        &mut self,
        buffer: &mut [u8],
        packet_len: usize,
        env: &mut Env<'_>,
        out: &mut Output,
    ) -> Result<usize, WireGuardError> {
        self.settle(env, out);
        if !self.can_send_data(env.now) {
            return Err(WireGuardError::NoCurrentSession);
        }
        let padded = self.padded(packet_len);
        let padding = buffer.get_mut(DATA_HEADER_SZ + packet_len..DATA_HEADER_SZ + padded);
        padding
            .ok_or(WireGuardError::DestinationBufferTooSmall)?
            .fill(0);
        let session = self.sessions.current_mut();
        let session = session.ok_or(WireGuardError::NoCurrentSession)?;
        let length = session.format_packet_data(padded, buffer)?;
        self.after_data(length, env, out);
        Ok(length)
    }

    /// As `handle_verified_packet`, for a data message, which is opened where it stands. Returns the IP packet; empty for
    /// a keepalive.
    ///
    /// # Errors
    /// `UnexpectedPacket` if it is not a data message, or why it was dropped.
    pub fn open_in_place<'a>(
        &mut self,
        datagram: &'a mut [u8],
        env: &mut Env<'_>,
        out: &mut Output,
    ) -> Result<&'a [u8], WireGuardError> {
        self.settle(env, out);
        let (index, counter) = match Tunn::parse_incoming_packet(datagram)? {
            Packet::PacketData(p) => (p.receiver_idx, p.counter),
            _ => return Err(WireGuardError::UnexpectedPacket),
        };
        let length = datagram.len();
        let payload = datagram.get_mut(DATA_HEADER_SZ..);
        let payload = payload.ok_or(WireGuardError::InvalidPacket)?;
        let opened = self.open(index, counter, |key| key.open(counter, payload))?;
        let inner = inner_length(payload.get(..opened).unwrap_or_default());
        self.after_opened(index, length, inner, env, out);
        Ok(payload.get(..inner?).unwrap_or_default())
    }

    /// The key by which a data message may be opened ahead; `None` if it would be dropped without.
    #[inline]
    pub fn opener(&self, packet: &PacketData<'_>) -> Option<&Arc<Key>> {
        let session = self.sessions.get(packet.receiver_idx)?;
        let limit = self.limits.reject_after_messages;
        session.opens(packet.counter, limit).ok()
    }

    /// As `handle_verified_packet`, for a data message that was opened ahead. If it is another session's by now, that counts
    /// for nothing.
    ///
    /// # Errors
    /// Why it was dropped.
    pub fn handle_opened(
        &mut self,
        packet: PacketData<'_>,
        opened: Opened<'_>,
        env: &mut Env<'_>,
        out: &mut Output,
    ) -> Result<Received, WireGuardError> {
        self.settle(env, out);
        self.handle_data(packet, Some(opened), env, out)
    }

    /// The length of a packet with its padding, which stays within the interface's MTU.
    fn padded(&self, length: usize) -> usize {
        match length.checked_next_multiple_of(PADDING) {
            Some(padded) if length < self.mtu => padded.min(self.mtu),
            _ => length,
        }
    }

    #[inline]
    pub(super) fn seal(
        &mut self,
        packet: &[u8],
        env: &mut Env<'_>,
        out: &mut Output,
    ) -> Result<(), WireGuardError> {
        let padded = self.padded(packet.len());
        let session = self.sessions.current_mut();
        let session = session.ok_or(WireGuardError::NoCurrentSession)?;
        let bytes = &mut out.datagrams.bytes;
        let start = bytes.len();
        bytes.reserve(DATA_OVERHEAD_SZ + padded);
        bytes.extend_from_slice(&[0; DATA_HEADER_SZ]);
        bytes.extend_from_slice(packet);
        bytes.resize(start + DATA_OVERHEAD_SZ + padded, 0);
        let buffer = bytes.get_mut(start..).unwrap_or_default();
        let sealed = match &mut out.later {
            Later { is_on: true, batch } => {
                session.format_packet_data_for(batch, start, padded, buffer)
            }
            _ => session.format_packet_data(padded, buffer),
        };
        match sealed {
            Ok(length) => {
                out.sealed(packet, length);
                self.after_data(length, env, out);
                Ok(())
            }
            Err(error) => {
                bytes.truncate(start);
                Err(error)
            }
        }
    }

    pub(super) fn handle_data(
        &mut self,
        packet: PacketData<'_>,
        ahead: Option<Opened<'_>>,
        env: &mut Env<'_>,
        out: &mut Output,
    ) -> Result<Received, WireGuardError> {
        // Opened at the end of the packets that came before it; what is no packet is taken away again.
        let packets = &mut out.packets;
        let start = packets.bytes.len();
        let (index, counter) = (packet.receiver_idx, packet.counter);
        let ciphertext = packet.encrypted_encapsulated_packet;
        let result = self.open(index, counter, |key| {
            if let Some(ahead) = ahead.filter(|ahead| Arc::ptr_eq(ahead.key, key)) {
                let text = ahead.text.ok_or(Failed)?;
                packets.bytes.extend_from_slice(text);
                return Ok(text.len());
            }
            packets.bytes.extend_from_slice(ciphertext);
            let payload = packets.bytes.get_mut(start..).unwrap_or_default();
            key.open(counter, payload)
        });
        let opened = match result {
            Ok(opened) => packets.bytes.get(start..start + opened),
            Err(error) => {
                packets.bytes.truncate(start);
                return Err(error);
            }
        };
        let inner = inner_length(opened.unwrap_or_default());
        let kept = inner.unwrap_or(0);
        packets.bytes.truncate(start + kept);
        if kept > 0 {
            packets.lengths.push(kept);
        }
        let length = DATA_HEADER_SZ + ciphertext.len();
        self.after_opened(index, length, inner, env, out);
        Ok(Received::Transport {
            invalid: inner.err(),
        })
    }

    /// Open a message by the key of its session, if its number is new. Returns the length of what was in it.
    #[inline]
    fn open(
        &mut self,
        index: u32,
        counter: u64,
        open: impl FnOnce(&Arc<Key>) -> Result<usize, Failed>,
    ) -> Result<usize, WireGuardError> {
        let limit = self.limits.reject_after_messages;
        let session = self.sessions.find(index)?;
        session.receive_packet_data(counter, limit, open)
    }
}
