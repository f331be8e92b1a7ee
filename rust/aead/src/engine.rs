//! What seals and opens batches.

use std::sync::Arc;

use crate::batch::{Batch, MOST, MOST_OF_A_TEAM, Part};
use crate::ipsec_mb::IpsecMb;
use crate::key::{Failed, Key};
use crate::team::Team;

/// A backend at work. One belongs to one owner: that of intel-ipsec-mb has memory of its own.
#[derive(Debug)]
pub enum Engine {
    /// One message after the other.
    Ring,
    /// Many messages at once.
    IpsecMb(Box<IpsecMb>),
    /// Several threads, each with one of the above.
    Team(Box<Team>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Seal,
    Open,
}

impl Engine {
    /// That of the backend, however many threads work with it.
    pub fn name(&self) -> &'static str {
        match self {
            Engine::Ring => "ring",
            Engine::IpsecMb(_) => "ipsec-mb",
            Engine::Team(team) => team.name(),
        }
    }

    /// How many threads work, the caller's included.
    pub fn threads(&self) -> usize {
        match self {
            Engine::Ring | Engine::IpsecMb(_) => 1,
            Engine::Team(team) => team.threads(),
        }
    }

    /// Makes a call in each of its threads but the caller's: for what each thread has of its own.
    pub fn in_other_threads(&self, call: impl Fn() + Sync) {
        if let Engine::Team(team) = self {
            team.in_the_others(call);
        }
    }

    /// Whether messages are faster together than one by one. If not, opening them one by one saves a copy.
    pub fn gains_by_batches(&self) -> bool {
        match self {
            Engine::Ring => false,
            Engine::IpsecMb(_) | Engine::Team(_) => true,
        }
    }

    /// How many messages to give it at once. More of them would be no faster together.
    #[inline]
    pub fn most(&self) -> usize {
        match self {
            Engine::Ring | Engine::IpsecMb(_) => MOST,
            Engine::Team(_) => MOST_OF_A_TEAM,
        }
    }

    /// Seals each message of the batch where it stands in the buffer. One that fails is wiped: it is not sent as it was.
    pub fn seal(&mut self, batch: &mut Batch, buffer: &mut [u8]) {
        self.run(Direction::Seal, batch, buffer);
    }

    /// Opens each message of the batch where it stands in the buffer. Of one that fails, nothing is left.
    pub fn open(&mut self, batch: &mut Batch, buffer: &mut [u8]) {
        self.run(Direction::Open, batch, buffer);
    }

    fn run(&mut self, direction: Direction, batch: &mut Batch, buffer: &mut [u8]) {
        let (keys, mut all) = batch.checked(buffer);
        self.work(direction, keys, &mut all);
        // Also what lies where it should not, across others: so nobody else may be at work in the buffer.
        for message in all.messages.iter().filter(|message| message.failed) {
            if let Some(bytes) = all.bytes.get_mut(message.range.clone()) {
                bytes.fill(0);
            }
        }
    }

    /// Seals or opens what has not failed yet, and notes what fails.
    pub(crate) fn work(&mut self, direction: Direction, keys: &[Arc<Key>], part: &mut Part<'_>) {
        match self {
            Engine::Ring => one_by_one(direction, keys, part),
            Engine::IpsecMb(library) => {
                if library.run(direction, keys, part).is_err() {
                    // It has failed at what it has to be able to do, and is not asked again.
                    *self = Engine::Ring;
                }
            }
            Engine::Team(team) => team.work(direction, keys, part),
        }
    }
}

fn one_by_one(direction: Direction, keys: &[Arc<Key>], part: &mut Part<'_>) {
    for message in part.messages.iter_mut() {
        let place = message.place(part.start);
        let done = keys
            .get(message.key)
            .filter(|_| !message.failed)
            .zip(place.and_then(|place| part.bytes.get_mut(place)))
            .ok_or(Failed)
            .and_then(|(key, bytes)| match direction {
                Direction::Seal => key.seal(message.counter, bytes),
                Direction::Open => key.open(message.counter, bytes).map(drop),
            });
        message.failed = done.is_err();
    }
}
