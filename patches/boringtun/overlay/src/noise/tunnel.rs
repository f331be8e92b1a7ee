// SPDX-License-Identifier: BSD-3-Clause
//! A tunnel between two peers: what packets, datagrams and commands do to it. Deadlines are in `timers.rs`,
//! data messages in `data.rs`.
//!
//! Every call takes the time, appends everything that it brings about to an `Output`, and leaves nothing to be asked for
//! later. Initiations leave from one function, `send_initiation`, where the role is checked, and begin in one,
//! `start_attempt`, where a pending one is.

use super::handshake::Handshake;
use super::session::Session;
use super::sessions::Sessions;
use super::settings::{Limits, Role, Settings, TunnParams};
use super::stats::Stats;
use super::timers::{Attempt, Timers};
use super::{
    Env, Event, Indices, Output, Packet, Received, WireGuardError, DATA_OVERHEAD_SZ,
    HANDSHAKE_INIT_SZ, HANDSHAKE_RESP_SZ,
};
use super::{HandshakeInit, HandshakeResponse, PacketCookieReply};
use crate::{x25519, Instant};
use std::collections::VecDeque;
use std::time::Duration;

/// The shortest time between two initiations of a peer that we answer.
const INITIATION_INTERVAL: Duration = Duration::from_millis(20);

pub(super) struct Queued {
    pub since: Instant,
    packet: Vec<u8>,
}

/// A tunnel between two peers.
pub struct Tunn {
    pub(super) handshake: Handshake,
    pub(super) sessions: Sessions,
    pub(super) queue: VecDeque<Queued>,
    pub(super) timers: Timers,
    pub(super) role: Role,
    /// The latest time that any call gave.
    pub(super) clock: Instant,
    pub(super) limits: Limits,
    pub(super) mtu: usize,
    /// Static public keys, ours larger than the peer's: then the peer yields when initiations cross.
    is_larger: bool,
    last_initiation: Option<Instant>,
    pub(super) established: Option<Instant>,
    /// `PeerSilent` was said for the message limit of the current session.
    said_silent: bool,
    /// What is counted as it happens; the rest of it is filled in by `stats`.
    pub(super) counts: Stats,
}

impl Tunn {
    /// A tunnel without a session.
    ///
    /// # Errors
    /// `InvalidKey` if the peer's public key is of low order.
    pub fn new(params: TunnParams, now: Instant) -> Result<Tunn, WireGuardError> {
        let static_public = x25519::PublicKey::from(&params.static_private);
        let handshake = Handshake::new(
            params.static_private,
            static_public,
            params.peer_static_public,
            params.preshared_key,
            params.unix_time,
            now,
        )?;
        Ok(Tunn {
            handshake,
            sessions: Sessions::default(),
            queue: VecDeque::new(),
            timers: Timers::new(params.settings.timers),
            role: params.settings.role,
            clock: now,
            limits: params.settings.limits,
            mtu: params.settings.mtu,
            is_larger: static_public.as_bytes() > params.peer_static_public.as_bytes(),
            last_initiation: None,
            established: None,
            said_silent: false,
            counts: Stats::default(),
        })
    }

    /// Send an IP packet to the peer: sealed at once, or queued until there is a session.
    ///
    /// An empty packet is a keepalive, which is sent if there is a session and never queued.
    ///
    /// # Errors
    /// `QueueFull`: it was dropped. `NoCurrentSession`: it was empty.
    pub fn encapsulate(
        &mut self,
        packet: &[u8],
        env: &mut Env<'_>,
        out: &mut Output,
    ) -> Result<(), WireGuardError> {
        self.settle(env, out);
        if packet.is_empty() {
            if !self.can_keep_alive() {
                return Err(WireGuardError::NoCurrentSession);
            }
            self.send_keepalive(env, out);
            return Ok(());
        }
        if self.can_send_data(env.now) {
            self.seal(packet, env, out)
        } else {
            self.enqueue(packet, env, out)
        }
    }

