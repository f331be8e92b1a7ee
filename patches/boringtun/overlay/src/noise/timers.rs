// SPDX-License-Identifier: BSD-3-Clause
//! Every deadline of a tunnel: when it is, why, and what happens then (paper, section 6).
//!
//! Each deadline is one instant, set by the event that it counts from, so that `next_timeout` can name it exactly. Limits
//! are inclusive: what is due at an instant is done by a call at that instant, and never announced again. Whatever is
//! overdue when another call comes first, sessions that are too old above all, is settled by that call
//! (`Tunn::settle`): the rules hold whether or not anybody polls.
//!
//! | reason | counted from | then |
//! |---|---|---|
//! | handshake retry | the initiation | the next one; rekey timeout + jitter |
//! | give up | the attempt's first initiation, or the last packet queued since | the queue is dropped; attempt time |
//! | session expiry | the session's creation | it is wiped; reject-after time |
//! | dead peer | the first data packet without an answer on the session that sends | an initiation; keepalive + rekey timeout + jitter |
//! | passive keepalive | the first data packet that we have not answered | a keepalive; keepalive timeout |
//! | persistent keepalive | the last authenticated packet either way | a keepalive, or an initiation; its interval |
//! | unconfirmed session | its creation, while packets wait | an initiation; rekey timeout + jitter |
//! | queue timeout | the oldest packet that waits without an attempt | it is dropped; attempt time |

use super::{Env, Event, Output, Role, Tunn, WireGuardError};
use crate::Instant;
use rand_core::CryptoRngCore;
use std::time::Duration;

/// The largest jitter on a retry (section 6.1: "333 ms").
pub const MAX_JITTER: Duration = Duration::from_millis(333);

/// The paper's time constants (section 6.1), changeable for paths that must fail over sooner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerConfig {
    /// The age at which a session's initiator renews it, when it sends.
    pub rekey_after_time: Duration,
    /// The age at which a session is wiped.
    pub reject_after_time: Duration,
    /// How long an attempt goes on without an answer.
    pub rekey_attempt_time: Duration,
    /// How long to wait for an answer to one initiation.
    pub rekey_timeout: Duration,
    /// How long received data may go unanswered.
    pub keepalive_timeout: Duration,
}

impl Default for TimerConfig {
    fn default() -> Self {
        TimerConfig {
            rekey_after_time: Duration::from_secs(120),
            reject_after_time: Duration::from_secs(180),
            rekey_attempt_time: Duration::from_secs(90),
            rekey_timeout: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

impl TimerConfig {
    /// The age at which the initiator of a session renews it when it receives: 165 s.
    pub(super) fn rekey_on_receive(&self) -> Duration {
        self.reject_after_time
            .saturating_sub(self.keepalive_timeout + self.rekey_timeout)
    }

    /// The age from which the initiator of a session sends no more data on it, lest it arrive too late: 170 s.
    pub(super) fn last_data(&self) -> Duration {
        self.reject_after_time
            .saturating_sub(self.keepalive_timeout)
    }

    pub(super) fn dead_peer(&self) -> Duration {
        self.keepalive_timeout + self.rekey_timeout
    }
}

/// Why a tunnel wants to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimeoutReason {
    HandshakeRetry,
    GiveUp,
    SessionExpiry,
    DeadPeer,
    PassiveKeepalive,
    PersistentKeepalive,
    UnconfirmedSession,
    QueueTimeout,
}

/// The instant at which a tunnel wants `handle_timeout` to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timeout {
    pub at: Instant,
    pub reason: TimeoutReason,
}

/// An attempt to get a session: initiations until one is answered or the time is over.
#[derive(Clone, Copy)]
pub(super) struct Attempt {
    /// The first initiation, or the last packet queued since.
    pub since: Instant,
    pub retry_at: Instant,
    /// No retry was sent yet: the time in which the crossing rule may ignore the peer's initiation.
    pub is_first: bool,
}

pub(super) struct Timers {
    pub config: TimerConfig,
    pub attempt: Option<Attempt>,
    dead_peer: Option<Instant>,
    passive: Option<Instant>,
    persistent: Option<Duration>,
    persistent_due: Instant,
    /// Who initiated the last session; only that side renews it for the sake of a keepalive.
    pub was_initiator: Option<bool>,
    /// Drawn with every handshake message of ours, so that two peers do not stay in step.
    jitter: Duration,
}

/// Uniform over 0 to 333 ms.
fn draw_jitter(rng: &mut dyn CryptoRngCore) -> Duration {
    let span = MAX_JITTER.as_nanos() as u64 + 1;
    // The bias of a 64-bit draw over 3.3e8 values is below 2^-35.
    Duration::from_nanos(rng.next_u64() % span)
}

impl Timers {
    pub fn new(config: TimerConfig) -> Self {
        Timers {
            config,
            attempt: None,
            dead_peer: None,
            passive: None,
            persistent: None,
            persistent_due: Instant::default(),
            was_initiator: None,
            jitter: Duration::default(),
        }
    }

