//! The keys of a tunnel of the laboratory as lines of a WireGuard key log. No real tunnel has one.

use std::collections::VecDeque;
use std::sync::Arc;

use base64ct::{Base64, Encoding};
use parking_lot::Mutex;
use rand_chacha::ChaCha20Rng;
use rand_core::{CryptoRng, Error, RngCore};
use zeroize::Zeroizing;

use crate::key_material::KEY_LEN;

/// Of how many handshakes the keys are kept: those of months, as there is one in two minutes.
const MAX_HANDSHAKES: usize = 65_536;
/// To how many of the last handshakes a new preshared key may apply: those of the states that an engine keeps.
const UNFINISHED: usize = 2;

type Key = [u8; KEY_LEN];

pub struct KeyLog {
    own: Zeroizing<Key>,
    peer: Key,
    preshared: Option<Arc<Zeroizing<Key>>>,
    handshakes: VecDeque<Handshake>,
    is_open: bool,
}

struct Handshake {
    ephemeral: Zeroizing<Key>,
    /// All that may have been mixed in: a handshake begins with one key and may end with another.
    preshared: Vec<Arc<Zeroizing<Key>>>,
}

impl KeyLog {
    pub fn new(own: &Key, peer: &Key, preshared: Option<&Key>) -> Self {
        KeyLog {
            own: Zeroizing::new(*own),
            peer: *peer,
            preshared: preshared.map(|key| Arc::new(Zeroizing::new(*key))),
            handshakes: VecDeque::new(),
            is_open: false,
        }
    }

    /// Write down keys from now on.
    pub fn open(&mut self) {
        self.is_open = true;
    }

    fn add(&mut self, ephemeral: &Key) {
        if self.handshakes.len() == MAX_HANDSHAKES {
            self.handshakes.pop_front();
        }
        self.handshakes.push_back(Handshake {
            ephemeral: Zeroizing::new(*ephemeral),
            preshared: self.preshared.iter().cloned().collect(),
        });
    }

    pub fn set_preshared_key(&mut self, key: Option<&Key>) {
        self.preshared = key.map(|key| Arc::new(Zeroizing::new(*key)));
        if let Some(key) = &self.preshared {
            for handshake in self.handshakes.iter_mut().rev().take(UNFINISHED) {
                if !handshake.preshared.contains(key) {
                    handshake.preshared.push(Arc::clone(key));
                }
            }
        }
    }

    /// A preshared key belongs to the ephemeral key above it.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            line("LOCAL_STATIC_PRIVATE_KEY", &self.own),
            line("REMOTE_STATIC_PUBLIC_KEY", &self.peer),
        ];
        for handshake in &self.handshakes {
            lines.push(line("LOCAL_EPHEMERAL_PRIVATE_KEY", &handshake.ephemeral));
            let preshared = handshake.preshared.iter();
            lines.extend(preshared.map(|key| line("PRESHARED_KEY", key)));
        }
        lines
    }
}

fn line(name: &str, key: &Key) -> String {
    format!("{name} = {}", Base64::encode_string(key))
}

/// A generator that writes down what is drawn as an ephemeral key, which is all that is drawn 32 bytes at a time.
pub struct Recorder {
    rng: ChaCha20Rng,
    log: Arc<Mutex<KeyLog>>,
}

impl Recorder {
    pub fn new(rng: ChaCha20Rng, log: &Arc<Mutex<KeyLog>>) -> Self {
        Recorder {
            rng,
            log: Arc::clone(log),
        }
    }

    fn note(&self, drawn: &[u8]) {
        if let Ok(key) = drawn.try_into() {
            let mut log = self.log.lock();
            if log.is_open {
                log.add(key);
            }
        }
    }
}

impl RngCore for Recorder {
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

impl CryptoRng for Recorder {}
