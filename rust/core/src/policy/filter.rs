//! The policy of one peer at work.

use std::sync::Arc;

use super::flows::Flows;
use super::fragments::Fragments;
use super::header::{Direction, Header};
use super::key::Key;
use super::log::FlowChange;
use super::packet::{Content, Packet, parse, parse_quoted};
use super::pending::{Asked, Held};
use super::refusals::{Refusal, Refusals};
use super::table::Seen;
use super::{Action, Policy, Reason, Verdict};
use crate::Instant;
use crate::bucket::Bucket;

#[derive(Debug)]
pub(crate) struct Filter {
    policy: Arc<Policy>,
    fragments: Fragments,
    /// Answers to refused packets that a peer gets: ten at once, and ten a second (RFC 1812, section 4.3.2.8; RFC 4443,
    /// section 2.4).
    answers: Bucket<10, 100>,
    refusals: Refusals,
    /// ICMP messages that told a sender of a refusal.
    pub answered: u64,
    /// Questions about its flows that were handed out.
    pub asked: u64,
}

impl Filter {
    pub fn new(policy: Arc<Policy>) -> Self {
        Filter {
            policy,
            fragments: Fragments::default(),
            answers: Bucket::default(),
            refusals: Refusals::default(),
            answered: 0,
            asked: 0,
        }
    }

    /// Goes over to another policy. Flows that it forbids end at once. Those that are pending and about which it says by
    /// itself what becomes of them are returned with that: the caller sees to it. Where that is to ask, what is held is to be
    /// looked at again, because some of it may pass.
    pub fn change(
        &mut self,
        policy: Arc<Policy>,
        slot: usize,
        flows: &mut Flows,
        now: Instant,
    ) -> Vec<(Asked, Verdict)> {
        flows.retain(slot, now, |direction, flow, by_hook| {
            match policy.decide_from(direction, flow) {
                // It has been asked.
                verdict if verdict.action == Action::Ask && by_hook => verdict.decided(true),
                verdict => verdict,
            }
        });
        let settled = flows
            .pending
            .judge_again(slot, |asked| asked.judge_again(&policy));
        self.refusals.change(&self.policy);
        self.policy = policy;
        self.fragments.clear();
        settled
    }

    /// What the hook has said does not hold any more: flows that may not begin without it end, and its refusals are forgotten.
    /// Those that are pending are returned: the caller sees to it that they are asked about once more.
    pub fn ask_again(&mut self, slot: usize, flows: &mut Flows, now: Instant) -> Vec<Asked> {
        flows.retain(slot, now, |direction, flow, _| {
            self.policy.decide_from(direction, flow)
        });
        self.fragments.clear();
        flows.pending.forget(slot)
    }

    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Whether a packet may pass; if so, the flow that it starts or belongs to is known from here on. If the verdict is to ask,
    /// the packet is held with the flow that is pending.
    pub fn check(
        &mut self,
        packet: &[u8],
        direction: Direction,
        slot: usize,
        flows: &mut Flows,
        now: Instant,
    ) -> Verdict {
        let bytes = packet;
        let Ok(packet) = parse(bytes) else {
            let verdict = Verdict::deny(Reason::Unparseable);
            let header = Header::of_unreadable(bytes, direction);
            self.refuse(header, verdict, 1, slot, flows, now);
            return verdict;
        };
        let verdict = self.judge(&packet, bytes, direction, slot, flows, now);
        match packet.fragmented {
            Some(id) if verdict.is_allowed() => self.fragments.remember(&packet, id, now),
            Some(id) => self.fragments.forget(&packet, id),
            None => {}
        }
        if verdict.action == Action::Deny {
            let judged = judged_as(&packet, direction, slot, flows, now);
            let header = header_of(&packet, direction, judged, slot);
            self.refuse(header, verdict, 1, slot, flows, now);
        }
        verdict
    }

    /// A flow that was pending may begin, with its first packet; those after it are then checked like any others.
    ///
    /// Returns what becomes of it: meanwhile a first fragment may have passed that its own one contradicts.
    pub fn begin(
        &mut self,
        asked: &Asked,
        verdict: Verdict,
        flows: &mut Flows,
        now: Instant,
    ) -> Verdict {
        let Some(first) = asked.held.first() else {
            return verdict;
        };
        // It was read when it came.
        let Ok(packet) = parse(&first.packet) else {
            return Verdict::deny(Reason::Unparseable);
        };
        if let Some(id) = packet.fragmented {
            if self.fragments.contradict(&packet, id, now) {
                return Verdict::deny(Reason::Fragment);
            }
            self.fragments.remember(&packet, id, now);
        }
        let seen = Seen {
            flags: packet.flags(),
            size: first.packet.len(),
            direction: first.direction,
            now,
        };
        flows.begin(asked.key, asked.header.direction, seen, verdict);
        verdict
    }

    /// A flow that was pending is refused, with everything of it that is held.
    pub fn refuse_asked(
        &mut self,
        asked: &Asked,
        verdict: Verdict,
        flows: &mut Flows,
        now: Instant,
    ) {
        if matches!(verdict.reason, Reason::Hook { .. }) {
            let direction = asked.header.direction;
            flows.pending.refused.add(asked.key, direction, now);
        }
        let count = asked.held.len() as u64;
        self.refuse(asked.header, verdict, count, asked.slot(), flows, now);
    }

