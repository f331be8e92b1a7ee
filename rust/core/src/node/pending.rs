//! Flows that the owner of a node decides about: see [`Action::Ask`](crate::policy::Action).

use connlib_boringtun::noise::{self, TimeoutReason};

use super::Node;
use super::filter::filter_of;
use super::peers::Slot;
use crate::policy::{Action, Asked, Direction, Held, Question, Verdict};
use crate::{DropReason, Instant, Timeout};

/// When a node is to be called next, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeTimeout {
    pub at: Instant,
    pub reason: NodeTimeoutReason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeTimeoutReason {
    /// A peer's tunnel wants it.
    Tunnel(TimeoutReason),
    /// A question of a policy was not answered, and its flow is refused.
    Unanswered,
}

impl From<Timeout> for NodeTimeout {
    fn from(timeout: Timeout) -> Self {
        NodeTimeout {
            at: timeout.at,
            reason: NodeTimeoutReason::Tunnel(timeout.reason),
        }
    }
}

impl Node {
    /// Whether somebody answers questions, from now on. Without, which is how a node begins, what a policy would ask about is
    /// refused at once, and so is what waits when this is switched off.
    pub fn ask(&mut self, on: bool, now: Instant) {
        let now = self.advance(now);
        self.flows.pending.switch(on);
        while !on && let Some(asked) = self.flows.pending.take_first() {
            let verdict = asked.verdict.unhooked();
            self.settle_flow(asked, verdict, now);
        }
    }

    /// Whether [`take_events`](Node::take_events), [`take_questions`](Node::take_questions) or
    /// [`take_withdrawn`](Node::take_withdrawn) may have something to tell.
    pub fn has_news(&self) -> bool {
        !self.output.events.is_empty() || self.flows.pending.has_news()
    }

    /// The questions that policies have since the last call and that are still open, oldest first. Each waits for
    /// [`ANSWER_TIME`](crate::policy::ANSWER_TIME), from the first packet on.
    pub fn take_questions(&mut self) -> Vec<Question> {
        let Node { flows, peers, .. } = self;
        let questions = flows.pending.take_questions().filter_map(|(id, asked)| {
            let peer = peers.get_mut(asked.slot())?;
            if let Some(filter) = &mut peer.filter {
                filter.asked += 1;
            }
            let settings = &peer.settings;
            let reason = asked.verdict.reason;
            Some(Question {
                id,
                peer: settings.public_key,
                header: asked.header,
                rule: reason.rule(),
                rule_name: settings
                    .policy
                    .as_ref()
                    .and_then(|policy| policy.rule_name(reason)),
            })
        });
        questions.collect()
    }

    /// The questions that [`take_questions`](Node::take_questions) has handed out and that have been withdrawn since its last
    /// call: another policy has decided, or a packet that needs no answer, the peer is gone or is asked about again, or nobody
    /// is asked any more. Whoever looks for an answer can stop. Those that were over in time are not among them.
    pub fn take_withdrawn(&mut self) -> Vec<u64> {
        self.flows.pending.take_withdrawn()
    }

    /// Answers a question: its flow may begin, and what was held of it goes on, in order; or it is refused.
    ///
    /// False, and nothing happens, if the question is not open: it was over, another policy has decided, the peer is gone, or
    /// there never was one of this number.
    pub fn decide(&mut self, id: u64, allow: bool, now: Instant) -> bool {
        let now = self.advance(now);
        // What is over at this instant is over, whoever is called first.
        self.refuse_unanswered(now);
        let Some(asked) = self.flows.pending.take(id) else {
            return false;
        };
        let verdict = asked.verdict.decided(allow);
        self.settle_flow(asked, verdict, now);
        true
    }

    /// Has the owner decide about the flows of a peer anew: those that it let begin end, unless the policy lets them pass by
    /// itself by now, and its refusals are forgotten. Open questions are put once more, because their answers may be on the
    /// way already.
    ///
    /// # Errors
    /// `UnknownPeer`.
    pub fn ask_again(&mut self, public_key: &[u8; 32], now: Instant) -> Result<(), DropReason> {
        let now = self.advance(now);
        self.refuse_overdue(now);
        let slot = self.peers.find(public_key).ok_or(DropReason::UnknownPeer)?;
        let Some(filter) = filter_of(self.peers.get_mut(slot)) else {
            return Ok(());
        };
        for asked in filter.ask_again(slot, &mut self.flows, now) {
            let verdict = asked.verdict;
            self.settle_flow(asked, verdict, now);
        }
        Ok(())
    }

