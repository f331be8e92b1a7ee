//! Flows by what they are known by, and in the order in which they were used.
//!
//! A flow is found by a hash whose key is drawn from the node's own randomness, so that nobody outside can choose flows that
//! collide. It is in two lists: its peer's, and the one of all flows with its time to live; both begin with the one that was
//! used least recently. So what has expired stands at the front, and what must give way, too.

#![allow(
    deprecated,
    reason = "the only hasher of the standard library that takes a key: SipHash-2-4"
)]

use std::collections::HashMap;
use std::hash::{BuildHasher, SipHasher};
use std::time::Duration;

use super::TCP;
use super::header::Direction;
use super::key::Key;
use super::log::EndReason;
use super::packet::{FIN, RST};
use crate::Instant;

/// Flows of one peer that are known at once, and of those that were revoked.
pub const MAX_FLOWS_PER_PEER: usize = 8192;

/// Flows of all peers of a node that are known at once, and of those that were revoked.
pub const MAX_FLOWS: usize = 262_144;

/// Room for this many flows is kept when none is left; what a burst took beyond goes back.
pub(super) const KEPT: usize = 256;

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

/// For how long a flow may be silent. Each has a list of its own, in which flows are in the order of their ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
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

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub key: Key,
    /// Which way its first packet went.
    pub began: Direction,
    /// It was the hook that let it begin.
    pub by_hook: bool,
    pub life: Life,
    /// Which sides have sent FIN: the peer, and ours.
    finished: (bool, bool),
    used: Instant,
    in_peer: Links,
    in_life: Links,
}

impl Entry {
    /// A flow that begins now, this way.
    pub fn new(key: Key, began: Direction, by_hook: bool, seen: Seen) -> Self {
        let mut entry = Entry {
            key,
            began,
            by_hook,
            life: if key.protocol == TCP {
                Life::Tcp
            } else {
                Life::Other
            },
            finished: (false, false),
            used: seen.now,
            in_peer: Links::default(),
            in_life: Links::default(),
        };
        entry.see(seen);
        entry
    }

    pub fn is_over(&self, now: Instant) -> bool {
        now >= self.over()
    }

    fn over(&self) -> Instant {
        self.used + self.life.time()
    }

    /// Why it ends, and when, if it is taken out now for that reason: what was over before needs none.
    pub fn end(&self, why: EndReason, now: Instant) -> (EndReason, Instant) {
        match (self.is_over(now), self.life) {
            (true, Life::ClosedTcp) => (EndReason::Closed, self.over()),
            (true, _) => (EndReason::Expired, self.over()),
            (false, _) => (why, now),
        }
    }

    /// Takes note of TCP's flags.
    pub fn see(&mut self, seen: Seen) {
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

pub(super) type Place = u32;

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

#[derive(Clone, Copy, Debug, Default)]
struct Keyed(u64, u64);

impl BuildHasher for Keyed {
    type Hasher = SipHasher;

    fn build_hasher(&self) -> SipHasher {
        SipHasher::new_with_keys(self.0, self.1)
    }
}

#[derive(Debug, Default)]
pub(super) struct Table {
    places: HashMap<Key, Place, Keyed>,
    entries: Vec<Entry>,
    free: Vec<Place>,
    /// By peer's slot.
    owners: Vec<Owner>,
    /// By `Life`.
    lives: [List; 3],
}

impl Table {
    /// An empty one, whose hash has this key.
    pub fn keyed(one: u64, two: u64) -> Self {
        Table {
            places: HashMap::with_hasher(Keyed(one, two)),
            ..Table::default()
        }
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    #[inline]
    pub fn find(&self, key: &Key) -> Option<Place> {
        self.places.get(key).copied()
    }

    #[inline]
    pub fn get(&self, place: Place) -> Option<&Entry> {
        self.entries.get(place as usize)
    }

    /// A flow is used now, which `see` takes note of.
    #[inline]
    pub fn touch(&mut self, place: Place, now: Instant, see: impl FnOnce(&mut Entry)) {
        self.unlink(place);
        if let Some(entry) = self.entries.get_mut(place as usize) {
            see(entry);
            entry.used = entry.used.max(now);
        }
        self.link(place);
    }

    /// Puts a flow in that is not in it, as the one that was used last.
    pub fn insert(&mut self, entry: Entry) -> Place {
        let key = entry.key;
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
        place
    }

    pub fn remove(&mut self, place: Place) -> Option<Entry> {
        self.unlink(place);
        let entry = *self.entries.get(place as usize)?;
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
        }
        Some(entry)
    }

    /// The flow of a peer that was used least recently.
    pub fn first_of(&self, slot: usize) -> Option<Place> {
        self.owners.get(slot)?.flows.first
    }

    /// The one after another of the same peer.
    pub fn next_of(&self, place: Place) -> Option<Place> {
        self.get(place)?.in_peer.after
    }

    /// A flow that is over.
    pub fn first_over(&self, now: Instant) -> Option<Place> {
        let first = self.lives.iter().filter_map(|life| life.first);
        let over = |place: &Place| self.get(*place).is_some_and(|entry| entry.is_over(now));
        first.into_iter().find(over)
    }

    /// Which flow is to give way to a new one of a peer, if there is no room.
    pub fn surplus(&self, slot: usize) -> Option<Place> {
        let own = self.owners.get(slot).copied().unwrap_or_default();
        if own.count >= MAX_FLOWS_PER_PEER {
            own.flows.first
        } else if self.places.len() >= MAX_FLOWS {
            let first = self.lives.iter().filter_map(|life| life.first);
            first.min_by_key(|place| self.get(*place).map(|entry| entry.used))
        } else {
            None
        }
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

    /// A flow of a peer gave way to a newer one.
    pub fn note_evicted(&mut self, slot: usize) {
        if let Some(owner) = self.owners.get_mut(slot) {
            owner.evicted += 1;
        }
    }

    /// How many flows of a peer gave way to newer ones.
    pub fn evicted(&self, slot: usize) -> u64 {
        self.owners.get(slot).map_or(0, |owner| owner.evicted)
    }

    /// Counts a peer's evicted flows from 0 on.
    pub fn reset(&mut self, slot: usize) {
        if let Some(owner) = self.owners.get_mut(slot) {
            owner.evicted = 0;
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
