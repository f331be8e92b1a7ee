//! Where a node asks the policies of its peers: after the source address of what a peer sent was checked, and before what is
//! for a peer goes into its tunnel.

use std::mem;
use std::sync::Arc;

use super::Node;
use super::peers::{Peer, Slot};
use super::stats::PolicyStats;
use crate::policy::{Direction, Filter, write_refusal};
use crate::{DropReason, Instant};

impl Node {
    /// Whether a packet may go to a peer. If not, it is counted, and whoever sent it may be told.
    #[inline]
    pub(super) fn may_send(&mut self, slot: Slot, packet: &[u8], now: Instant) -> bool {
        let Some(filter) = filter_of(self.peers.get_mut(slot)) else {
            return true;
        };
        let verdict = filter.check(packet, Direction::ToPeer, slot, &mut self.flows, now);
        if verdict.is_allowed() {
            return true;
        }
        let answer = &mut self.refusal;
        if write_refusal(packet, answer) && filter.may_answer(now) {
            self.output.push_packet(answer);
            self.capture_delivered(slot);
        }
        self.drop_from(slot, DropReason::Denied);
        false
    }

    /// Whether the policy of the peer that sent it lets the last packet pass. If not, it is taken back and counted, and the
    /// peer may be told; `settle` has to follow.
    #[inline]
    pub(super) fn check_received(&mut self, slot: Slot, now: Instant) -> bool {
        let Some(filter) = filter_of(self.peers.get_mut(slot)) else {
            return true;
        };
        let packet = self.output.last_packet().unwrap_or_default();
        let verdict = filter.check(packet, Direction::FromPeer, slot, &mut self.flows, now);
        if verdict.is_allowed() {
            return true;
        }
        let answers = write_refusal(packet, &mut self.refusal) && filter.may_answer(now);
        self.output.take_back_last_packet();
        self.drop_from(slot, DropReason::Denied);
        if answers {
            let answer = mem::take(&mut self.refusal);
            self.capture_made(slot, &answer);
            self.encapsulate(slot, &answer, now);
            self.refusal = answer;
        }
        false
    }

    /// Sees to it that a peer's filter is the one of its settings. Flows that a new policy forbids end at once.
    pub(super) fn adjust_policy(&mut self, slot: Slot) {
        let Some(peer) = self.peers.get_mut(slot) else {
            return;
        };
        match (&mut peer.filter, &peer.settings.policy) {
            (None, None) => {}
            (Some(filter), Some(policy)) => {
                if !Arc::ptr_eq(filter.policy(), policy) && filter.policy() != policy {
                    filter.change(policy.clone(), slot, &mut self.flows);
                }
            }
            (None, Some(policy)) => {
                self.flows.draw_key(&mut *self.rng);
                peer.filter = Some(Box::new(Filter::new(policy.clone())));
            }
            (Some(_), None) => {
                peer.filter = None;
                self.flows.forget(slot);
            }
        }
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
        })
    }
}

fn filter_of(peer: Option<&mut Peer>) -> Option<&mut Filter> {
    peer?.filter.as_deref_mut()
}
