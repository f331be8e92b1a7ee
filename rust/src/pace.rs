//! How a thread that moves packets goes on after each turn. Free of Python, so that tests/pure.rs can include it; what
//! `connlib._turns` does for an event loop.

use std::mem;
use std::time::Duration;

/// How long what comes from the network is left, to be taken together.
pub const GATHERING: Duration = Duration::from_millis(2);

/// How long descriptors that say that they are ready, and are not, are left alone: some errors never go away, and must not
/// cost a core.
pub const RESPITE: Duration = Duration::from_millis(50);

/// So many times in a row.
const FUTILE: u32 = 4;

/// Where more than half of so many datagrams were in vain, what comes next is left for a moment and then taken together:
/// waking up costs more than refusing a hundred of them, and would come every few datagrams.
const WORTH_JUDGING: u64 = 8;

/// A pause that gathers less than this costs more than it saves: waking up from a sleep takes longer than going on.
const WORTH_A_PAUSE: u64 = 32;

/// The next one is tried after so many more.
const UNTIL_THE_NEXT: u64 = 1024;

/// How long a thread that is busy waits for more after the first packet, by letting others have the processor: who sends
/// these packets may be one of them. Waking up for each costs a single fast flow a tenth of its rate.
pub const MODERATION: Duration = Duration::from_micros(80);

/// Packets a millisecond, of which a thread that has moved more for a while is busy.
const BUSY: u64 = 64;

/// For how many milliseconds of these.
const BUSY_AFTER: u64 = 2;
const BUSY_AT_MOST: u64 = 16;

/// A turn that moved so many, or more, has left some.
const MORE: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// There is more: go on.
    Again,
    /// Wait until there is something.
    Wait,
    /// Most of it was in vain: wait for [`GATHERING`], or for something that is worth a turn.
    Gather,
    /// Nothing was there although it was said so, again and again: wait for [`RESPITE`].
    LeaveAlone,
}

#[derive(Debug, Default)]
pub struct Pace {
    futile: u32,
    moved: u64,
    in_vain: u64,
    /// Packets and datagrams until the next pause.
    unpaused: u64,
    has_gathered: bool,
    /// What is moved pours in, and `BUSY` a millisecond run out.
    recent: u64,
    at: Duration,
}

impl Pace {
    /// moved: packets and datagrams of the turn; refused: how many of them no peer was found for; was_ready: whether a
    /// descriptor said that there is something; now: on any clock.
    pub fn after(&mut self, moved: usize, refused: u64, was_ready: bool, now: Duration) -> Next {
        let elapsed = now.saturating_sub(mem::replace(&mut self.at, now));
        let ran_out = u64::try_from(elapsed.as_micros())
            .unwrap_or(u64::MAX)
            .saturating_mul(BUSY)
            / 1000;
        let recent = self.recent.saturating_sub(ran_out) + moved as u64;
        self.recent = recent.min(BUSY * BUSY_AT_MOST);
        self.moved += moved as u64;
        self.in_vain += refused;
        if moved >= MORE {
            self.futile = 0;
            return Next::Again;
        }
        if moved > 0 {
            self.futile = 0;
        } else if was_ready {
            self.futile += 1;
        }
        if self.has_gathered && self.moved < WORTH_A_PAUSE {
            self.unpaused = UNTIL_THE_NEXT;
        }
        self.has_gathered = false;
        if self.futile >= FUTILE {
            return Next::LeaveAlone;
        }
        if self.moved < WORTH_JUDGING {
            return Next::Wait;
        }
        let is_flood = 2 * self.in_vain > self.moved;
        let may_pause = self.unpaused == 0;
        self.unpaused = self.unpaused.saturating_sub(self.moved);
        (self.moved, self.in_vain) = (0, 0);
        if !(is_flood && may_pause) {
            return Next::Wait;
        }
        self.has_gathered = true;
        Next::Gather
    }

    /// Whether it pays to let more come after the first packet.
    pub fn is_busy(&self) -> bool {
        self.recent >= BUSY * BUSY_AFTER
    }
}
