//! Where a node asks the policies of its peers: after the source address of what a peer sent was checked, and before what is
//! for a peer goes into its tunnel.

use std::mem;
use std::sync::Arc;

use super::Node;
use super::peers::{Peer, Slot};
use super::stats::PolicyStats;
use crate::Instant;
use crate::policy::{
    Action, Asked, Direction, Filter, FlowRecord, MAX_FLOWS_PER_PEER, Reason, Verdict,
    write_refusal,
};

impl Node {
    /// Keeps a log of the flows that begin from now on and of what is denied, until `capacity` records wait to be taken out;
    /// 0 ends it. Peers without a policy have no flows.
    pub fn log_flows(&mut self, capacity: usize) {
        self.flows.log(capacity);
        for slot in self.peers.slots() {
            if let Some(peer) = self.peers.get(slot)
                && let Some(policy) = &peer.settings.policy
            {
                self.flows.introduce(slot, peer.settings.public_key, policy);
            }
        }
    }

    /// The records of the flow log since the last call, and how many had no room. Flows that are over by now are among them.
    pub fn take_flows(&mut self, now: Instant) -> (Vec<FlowRecord>, u64) {
        let now = self.advance(now);
        self.flows.reap(now, MAX_FLOWS_PER_PEER);
        self.flows.take_log()
    }

    /// Whether a packet may go to a peer now. If not, it is held, or counted, and whoever sent it may be told.
    #[inline]
    pub(super) fn may_send(&mut self, slot: Slot, packet: &[u8], now: Instant) -> bool {
        let Some(filter) = filter_of(self.peers.get_mut(slot)) else {
            return true;
        };
        let verdict = filter.check(packet, Direction::ToPeer, slot, &mut self.flows, now);
        match verdict.action {
            Action::Allow => {
                if let Some(asked) = self.flows.pending.take_freed() {
                    self.release(*asked, false, now);
                }
                return true;
            }
            Action::Ask => return false,
            Action::Deny => {}
        }
        if verdict.is_answered() && self.may_answer(slot, packet, now) {
            self.answer(slot, Direction::ToPeer, now);
        }
        self.drop_from(slot, verdict.drop_reason());
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.tell(now, &mut self.output.events);
        }
        false
    }

    /// Whether the policy of the peer that sent it lets the last packet pass now. If not, it is taken back, and held, or
    /// counted, and the peer may be told; `settle` has to follow.
    #[inline]
    pub(super) fn check_received(&mut self, slot: Slot, now: Instant) -> bool {
        let Some(filter) = filter_of(self.peers.get_mut(slot)) else {
            return true;
        };
        let packet = self.output.last_packet().unwrap_or_default();
        let verdict = filter.check(packet, Direction::FromPeer, slot, &mut self.flows, now);
        if verdict.is_allowed() {
            if let Some(asked) = self.flows.pending.take_freed() {
                // What waits came before it.
                let packet = packet.to_vec();
                self.output.take_back_last_packet();
                self.release(*asked, false, now);
                self.output.push_packet(&packet);
            }
            return true;
        }
        let answers = verdict.is_answered()
            && write_refusal(packet, &mut self.refusal)
            && filter.may_answer(now);
        self.output.take_back_last_packet();
        if verdict.action == Action::Ask {
            return false;
        }
        self.drop_from(slot, verdict.drop_reason());
        if answers {
            self.answer(slot, Direction::FromPeer, now);
        }
        false
    }

    /// Whether the sender of a refused packet is told so now. The answer is written then.
    pub(super) fn may_answer(&mut self, slot: Slot, packet: &[u8], now: Instant) -> bool {
        let filter = filter_of(self.peers.get_mut(slot));
        write_refusal(packet, &mut self.refusal)
            && filter.is_some_and(|filter| filter.may_answer(now))
    }

    /// Tells the sender of a packet that went this way of its refusal, as it was written.
    pub(super) fn answer(&mut self, slot: Slot, direction: Direction, now: Instant) {
        let answer = mem::take(&mut self.refusal);
        match direction {
            Direction::ToPeer => {
                self.output.push_packet(&answer);
                self.capture_delivered(slot);
            }
            Direction::FromPeer => {
                self.capture_made(slot, &answer);
                self.encapsulate(slot, &answer, now);
            }
        }
        self.refusal = answer;
    }

    /// Sees to it that a peer's filter is the one of its settings. Flows that a new policy forbids end at once, and those that
    /// were pending and are not any more are returned, with what becomes of each.
    #[must_use]
    pub(super) fn adjust_policy(&mut self, slot: Slot) -> Vec<(Asked, Verdict)> {
        let now = self.clock;
        let mut settled = Vec::new();
        let Some(peer) = self.peers.get_mut(slot) else {
            return settled;
        };
        match (&mut peer.filter, &peer.settings.policy) {
            (None, None) => {}
            (Some(filter), Some(policy)) => {
                if !Arc::ptr_eq(filter.policy(), policy) && filter.policy() != policy {
                    settled = filter.change(policy.clone(), slot, &mut self.flows, now);
                }
            }
            (None, Some(policy)) => {
                self.flows.draw_key(&mut *self.rng);
                peer.filter = Some(Box::new(Filter::new(policy.clone())));
            }
            (Some(_), None) => {
                peer.filter = None;
                // Nothing is forbidden any more.
                let pending = self.flows.pending.forget(slot).into_iter();
                settled = pending
                    .map(|asked| (asked, Verdict::allow(Reason::Default)))
                    .collect();
                self.flows.forget(slot, now);
            }
        }
        if let Some(policy) = &peer.settings.policy {
            self.flows.introduce(slot, peer.settings.public_key, policy);
        }
        settled
    }

    pub(super) fn policy_stats(
        &self,
        slot: Slot,
        peer: &Peer,
        now: Instant,
    ) -> Option<PolicyStats> {
        let filter = peer.filter.as_ref()?;
        Some(PolicyStats {
            flows: self.flows.count(slot, now),
            evicted: self.flows.evicted(slot),
            answered: filter.answered,
            pending: self.flows.pending.count(slot),
            asked: filter.asked,
        })
    }
}

pub(super) fn filter_of(peer: Option<&mut Peer>) -> Option<&mut Filter> {
    peer?.filter.as_deref_mut()
}
