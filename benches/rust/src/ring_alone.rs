//! ChaCha20-Poly1305 from ring and nothing else: what any engine over ring can reach at most.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::Failure;
use crate::workload::{BATCH, Engine, complete, packet};

/// Room before a packet for WireGuard's header and behind it for padding and tag, so that the packets lie in memory as they
/// do for the engine that seals in place: where they cross cache lines counts for a per cent or two.
const HEADER: usize = 16;
const TRAILER: usize = 32;
const TAG: usize = 16;

pub struct Ring {
    key: LessSafeKey,
    /// Number of the batch's first message.
    counter: u64,
    size: usize,
    buffers: Vec<Vec<u8>>,
}

impl Ring {
    pub fn new(size: usize) -> Result<Self, Failure> {
        let key =
            UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).map_err(|_| "ring refused a key")?;
        let mut buffer = vec![0; HEADER];
        buffer.extend(packet(size));
        buffer.extend([0; TRAILER]);
        Ok(Ring {
            key: LessSafeKey::new(key),
            counter: 0,
            size,
            buffers: vec![buffer; BATCH],
        })
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

impl Engine for Ring {
    fn seal(&mut self) -> Result<(), Failure> {
        let end = HEADER + self.size;
        for (counter, buffer) in (self.counter..).zip(&mut self.buffers) {
            let tag = self
                .key
                .seal_in_place_separate_tag(nonce(counter), Aad::empty(), &mut buffer[HEADER..end])
                .map_err(|_| "ring could not seal")?;
            buffer[end..end + TAG].copy_from_slice(tag.as_ref());
        }
        Ok(())
    }

    fn open(&mut self) -> Result<(), Failure> {
        let end = HEADER + self.size + TAG;
        let mut opened = 0;
        for (counter, buffer) in (self.counter..).zip(&mut self.buffers) {
            self.key
                .open_in_place(nonce(counter), Aad::empty(), &mut buffer[HEADER..end])
                .map_err(|_| "ring could not open")?;
            opened += 1;
        }
        self.counter += BATCH as u64;
        complete(opened)
    }
}
