//! Whether the library computes what it should, here and now: vectors of RFC 8439, and what ring makes of the same.

use std::sync::Arc;

use super::{IpsecMb, Work};
use crate::batch::{Batch, MOST};
use crate::engine::{Direction, Engine};
use crate::key::{Failed, KEY_LEN, Key, TAG_LEN};

/// RFC 8439, section 2.8.2.
const TEXT: &[u8; 114] =
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
sunscreen would be it.";
const NONCE: [u8; 12] = [7, 0, 0, 0, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47];
const AAD: [u8; 12] = [
    0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7,
];
const SEALED_START: [u8; 16] = [
    0xd3, 0x1a, 0x8d, 0x34, 0x64, 0x8e, 0x60, 0xdb, 0x7b, 0x86, 0xaf, 0xbc, 0x53, 0xef, 0x7e, 0xc2,
];
const TAG: [u8; TAG_LEN] = [
    0x1a, 0xe1, 0x0b, 0x59, 0x4f, 0x09, 0xe2, 0x6a, 0x7e, 0x90, 0x2e, 0xcb, 0xd0, 0x60, 0x06, 0x91,
];

/// Lengths about the cipher's blocks of 64 bytes, the authenticator's of 16, and the widths in which code comes.
const LENGTHS: [usize; 24] = [
    0, 1, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 192, 255, 256, 257, 512, 576, 1024, 1025,
    1280, 1420, 2048, 8920,
];

pub(super) fn run(library: &mut IpsecMb) -> Result<(), Failed> {
    vector(library)?;
    against_ring(library)
}

fn ensure(holds: bool) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(Failed) }
}

fn vector(library: &mut IpsecMb) -> Result<(), Failed> {
    let mut key = [0; KEY_LEN];
    for (byte, value) in key.iter_mut().zip(0x80..) {
        *byte = value;
    }
    let mut buffer = [0; TEXT.len() + TAG_LEN];
    for (place, byte) in buffer.iter_mut().zip(TEXT) {
        *place = *byte;
    }
    let mut once = |direction, buffer: &mut [u8]| {
        let work = Work {
            key: &key,
            nonce: NONCE,
            aad: &AAD,
            start: 0,
            text: TEXT.len(),
        };
        let mut done = [false; MOST];
        library.burst(direction, std::iter::once(Some(work)), buffer, &mut done)?;
        Ok(done.first() == Some(&true))
    };
    ensure(once(Direction::Seal, &mut buffer)?)?;
    ensure(buffer.starts_with(&SEALED_START) && buffer.ends_with(&TAG))?;
    let sealed = buffer;
    ensure(once(Direction::Open, &mut buffer)?)?;
    ensure(buffer.starts_with(TEXT))?;
    // The first bit counts, and the last.
    let mut forged = sealed;
    forged.iter_mut().take(1).for_each(|byte| *byte ^= 0x80);
    ensure(!once(Direction::Open, &mut forged)?)?;
    let mut forged = sealed;
    forged.iter_mut().rev().take(1).for_each(|byte| *byte ^= 1);
    ensure(!once(Direction::Open, &mut forged)?)
}

fn against_ring(library: &mut IpsecMb) -> Result<(), Failed> {
    let one = Arc::new(Key::new(&[3; KEY_LEN])?);
    let other = Arc::new(Key::new(&[0xc5; KEY_LEN])?);
    let size = LENGTHS.iter().map(|length| length + TAG_LEN).sum::<usize>();
    let text: Vec<u8> = (0..size).map(|n| (n * 7 + n / 251) as u8).collect();
    let mut batch = Batch::default();
    let mut end = 0;
    for (number, length) in LENGTHS.iter().enumerate() {
        let start = end;
        end += length + TAG_LEN;
        // Of the counter's eight bytes, all are used.
        let counter = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let key = if number % 3 == 0 { &one } else { &other };
        batch.push(key, counter, start..end);
    }
    let mut expected = text.clone();
    Engine::Ring.seal(&mut batch, &mut expected);
    let mut sealed = text.clone();
    let mut run = |direction, buffer: &mut [u8], batch: &mut Batch| {
        let (keys, mut all) = batch.checked(buffer);
        library.run(direction, keys, &mut all)
    };
    run(Direction::Seal, &mut sealed, &mut batch)?;
    ensure(sealed == expected)?;
    let mut opened = sealed.clone();
    run(Direction::Open, &mut opened, &mut batch)?;
    ensure((0..LENGTHS.len()).all(|number| batch.succeeded(number)))?;
    Engine::Ring.open(&mut batch, &mut expected);
    ensure(opened == expected)
}
