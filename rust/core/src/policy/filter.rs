//! The policy of one peer at work.

use std::sync::Arc;

use super::flows::{Flows, Key, Seen};
use super::fragments::Fragments;
use super::header::Header;
use super::log::FlowChange;
use super::packet::{ACK, Content, Packet, RST, SYN, parse, parse_quoted};
use super::refusals::{Refusal, Refusals};
use super::{Policy, Reason, Verdict};
use crate::Instant;
use crate::bucket::Bucket;

/// Which way a packet goes, as seen from this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Out of the tunnel.
    FromPeer,
    /// Into the tunnel.
    ToPeer,
}

impl Direction {
    fn opposite(self) -> Self {
        match self {
            Direction::FromPeer => Direction::ToPeer,
            Direction::ToPeer => Direction::FromPeer,
        }
    }
}

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
}

impl Filter {
    pub fn new(policy: Arc<Policy>) -> Self {
        Filter {
            policy,
            fragments: Fragments::default(),
            answers: Bucket::default(),
            refusals: Refusals::default(),
            answered: 0,
        }
    }

    /// Goes over to another policy. Flows that it forbids end at once.
    pub fn change(&mut self, policy: Arc<Policy>, slot: usize, flows: &mut Flows, now: Instant) {
        flows.retain(slot, now, |flow| match flow {
            Some(flow) => policy.decide(flow),
            None => policy.decide_outbound(),
        });
        self.policy = policy;
        self.fragments.clear();
    }

    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Whether a packet may pass; if so, the flow that it starts or belongs to is known from here on.
    pub fn check(
        &mut self,
        packet: &[u8],
        direction: Direction,
        slot: usize,
        flows: &mut Flows,
        now: Instant,
    ) -> Verdict {
        let size = packet.len();
        let Ok(packet) = parse(packet) else {
            let verdict = Verdict::deny(Reason::Unparseable);
            let header = Header::of_unreadable(packet, direction);
            self.refuse(header, verdict, slot, flows, now);
            return verdict;
        };
        let verdict = self.judge(&packet, size, direction, slot, flows, now);
        match packet.fragmented {
            Some(id) if verdict.is_allowed() => self.fragments.remember(&packet, id, now),
            Some(id) => self.fragments.forget(&packet, id),
            None => {}
        }
        if !verdict.is_allowed() {
            let header = Header::of(&packet, direction);
            self.refuse(header, verdict, slot, flows, now);
        }
        verdict
    }

    /// What there is to tell of refused packets, at most once a second.
    pub fn take_refusal(&mut self, now: Instant) -> Option<Refusal> {
        let (header, verdict, count) = self.refusals.take(now)?;
        Some(Refusal {
            header,
            verdict,
            rule_name: self.policy.rule_name(verdict.reason),
            count,
        })
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
        slot: usize,
        flows: &mut Flows,
        now: Instant,
    ) {
        self.refusals.add(header, verdict);
        if let Some(log) = flows.log_mut()
            && let Some(count) = self.refusals.take_line(now)
        {
            log.push(now, slot, header, verdict, FlowChange::Denied { count });
        }
    }

    fn judge(
        &mut self,
        packet: &Packet<'_>,
        size: usize,
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
        let flags = match packet.content {
            Content::Ports { flags, .. } => flags,
            _ => 0,
        };
        let seen = Seen {
            flags,
            size,
            direction,
            now,
        };
        let key = Key::of(packet, slot, direction);
        if let Some(key) = &key
            && flows.touch(key, seen)
        {
            return Verdict::allow(Reason::Flow);
        }
        let verdict = match direction {
            Direction::FromPeer => self.policy.decide_first(packet),
            Direction::ToPeer => self.policy.decide_outbound(),
        };
        // What answers or ends something starts nothing.
        let starts =
            !packet.content.is_answer() && flags & RST == 0 && flags & (SYN | ACK) != SYN | ACK;
        if let Some(key) = key
            && starts
            && verdict.is_allowed()
        {
            flows.begin(key, seen, verdict);
        }
        verdict
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
