//! One batch by several threads: each takes messages that lie in a row, and has an engine of its own.
//!
//! The messages of a batch lie apart and in order, so that the buffer is cut between two of them, and nobody shares a byte or a
//! message with anybody. The order stays as it was, and the call returns when all have done their part.
//!
//! Nothing in a part can panic, whatever a message holds, as nothing in this crate can. Should one nevertheless, the others end
//! theirs first, and the panic goes on in the caller's thread, as that of any engine would: whoever gives batches up then, gives
//! all of this one up.

use std::mem;
use std::process;
use std::sync::{Arc, Mutex, PoisonError};

use rayon_core::{ThreadPool, ThreadPoolBuilder};

use crate::batch::{Message, Part};
use crate::engine::{Direction, Engine};
use crate::key::Key;

#[cfg(test)]
mod tests;

/// Threads of a team at most. A batch has too few messages for more of them.
pub const MOST_THREADS: usize = 64;

/// What a message costs beside its bytes, in bytes.
const EACH: usize = 350;

/// The smallest part that somebody takes, in bytes.
const SMALLEST: usize = 8 * 1024;

/// For less than this, in bytes, nobody is woken: to have a thread that sleeps begin takes as long.
const LEAST: usize = 48 * 1024;

/// The caller's thread and those of a pool.
#[derive(Debug)]
pub struct Team {
    /// Of the caller's thread, and of each of the others.
    own: Engine,
    others: Vec<Engine>,
    /// `None` only while the team is dropped.
    pool: Option<ThreadPool>,
    /// The process that has these threads: a child process has none.
    process: u32,
}

impl Team {
    /// A team of these engines, which are no teams. The threads inherit what this thread blocks and may do.
    ///
    /// # Errors
    /// The system has no more threads. The engine of the caller's thread comes back.
    pub(crate) fn new(own: Engine, others: Vec<Engine>) -> Result<Self, Engine> {
        let builder = ThreadPoolBuilder::new()
            .num_threads(others.len())
            .thread_name(|number| format!("connlib-team-{}", number + 1));
        let Ok(pool) = builder.build() else {
            return Err(own);
        };
        Ok(Team {
            own,
            others,
            pool: Some(pool),
            process: process::id(),
        })
    }

    /// That of the backend: ring as soon as one of them had to give up another one.
    pub fn name(&self) -> &'static str {
        let own = self.own.name();
        if self.others.iter().all(|other| other.name() == own) {
            own
        } else {
            Engine::Ring.name()
        }
    }

    pub fn threads(&self) -> usize {
        self.others.len() + 1
    }

    /// A call in each of its threads but the caller's. Returns when all have made it.
    pub(crate) fn in_the_others(&self, call: impl Fn() + Sync) {
        if let Some(pool) = &self.pool {
            pool.broadcast(|_| call());
        }
    }

    pub(crate) fn work(&mut self, direction: Direction, keys: &[Arc<Key>], part: &mut Part<'_>) {
        let left = part.messages.iter().map(cost).sum::<usize>();
        let count = (left / LEAST).clamp(1, self.threads());
        let Team {
            own, others, pool, ..
        } = self;
        let Some(pool) = pool.as_ref().filter(|_| count > 1) else {
            return own.work(direction, keys, part);
        };
        let rest = Rest::new(part, left, count);
        pool.in_place_scope(|scope| {
            for member in others.iter_mut().take(count - 1) {
                let rest = &rest;
                scope.spawn(move |_| {
                    rest.work(member, direction, keys);
                    wipe_stack();
                });
            }
            rest.work(own, direction, keys);
        });
    }
}

/// More than the frames of ring take.
const STACK_BYTES: usize = 1 << 14;

/// Erases what a backend has left of keys on the stack of a thread that does nothing else, so that nothing else would.
#[inline(never)]
fn wipe_stack() {
    // Nobody reads it, which is why it would be optimised away.
    std::hint::black_box([0u8; STACK_BYTES]);
}

impl Drop for Team {
    /// Threads that have nothing to do end by themselves, a little later.
    fn drop(&mut self) {
        if process::id() != self.process {
            // Ending them takes their locks, and a thread that is not there may have held one at the `fork()`.
            mem::forget(self.pool.take());
        }
    }
}

fn cost(message: &Message) -> usize {
    if message.failed {
        0
    } else {
        message.range.len() + EACH
    }
}

/// What nobody has taken yet, and what that costs.
struct Rest<'a> {
    left: Mutex<(Option<Part<'a>>, usize)>,
    threads: usize,
}

impl<'a> Rest<'a> {
    fn new(part: &'a mut Part<'_>, cost: usize, threads: usize) -> Self {
        let whole = Part {
            messages: part.messages,
            bytes: part.bytes,
            start: part.start,
        };
        Rest {
            left: Mutex::new((Some(whole), cost)),
            threads,
        }
    }

    /// One thread's share: takes parts until none is left. Its frames lie where those of `wipe_stack` come to lie.
    #[inline(never)]
    fn work(&self, member: &mut Engine, direction: Direction, keys: &[Arc<Key>]) {
        while let Some(mut part) = self.take() {
            member.work(direction, keys, &mut part);
        }
    }

    /// Half of what would be one's share if all threads began now: large parts first, and small ones in the end, so that all
    /// of them end at about the same time, though some began late.
    fn take(&self) -> Option<Part<'a>> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let (rest, cost) = &mut *left;
        let whole = rest.take().filter(|whole| !whole.messages.is_empty())?;
        let wanted = (*cost / (2 * self.threads)).max(SMALLEST);
        let (count, taken) = first(whole.messages, wanted);
        let (part, behind) = whole.split(count);
        *rest = Some(behind);
        *cost -= taken;
        Some(part)
    }
}

/// How many of the first messages cost so much, and what exactly they cost.
fn first(messages: &[Message], wanted: usize) -> (usize, usize) {
    let mut sum = 0;
    for (number, message) in messages.iter().enumerate() {
        if sum >= wanted {
            return (number, sum);
        }
        sum += cost(message);
    }
    (messages.len(), sum)
}