    /// Take a datagram that the rate limiter let pass.
    ///
    /// # Errors
    /// Why it was dropped. It changed nothing then, but that the timestamp of a valid initiation is remembered: it will not
    /// be answered later either.
    pub fn handle_verified_packet(
        &mut self,
        packet: Packet<'_>,
        env: &mut Env<'_>,
        out: &mut Output,
    ) -> Result<Received, WireGuardError> {
        self.settle(env, out);
        match packet {
            Packet::HandshakeInit(p) => self.handle_handshake_init(p, env, out),
            Packet::HandshakeResponse(p) => self.handle_handshake_response(p, env, out),
            Packet::PacketCookieReply(p) => self.handle_cookie_reply(p, env),
            Packet::PacketData(p) => self.handle_data(p, None, env, out),
        }
    }

    /// Start a handshake now, whatever the state of the session. Nothing happens while an initiation is pending.
    ///
    /// # Errors
    /// `Role`: a responder never initiates.
    pub fn initiate_handshake(
        &mut self,
        env: &mut Env<'_>,
        out: &mut Output,
    ) -> Result<(), WireGuardError> {
        self.settle(env, out);
        if self.role == Role::Responder {
            return Err(WireGuardError::Role);
        }
        self.start_attempt(env, out);
        Ok(())
    }

    /// Change the preshared key of the handshakes to come; sessions that exist go on.
    pub fn set_preshared_key(&mut self, preshared_key: Option<[u8; 32]>) {
        self.handshake.set_preshared_key(preshared_key);
    }

    /// Change settings while sessions go on. Deadlines that were set stay; a pending initiation that the new role forbids is
    /// withdrawn; packets that wait leave, or a session is sought for them, if the new settings allow it.
    pub fn reconfigure(&mut self, settings: Settings, env: &mut Env<'_>, out: &mut Output) {
        self.settle(env, out);
        if settings.role == Role::Responder {
            self.handshake.cancel(env.indices);
            self.timers.attempt = None;
        }
        self.role = settings.role;
        self.timers.config = settings.timers;
        self.limits = settings.limits;
        self.mtu = settings.mtu;
        self.settle(env, out);
        self.flush(env, out);
    }

    /// It is `now`, though nothing else happens: no deadline is announced that lies before.
    #[inline]
    pub fn advance(&mut self, now: Instant) {
        self.clock = self.clock.max(now);
    }

    /// The wall clock was set: it shows `unix_time` at `now`.
    pub fn set_unix_time(&mut self, unix_time: Duration, now: Instant) {
        self.advance(now);
        self.handshake.set_unix_time(unix_time, self.clock);
    }

    /// Forget every session and handshake and give their indices back: before a tunnel is dropped.
    pub fn release_indices(&mut self, indices: &mut dyn Indices) {
        self.sessions.clear(indices);
        self.handshake.cancel(indices);
        self.timers.attempt = None;
    }

    /// Whether the current session may carry data.
    #[inline]
    pub(super) fn can_send_data(&self, now: Instant) -> bool {
        self.sessions.current().is_some_and(|session| {
            let limit = match session.is_initiator {
                true => self.timers.config.last_data(),
                false => self.timers.config.reject_after_time,
            };
            now < session.created + limit && session.sent() < self.limits.reject_after_messages
        })
    }

    /// Whether the current session may carry a keepalive; too old a session is wiped before anybody asks.
    pub(super) fn can_keep_alive(&self) -> bool {
        let limit = self.limits.reject_after_messages;
        self.sessions.current().is_some_and(|s| s.sent() < limit)
    }

    /// A packet of the user's was sealed.
    #[inline]
    pub(super) fn after_data(&mut self, length: usize, env: &mut Env<'_>, out: &mut Output) {
        self.counts.tx_packets += 1;
        self.counts.tx_bytes += length as u64;
        self.timers.sent(true, env.now);
        self.rekey_after_sending(env, out);
    }

    pub(super) fn send_keepalive(&mut self, env: &mut Env<'_>, out: &mut Output) {
        let mut buffer = [0; DATA_OVERHEAD_SZ];
        let session = self.sessions.current_mut();
        if let Some(Ok(length)) = session.map(|s| s.format_packet_data(0, &mut buffer)) {
            out.datagrams.push(&buffer);
            self.counts.keepalives_sent += 1;
            self.counts.tx_bytes += length as u64;
            self.timers.sent(false, env.now);
            self.rekey_after_sending(env, out);
        }
    }

