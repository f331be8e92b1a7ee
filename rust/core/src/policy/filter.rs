//! The policy of one peer at work.

use std::sync::Arc;
use std::time::Duration;

use super::flows::{Flows, Key};
use super::fragments::Fragments;
use super::packet::{ACK, Content, Packet, RST, SYN, parse, parse_quoted};
use super::{Policy, Reason, Verdict};
use crate::Instant;

/// Answers to refused packets that a peer gets: so many at once, and one more each interval (RFC 1812, section 4.3.2.8;
/// RFC 4443, section 2.4).
const ANSWERS_AT_ONCE: u32 = 10;
const ANSWER_INTERVAL: Duration = Duration::from_millis(100);

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
    answers: Bucket,
    /// ICMP messages that told a sender of a refusal.
    pub answered: u64,
}

impl Filter {
    pub fn new(policy: Arc<Policy>) -> Self {
        Filter {
            policy,
            fragments: Fragments::default(),
            answers: Bucket::default(),
            answered: 0,
        }
    }

    /// Goes over to another policy. Flows that it forbids end at once.
    pub fn change(&mut self, policy: Arc<Policy>, slot: usize, flows: &mut Flows) {
        flows.retain(slot, |flow| {
            let verdict = match flow {
                Some(flow) => policy.decide(flow),
                None => policy.decide_outbound(),
            };
            verdict.is_allowed()
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
        let Ok(packet) = parse(packet) else {
            return Verdict::deny(Reason::Unparseable);
        };
        let verdict = self.judge(&packet, direction, slot, flows, now);
        match packet.fragmented {
            Some(id) if verdict.is_allowed() => self.fragments.remember(&packet, id, now),
            Some(id) => self.fragments.forget(&packet, id),
            None => {}
        }
        verdict
    }

    /// Whether the sender of a refused packet is told so now.
    pub fn may_answer(&mut self, now: Instant) -> bool {
        let may = self.answers.take(now);
        self.answered += u64::from(may);
        may
    }

    fn judge(
        &mut self,
        packet: &Packet<'_>,
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
        let key = Key::of(packet, slot, direction);
        if let Some(key) = &key
            && flows.touch(key, flags, direction, now)
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
            flows.begin(key, flags, direction, now);
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

/// A token bucket, as the instant at which it is full again.
#[derive(Debug, Default)]
struct Bucket {
    full: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let from = self.full.max(now);
        if from > now + ANSWER_INTERVAL * (ANSWERS_AT_ONCE - 1) {
            return false;
        }
        self.full = from + ANSWER_INTERVAL;
        true
    }
}
