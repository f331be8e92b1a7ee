// SPDX-License-Identifier: BSD-3-Clause
//! The WireGuard protocol for one pair of peers: messages here, and one file for each part of the state.
//!
//! | file | holds |
//! |---|---|
//! | `mod.rs` | the four messages and how a datagram is told apart (paper, section 5.4) |
//! | `tunnel.rs` | `Tunn`: what a packet, a datagram or a command does |
//! | `data.rs` | sealing and opening packets, one by one and many together (section 5.4.6) |
//! | `timers.rs` | every deadline, its reason, and what happens when it is due (section 6) |
//! | `sessions.rs` | previous, current and next session |
//! | `settings.rs` | roles, limits: plain values |
//! | `stats.rs` | counters, and what else can be seen from outside |
//! | `timestamps.rs` | timestamps of initiations, given out and taken back (section 5.1) |
//! | `handshake.rs` | Noise_IKpsk2, upstream's with our patches |
//! | `session.rs` | sealing, opening and the replay window, upstream's with our patches |
//! | `rate_limiter.rs` | MAC1, MAC2 and cookies, upstream's with our patches |
//! | `sources.rs` | the share of handshake messages of each address |
//! | `env.rs`, `output.rs` | what goes in besides packets, and what comes out |

pub mod errors;
pub mod handshake;
pub mod rate_limiter;
pub mod sources;

mod data;
mod env;
mod output;
mod session;
mod sessions;
mod settings;
mod stats;
mod timers;
pub mod timestamps;
mod tunnel;

pub use data::Opened;
pub use env::{Env, Indices};
pub use errors::WireGuardError;
pub use output::{Event, Output, Packets, Received};
pub use settings::{Limits, Role, Settings, TunnParams};
pub use stats::Stats;
pub use timers::{MAX_JITTER, TimerConfig, Timeout, TimeoutReason};
pub use tunnel::Tunn;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const HANDSHAKE_INIT: u32 = 1;
const HANDSHAKE_RESP: u32 = 2;
const COOKIE_REPLY: u32 = 3;
const DATA: u32 = 4;

/// Length of an initiation, in bytes.
pub const HANDSHAKE_INIT_SZ: usize = 148;
/// Length of a response, in bytes.
pub const HANDSHAKE_RESP_SZ: usize = 92;
/// Length of a cookie reply, in bytes.
pub const COOKIE_REPLY_SZ: usize = 64;
/// Length of a data message's header, in bytes.
pub const DATA_HEADER_SZ: usize = 16;
/// What sealing adds to a padded packet: header and tag, in bytes.
pub const DATA_OVERHEAD_SZ: usize = DATA_HEADER_SZ + 16;

/// First message of a handshake (section 5.4.2).
#[derive(Debug)]
pub struct HandshakeInit<'a> {
    sender_idx: u32,
    unencrypted_ephemeral: &'a [u8; 32],
    encrypted_static: &'a [u8],
    encrypted_timestamp: &'a [u8],
}

/// Second message of a handshake (section 5.4.3).
#[derive(Debug)]
pub struct HandshakeResponse<'a> {
    sender_idx: u32,
    pub receiver_idx: u32,
    unencrypted_ephemeral: &'a [u8; 32],
    encrypted_nothing: &'a [u8],
}

/// What a peer under load sends instead of an answer (section 5.4.7).
#[derive(Debug)]
pub struct PacketCookieReply<'a> {
    pub receiver_idx: u32,
    nonce: &'a [u8],
    encrypted_cookie: &'a [u8],
}

/// A sealed IP packet, or a keepalive (section 5.4.6).
#[derive(Debug)]
pub struct PacketData<'a> {
    pub receiver_idx: u32,
    counter: u64,
    encrypted_encapsulated_packet: &'a [u8],
}