    /// Refuses the flows whose questions are over.
    pub(super) fn refuse_unanswered(&mut self, now: Instant) {
        while let Some(asked) = self.flows.pending.take_due(now) {
            let verdict = asked.verdict.unanswered();
            self.settle_flow(asked, verdict, now);
        }
        self.flows.pending.refused.reap(now);
    }

    /// The same before each packet: one that comes when a question is over asks anew, whoever calls the node first.
    #[inline]
    pub(super) fn refuse_overdue(&mut self, now: Instant) {
        if self.flows.pending.next().is_some_and(|(at, _)| at <= now) {
            self.refuse_unanswered(now);
        }
    }

    /// The next deadline of a question, and the peer's key.
    pub(super) fn next_question(&self) -> Option<(NodeTimeout, Slot)> {
        let (at, slot) = self.flows.pending.next()?;
        let reason = NodeTimeoutReason::Unanswered;
        Some((NodeTimeout { at, reason }, slot))
    }

    /// It is known what becomes of a flow that was pending.
    pub(super) fn settle_flow(&mut self, asked: Asked, verdict: Verdict, now: Instant) {
        let slot = asked.slot();
        let filter = filter_of(self.peers.get_mut(slot));
        let verdict = match filter {
            Some(filter) if verdict.is_allowed() => {
                filter.begin(&asked, verdict, &mut self.flows, now)
            }
            _ => verdict,
        };
        match verdict.action {
            Action::Allow => self.release(asked, true, now),
            Action::Ask => self.release(asked, false, now),
            Action::Deny => self.refuse_asked(asked, verdict, now),
        }
        self.settle(slot, None);
    }

    /// Lets go on what was held of a flow, as if it came now: routes and peers may have changed meanwhile. If the flow
    /// `begins` with the first packet, that one was judged; `settle` has to follow.
    pub(super) fn release(&mut self, asked: Asked, begins: bool, now: Instant) {
        let slot = asked.slot();
        for (number, held) in asked.held.into_iter().enumerate() {
            self.let_go(slot, held, begins && number == 0, now);
        }
    }

    fn let_go(&mut self, slot: Slot, held: Held, is_judged: bool, now: Instant) {
        match held.direction {
            Direction::FromPeer => {
                self.output.push_packet(&held.packet);
                if self.check_source(slot) && (is_judged || self.check_received(slot, now)) {
                    self.capture_delivered(slot);
                }
            }
            Direction::ToPeer => self.let_go_to(slot, &held.packet, is_judged, now),
        }
    }

    fn let_go_to(&mut self, slot: Slot, packet: &[u8], is_judged: bool, now: Instant) {
        let destination = noise::Tunn::dst_address(packet);
        let owner = destination.and_then(|to| self.routes.longest_match(to));
        if owner != Some(slot) {
            return self.drop_from(slot, DropReason::NoRoute);
        }
        if let Some(reason) = self.obstacle(slot, packet.len()) {
            return self.drop_from(slot, reason);
        }
        if is_judged || self.may_send(slot, packet, now) {
            self.encapsulate(slot, packet, now);
        }
    }

    /// Drops what was held of a flow and goes the way that was asked about, counts it, and tells whoever sent the first
    /// packet. What goes the other way is judged by itself.
    fn refuse_asked(&mut self, mut asked: Asked, verdict: Verdict, now: Instant) {
        let slot = asked.slot();
        let others = asked.take_others();
        if let Some(filter) = filter_of(self.peers.get_mut(slot)) {
            filter.refuse_asked(&asked, verdict, &mut self.flows, now);
        }
        if let Some(peer) = self.peers.get_mut(slot) {
            let count = asked.held.len();
            peer.drops.add_many(verdict.drop_reason(), count);
        }
        if let Some(first) = asked.held.first()
            && self.may_answer(slot, &first.packet, now)
        {
            self.answer(slot, first.direction, now);
        }
        for held in others {
            self.let_go(slot, held, false, now);
        }
    }
}
