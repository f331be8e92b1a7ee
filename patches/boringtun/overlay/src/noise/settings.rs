// SPDX-License-Identifier: BSD-3-Clause
//! What a tunnel is made of, and a tunnel in numbers.

use super::timers::TimerConfig;
use crate::x25519;
use std::time::Duration;

/// Who may start sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Both sides, as in the paper.
    Either,
    /// This side alone: it never answers an initiation.
    Initiator,
    /// The peer alone: this side never sends an initiation, on any path.
    Responder,
}

/// Limits other than times (section 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A session that sealed so many packets is renewed.
    pub rekey_after_messages: u64,
    /// A session seals and opens no packet of this number or a higher one.
    pub reject_after_messages: u64,
    /// How many packets may wait for a session.
    pub queue_packets: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            rekey_after_messages: 1 << 60,
            reject_after_messages: u64::MAX - (1 << 13),
            queue_packets: 256,
        }
    }
}

/// What may change while a tunnel lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub role: Role,
    pub timers: TimerConfig,
    pub limits: Limits,
    /// The longest IP packet that the interface takes: padding does not make one longer.
    pub mtu: usize,
}

/// What a tunnel is made of.
pub struct TunnParams {
    pub static_private: x25519::StaticSecret,
    pub peer_static_public: x25519::PublicKey,
    pub preshared_key: Option<[u8; 32]>,
    pub settings: Settings,
    /// The wall clock at construction, since 1970: for the timestamps in initiations.
    pub unix_time: Duration,
}
