//! What seals and opens batches.

use std::sync::Arc;

use crate::batch::{Batch, Message};
use crate::ipsec_mb::IpsecMb;
use crate::key::{Failed, Key};

/// A backend at work. One belongs to one owner: that of intel-ipsec-mb has memory of its own.
#[derive(Debug)]
pub enum Engine {
    /// One message after the other.
    Ring,
    /// Many messages at once.
    IpsecMb(Box<IpsecMb>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Seal,
    Open,
}

impl Engine {
    pub fn name(&self) -> &'static str {
        match self {
            Engine::Ring => "ring",
            Engine::IpsecMb(_) => "ipsec-mb",
        }
    }

    /// Whether messages are faster together than one by one. If not, opening them one by one saves a copy.
    pub fn gains_by_batches(&self) -> bool {
        matches!(self, Engine::IpsecMb(_))
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
        let (keys, messages) = batch.checked(buffer.len());
        match self {
            Engine::Ring => one_by_one(direction, keys, messages, buffer),
            Engine::IpsecMb(library) => {
                if library.run(direction, keys, messages, buffer).is_err() {
                    // It has failed at what it has to be able to do, and is not asked again.
                    *self = Engine::Ring;
                }
            }
        }
        for message in messages.iter().filter(|message| message.failed) {
            if let Some(bytes) = buffer.get_mut(message.range.clone()) {
                bytes.fill(0);
            }
        }
    }
}

fn one_by_one(
    direction: Direction,
    keys: &[Arc<Key>],
    messages: &mut [Message],
    buffer: &mut [u8],
) {
    for message in messages {
        let done = keys
            .get(message.key)
            .filter(|_| !message.failed)
            .zip(buffer.get_mut(message.range.clone()))
            .ok_or(Failed)
            .and_then(|(key, bytes)| match direction {
                Direction::Seal => key.seal(message.counter, bytes),
                Direction::Open => key.open(message.counter, bytes).map(drop),
            });
        message.failed = done.is_err();
    }
}
