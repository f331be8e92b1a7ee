//! One key, and one message at a time.

use std::fmt;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

pub const KEY_LEN: usize = 32;

/// What sealing adds to a message.
pub const TAG_LEN: usize = 16;

/// A message was not sealed or opened. An opened one is forged, or was sealed with another key or counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

/// A key. Its bytes are wiped when it is dropped; ring's form of it is wiped by whoever wipes the heap, as for every key of
/// ring's.
pub struct Key {
    #[cfg_attr(
        not(all(target_arch = "x86_64", unix)),
        allow(dead_code, reason = "for what is not there")
    )]
    bytes: Zeroizing<[u8; KEY_LEN]>,
    ring: LessSafeKey,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(<redacted>)")
    }
}

/// The nonce of a message: its counter, little-endian, behind four zeros (WireGuard, section 5.4.6).
#[inline]
pub(crate) fn nonce(counter: u64) -> [u8; NONCE_LEN] {
    let [a, b, c, d, e, f, g, h] = counter.to_le_bytes();
    [0, 0, 0, 0, a, b, c, d, e, f, g, h]
}

impl Key {
    /// # Errors
    /// None that ring has a reason for: the length is right.
    pub fn new(bytes: &[u8; KEY_LEN]) -> Result<Self, Failed> {
        let ring = UnboundKey::new(&CHACHA20_POLY1305, bytes).map_err(|_| Failed)?;
        Ok(Key {
            bytes: Zeroizing::new(*bytes),
            ring: LessSafeKey::new(ring),
        })
    }

    #[cfg_attr(
        not(all(target_arch = "x86_64", unix)),
        allow(dead_code, reason = "for what is not there")
    )]
    pub(crate) fn bytes(&self) -> &[u8; KEY_LEN] {
        &self.bytes
    }

    /// Seals a message where it stands. Its last 16 bytes become the tag. A counter serves one message of a key.
    ///
    /// # Errors
    /// It is shorter than a tag, or longer than the cipher allows (256 GiB). Nothing was done.
    #[inline]
    pub fn seal(&self, counter: u64, message: &mut [u8]) -> Result<(), Failed> {
        let (text, tag) = message.split_last_chunk_mut::<TAG_LEN>().ok_or(Failed)?;
        let nonce = Nonce::assume_unique_for_key(nonce(counter));
        let made = self
            .ring
            .seal_in_place_separate_tag(nonce, Aad::empty(), text)
            .map_err(|_| Failed)?;
        tag.copy_from_slice(made.as_ref());
        Ok(())
    }

    /// Opens a message where it stands, and returns its length without the tag.
    ///
    /// # Errors
    /// It is not authentic; nothing of it is left in the buffer.
    #[inline]
    pub fn open(&self, counter: u64, message: &mut [u8]) -> Result<usize, Failed> {
        let nonce = Nonce::assume_unique_for_key(nonce(counter));
        let opened = self.ring.open_in_place(nonce, Aad::empty(), message);
        let opened = opened.map(|text| text.len());
        opened.map_err(|_| {
            message.fill(0);
            Failed
        })
    }
}