    /// Renew a session that is old, or has sealed many packets, when something was sent on it.
    #[inline]
    fn rekey_after_sending(&mut self, env: &mut Env<'_>, out: &mut Output) {
        let session = match self.sessions.current() {
            Some(session) => session,
            None => return,
        };
        let many = session.sent() >= self.limits.rekey_after_messages;
        let old = session.is_initiator
            && env.now >= session.created + self.timers.config.rekey_after_time;
        if many && self.role == Role::Responder {
            self.say_silent(out);
        } else if many || old {
            self.start_attempt(env, out);
        }
    }

    /// Only the peer can renew this session, and it has not: say so once a session.
    fn say_silent(&mut self, out: &mut Output) {
        if !std::mem::replace(&mut self.said_silent, true) {
            out.events.push(Event::PeerSilent);
        }
    }

    fn enqueue(
        &mut self,
        packet: &[u8],
        env: &mut Env<'_>,
        out: &mut Output,
    ) -> Result<(), WireGuardError> {
        let fits = self.queue.len() < self.limits.queue_packets;
        if fits {
            self.queue.push_back(Queued {
                since: env.now,
                packet: packet.to_vec(),
            });
            self.timers.queued(env.now);
        }
        self.seek_session(env, out);
        match fits {
            true => Ok(()),
            false => Err(WireGuardError::QueueFull),
        }
    }

    /// Packets wait: see that a session comes.
    fn seek_session(&mut self, env: &mut Env<'_>, out: &mut Output) {
        if self.role == Role::Responder {
            if self.sessions.current().is_some() {
                self.say_silent(out);
            }
            return;
        }
        // A session that the peer made and has not confirmed is given a moment to be confirmed.
        if self.unconfirmed_until().is_none_or(|at| env.now >= at) {
            self.start_attempt(env, out);
        }
    }

    /// Begin an attempt to get a session, unless one is under way or the role forbids it.
    pub(super) fn start_attempt(&mut self, env: &mut Env<'_>, out: &mut Output) {
        if self.timers.attempt.is_some() || self.role == Role::Responder {
            return;
        }
        out.events.push(Event::HandshakeStarted);
        self.send_initiation(env, out);
    }

    /// The only place from which an initiation leaves.
    pub(super) fn send_initiation(&mut self, env: &mut Env<'_>, out: &mut Output) {
        if self.role == Role::Responder {
            return;
        }
        let mut buffer = [0; HANDSHAKE_INIT_SZ];
        // The buffer has the right size, the one thing that could be wrong.
        if let Ok(datagram) = self.handshake.format_handshake_initiation(&mut buffer, env) {
            out.datagrams.push(datagram);
            self.counts.initiations_sent += 1;
            self.counts.tx_bytes += HANDSHAKE_INIT_SZ as u64;
        }
        self.timers.initiated(env);
    }

    fn handle_handshake_init(
        &mut self,
        packet: HandshakeInit<'_>,
        env: &mut Env<'_>,
        out: &mut Output,
    ) -> Result<Received, WireGuardError> {
        if self.role == Role::Initiator {
            return Err(WireGuardError::Role);
        }
        let received = self.handshake.receive_handshake_initialization(packet)?;
        let earliest = self.last_initiation.map(|last| last + INITIATION_INTERVAL);
        if earliest.is_some_and(|earliest| env.now < earliest) {
            return Err(WireGuardError::InitiationTooSoon);
        }
        let before_retry = |a: Attempt| a.is_first && env.now < a.retry_at;
        let crossing = self.timers.attempt.is_some_and(before_retry);
        if crossing && self.is_larger {
            return Err(WireGuardError::CrossedInitiation);
        }
        self.last_initiation = Some(env.now);
        // Ours, if any, yields; what is queued waits for the peer's session instead.
        self.handshake.cancel(env.indices);
        let mut buffer = [0; HANDSHAKE_RESP_SZ];
        let handshake = &mut self.handshake;
        let (datagram, session) =
            handshake.format_handshake_response(received, &mut buffer, env)?;
        out.datagrams.push(datagram);
        self.sessions.install_unconfirmed(session, env.indices);
        self.counts.rx_bytes += HANDSHAKE_INIT_SZ as u64;
        self.counts.tx_bytes += HANDSHAKE_RESP_SZ as u64;
        self.counts.responses_sent += 1;
        self.timers.responded(env);
        Ok(Received::Initiation)
    }

