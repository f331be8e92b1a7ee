//! The timestamps of initiations, by which a replay is told (paper, section 5.1). They belong to static keys: a tunnel that is
//! made anew, a peer that is removed and added, and a process that starts again go on from them.

use std::collections::BTreeMap;
use std::time::Duration;

use connlib_boringtun::noise::timestamps::{tai64n, unix_time};

use super::{Node, Slot};
use crate::Instant;

/// TAI64N, as it comes in an initiation: of two, the later one is the greater.
pub(crate) type Timestamp = [u8; 12];

/// What stands for the timestamp of a peer that has sent none.
pub(crate) const NONE: Timestamp = [0; 12];

/// So many peers that are not configured are remembered, and so many private keys that are not in use.
const MOST_PEERS: usize = 4096;
const MOST_KEYS: usize = 8;

/// Sent timestamps count as changed when they are so much greater: whoever keeps them need not write at each retry.
const SENT_STEP: Duration = Duration::from_secs(60);

/// What was sent since the timestamps were last written down: a step, and the time that writing takes.
const SENT_MARGIN: Duration = Duration::from_secs(120);

/// What is remembered beside the peers' own.
pub(super) struct Timestamps {
    /// Received, of peers that are not configured.
    received: Kept<Timestamp>,
    /// The greatest ones that were sent, of private keys that are not in use, since 1970.
    sent: Kept<Duration>,
    /// The greatest one that was sent with the key in use.
    latest: Duration,
    /// What `latest` was when that last counted as a change.
    noted: Duration,
    version: u64,
}

impl Default for Timestamps {
    fn default() -> Self {
        Timestamps {
            received: Kept::new(MOST_PEERS),
            sent: Kept::new(MOST_KEYS),
            latest: Duration::ZERO,
            noted: Duration::ZERO,
            version: 0,
        }
    }
}

impl Timestamps {
    /// Every timestamp to be sent is greater.
    pub fn sent(&self) -> Duration {
        self.latest
    }

    #[inline]
    pub fn note_sent(&mut self, timestamp: Duration) {
        if timestamp > self.latest {
            self.latest = timestamp;
            if timestamp >= self.noted.saturating_add(SENT_STEP) {
                self.noted = timestamp;
                self.version += 1;
            }
        }
    }

    /// A peer is removed.
    pub fn keep(&mut self, public_key: [u8; 32], timestamp: Timestamp) {
        if timestamp != NONE {
            self.received.raise(public_key, timestamp);
        }
    }

    /// A peer is added.
    pub fn take(&mut self, public_key: &[u8; 32]) -> Timestamp {
        self.received.take(public_key).unwrap_or(NONE)
    }

    /// Another private key is in use; to the peers that makes us somebody else.
    pub fn change_key(&mut self, from: [u8; 32], to: [u8; 32]) {
        if from != to {
            if !self.latest.is_zero() {
                self.sent.raise(from, self.latest);
            }
            self.latest = self.sent.take(&to).unwrap_or_default();
            self.noted = self.latest;
        }
    }
}

/// Values by public key, at most so many: the one that was put in longest ago goes first.
struct Kept<T> {
    most: usize,
    by_key: BTreeMap<[u8; 32], (u64, T)>,
    by_age: BTreeMap<u64, [u8; 32]>,
    next: u64,
}

impl<T: Copy + Ord> Kept<T> {
    fn new(most: usize) -> Self {
        Kept {
            most,
            by_key: BTreeMap::new(),
            by_age: BTreeMap::new(),
            next: 0,
        }
    }

    /// Puts a value in. One that is greater stays.
    fn raise(&mut self, key: [u8; 32], value: T) {
        let value = self.take(&key).map_or(value, |old| old.max(value));
        self.by_key.insert(key, (self.next, value));
        self.by_age.insert(self.next, key);
        self.next += 1;
        while self.by_age.len() > self.most
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.by_key.remove(&oldest);
        }
    }

    fn take(&mut self, key: &[u8; 32]) -> Option<T> {
        let (age, value) = self.by_key.remove(key)?;
        self.by_age.remove(&age);
        Some(value)
    }

    /// The oldest first.
    fn iter(&self) -> impl Iterator<Item = ([u8; 32], T)> + '_ {
        let value = |key: &[u8; 32]| self.by_key.get(key).map(|(_, value)| *value);
        self.by_age
            .values()
            .filter_map(move |key| Some((*key, value(key)?)))
    }
}

