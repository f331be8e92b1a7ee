//! Calling one peer's tunnel: with its surroundings, so that a panic in it stops this peer and no other, and with its
//! deadline noted afterwards.

use std::panic::{AssertUnwindSafe, catch_unwind};

use connlib_boringtun::noise::{self, Env, Event, Output};
use rand_core::CryptoRngCore;

use super::Node;
use super::deadlines::Deadline;
use super::output::NodeEvent;
use super::path::Path;
use super::peers::Slot;
use super::stats::Trouble;
use crate::indices::Owned;
use crate::{DropReason, Instant};

impl Node {
    /// Calls a peer's tunnel with its surroundings. What it brings about is appended to the output; `settle` has to follow.
    ///
    /// `None`: there is nothing to call, because the tunnel panicked, now or earlier.
    #[inline]
    pub(super) fn drive<T>(
        &mut self,
        slot: Slot,
        now: Instant,
        call: impl FnOnce(&mut noise::Tunn, &mut Env<'_>, &mut Output) -> T,
    ) -> Option<T> {
        let peer = self.peers.get_mut(slot)?;
        let tunn = peer.tunn.as_mut()?;
        #[cfg(test)]
        self.touched.push(slot);
        let mark = self.output.mark();
        // Those that the call sends before it fails are taken back with the output.
        let queued = tunn.queued();
        let result = {
            let mut noting;
            let rng: &mut dyn CryptoRngCore = match &mut self.key_log {
                None => &mut *self.rng,
                Some(log) => {
                    noting = log.noting(&mut *self.rng, &self.common.private, &peer.settings);
                    &mut noting
                }
            };
            let mut indices = Owned {
                table: &mut self.indices,
                owner: slot,
            };
            let mut env = Env {
                now,
                rng,
                indices: &mut indices,
            };
            let out = &mut self.output.tunnels;
            // Of what the call can leave half changed, `poison` gives up the tunnel and takes back the output; the table of
            // indices and the generator hold no invariant across two statements.
            catch_unwind(AssertUnwindSafe(|| call(tunn, &mut env, out)))
        };
        match result {
            Ok(result) => {
                self.timestamps.note_sent(tunn.sent_timestamp());
                self.waiting = (self.waiting + tunn.queued()).saturating_sub(queued);
                Some(result)
            }
            Err(_) => {
                self.output.roll_back(mark);
                self.waiting = self.waiting.saturating_sub(queued);
                self.poison(slot, queued);
                None
            }
        }
    }

    /// A peer's tunnel panicked: a fault of ours, and nothing that it holds can be relied on any more. It is gone, and
    /// everything of this peer's is dropped until the peer is removed and added anew, first what was `queued`.
    #[cold]
    fn poison(&mut self, slot: Slot, queued: usize) {
        self.indices.release_all(slot);
        let Some(peer) = self.peers.get_mut(slot) else {
            return;
        };
        if peer.tunn.take().is_none() {
            return;
        }
        peer.drops.add_many(DropReason::PeerPoisoned, queued);
        let public_key = peer.settings.public_key;
        let event = NodeEvent::Tunnel(Event::Poisoned);
        self.output.events.push((public_key, event));
    }

    /// Panics in a peer's tunnel, for tests of what follows.
    ///
    /// # Errors
    /// `UnknownPeer`.
    #[doc(hidden)]
    #[allow(clippy::panic, reason = "it is what the call is for")]
    pub fn panic_in(&mut self, public_key: &[u8; 32], now: Instant) -> Result<(), DropReason> {
        let now = self.advance(now);
        let slot = self.peers.find(public_key).ok_or(DropReason::UnknownPeer)?;
        self.drive(slot, now, |_, _, _| panic!("a panic that a test asked for"));
        self.settle(slot, None);
        Ok(())
    }

    /// After a tunnel was called: its datagrams get a destination, which is the peer's endpoint if no other is given, its
    /// events get their peer and are counted, what else is news of the peer is told, and it becomes the peer that was called
    /// last.
    #[inline]
    pub(super) fn settle(&mut self, slot: Slot, destination: Option<Path>) {
        let Some(peer) = self.peers.get_mut(slot) else {
            return;
        };
        let addressed = self.output.destinations.len();
        let lost = self.output.address(destination.or(peer.path()));
        peer.drops.add_many(DropReason::NoEndpoint, lost);
        for event in self.output.tunnels.events.drain(..) {
            match event {
                Event::Dropped { reason, count } => peer.drops.add_many(reason.into(), count),
                Event::GaveUp { dropped } => {
                    peer.drops.add_many(DropReason::GaveUp, dropped);
                    peer.trouble.gave_up = peer.trouble.gave_up.saturating_add(1);
                }
                Event::SessionEstablished { .. } => {
                    peer.trouble = Trouble::default();
                    if let Some(log) = &mut self.key_log {
                        log.established(peer.settings.public_key);
                    }
                }
                _ => {}
            }
            let event = NodeEvent::Tunnel(event);
            self.output.events.push((peer.settings.public_key, event));
        }
        peer.tell(self.clock, &mut self.output.events);
        self.capture_sent(Some(slot), addressed);
        if self.latest != Some(slot) {
            self.note_latest();
            self.deadlines.set(slot, None);
            self.latest = Some(slot);
        }
    }

    /// Writes down the deadline of the peer that was called last.
    pub(super) fn note_latest(&mut self) {
        if let Some(slot) = self.latest.take() {
            let timeout = self
                .peers
                .get(slot)
                .and_then(|peer| peer.tunn.as_ref()?.next_timeout());
            self.deadlines.set(slot, timeout);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Deadline> {
        let latest = self.latest.and_then(|slot| {
            let timeout = self.peers.get(slot)?.tunn.as_ref()?.next_timeout()?;
            Some(Deadline { timeout, slot })
        });
        let both = self.deadlines.first().into_iter().chain(latest);
        both.min_by_key(Deadline::key)
    }
}