    fn handle_handshake_response(
        &mut self,
        packet: HandshakeResponse<'_>,
        env: &mut Env<'_>,
        out: &mut Output,
    ) -> Result<Received, WireGuardError> {
        let wait = self.timers.config.rekey_timeout;
        let session = self
            .handshake
            .receive_handshake_response(packet, wait, env)?;
        self.sessions.install_initiated(session, env.indices);
        self.counts.rx_bytes += HANDSHAKE_RESP_SZ as u64;
        self.timers.attempt = None;
        self.timers.answered();
        self.timers.received(false, env.now);
        self.after_established(true, env, out);
        // The peer may use the session once it has seen a packet on it.
        if self.queue.is_empty() {
            self.send_keepalive(env, out);
        }
        self.flush(env, out);
        Ok(Received::Response)
    }

    fn handle_cookie_reply(
        &mut self,
        packet: PacketCookieReply<'_>,
        env: &mut Env<'_>,
    ) -> Result<Received, WireGuardError> {
        self.handshake.receive_cookie_reply(packet, env.now)?;
        Ok(Received::CookieReply)
    }

    /// A data message was authentic, and so long is the IP packet in it: 0 for a keepalive, an error if it is none.
    #[inline]
    pub(super) fn after_opened(
        &mut self,
        index: u32,
        length: usize,
        inner: Result<usize, WireGuardError>,
        env: &mut Env<'_>,
        out: &mut Output,
    ) {
        self.counts.rx_bytes += length as u64;
        self.counts.rx_packets += u64::from(inner.is_ok_and(|inner| inner > 0));
        let confirmed = self.sessions.confirm(index, env.indices);
        let is_current = self.sessions.is_current(index);
        if is_current {
            self.timers.answered();
        }
        self.timers.received(inner != Ok(0), env.now);
        if confirmed {
            self.after_established(false, env, out);
            self.flush(env, out);
        }
        if is_current {
            self.rekey_after_receiving(env, out);
        } else {
            self.replace_unheard(env, out);
        }
    }

    #[inline]
    fn rekey_after_receiving(&mut self, env: &mut Env<'_>, out: &mut Output) {
        let age = self.timers.config.rekey_on_receive();
        let old = |s: &Session| s.is_initiator && env.now >= s.created + age;
        if self.sessions.current().is_some_and(old) {
            self.start_attempt(env, out);
        }
    }

    /// The peer sends on another session than the one that we made, and never did on that one: it may not know of it,
    /// because the response that we took was not the last that it sent.
    fn replace_unheard(&mut self, env: &mut Env<'_>, out: &mut Output) {
        let patience = self.timers.config.dead_peer();
        let unheard = |s: &Session| {
            let (_, received) = s.current_packet_cnt();
            s.is_initiator && received == 0 && env.now >= s.created + patience
        };
        if self.sessions.current().is_some_and(unheard) {
            self.start_attempt(env, out);
        }
    }

    fn after_established(&mut self, initiator: bool, env: &mut Env<'_>, out: &mut Output) {
        self.timers.was_initiator = Some(initiator);
        self.established = Some(env.now);
        self.said_silent = false;
        out.events.push(Event::SessionEstablished { initiator });
    }

    /// Send what waited, in order.
    fn flush(&mut self, env: &mut Env<'_>, out: &mut Output) {
        while let Some(queued) = self.queue.pop_front() {
            if !self.can_send_data(env.now) || self.seal(&queued.packet, env, out).is_err() {
                self.queue.push_front(queued);
                self.seek_session(env, out);
                return;
            }
        }
        // Nothing waits: its memory is not kept for the next time.
        self.queue.shrink_to_fit();
    }
}
