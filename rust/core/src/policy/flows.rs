//! The flows of all peers that may pass, within bounds.
//!
//! A flow is found by a hash whose key is drawn from the node's own randomness, so that nobody outside can choose flows that
//! collide. It is in two lists: its peer's, and the one of all flows with its time to live; both begin with the one that was
//! used least recently. So what has expired stands at the front, and what must give way, too: a peer that has
//! [`MAX_FLOWS_PER_PEER`] loses its own oldest for a new one, and at [`MAX_FLOWS_IN_ALL`](MAX_FLOWS) the oldest of all goes.
//! Nothing is refused for want of room, and no peer can push out the flows of others before it has filled its own share.
//! What was pushed out is counted, and comes back with the peer's next packet, if a rule still lets it.

#![allow(
    deprecated,
    reason = "the only hasher of the standard library that takes a key: SipHash-2-4"
)]

use std::collections::HashMap;
use std::hash::{BuildHasher, SipHasher};
use std::sync::Arc;
use std::time::Duration;

use rand_core::CryptoRngCore;

use super::header::Direction;
use super::key::Key;
use super::log::{EndReason, FlowLog, FlowRecord};
use super::packet::{ACK, FIN, RST, SYN};
use super::pending::Pending;
use super::{Flow, Policy, Reason, TCP, Verdict};
use crate::Instant;

/// Flows of one peer that are known at once.
pub const MAX_FLOWS_PER_PEER: usize = 8192;

/// Flows of all peers of a node that are known at once.
pub const MAX_FLOWS: usize = 262_144;

/// Room for this many flows is kept when none is left; what a burst took beyond goes back.
const KEPT: usize = 256;

/// Flows that are over, of which so many are taken out when a new one begins.
const REAPED: usize = 64;

/// For how long a flow may be silent. Each has a list of its own, in which flows are in the order of their ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// 2 hours 4 minutes (RFC 5382, REQ-5).
    Tcp,
    /// Reset, or finished from both sides: 4 minutes (RFC 5382, REQ-5).
    ClosedTcp,
    /// UDP, ICMP and the rest: 2 minutes (RFC 4787, REQ-5; RFC 5508, REQ-1, has 60 s at least).
    Other,
}

impl Life {
    fn time(self) -> Duration {
        Duration::from_secs(match self {
            Life::Tcp => 2 * 3600 + 4 * 60,
            Life::ClosedTcp => 4 * 60,
            Life::Other => 2 * 60,
        })
    }
}

/// What a packet tells the flow that it belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// TCP's.
    pub flags: u8,
    /// Bytes of the IP packet.
    pub size: usize,
    pub direction: Direction,
    pub now: Instant,
}

#[derive(Debug)]
struct Entry {
    key: Key,
    /// Which way its first packet went.
    began: Direction,
    /// It was the hook that let it begin.
    by_hook: bool,
    life: Life,
    /// Which sides have sent FIN: the peer, and ours.
    finished: (bool, bool),
    used: Instant,
    in_peer: Links,
    in_life: Links,
}

impl Entry {
    fn is_over(&self, now: Instant) -> bool {
        now >= self.over()
    }

    fn over(&self) -> Instant {
        self.used + self.life.time()
    }

    /// Why it ends, and when, if it is taken out now for that reason: what was over before needs none.
    fn end(&self, why: EndReason, now: Instant) -> (EndReason, Instant) {
        match (self.is_over(now), self.life) {
            (true, Life::ClosedTcp) => (EndReason::Closed, self.over()),
            (true, _) => (EndReason::Expired, self.over()),
            (false, _) => (why, now),
        }
    }

    /// Takes note of TCP's flags.
    fn see(&mut self, seen: Seen) {
        let Seen {
            flags, direction, ..
        } = seen;
        if self.key.protocol != TCP {
            return;
        }
        if flags & FIN != 0 {
            match direction {
                Direction::FromPeer => self.finished.0 = true,
                Direction::ToPeer => self.finished.1 = true,
            }
        }
        if flags & RST != 0 || self.finished == (true, true) {
            self.life = Life::ClosedTcp;
        }
    }
}

type Place = u32;

#[derive(Clone, Copy, Debug, Default)]
struct Links {
    before: Option<Place>,
    after: Option<Place>,
}

/// Least recently used first.
#[derive(Clone, Copy, Debug, Default)]
struct List {
    first: Option<Place>,
    last: Option<Place>,
}

/// What there is of one peer.
#[derive(Clone, Copy, Debug, Default)]
struct Owner {
    flows: List,
    count: usize,
    /// Flows that gave way to newer ones.
    evicted: u64,
}

#[derive(Debug, Default)]
struct Keyed(u64, u64);

impl BuildHasher for Keyed {
    type Hasher = SipHasher;

