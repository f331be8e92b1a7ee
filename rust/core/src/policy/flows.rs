//! The flows of all peers that may pass, and those that were and may not pass any more, within bounds.
//!
//! What a [`Table`] is, there is twice. In the one are the flows that are known: a peer that has `MAX_FLOWS_PER_PEER` loses
//! its own oldest for a new one, and at `MAX_FLOWS` the oldest of all goes. Nothing is refused for want of room, and no peer
//! can push out the flows of others before it has filled its own share. What was pushed out is counted, and comes back with
//! the peer's next packet, if a rule still lets it.
//!
//! In the other are flows that were *revoked*, with the same bounds: one revocation of all that is known is remembered whole,
//! and only further revocations push anything out. A packet that answers such a flow would otherwise begin it the other way
//! round, where the policy lets that side begin flows.

use std::sync::Arc;

use rand_core::CryptoRngCore;

use super::header::Direction;
use super::key::Key;
use super::log::{EndReason, FlowLog, FlowRecord};
use super::packet::{ACK, RST, SYN};
use super::pending::Pending;
use super::table::{Entry, KEPT, Life, Place, Seen, Table};
use super::{Flow, Policy, Reason, Verdict};
use crate::Instant;

/// Flows that are over, of which so many are taken out when a new one begins.
const REAPED: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Flows {
    known: Table,
    revoked: Table,
    is_keyed: bool,
    log: Option<Box<FlowLog>>,
    /// Those that the hook is asked about.
    pub pending: Pending,
}

impl Flows {
    /// Draws the key of the hash, once, before the first flow. A node without a policy draws nothing.
    pub fn draw_key(&mut self, rng: &mut dyn CryptoRngCore) {
        if !self.is_keyed {
            self.is_keyed = true;
            let (one, two) = (rng.next_u64(), rng.next_u64());
            self.known = Table::keyed(one, two);
            self.revoked = Table::keyed(one, two);
        }
    }

    /// Whether a packet belongs to a flow that is known, which is used then.
    ///
    /// A connection that begins once more where one was closed is a new flow, and the old one is gone.
    pub(super) fn touch(&mut self, key: &Key, seen: Seen) -> bool {
        let Seen { flags, now, .. } = seen;
        let Some(place) = self.known.find(key) else {
            return false;
        };
        let Some(entry) = self.known.get(place) else {
            return false;
        };
        let begins_anew = flags & (SYN | ACK | RST) == SYN && entry.life == Life::ClosedTcp;
        if entry.is_over(now) || begins_anew {
            self.remove(place, EndReason::Closed, now);
            return false;
        }
        self.known.touch(place, now, |entry| entry.see(seen));
        if let Some(log) = &mut self.log {
            log.count(place as usize, seen.direction, seen.size, now);
        }
        true
    }

    /// Whether a flow is known, which is not used by this.
    pub(super) fn knows(&self, key: &Key, now: Instant) -> bool {
        let place = self.known.find(key);
        let entry = place.and_then(|place| self.known.get(place));
        entry.is_some_and(|entry| !entry.is_over(now))
    }

    /// Which way a flow began that was revoked: it is remembered for another time to live then, whatever its packet says.
    pub(super) fn touch_revoked(&mut self, key: &Key, now: Instant) -> Option<Direction> {
        let place = self.revoked.find(key)?;
        let entry = self.revoked.get(place)?;
        let (is_over, began) = (entry.is_over(now), entry.began);
        if is_over {
            self.revoked.remove(place);
            return None;
        }
        self.revoked.touch(place, now, |_| {});
        Some(began)
    }

    /// A flow that may pass begins, after `touch` did not find it. It is one of the side that `began` it, which need not have
    /// sent this packet if it was revoked before.
    pub(super) fn begin(&mut self, key: Key, began: Direction, seen: Seen, verdict: Verdict) {
        let Seen { direction, now, .. } = seen;
        self.reap(now, REAPED);
        self.make_room(key.slot, now);
        if let Some(place) = self.revoked.find(&key) {
            self.revoked.remove(place);
        }
        let by_hook = matches!(verdict.reason, Reason::Hook { .. });
        let place = self.known.insert(Entry::new(key, began, by_hook, seen));
        if let Some(log) = &mut self.log {
            let (place, header) = (place as usize, key.header(began == Direction::FromPeer));
            log.begin(place, key.slot, header, verdict, now);
            log.count(place, direction, seen.size, now);
        }
    }

    /// Keeps a log from now on, of flows that begin from now on; without room for any record, none.
    pub fn log(&mut self, capacity: usize) {
        self.log = (capacity > 0).then(|| Box::new(FlowLog::new(capacity)));
    }