    /// What there is to tell of refused packets, at most once a second.
    pub fn take_refusal(&mut self, now: Instant) -> Option<Refusal> {
        self.refusals.take(&self.policy, now)
    }

    /// Whether the sender of a refused packet is told so now.
    pub fn may_answer(&mut self, now: Instant) -> bool {
        let may = self.answers.take(now);
        self.answered += u64::from(may);
        may
    }

    #[cold]
    fn refuse(
        &mut self,
        header: Header,
        verdict: Verdict,
        count: u64,
        slot: usize,
        flows: &mut Flows,
        now: Instant,
    ) {
        self.refusals.add(header, verdict, count);
        if let Some(log) = flows.log_mut()
            && let Some(count) = self.refusals.take_line(now)
        {
            log.push(now, slot, header, verdict, FlowChange::Denied { count });
        }
    }

    fn judge(
        &mut self,
        packet: &Packet<'_>,
        bytes: &[u8],
        direction: Direction,
        slot: usize,
        flows: &mut Flows,
        now: Instant,
    ) -> Verdict {
        match packet.content {
            Content::Later(id) if self.fragments.has_passed(packet, id, now) => {
                return Verdict::allow(Reason::Fragment);
            }
            Content::Later(_) => return Verdict::deny(Reason::Fragment),
            _ if packet
                .fragmented
                .is_some_and(|id| self.fragments.contradict(packet, id, now)) =>
            {
                return Verdict::deny(Reason::Fragment);
            }
            Content::Error { quoted, .. }
                if is_related(packet, quoted, direction, slot, flows, now) =>
            {
                return Verdict::allow(Reason::Related);
            }
            _ => {}
        }
        let seen = Seen {
            flags: packet.flags(),
            size: bytes.len(),
            direction,
            now,
        };
        let key = Key::of(packet, slot, direction);
        if let Some(key) = &key
            && flows.touch(key, seen)
        {
            return Verdict::allow(Reason::Flow);
        }
        let judged = judged_as(packet, direction, slot, flows, now);
        let verdict = match key {
            Some(key) if judged != direction => {
                let verdict = self.policy.decide_from(judged, &key.flow());
                verdict.asks_only_if(packet.starts())
            }
            _ => self.policy.decide_first(packet, direction),
        };
        let waiting = key.as_ref().and_then(|key| flows.pending.verdict(key));
        let hold = || Held {
            direction,
            judged,
            packet: bytes.into(),
        };
        match (verdict.action, key, waiting) {
            (Action::Allow, Some(key), waiting) if packet.starts() => {
                flows.begin(key, judged, seen, verdict);
                // Now both directions may pass, and what waits, too.
                if waiting.is_some() {
                    flows.pending.free(&key);
                }
                verdict
            }
            (Action::Deny | Action::Ask, Some(key), Some(waiting)) => {
                match flows.pending.join(&key, hold()) {
                    true => waiting,
                    false => waiting.crowded(),
                }
            }
            (Action::Ask, Some(key), None) if flows.pending.is_on() => {
                let header = header_of(packet, direction, judged, slot);
                self.ask(key, header, verdict, hold(), flows, now)
            }
            (Action::Ask, ..) => verdict.unhooked(),
            _ => verdict,
        }
    }

    #[cold]
    fn ask(
        &mut self,
        key: Key,
        header: Header,
        verdict: Verdict,
        held: Held,
        flows: &mut Flows,
        now: Instant,
    ) -> Verdict {
        if flows.pending.refused.holds(&key, header.direction, now) {
            return verdict.decided(false);
        }
        if !flows.pending.ask(key, header, verdict, held, now) {
            return verdict.crowded();
        }
        verdict
    }
}

/// Which way the flow began that a packet of no known flow is judged as. It is the packet's own way, unless it answers one that
/// was revoked: else it would begin that one again in the middle, as one of the side that may. A connection that really begins
/// is a new one.
fn judged_as(
    packet: &Packet<'_>,
    direction: Direction,
    slot: usize,
    flows: &mut Flows,
    now: Instant,
) -> Direction {
    let key = Key::of(packet, slot, direction);
    let began = key.and_then(|key| flows.touch_revoked(&key, now));
    match began {
        Some(began) if !packet.opens() => began,
        _ => direction,
    }
}

/// Who talks to whom, as the flow that a packet is judged as.
fn header_of(packet: &Packet<'_>, direction: Direction, judged: Direction, slot: usize) -> Header {
    match Key::of(packet, slot, direction) {
        Some(key) if judged != direction => key.header(judged == Direction::FromPeer),
        _ => Header::of(packet, direction),
    }
}

/// Whether an ICMP error is about a packet of a known flow, and goes to the one that sent it.
fn is_related(
    error: &Packet<'_>,
    quoted: &[u8],
    direction: Direction,
    slot: usize,
    flows: &Flows,
    now: Instant,
) -> bool {
    let Ok(quoted) = parse_quoted(quoted) else {
        return false;
    };
    // What is quoted went the other way.
    let key = Key::of(&quoted, slot, direction.opposite());
    quoted.source == error.destination && key.is_some_and(|key| flows.knows(&key, now))
}
