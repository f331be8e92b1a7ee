//! What the hook refused not long ago, so that it is not asked again at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::header::Direction;
use super::key::Key;
use crate::Instant;

/// For how long a refusal by the hook holds without asking again: longer than the first repetitions of TCP and of resolvers.
pub const REFUSAL_TIME: Duration = Duration::from_secs(10);

/// Refusals that are remembered of one peer. The oldest is forgotten for a new one, and then asked about once more: whoever
/// scans ports pushes out his own.
pub const MAX_REFUSED_PER_PEER: usize = 512;

/// Refusals that are remembered of all peers, at some 300 bytes: 16 of them at their own bound.
pub const MAX_REFUSED: usize = 8192;

/// A flow, and which way its first packet goes.
type Start = (Key, Direction);

/// Numbers rise with time, so that the lowest one is always the next to be over.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    numbers: u64,
    by_start: BTreeMap<Start, u64>,
    /// Each with the instant from which on it does not hold any more.
    by_number: BTreeMap<u64, (Instant, Start)>,
    /// By slot, of those that have any.
    by_peer: BTreeMap<usize, BTreeSet<u64>>,
}

impl Refused {
    pub(super) fn holds(&self, key: &Key, direction: Direction, now: Instant) -> bool {
        let number = self.by_start.get(&(*key, direction));
        let refused = number.and_then(|number| self.by_number.get(number));
        refused.is_some_and(|(until, _)| now < *until)
    }

    pub(super) fn add(&mut self, key: Key, direction: Direction, now: Instant) {
        self.reap(now);
        let start = (key, direction);
        if let Some(number) = self.by_start.get(&start) {
            self.remove(*number);
        }
        let own = self.by_peer.get(&key.slot);
        let oldest = match own {
            Some(own) if own.len() >= MAX_REFUSED_PER_PEER => own.first().copied(),
            _ if self.by_number.len() >= MAX_REFUSED => self.first(),
            _ => None,
        };
        if let Some(number) = oldest {
            self.remove(number);
        }
        self.numbers += 1;
        self.by_start.insert(start, self.numbers);
        let until = now + REFUSAL_TIME;
        self.by_number.insert(self.numbers, (until, start));
        self.by_peer
            .entry(key.slot)
            .or_default()
            .insert(self.numbers);
    }

    /// Forgets those that do not hold any more.
    pub fn reap(&mut self, now: Instant) {
        while let Some((number, (until, _))) = self.by_number.first_key_value()
            && *until <= now
        {
            self.remove(*number);
        }
    }

    /// Forgets those of a peer.
    pub(super) fn forget(&mut self, slot: usize) {
        for number in self.by_peer.remove(&slot).unwrap_or_default() {
            self.remove(number);
        }
    }

    fn first(&self) -> Option<u64> {
        self.by_number.first_key_value().map(|(number, _)| *number)
    }

    fn remove(&mut self, number: u64) {
        let Some((_, start)) = self.by_number.remove(&number) else {
            return;
        };
        self.by_start.remove(&start);
        let slot = start.0.slot;
        if let Some(own) = self.by_peer.get_mut(&slot) {
            own.remove(&number);
            if own.is_empty() {
                self.by_peer.remove(&slot);
            }
        }
    }
}
