// SPDX-License-Identifier: BSD-3-Clause
//! What a tunnel counts, and what can be seen of it from outside.

use super::session::Session;
use super::Tunn;
use crate::Instant;
use std::time::Duration;

/// A tunnel in numbers. Bytes are those of UDP payloads, handshakes included.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Time since the last session was established.
    pub last_handshake: Option<Duration>,
    /// Age of the current session.
    pub session_age: Option<Duration>,
    pub tx_bytes: u64,
    pub rx_bytes: u64,
    /// IP packets sealed, keepalives not counted.
    pub tx_packets: u64,
    /// IP packets opened, keepalives not counted.
    pub rx_packets: u64,
    pub queued: usize,
    /// Live sessions: 0 to 3.
    pub sessions: usize,
    pub initiations_sent: u64,
    pub responses_sent: u64,
    pub keepalives_sent: u64,
    /// Share of the peer's packets on the current session that never came: 0 to 1.
    pub loss: f32,
    /// From the last initiation that was answered to its response.
    pub rtt: Option<Duration>,
    pub handshake_pending: bool,
}

impl Tunn {
    /// How many packets wait for a session.
    #[inline]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Whether data messages to the peer carry this index.
    pub fn sends_on(&self, index: u32) -> bool {
        self.sessions.send_on(index)
    }

    /// Counts on from where a tunnel to the same peer has come to, in whose place this one is from now on.
    pub fn count_on_from(&mut self, before: &Tunn) {
        self.counts = before.counts;
        self.established = before.established;
    }

    pub fn stats(&self, now: Instant) -> Stats {
        let now = self.clock.max(now);
        let age_limit = self.timers.config.reject_after_time;
        let current = self.sessions.current();
        let current = current.filter(|s| now < s.created + age_limit);
        let (expected, received) = current.map_or((0, 0), Session::current_packet_cnt);
        Stats {
            last_handshake: self.established.map(|at| now.duration_since(at)),
            session_age: current.map(|s| now.duration_since(s.created)),
            queued: self.queue.len(),
            sessions: self.sessions.younger_than(age_limit, now),
            loss: match expected {
                0 => 0.0,
                _ => 1.0 - received as f32 / expected as f32,
            },
            rtt: self.handshake.last_rtt,
            handshake_pending: self.timers.attempt.is_some(),
            ..self.counts
        }
    }
}