impl Node {
    /// Rises when a timestamp is received that is to be remembered, and, for those that are sent, once in a while.
    pub fn timestamps_version(&self) -> u64 {
        self.timestamps.version
    }

    /// The greatest timestamp of each peer, by its public key: first of peers that are not configured, the one that was
    /// removed longest ago before the others.
    pub fn received_timestamps(&self) -> Vec<([u8; 32], [u8; 12])> {
        let peers = self.peers.iter();
        let peers = peers.map(|peer| (peer.settings.public_key, peer.timestamp));
        let peers = peers.filter(|(_, timestamp)| *timestamp != NONE);
        self.timestamps.received.iter().chain(peers).collect()
    }

    /// The greatest timestamp that was sent, to any peer, by our public key: that of the key in use comes last.
    pub fn sent_timestamps(&self) -> Vec<([u8; 32], [u8; 12])> {
        let latest = self.timestamps.latest;
        let latest = (!latest.is_zero()).then(|| (self.public_key(), latest));
        let all = self.timestamps.sent.iter().chain(latest);
        all.map(|(key, sent)| (key, tai64n(sent))).collect()
    }

    /// Goes on from timestamps that another node gave out, in its order; what this one knows to be greater stays.
    ///
    /// What was sent may have been written down a while before it ended. Where the wall clock cannot be trusted to be past that,
    /// because it is behind what was written down, two minutes are left out.
    ///
    /// # Errors
    /// The key whose sent timestamp is none, or lies before 1970; nothing was changed then.
    pub fn restore_timestamps(
        &mut self,
        received: &[([u8; 32], [u8; 12])],
        sent: &[([u8; 32], [u8; 12])],
        now: Instant,
    ) -> Result<(), [u8; 32]> {
        let now = self.advance(now);
        let sent = sent.iter();
        let sent: Vec<_> = sent
            .map(|(key, sent)| Ok((*key, unix_time(*sent).ok_or(*key)?)))
            .collect::<Result<_, [u8; 32]>>()?;
        for (key, timestamp) in received {
            match self.peers.find(key) {
                Some(slot) => {
                    let known = self.peers.get(slot).map_or(NONE, |peer| peer.timestamp);
                    self.set_timestamp(slot, known.max(*timestamp));
                }
                None => self.timestamps.keep(*key, *timestamp),
            }
        }
        let wall_clock = self.unix_time_at(now);
        for (key, timestamp) in sent {
            let margin = match timestamp > wall_clock {
                true => SENT_MARGIN,
                false => Duration::ZERO,
            };
            let timestamp = timestamp.saturating_add(margin);
            if key == self.public_key() {
                self.timestamps.latest = timestamp.max(self.timestamps.latest);
                self.timestamps.noted = self.timestamps.latest;
            } else {
                self.timestamps.sent.raise(key, timestamp);
            }
        }
        for slot in self.peers.slots().collect::<Vec<_>>() {
            if let Some(tunn) = self.peers.get_mut(slot).and_then(|peer| peer.tunn.as_mut()) {
                tunn.send_after(self.timestamps.latest);
            }
        }
        Ok(())
    }

    /// Takes the next initiation of a peer whatever its timestamp, because the peer's clock was wrong: a recorded one, too.
    /// False if there was nothing to forget.
    pub fn forget_timestamp(&mut self, public_key: &[u8; 32]) -> bool {
        let forgotten = match self.peers.find(public_key) {
            Some(slot) => self.set_timestamp(slot, NONE),
            None => self.timestamps.take(public_key) != NONE,
        };
        self.timestamps.version += u64::from(forgotten);
        forgotten
    }

    /// Whether that changed anything.
    fn set_timestamp(&mut self, slot: Slot, timestamp: Timestamp) -> bool {
        let Some(peer) = self.peers.get_mut(slot) else {
            return false;
        };
        if let Some(tunn) = &mut peer.tunn {
            tunn.set_received_timestamp(&timestamp);
        }
        std::mem::replace(&mut peer.timestamp, timestamp) != timestamp
    }

    /// A peer's tunnel was given an initiation.
    pub(super) fn note_received_timestamp(&mut self, slot: Slot) {
        let Some(peer) = self.peers.get_mut(slot) else {
            return;
        };
        let timestamp = peer.tunn.as_ref().map(|tunn| tunn.received_timestamp());
        if let Some(timestamp) = timestamp
            && timestamp > peer.timestamp
        {
            peer.timestamp = timestamp;
            self.timestamps.version += 1;
        }
    }
}
