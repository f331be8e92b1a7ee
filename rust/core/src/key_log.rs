//! The keys of handshakes, kept for whoever is to decrypt a capture of them.

use std::collections::VecDeque;
use std::sync::Arc;

use rand_core::{CryptoRng, Error, RngCore};

use crate::Secret;

/// Of how many handshakes the keys are kept: with one peer those of months, as there is one in two minutes.
const MAX_HANDSHAKES: usize = 65_536;
/// To how many of a peer's last handshakes a new preshared key may apply: those of the states that an engine keeps.
const UNFINISHED: usize = 2;

/// What one end knew of a handshake. With it, and what was sent, everything of the session can be read.
pub struct HandshakeKeys {
    /// The static private key of this end.
    pub own: Secret,
    /// The peer's public key.
    pub peer: [u8; 32],
    /// The ephemeral private key of this end.
    pub ephemeral: Secret,
    /// All that may have been mixed in: a handshake begins with one key and may end with another.
    pub preshared: Vec<Arc<Secret>>,
}

/// The keys of handshakes that began or were answered, the oldest first; of too many the oldest are forgotten.
///
/// Each lies in a place of its own, so that a queue that grows leaves no copies, and is wiped when it is dropped.
#[derive(Default)]
pub struct KeyLog {
    handshakes: VecDeque<Box<HandshakeKeys>>,
}

impl KeyLog {
    pub fn add(&mut self, keys: HandshakeKeys) {
        if self.handshakes.len() == MAX_HANDSHAKES {
            self.handshakes.pop_front();
        }
        self.handshakes.push_back(Box::new(keys));
    }

    /// From here on a peer has another preshared key. Its handshakes that are not complete may end with it.
    pub fn add_preshared(&mut self, peer: &[u8; 32], key: &Secret) {
        let key = Arc::new(key.clone());
        let handshakes = self.handshakes.iter_mut().rev();
        let of_the_peer = handshakes.filter(|keys| keys.peer == *peer);
        for keys in of_the_peer.take(UNFINISHED) {
            if !keys.preshared.contains(&key) {
                keys.preshared.push(Arc::clone(&key));
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &HandshakeKeys> {
        self.handshakes.iter().map(Box::as_ref)
    }
}

/// A generator that tells of what is drawn as an ephemeral key, which is all that a tunnel draws 32 bytes at a time.
pub struct Noting<R, F> {
    rng: R,
    note: F,
}

impl<R: RngCore, F: FnMut(&[u8; 32])> Noting<R, F> {
    pub fn new(rng: R, note: F) -> Self {
        Noting { rng, note }
    }

    fn note(&mut self, drawn: &[u8]) {
        if let Ok(key) = drawn.try_into() {
            (self.note)(key);
        }
    }
}

impl<R: RngCore, F: FnMut(&[u8; 32])> RngCore for Noting<R, F> {
    fn next_u32(&mut self) -> u32 {
        self.rng.next_u32()
    }

    fn next_u64(&mut self) -> u64 {
        self.rng.next_u64()
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        self.rng.fill_bytes(bytes);
        self.note(bytes);
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.rng.try_fill_bytes(bytes)?;
        self.note(bytes);
        Ok(())
    }
}

impl<R: CryptoRng + RngCore, F: FnMut(&[u8; 32])> CryptoRng for Noting<R, F> {}
