//! Flows that somebody else decides about: their first packets are held here until there is an answer.
//!
//! The core calls nobody. A flow whose verdict is [`Action::Ask`](super::Action) becomes a [`Question`], which is handed out
//! once; whoever has the answer brings it by the question's number. Until then the flow is *pending*, and what belongs to it,
//! in either direction, joins its queue. Everything has a bound, and each question an end: numbers rise with time, so that
//! the question with the lowest one is always the next to be over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::header::{Direction, Header};
use super::key::Key;
use super::refused::Refused;
use super::{Action, Policy, Reason, Verdict};
use crate::Instant;

/// Packets of one flow that are held: what a sender without an answer repeats in five seconds, or a resolver asks at once.
pub const MAX_HELD: usize = 8;

/// Flows of one peer that are pending: what a browser opens at once for a page or two.
pub const MAX_PENDING_PER_PEER: usize = 64;

/// Flows of all peers that are pending, and so calls of the hook that are under way: 16 peers at their own bound.
pub const MAX_PENDING: usize = 1024;

/// Bytes of packets that are held for one peer: its flows with eight packets each of more than full size.
pub const MAX_HELD_BYTES_PER_PEER: usize = 1 << 20;

/// Bytes of packets that are held for all peers: 16 of them at their own bound.
pub const MAX_HELD_BYTES: usize = 1 << 24;

/// For how long a question waits. A TCP client has then repeated its SYN twice, and a person still waits.
pub const ANSWER_TIME: Duration = Duration::from_secs(5);

/// May a flow begin?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Numbers are given once.
    pub id: u64,
    /// The peer's public key.
    pub peer: [u8; 32],
    /// The flow's first packet.
    pub header: Header,
    /// Which rule asks, counted from 0; `None`: it is the policy's `default`, or its `outbound`.
    pub rule: Option<usize>,
    /// What that rule is called.
    pub rule_name: Option<Arc<str>>,
}

/// A packet that waits, and which way it goes.
#[derive(Debug)]
pub(crate) struct Held {
    pub direction: Direction,
    /// Which way the flow began that it is judged as: the other one, if it answers one that was revoked.
    pub judged: Direction,
    pub packet: Box<[u8]>,
}

/// A flow that is pending.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(super) key: Key,
    pub header: Header,
    /// What asks.
    pub verdict: Verdict,
    until: Instant,
    /// In the order in which they came; there is at least the first.
    pub held: Vec<Held>,
}

impl Asked {
    pub fn slot(&self) -> usize {
        self.key.slot
    }

    fn bytes(&self) -> usize {
        self.held.iter().map(|held| held.packet.len()).sum()
    }

    /// What is held of the direction that was not asked about, taken out.
    pub fn take_others(&mut self) -> Vec<Held> {
        let direction = self.header.direction;
        let all = std::mem::take(&mut self.held).into_iter();
        let (own, others) = all.partition(|held| held.judged == direction);
        self.held = own;
        others
    }

    /// What becomes of it by a policy that takes the place of another one; `None`: the question stays.
    pub(super) fn judge_again(&mut self, policy: &Policy) -> Option<Verdict> {
        let (direction, flow) = (self.header.direction, self.key.flow());
        self.verdict = policy.decide_from(direction, &flow);
        // What may pass by itself does not wait.
        let is_other = |held: &Held| held.judged != direction;
        let may_begin = || policy.decide_from(direction.opposite(), &flow).is_allowed();
        let stays =
            self.verdict.action == Action::Ask && !(self.held.iter().any(is_other) && may_begin());
        (!stays).then_some(self.verdict)
    }
}

/// What one peer has of it.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    flows: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Whether there is a hook.
    is_on: bool,
    /// The last number that was given, and the last one that was handed out.
    ids: u64,
    told: u64,
    by_id: BTreeMap<u64, Asked>,
    by_key: BTreeMap<Key, u64>,
    /// By slot, of those that have any.
    shares: BTreeMap<usize, Share>,
    bytes: usize,
    /// Questions that were handed out and need no answer any more: as many as may be open, at most.
    withdrawn: Vec<u64>,
    /// One that began without an answer, and whose packets are to go on.
    freed: Option<Box<Asked>>,
    pub refused: Refused,
}

impl Pending {
    /// Whether flows become pending from now on.
    pub fn switch(&mut self, on: bool) {
        self.is_on = on;
    }

    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// Asks about a flow, and holds its first packet. False, and nothing, for want of room.
    pub(super) fn ask(
        &mut self,
        key: Key,
        header: Header,
        verdict: Verdict,
        held: Held,
        now: Instant,
    ) -> bool {
        let size = held.packet.len();
        let share = self.shares.get(&key.slot).copied().unwrap_or_default();
        let is_full = self.by_id.len() >= MAX_PENDING || share.flows >= MAX_PENDING_PER_PEER;
        if is_full || !self.has_room(share, size) {
            return false;
        }
        self.ids += 1;
        let asked = Asked {
            key,
            header,
            verdict,
            until: now + ANSWER_TIME,
            held: vec![held],
        };
        self.by_id.insert(self.ids, asked);
        self.by_key.insert(key, self.ids);
        let share = self.shares.entry(key.slot).or_default();
        share.flows += 1;
        share.bytes += size;
        self.bytes += size;
        true
    }