    fn build_hasher(&self) -> SipHasher {
        SipHasher::new_with_keys(self.0, self.1)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Flows {
    places: HashMap<Key, Place, Keyed>,
    entries: Vec<Entry>,
    free: Vec<Place>,
    /// By peer's slot.
    owners: Vec<Owner>,
    /// By `Life`.
    lives: [List; 3],
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
            self.places = HashMap::with_hasher(Keyed(rng.next_u64(), rng.next_u64()));
        }
    }

    /// Whether a packet belongs to a flow that is known, which is used then.
    ///
    /// A connection that begins once more where one was closed is a new flow, and the old one is gone.
    pub(super) fn touch(&mut self, key: &Key, seen: Seen) -> bool {
        let Seen { flags, now, .. } = seen;
        let Some(place) = self.places.get(key).copied() else {
            return false;
        };
        let Some(entry) = self.entries.get(place as usize) else {
            return false;
        };
        let begins_anew = flags & (SYN | ACK | RST) == SYN && entry.life == Life::ClosedTcp;
        if entry.is_over(now) || begins_anew {
            self.remove(place, EndReason::Closed, now);
            return false;
        }
        self.unlink(place);
        if let Some(entry) = self.entries.get_mut(place as usize) {
            entry.see(seen);
            entry.used = entry.used.max(now);
        }
        self.link(place);
        if let Some(log) = &mut self.log {
            log.count(place as usize, seen.direction, seen.size, now);
        }
        true
    }

    /// Whether a flow is known, which is not used by this.
    pub(super) fn knows(&self, key: &Key, now: Instant) -> bool {
        let place = self.places.get(key).copied();
        let entry = place.and_then(|place| self.entries.get(place as usize));
        entry.is_some_and(|entry| !entry.is_over(now))
    }