    pub(super) fn log_mut(&mut self) -> Option<&mut FlowLog> {
        self.log.as_deref_mut()
    }

    /// Says whose flows those of a slot are, and what decides about them; after `log`, and whenever it changes.
    pub fn introduce(&mut self, slot: usize, public_key: [u8; 32], policy: &Arc<Policy>) {
        if let Some(log) = &mut self.log {
            log.introduce(slot, Some((public_key, policy.clone())));
        }
    }

    /// The records since the last call, and how many more there were than had room.
    pub fn take_log(&mut self) -> (Vec<FlowRecord>, u64) {
        self.log.as_mut().map(|log| log.take()).unwrap_or_default()
    }

    /// How many flows of a peer gave way to newer ones.
    pub fn evicted(&self, slot: usize) -> u64 {
        self.known.evicted(slot)
    }

    /// How many flows a peer has.
    pub fn count(&self, slot: usize, now: Instant) -> usize {
        self.known.count(slot, now)
    }

    /// Takes out flows that are over, `most` of them, and as many that were revoked.
    pub fn reap(&mut self, now: Instant, most: usize) {
        for _ in 0..most {
            match self.known.first_over(now) {
                Some(place) => self.remove(place, EndReason::Expired, now),
                None => break,
            };
        }
        self.reap_revoked(now, most);
    }

    fn reap_revoked(&mut self, now: Instant, most: usize) {
        for _ in 0..most {
            match self.revoked.first_over(now) {
                Some(place) => self.revoked.remove(place),
                None => break,
            };
        }
    }

    /// Ends the flows of a peer that may not go on, and remembers them, and forgets of those before them what may begin again:
    /// `judge` is asked for each, with the side that started it, what rules would look at, and whether it was the hook that
    /// let it begin.
    pub fn retain(
        &mut self,
        slot: usize,
        now: Instant,
        judge: impl Fn(Direction, &Flow, bool) -> Verdict,
    ) {
        let mut next = self.revoked.first_of(slot);
        while let Some(place) = next {
            next = self.revoked.next_of(place);
            let entry = self.revoked.get(place);
            if entry.is_some_and(|it| judge(it.began, &it.key.flow(), false).is_allowed()) {
                self.revoked.remove(place);
            }
        }
        let mut next = self.known.first_of(slot);
        while let Some(place) = next {
            next = self.known.next_of(place);
            let Some(entry) = self.known.get(place) else {
                break;
            };
            let verdict = judge(entry.began, &entry.key.flow(), entry.by_hook);
            if !verdict.is_allowed() {
                let is_over = entry.is_over(now);
                let entry = self.remove(place, EndReason::Revoked, now);
                if let Some(entry) = entry.filter(|_| !is_over) {
                    self.remember(entry, now);
                }
            } else if let Some(log) = &mut self.log {
                log.judge_again(place as usize, verdict);
            }
        }
    }

    /// A flow was revoked.
    fn remember(&mut self, entry: Entry, now: Instant) {
        self.reap_revoked(now, REAPED);
        if let Some(place) = self.revoked.surplus(entry.key.slot) {
            self.revoked.remove(place);
        }
        let place = self.revoked.insert(entry);
        self.revoked.touch(place, now, |_| {});
    }

    /// Everything of a peer that is gone, or has no policy any more.
    pub fn forget(&mut self, slot: usize, now: Instant) {
        while let Some(place) = self.known.first_of(slot) {
            self.remove(place, EndReason::Revoked, now);
        }
        while let Some(place) = self.revoked.first_of(slot) {
            self.revoked.remove(place);
        }
        if let Some(log) = &mut self.log {
            log.introduce(slot, None);
        }
        self.known.reset(slot);
    }

    fn make_room(&mut self, slot: usize, now: Instant) {
        let place = self.known.surplus(slot);
        let Some((place, entry)) = place.and_then(|place| Some((place, self.known.get(place)?)))
        else {
            return;
        };
        let (owner, is_over) = (entry.key.slot, entry.is_over(now));
        if !is_over {
            self.known.note_evicted(owner);
        }
        self.remove(place, EndReason::Evicted, now);
    }

    /// Takes a flow out: for this reason, unless it was over already.
    fn remove(&mut self, place: Place, why: EndReason, now: Instant) -> Option<Entry> {
        let entry = self.known.remove(place)?;
        if let Some(log) = &mut self.log {
            let (why, at) = entry.end(why, now);
            log.end(place as usize, entry.key.slot, why, at);
            if self.known.is_empty() {
                log.shrink(KEPT);
            }
        }
        Some(entry)
    }
}
