//! The next deadline of every peer, earliest first: a binary heap that knows where each peer stands in it.
//!
//! Reading the earliest costs O(1); setting, moving and removing one costs O(log n) and no memory once every peer has
//! been in. Equal instants are ordered by slot, so that the order never depends on the history of the heap.

use connlib_boringtun::Instant;
use connlib_boringtun::noise::Timeout;

use super::peers::Slot;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline {
    pub timeout: Timeout,
    pub slot: Slot,
}

impl Deadline {
    /// What deadlines are ordered by.
    pub fn key(&self) -> (Instant, Slot) {
        (self.timeout.at, self.slot)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    heap: Vec<Deadline>,
    /// By slot: where in `heap` that peer's deadline is.
    positions: Vec<Option<usize>>,
}

impl Deadlines {
    pub fn first(&self) -> Option<Deadline> {
        self.heap.first().copied()
    }

    /// Takes the earliest deadline out if it is due.
    pub fn pop_due(&mut self, now: Instant) -> Option<Slot> {
        let first = self.first().filter(|first| first.timeout.at <= now)?;
        self.remove(0, first.slot);
        Some(first.slot)
    }

    /// Makes `timeout` the one deadline of `slot`; `None` takes it away.
    pub fn set(&mut self, slot: Slot, timeout: Option<Timeout>) {
        match (self.position(slot), timeout) {
            (None, None) => {}
            (None, Some(timeout)) => {
                let index = self.heap.len();
                self.heap.push(Deadline { timeout, slot });
                self.note(index);
                self.sift_up(index);
            }
            (Some(index), Some(timeout)) => {
                if let Some(deadline) = self.heap.get_mut(index) {
                    deadline.timeout = timeout;
                }
                self.sift(index);
            }
            (Some(index), None) => self.remove(index, slot),
        }
    }

    fn position(&self, slot: Slot) -> Option<usize> {
        self.positions.get(slot).copied().flatten()
    }

    fn remove(&mut self, index: usize, slot: Slot) {
        let last = self.heap.len().saturating_sub(1);
        self.swap(index, last);
        self.heap.pop();
        if let Some(position) = self.positions.get_mut(slot) {
            *position = None;
        }
        self.sift(index);
    }

    /// Restores the order around an entry that may now be too early or too late for its place.
    fn sift(&mut self, index: usize) {
        self.sift_up(index);
        self.sift_down(index);
    }

    fn sift_up(&mut self, mut index: usize) {
        while index > 0 {
            let parent = (index - 1) / 2;
            if !self.is_before(index, parent) {
                break;
            }
            self.swap(index, parent);
            index = parent;
        }
    }

    fn sift_down(&mut self, mut index: usize) {
        loop {
            let mut least = index;
            for child in [2 * index + 1, 2 * index + 2] {
                if self.is_before(child, least) {
                    least = child;
                }
            }
            if least == index {
                break;
            }
            self.swap(index, least);
            index = least;
        }
    }

    fn is_before(&self, a: usize, b: usize) -> bool {
        match (self.heap.get(a), self.heap.get(b)) {
            (Some(a), Some(b)) => a.key() < b.key(),
            _ => false,
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        if a != b && a.max(b) < self.heap.len() {
            self.heap.swap(a, b);
            self.note(a);
            self.note(b);
        }
    }

    /// Writes down where the entry at `index` stands.
    fn note(&mut self, index: usize) {
        let Some(deadline) = self.heap.get(index) else {
            return;
        };
        if self.positions.len() <= deadline.slot {
            self.positions.resize(deadline.slot + 1, None);
        }
        if let Some(position) = self.positions.get_mut(deadline.slot) {
            *position = Some(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use connlib_boringtun::noise::TimeoutReason;
    use proptest::prelude::*;

    use super::*;

    fn timeout(at: u64) -> Timeout {
        Timeout {
            at: Instant::from_nanos(at),
            reason: TimeoutReason::HandshakeRetry,
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(Slot, Option<u64>),
        Pop(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Few instants, so that many are equal.
        prop_oneof![
            5 => (0..40usize, prop::option::weighted(0.8, 0..50u64)).prop_map(|(slot, at)| Step::Set(slot, at)),
            1 => (0..60u64).prop_map(Step::Pop),
        ]
    }

    proptest! {
        #[test]
        fn the_first_deadline_is_the_minimum_of_all(steps in prop::collection::vec(step(), 1..300)) {
            let mut deadlines = Deadlines::default();
            let mut model: BTreeMap<Slot, u64> = BTreeMap::new();
            let earliest = |model: &BTreeMap<Slot, u64>| model.iter().map(|(slot, at)| (*at, *slot)).min();
            for step in steps {
                match step {
                    Step::Set(slot, at) => {
                        deadlines.set(slot, at.map(timeout));
                        match at {
                            Some(at) => model.insert(slot, at),
                            None => model.remove(&slot),
                        };
                    }
                    Step::Pop(now) => {
                        let expected = earliest(&model).filter(|(at, _)| *at <= now).map(|(_, slot)| slot);
                        prop_assert_eq!(deadlines.pop_due(Instant::from_nanos(now)), expected);
                        expected.and_then(|slot| model.remove(&slot));
                    }
                }
                let first = deadlines.first().map(|first| (first.timeout.at.as_nanos(), first.slot));
                prop_assert_eq!(first, earliest(&model));
            }
        }
    }
}