    /// An authenticated packet went out or came in.
    fn traversal(&mut self, now: Instant) {
        if let Some(interval) = self.persistent {
            self.persistent_due = now + interval;
        }
    }

    /// An authenticated packet of any kind was sent; `data` if a packet of the user's is in it.
    pub fn sent(&mut self, data: bool, now: Instant) {
        self.traversal(now);
        self.passive = None;
        if data && self.dead_peer.is_none() && self.attempt.is_none() {
            self.dead_peer = Some(now + self.config.dead_peer() + self.jitter);
        }
    }

    /// The peer has shown that it hears us. A packet on a session that we no longer send on does not: the peer may not
    /// know of the session that we do send on.
    pub fn answered(&mut self) {
        self.dead_peer = None;
    }

    /// An authenticated packet of any kind was received; `data` if a packet of the peer's user is in it.
    pub fn received(&mut self, data: bool, now: Instant) {
        self.traversal(now);
        if data && self.passive.is_none() {
            self.passive = Some(now + self.config.keepalive_timeout);
        }
    }

    /// An initiation was sent: the first of an attempt, or a retry.
    pub fn initiated(&mut self, env: &mut Env<'_>) {
        self.jitter = draw_jitter(env.rng);
        let retry_at = env.now + self.config.rekey_timeout + self.jitter;
        self.attempt = Some(match self.attempt {
            Some(attempt) => Attempt {
                retry_at,
                is_first: false,
                ..attempt
            },
            None => Attempt {
                since: env.now,
                retry_at,
                is_first: true,
            },
        });
        // The attempt looks after the peer from here on.
        self.dead_peer = None;
        self.sent(false, env.now);
    }

    /// A response was sent.
    pub fn responded(&mut self, env: &mut Env<'_>) {
        self.jitter = draw_jitter(env.rng);
        self.attempt = None;
        self.answered();
        self.received(false, env.now);
        self.sent(false, env.now);
    }

    /// A packet was queued: an attempt that is under way goes on for its sake.
    pub fn queued(&mut self, now: Instant) {
        if let Some(attempt) = &mut self.attempt {
            attempt.since = now;
        }
    }

    fn give_up_at(&self) -> Option<Instant> {
        let attempt = self.attempt.as_ref()?;
        Some(attempt.since + self.config.rekey_attempt_time)
    }
}

fn due(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| now >= at)
}

impl Tunn {
    /// When to call `handle_timeout` next, and why; `None` if nothing is due, ever, unless a packet comes.
    pub fn next_timeout(&self) -> Option<Timeout> {
        use TimeoutReason::*;
        let retry = self.timers.attempt.as_ref().map(|a| a.retry_at);
        let reject = self.timers.config.reject_after_time;
        let deadlines = [
            (self.timers.give_up_at(), GiveUp),
            (retry, HandshakeRetry),
            (self.sessions.next_expiry(reject), SessionExpiry),
            (self.timers.dead_peer, DeadPeer),
            (self.passive_keepalive_at(), PassiveKeepalive),
            (self.persistent_keepalive_at(), PersistentKeepalive),
            (self.unconfirmed_at(), UnconfirmedSession),
            (self.queue_timeout_at(), QueueTimeout),
        ];
        let mut first: Option<Timeout> = None;
        for (at, reason) in deadlines {
            if let Some(at) = at.filter(|at| first.is_none_or(|first| *at < first.at)) {
                first = Some(Timeout { at, reason });
            }
        }
        // Overdue because nobody called: say now, not then.
        first.map(|first| Timeout {
            at: first.at.max(self.clock),
            ..first
        })
    }

    /// Do what is due. At most one initiation comes of it, and nothing if the call is early.
    pub fn handle_timeout(&mut self, env: &mut Env<'_>, out: &mut Output) {
        self.settle(env, out);
        let now = env.now;
        if due(self.timers.attempt.as_ref().map(|a| a.retry_at), now) {
            self.send_initiation(env, out);
        }
        if due(self.timers.dead_peer, now) {
            self.timers.dead_peer = None;
            out.events.push(Event::PeerSilent);
            self.start_attempt(env, out);
        }
        if due(self.unconfirmed_at(), now) {
            self.start_attempt(env, out);
        }
        if due(self.passive_keepalive_at(), now) {
            self.timers.passive = None;
            self.send_keepalive(env, out);
        }
        if due(self.persistent_keepalive_at(), now) {
            self.keep_alive(env, out);
        }
    }