    /// A flow that may pass begins, after `touch` did not find it.
    pub(super) fn begin(&mut self, key: Key, seen: Seen, verdict: Verdict) {
        let Seen { direction, now, .. } = seen;
        self.reap(now, REAPED);
        self.make_room(key.slot, now);
        let mut entry = Entry {
            key,
            began: direction,
            by_hook: matches!(verdict.reason, Reason::Hook { .. }),
            life: if key.protocol == TCP {
                Life::Tcp
            } else {
                Life::Other
            },
            finished: (false, false),
            used: now,
            in_peer: Links::default(),
            in_life: Links::default(),
        };
        entry.see(seen);
        let free = self.free.pop();
        let place = free.unwrap_or(self.entries.len() as Place);
        match self.entries.get_mut(place as usize) {
            Some(vacant) => *vacant = entry,
            None => self.entries.push(entry),
        }
        self.places.insert(key, place);
        if self.owners.len() <= key.slot {
            self.owners.resize(key.slot + 1, Owner::default());
        }
        if let Some(owner) = self.owners.get_mut(key.slot) {
            owner.count += 1;
        }
        self.link(place);
        if let Some(log) = &mut self.log {
            let (place, header) = (place as usize, key.header(direction == Direction::FromPeer));
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
        self.owners.get(slot).map_or(0, |owner| owner.evicted)
    }

    /// How many flows a peer has.
    pub fn count(&self, slot: usize, now: Instant) -> usize {
        let Some(owner) = self.owners.get(slot) else {
            return 0;
        };
        // What is over stands at the front of the lists, as far as nothing has taken it out yet.
        let over: usize = self
            .lives
            .iter()
            .map(|life| {
                let over = self.walk(life.first, |entry| entry.in_life.after);
                over.take_while(|entry| entry.is_over(now))
                    .filter(|entry| entry.key.slot == slot)
                    .count()
            })
            .sum();
        owner.count.saturating_sub(over)
    }

    /// Takes out flows that are over, `most` of them.
    pub fn reap(&mut self, now: Instant, most: usize) {
        for _ in 0..most {
            let first = self.lives.iter().filter_map(|life| life.first);
            let over = |place: &Place| {
                let entry = self.entries.get(*place as usize);
                entry.is_some_and(|entry| entry.is_over(now))
            };
            match first.into_iter().find(over) {
                Some(place) => self.remove(place, EndReason::Expired, now),
                None => break,
            }
        }
    }

    /// Ends the flows of a peer that may not go on: `judge` is asked for each, with the side that started it, what rules would
    /// look at, and whether it was the hook that let it begin.
    pub fn retain(
        &mut self,
        slot: usize,
        now: Instant,
        judge: impl Fn(Direction, &Flow, bool) -> Verdict,
    ) {
        let mut next = self.owners.get(slot).and_then(|owner| owner.flows.first);
        while let Some(place) = next {
            let Some(entry) = self.entries.get(place as usize) else {
                break;
            };
            next = entry.in_peer.after;
            let verdict = judge(entry.began, &entry.key.flow(), entry.by_hook);
            if !verdict.is_allowed() {
                self.remove(place, EndReason::Revoked, now);
            } else if let Some(log) = &mut self.log {
                log.judge_again(place as usize, verdict);
            }
        }
    }

    /// Everything of a peer that is gone, or has no policy any more.
    pub fn forget(&mut self, slot: usize, now: Instant) {
        self.retain(slot, now, |_, _, _| Verdict::deny(Reason::Default));
        if let Some(log) = &mut self.log {
            log.introduce(slot, None);
        }
        if let Some(owner) = self.owners.get_mut(slot) {
            *owner = Owner::default();
        }
    }

    fn make_room(&mut self, slot: usize, now: Instant) {
        let own = self.owners.get(slot).copied().unwrap_or_default();
        let place = if own.count >= MAX_FLOWS_PER_PEER {
            own.flows.first
        } else if self.places.len() >= MAX_FLOWS {
            let first = self.lives.iter().filter_map(|life| life.first);
            let used = |place: &Place| self.entries.get(*place as usize).map(|entry| entry.used);
            first.min_by_key(used)
        } else {
            None
        };
        let Some((place, entry)) =
            place.and_then(|place| Some((place, self.entries.get(place as usize)?)))
        else {
            return;
        };
        if !entry.is_over(now)
            && let Some(owner) = self.owners.get_mut(entry.key.slot)
        {
            owner.evicted += 1;
        }
        self.remove(place, EndReason::Evicted, now);
    }

    /// Takes a flow out: for this reason, unless it was over already.
    fn remove(&mut self, place: Place, why: EndReason, now: Instant) {
        self.unlink(place);
        let Some(entry) = self.entries.get(place as usize) else {
            return;
        };
        if let Some(log) = &mut self.log {
            let (why, at) = entry.end(why, now);
            log.end(place as usize, entry.key.slot, why, at);
        }
        self.places.remove(&entry.key);
        if let Some(owner) = self.owners.get_mut(entry.key.slot) {
            owner.count = owner.count.saturating_sub(1);
        }
        self.free.push(place);
        if self.places.is_empty() {
            self.free.clear();
            self.entries.clear();
            self.entries.shrink_to(KEPT);
            self.free.shrink_to(KEPT);
            self.places.shrink_to(KEPT);
            if let Some(log) = &mut self.log {
                log.shrink(KEPT);
            }
        }
    }

    /// Puts an entry at the end of its two lists.
    fn link(&mut self, place: Place) {
        let Some(entry) = self.entries.get(place as usize) else {
            return;
        };
        let (slot, life) = (entry.key.slot, entry.life);
        if let Some(owner) = self.owners.get_mut(slot) {
            append(&mut self.entries, &mut owner.flows, place, |entry| {
                &mut entry.in_peer
            });
        }
        if let Some(list) = self.lives.get_mut(life as usize) {
            append(&mut self.entries, list, place, |entry| &mut entry.in_life);
        }
    }

    fn unlink(&mut self, place: Place) {
        let Some(entry) = self.entries.get(place as usize) else {
            return;
        };
        let (slot, life) = (entry.key.slot, entry.life);
        if let Some(owner) = self.owners.get_mut(slot) {
            take_out(&mut self.entries, &mut owner.flows, place, |entry| {
                &mut entry.in_peer
            });
        }
        if let Some(list) = self.lives.get_mut(life as usize) {
            take_out(&mut self.entries, list, place, |entry| &mut entry.in_life);
        }
    }

    fn walk(
        &self,
        first: Option<Place>,
        after: impl Fn(&Entry) -> Option<Place>,
    ) -> impl Iterator<Item = &Entry> {
        let mut next = first;
        std::iter::from_fn(move || {
            let entry = self.entries.get(next? as usize)?;
            next = after(entry);
            Some(entry)
        })
    }
}

type Which = fn(&mut Entry) -> &mut Links;

fn append(entries: &mut [Entry], list: &mut List, place: Place, which: Which) {
    let last = list.last.replace(place);
    if let Some(entry) = entries.get_mut(place as usize) {
        *which(entry) = Links {
            before: last,
            after: None,
        };
    }
    match last.and_then(|last| entries.get_mut(last as usize)) {
        Some(last) => which(last).after = Some(place),
        None => list.first = Some(place),
    }
}

fn take_out(entries: &mut [Entry], list: &mut List, place: Place, which: Which) {
    let Some(entry) = entries.get_mut(place as usize) else {
        return;
    };
    let Links { before, after } = std::mem::take(which(entry));
    match before.and_then(|before| entries.get_mut(before as usize)) {
        Some(entry) => which(entry).after = after,
        None => list.first = after,
    }
    match after.and_then(|after| entries.get_mut(after as usize)) {
        Some(entry) => which(entry).before = before,
        None => list.last = before,
    }
}
