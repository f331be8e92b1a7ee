//! The flow log: what began, what was denied, and what ended, for whoever takes it out. There is none unless it was asked for.
//!
//! It lies beside the table of flows, by the same places, so that a flow costs no more while there is no log.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use super::header::{Direction, Header};
use super::{Policy, Verdict};
use crate::Instant;

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// When it began, was denied, or was over.
    pub at: Instant,
    /// The peer's public key.
    pub peer: [u8; 32],
    pub header: Header,
    /// What lets it pass or not. A policy that was changed has judged the flow again.
    pub verdict: Verdict,
    /// What the rule that decided is called.
    pub rule_name: Option<Arc<str>>,
    pub change: FlowChange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowChange {
    /// Numbers are given once.
    Began {
        id: u64,
    },
    /// How many packets of this peer were refused since the last such record, this one included.
    Denied {
        count: u64,
    },
    Ended(FlowEnd),
}

/// What there was of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEnd {
    /// The number that it began with.
    pub id: u64,
    pub why: EndReason,
    pub began: Instant,
    /// From the first packet to the last.
    pub lasted: Duration,
    pub from_peer: Traffic,
    pub to_peer: Traffic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// TCP was reset, or finished by both sides, and its time after that is over, or it begins anew.
    Closed,
    /// Nothing was seen of it for its time.
    Expired,
    /// It gave way to a newer one.
    Evicted,
    /// The policy that it has now forbids it, there is no policy or no peer any more, or the hook is to be asked again.
    Revoked,
}

/// IP packets of a flow that may pass, one way. Later fragments and ICMP errors are not among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub packets: u64,
    pub bytes: u64,
}

impl Traffic {
    fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}

/// What the log knows of a flow.
#[derive(Debug)]
struct Tally {
    id: u64,
    header: Header,
    verdict: Verdict,
    began: Instant,
    last: Instant,
    from_peer: Traffic,
    to_peer: Traffic,
}

/// Records that nobody took out yet, at most `capacity`, and what the next ones are made of.
#[derive(Debug)]
pub(super) struct FlowLog {
    capacity: usize,
    records: Vec<FlowRecord>,
    missed: u64,
    ids: u64,
    /// By place in the table. Flows that are older than the log have none.
    tallies: Vec<Option<Tally>>,
    /// Key and policy of those that have one, by slot.
    peers: Vec<Option<([u8; 32], Arc<Policy>)>>,
}

impl FlowLog {
    pub fn new(capacity: usize) -> Self {
        FlowLog {
            capacity,
            records: Vec::new(),
            missed: 0,
            ids: 0,
            tallies: Vec::new(),
            peers: Vec::new(),
        }
    }

    /// Whose flows those of a slot are, from here on, and what decides about them; `None`: nobody's.
    pub fn introduce(&mut self, slot: usize, peer: Option<([u8; 32], Arc<Policy>)>) {
        if self.peers.len() <= slot {
            self.peers.resize_with(slot + 1, || None);
        }
        if let Some(place) = self.peers.get_mut(slot) {
            *place = peer;
        }
    }

    /// The records since the last call, and how many more there were than had room.
    pub fn take(&mut self) -> (Vec<FlowRecord>, u64) {
        (mem::take(&mut self.records), mem::take(&mut self.missed))
    }

    pub fn begin(
        &mut self,
        place: usize,
        slot: usize,
        header: Header,
        verdict: Verdict,
        now: Instant,
    ) {
        self.ids += 1;
        let id = self.ids;
        if self.tallies.len() <= place {
            self.tallies.resize_with(place + 1, || None);
        }
        if let Some(vacant) = self.tallies.get_mut(place) {
            *vacant = Some(Tally {
                id,
                header,
                verdict,
                began: now,
                last: now,
                from_peer: Traffic::default(),
                to_peer: Traffic::default(),
            });
        }
        self.push(now, slot, header, verdict, FlowChange::Began { id });
    }

    /// A packet of a flow passes.
    #[inline]
    pub fn count(&mut self, place: usize, direction: Direction, bytes: usize, now: Instant) {
        if let Some(Some(tally)) = self.tallies.get_mut(place) {
            tally.last = tally.last.max(now);
            match direction {
                Direction::FromPeer => tally.from_peer.add(bytes),
                Direction::ToPeer => tally.to_peer.add(bytes),
            }
        }
    }

    /// Another policy lets a flow go on.
    pub fn judge_again(&mut self, place: usize, verdict: Verdict) {
        if let Some(Some(tally)) = self.tallies.get_mut(place) {
            tally.verdict = verdict;
        }
    }

    pub fn end(&mut self, place: usize, slot: usize, why: EndReason, at: Instant) {
        let tally = self.tallies.get_mut(place).and_then(Option::take);
        let Some(tally) = tally else {
            return;
        };
        let end = FlowEnd {
            id: tally.id,
            why,
            began: tally.began,
            lasted: tally.last.duration_since(tally.began),
            from_peer: tally.from_peer,
            to_peer: tally.to_peer,
        };
        let change = FlowChange::Ended(end);
        self.push(at, slot, tally.header, tally.verdict, change);
    }

    /// A record of a flow or, of a packet that was denied, of none.
    pub fn push(
        &mut self,
        at: Instant,
        slot: usize,
        header: Header,
        verdict: Verdict,
        change: FlowChange,
    ) {
        let Some(Some((peer, policy))) = self.peers.get(slot) else {
            return;
        };
        if self.records.len() >= self.capacity {
            self.missed += 1;
            return;
        }
        self.records.push(FlowRecord {
            at,
            peer: *peer,
            header,
            verdict,
            rule_name: policy.rule_name(verdict.reason),
            change,
        });
    }

    /// No flow is left: their memory goes.
    pub fn shrink(&mut self, kept: usize) {
        self.tallies.clear();
        self.tallies.shrink_to(kept);
    }
}