    /// Holds another packet of a pending flow. False, and nothing, for want of room.
    pub(super) fn join(&mut self, key: &Key, held: Held) -> bool {
        let size = held.packet.len();
        let share = self.shares.get(&key.slot).copied().unwrap_or_default();
        let has_room = self.has_room(share, size);
        let id = self.by_key.get(key).copied();
        let asked = id.and_then(|id| self.by_id.get_mut(&id));
        let Some(asked) = asked.filter(|asked| has_room && asked.held.len() < MAX_HELD) else {
            return false;
        };
        asked.held.push(held);
        self.shares.entry(key.slot).or_default().bytes += size;
        self.bytes += size;
        true
    }

    fn has_room(&self, share: Share, size: usize) -> bool {
        self.bytes + size <= MAX_HELD_BYTES && share.bytes + size <= MAX_HELD_BYTES_PER_PEER
    }

    /// What asks about a pending flow.
    pub(super) fn verdict(&self, key: &Key) -> Option<Verdict> {
        let id = self.by_key.get(key)?;
        Some(self.by_id.get(id)?.verdict)
    }

    /// A flow began without an answer, with a packet that nobody needs to be asked about: what waits is to be fetched by
    /// [`take_freed`](Pending::take_freed).
    #[cold]
    pub(super) fn free(&mut self, key: &Key) {
        let id = self.by_key.get(key).copied();
        self.freed = id.and_then(|id| self.withdraw(id)).map(Box::new);
    }

    /// The flow that the packet freed that was looked at last.
    #[inline]
    pub fn take_freed(&mut self) -> Option<Box<Asked>> {
        self.freed.take()
    }

    /// Whether there are questions that were not handed out yet, or withdrawals.
    #[inline]
    pub fn has_news(&self) -> bool {
        self.told < self.ids || !self.withdrawn.is_empty()
    }

    /// The questions that are still open and were not handed out yet, oldest first.
    pub fn take_questions(&mut self) -> impl Iterator<Item = (u64, &Asked)> {
        self.withdrawn.clear();
        let told = std::mem::replace(&mut self.told, self.ids);
        self.by_id
            .range(told.saturating_add(1)..)
            .map(|(id, asked)| (*id, asked))
    }

    /// The flow that a question is about, which is not pending any more.
    pub fn take(&mut self, id: u64) -> Option<Asked> {
        let asked = self.by_id.remove(&id)?;
        self.by_key.remove(&asked.key);
        let bytes = asked.bytes();
        self.bytes = self.bytes.saturating_sub(bytes);
        if let Some(share) = self.shares.get_mut(&asked.key.slot) {
            share.flows = share.flows.saturating_sub(1);
            share.bytes = share.bytes.saturating_sub(bytes);
            if share.flows == 0 {
                self.shares.remove(&asked.key.slot);
            }
        }
        Some(asked)
    }

    /// The same of a question that needs no answer any more.
    fn withdraw(&mut self, id: u64) -> Option<Asked> {
        let asked = self.take(id)?;
        if id <= self.told {
            self.withdrawn.push(id);
        }
        Some(asked)
    }

    /// Questions that were handed out by the last call of `take_questions` or before, and that have been withdrawn since.
    pub fn take_withdrawn(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.withdrawn)
    }

    /// When the next question is over, and whose it is.
    pub fn next(&self) -> Option<(Instant, usize)> {
        let (_, asked) = self.by_id.first_key_value()?;
        Some((asked.until, asked.key.slot))
    }

    /// Takes out the first question that is over.
    pub fn take_due(&mut self, now: Instant) -> Option<Asked> {
        let (id, asked) = self.by_id.first_key_value()?;
        let (id, is_over) = (*id, asked.until <= now);
        is_over.then(|| self.take(id)).flatten()
    }

    /// Takes out the first question, whenever it is over.
    pub fn take_first(&mut self) -> Option<Asked> {
        let id = *self.by_id.first_key_value()?.0;
        self.withdraw(id)
    }

    /// Judges the pending flows of a peer anew: takes out those that need no answer any more, each with what becomes of it,
    /// in order. What was refused is forgotten.
    pub fn judge_again(
        &mut self,
        slot: usize,
        judge: impl Fn(&mut Asked) -> Option<Verdict>,
    ) -> Vec<(Asked, Verdict)> {
        self.refused.forget(slot);
        let own = Key::first_of(slot)..Key::first_of(slot + 1);
        let mut ids: Vec<_> = self.by_key.range(own).map(|(_, id)| *id).collect();
        ids.sort_unstable();
        let settled = ids.into_iter().filter_map(|id| {
            let verdict = judge(self.by_id.get_mut(&id)?)?;
            Some((self.withdraw(id)?, verdict))
        });
        settled.collect()
    }

    /// Takes out everything of a peer.
    pub fn forget(&mut self, slot: usize) -> Vec<Asked> {
        let settled = self.judge_again(slot, |_| Some(Verdict::deny(Reason::Default)));
        settled.into_iter().map(|(asked, _)| asked).collect()
    }

    /// How many flows of a peer are pending.
    pub fn count(&self, slot: usize) -> usize {
        self.shares.get(&slot).map_or(0, |share| share.flows)
    }
}