/// A datagram whose type and length fit; nothing in it is authenticated yet.
#[derive(Debug)]
pub enum Packet<'a> {
    HandshakeInit(HandshakeInit<'a>),
    HandshakeResponse(HandshakeResponse<'a>),
    PacketCookieReply(PacketCookieReply<'a>),
    PacketData(PacketData<'a>),
}

fn le_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn le_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl Tunn {
    /// Tell a datagram apart by its type, its three reserved zeros, and its length.
    ///
    /// # Errors
    /// `InvalidPacket` for anything that is none of the four messages.
    #[inline]
    pub fn parse_incoming_packet(src: &[u8]) -> Result<Packet<'_>, WireGuardError> {
        parse(src).ok_or(WireGuardError::InvalidPacket)
    }

    /// Where an IP packet is going, or `None` if it is not one.
    pub fn dst_address(packet: &[u8]) -> Option<IpAddr> {
        match packet.first()? >> 4 {
            4 => address::<4>(packet, 16, 20).map(|a| Ipv4Addr::from(a).into()),
            6 => address::<16>(packet, 24, 40).map(|a| Ipv6Addr::from(a).into()),
            _ => None,
        }
    }

    /// Where an IP packet says that it comes from, or `None` if it is not one.
    pub fn src_address(packet: &[u8]) -> Option<IpAddr> {
        match packet.first()? >> 4 {
            4 => address::<4>(packet, 12, 20).map(|a| Ipv4Addr::from(a).into()),
            6 => address::<16>(packet, 8, 40).map(|a| Ipv6Addr::from(a).into()),
            _ => None,
        }
    }
}

#[inline]
fn parse(src: &[u8]) -> Option<Packet<'_>> {
    Some(match (le_u32(src, 0)?, src.len()) {
        (HANDSHAKE_INIT, HANDSHAKE_INIT_SZ) => Packet::HandshakeInit(HandshakeInit {
            sender_idx: le_u32(src, 4)?,
            unencrypted_ephemeral: src.get(8..)?.first_chunk()?,
            encrypted_static: src.get(40..88)?,
            encrypted_timestamp: src.get(88..116)?,
        }),
        (HANDSHAKE_RESP, HANDSHAKE_RESP_SZ) => Packet::HandshakeResponse(HandshakeResponse {
            sender_idx: le_u32(src, 4)?,
            receiver_idx: le_u32(src, 8)?,
            unencrypted_ephemeral: src.get(12..)?.first_chunk()?,
            encrypted_nothing: src.get(44..60)?,
        }),
        (COOKIE_REPLY, COOKIE_REPLY_SZ) => Packet::PacketCookieReply(PacketCookieReply {
            receiver_idx: le_u32(src, 4)?,
            nonce: src.get(8..32)?,
            encrypted_cookie: src.get(32..64)?,
        }),
        (DATA, length) if length >= DATA_OVERHEAD_SZ => Packet::PacketData(PacketData {
            receiver_idx: le_u32(src, 4)?,
            counter: le_u64(src, 8)?,
            encrypted_encapsulated_packet: src.get(DATA_HEADER_SZ..)?,
        }),
        _ => return None,
    })
}

fn address<const N: usize>(packet: &[u8], at: usize, header: usize) -> Option<[u8; N]> {
    if packet.len() < header {
        return None;
    }
    packet.get(at..)?.first_chunk().copied()
}

/// The length that an IP packet's own header gives, padding left out.
///
/// # Errors
/// `InvalidPacket` if it is not IP, shorter than its header, or shorter than it says.
fn ip_length(packet: &[u8]) -> Result<usize, WireGuardError> {
    let be_u16 = |at: usize| -> Option<usize> {
        let bytes = packet.get(at..)?.first_chunk()?;
        Some(u16::from_be_bytes(*bytes).into())
    };
    let length = match packet.first().map(|first| first >> 4) {
        Some(4) => be_u16(2).filter(|length| *length >= 20),
        Some(6) => be_u16(4).map(|payload| payload + 40),
        _ => None,
    };
    let header_fits = |length: &usize| *length <= packet.len();
    length
        .filter(header_fits)
        .ok_or(WireGuardError::InvalidPacket)
}