    /// What is overdue before anything else may happen: sessions past their age, an attempt past its time, packets that
    /// waited too long.
    #[inline]
    pub(super) fn settle(&mut self, env: &mut Env<'_>, out: &mut Output) {
        self.advance(env.now);
        env.now = self.clock;
        let reject = self.timers.config.reject_after_time;
        if due(self.sessions.next_expiry(reject), env.now)
            && self.sessions.expire(env.now, reject, env.indices)
        {
            self.timers.passive = None;
            out.events.push(Event::SessionExpired);
        }
        self.handshake.forget_late(env);
        if due(self.timers.give_up_at(), env.now) {
            self.give_up(env, out);
        }
        if due(self.queue_timeout_at(), env.now) {
            self.drop_stale_packets(env.now, out);
        }
    }

    fn give_up(&mut self, env: &mut Env<'_>, out: &mut Output) {
        self.handshake.cancel(env.indices);
        self.timers.attempt = None;
        // A persistent keepalive tries again one interval later.
        self.timers.traversal(env.now);
        let dropped = self.discard_queue();
        out.events.push(Event::GaveUp { dropped });
    }

    fn drop_stale_packets(&mut self, now: Instant, out: &mut Output) {
        let limit = self.timers.config.rekey_attempt_time;
        let fresh = |since: Instant| now < since + limit;
        let stale = self.queue.iter().take_while(|q| !fresh(q.since)).count();
        self.queue.drain(..stale);
        self.queue.shrink_to_fit();
        out.events.push(Event::Dropped {
            reason: WireGuardError::QueueTimeout,
            count: stale,
        });
    }

    /// Let go of the packets that wait for a session, because there will be none; returns how many they were.
    pub fn discard_queue(&mut self) -> usize {
        // With its memory: an idle peer holds none.
        std::mem::take(&mut self.queue).len()
    }

    /// Keepalives keep a session; without one there is nothing to keep.
    fn passive_keepalive_at(&self) -> Option<Instant> {
        self.timers.passive.filter(|_| self.can_keep_alive())
    }

    fn persistent_keepalive_at(&self) -> Option<Instant> {
        self.timers.persistent?;
        let at = self.timers.persistent_due;
        if self.can_keep_alive() {
            return Some(at);
        }
        if self.timers.attempt.is_some() {
            return None;
        }
        match (self.role, self.timers.was_initiator) {
            (Role::Responder, _) => None,
            // Both sides may have a keepalive: let the one that initiated last be first.
            (Role::Either, Some(false)) => {
                Some(at + self.timers.config.dead_peer() + self.timers.jitter)
            }
            _ => Some(at),
        }
    }

    /// When packets have waited long enough for the peer to confirm its session.
    fn unconfirmed_at(&self) -> Option<Instant> {
        let waiting = !self.queue.is_empty() && self.timers.attempt.is_none();
        if !waiting || self.role == Role::Responder {
            return None;
        }
        // Its session is gone already if nobody called for as long as that.
        Some(self.unconfirmed_until().unwrap_or(self.clock))
    }

    /// Until when packets may wait for the peer to confirm its session, before we initiate one ourselves.
    pub(super) fn unconfirmed_until(&self) -> Option<Instant> {
        let next = self.sessions.next()?;
        Some(next.created + self.timers.config.rekey_timeout + self.timers.jitter)
    }

    fn queue_timeout_at(&self) -> Option<Instant> {
        // An attempt has its own end. Without one, a responder waits for its peer, and every other role for as long as
        // a session may be confirmed, which is shorter, unless nobody calls.
        if self.timers.attempt.is_some() {
            return None;
        }
        let oldest = self.queue.front()?;
        Some(oldest.since + self.timers.config.rekey_attempt_time)
    }

    /// Switch the persistent keepalive on, off (`None`), or to another interval. Switched on, it acts at once: a
    /// keepalive if there is a session, else an initiation if the role allows it.
    pub fn set_persistent_keepalive(
        &mut self,
        interval: Option<Duration>,
        env: &mut Env<'_>,
        out: &mut Output,
    ) {
        self.settle(env, out);
        self.timers.persistent = interval.filter(|interval| !interval.is_zero());
        if self.timers.persistent.is_some() {
            self.keep_alive(env, out);
        }
    }

    /// A new tunnel's persistent keepalive: due at once.
    pub fn with_persistent_keepalive(mut self, interval: Option<Duration>) -> Self {
        self.timers.persistent = interval.filter(|interval| !interval.is_zero());
        self.timers.persistent_due = self.clock;
        self
    }

    pub fn persistent_keepalive(&self) -> Option<Duration> {
        self.timers.persistent
    }

    fn keep_alive(&mut self, env: &mut Env<'_>, out: &mut Output) {
        self.timers.traversal(env.now);
        if self.can_keep_alive() {
            self.send_keepalive(env, out);
        } else {
            self.start_attempt(env, out);
        }
    }
}
