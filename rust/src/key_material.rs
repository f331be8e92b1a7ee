//! 32 bytes and their base64, without copies of a secret that nobody erases.

use base64ct::{Base64, Encoding};
use connlib_core::Packets;
use pyo3::prelude::*;
use rand_core::{OsRng, RngCore};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::arguments::Data;
use crate::errors;

pub const KEY_LEN: usize = 32;
const BASE64_LEN: usize = 44;

/// A secret in one place of the heap: moving the owner copies a pointer, and dropping it erases the bytes.
pub struct Secret(Box<Zeroizing<[u8; KEY_LEN]>>);

impl Secret {
    fn empty() -> Self {
        Secret(Box::new(Zeroizing::new([0; KEY_LEN])))
    }

    /// From the randomness of the operating system.
    pub fn generate() -> PyResult<Self> {
        let mut secret = Secret::empty();
        OsRng
            .try_fill_bytes(secret.0.as_mut_slice())
            .map_err(|error| pyo3::exceptions::PyOSError::new_err(error.to_string()))?;
        Ok(secret)
    }

    /// As `wg genkey` does it (paper, section 5.4; RFC 7748, section 5).
    pub fn clamped(mut self) -> Self {
        self.0[0] &= 248;
        self.0[KEY_LEN - 1] &= 127;
        self.0[KEY_LEN - 1] |= 64;
        self
    }

    pub fn from_base64(text: &str, class: &str) -> PyResult<Self> {
        let mut secret = Secret::empty();
        decode(text, secret.0.as_mut_slice(), class)?;
        Ok(secret)
    }

    pub fn from_data(data: &Data<'_>, class: &str) -> PyResult<Self> {
        let mut secret = Secret::empty();
        secret.0.copy_from_slice(exactly(data, class)?);
        Ok(secret)
    }

    pub fn bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// A copy that the engine owns and erases.
    pub fn to_engine(&self) -> connlib_core::Secret {
        Zeroizing::new(*self.bytes())
    }

    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(Base64::encode_string(self.bytes()))
    }
}

impl PartialEq for Secret {
    /// In constant time.
    fn eq(&self, other: &Self) -> bool {
        self.bytes().ct_eq(other.bytes()).into()
    }
}

/// More than the frames of a handshake and of a constructor take.
const STACK_BYTES: usize = 1 << 16;

/// Run something that handles secrets by value, then erase what its frames left on the stack. What it returns should hold
/// secrets behind pointers only.
#[inline(never)]
pub fn without_a_trace<R>(call: impl FnOnce() -> R) -> R {
    let result = framed(call);
    wipe_stack();
    result
}

/// The same for what handles secrets only sometimes, which its result tells: erasing takes longer than sealing a packet.
#[inline(never)]
pub fn without_a_trace_if<R>(
    call: impl FnOnce() -> R,
    handled_secrets: impl FnOnce(&R) -> bool,
) -> R {
    let result = framed(call);
    if handled_secrets(&result) {
        wipe_stack();
    }
    result
}

/// Its frames lie where those of `wipe_stack` come to lie.
#[inline(never)]
fn framed<R>(call: impl FnOnce() -> R) -> R {
    call()
}

#[inline(never)]
fn wipe_stack() {
    // Nobody reads it, which is why it would be optimised away.
    std::hint::black_box([0u8; STACK_BYTES]);
}

/// Whether a datagram has the form of a message whose processing computes with the static key.
pub fn is_handshake(datagram: &[u8]) -> bool {
    matches!(
        (datagram.first(), datagram.len()),
        (Some(1), 148) | (Some(2), 92)
    )
}

/// Whether a handshake message is among the datagrams behind the first `before`, which have `bytes_before` bytes: making
/// one computes with keys.
pub fn has_handshake(datagrams: &Packets, (before, bytes_before): (usize, usize)) -> bool {
    let mut rest = datagrams.bytes.get(bytes_before..).unwrap_or_default();
    let lengths = datagrams.lengths.get(before..).unwrap_or_default();
    lengths.iter().any(|&length| {
        let (datagram, tail) = rest.split_at_checked(length).unwrap_or_default();
        rest = tail;
        is_handshake(datagram)
    })
}

/// The 32 bytes of `data`.
pub fn exactly<'a>(data: &'a Data<'_>, class: &str) -> PyResult<&'a [u8; KEY_LEN]> {
    let bytes = data.bytes();
    bytes.try_into().map_err(|_| {
        errors::key_format(format!("a {class} is {KEY_LEN} bytes, not {}", bytes.len()))
    })
}

/// Strict, as `wg` is: padded, without white space, without stray bits; in constant time for a given length.
pub fn decode(text: &str, key: &mut [u8], class: &str) -> PyResult<()> {
    let length = text.chars().count();
    if length != BASE64_LEN {
        return Err(errors::key_format(format!(
            "a {class} is {BASE64_LEN} characters of base64, not {length}"
        )));
    }
    match Base64::decode(text, key) {
        Ok(decoded) if decoded.len() == KEY_LEN => Ok(()),
        _ => Err(errors::key_format(format!(
            "this {class} is not the base64 of {KEY_LEN} bytes"
        ))),
    }
}
