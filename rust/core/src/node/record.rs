//! What came into the tunnels of a node and when, for a replay: times, kinds and sizes; no payload, no address, no secret.

use std::mem;

use connlib_boringtun::noise::Packet;

use crate::Instant;

/// What came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKind {
    /// An IP packet to send.
    Packet,
    /// A handshake was asked for.
    Handshake,
    /// The peer's deadline was reached.
    Timeout,
    Initiation,
    Response,
    CookieReply,
    /// A data message or, by its size, a keepalive.
    Data,
}

impl InputKind {
    pub(super) fn of(packet: &Packet<'_>) -> Self {
        match packet {
            Packet::HandshakeInit(_) => InputKind::Initiation,
            Packet::HandshakeResponse(_) => InputKind::Response,
            Packet::PacketCookieReply(_) => InputKind::CookieReply,
            Packet::PacketData(_) => InputKind::Data,
        }
    }
}

/// One call of one peer's tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Input {
    pub at: Instant,
    /// The peer's public key.
    pub peer: [u8; 32],
    pub kind: InputKind,
    /// Bytes of the packet or the datagram; 0 where there is none.
    pub size: usize,
    /// Whether the tunnel took it. What it did not take is counted with the reason.
    pub taken: bool,
}

/// Inputs that nobody took out yet, at most `capacity`.
pub(super) struct Recorder {
    inputs: Vec<Input>,
    capacity: usize,
    missed: u64,
}

impl Recorder {
    pub fn new(capacity: usize) -> Self {
        Recorder {
            inputs: Vec::new(),
            capacity,
            missed: 0,
        }
    }

    pub fn push(&mut self, input: Input) {
        if self.inputs.len() < self.capacity {
            self.inputs.push(input);
        } else {
            self.missed += 1;
        }
    }

    /// The inputs since the last call, and how many more there were than had room.
    pub fn take(&mut self) -> (Vec<Input>, u64) {
        (mem::take(&mut self.inputs), mem::take(&mut self.missed))
    }
}
