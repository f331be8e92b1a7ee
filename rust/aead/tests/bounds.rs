//! The library reads and writes nothing beyond the buffer: it lies between pages that nobody may touch.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod common;

use std::ptr;
use std::sync::Arc;

use connlib_aead::{Batch, Engine, Key, TAG_LEN};

const PAGE: usize = 4096;

/// Memory with a page before and one behind it that cannot be read or written.
struct Fenced {
    start: *mut u8,
    pages: usize,
}

impl Fenced {
    fn new(pages: usize) -> Self {
        let size = (pages + 2) * PAGE;
        let (flags, none) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_NONE);
        // SAFETY: new memory, where the system wants it.
        let mapped = unsafe { libc::mmap(ptr::null_mut(), size, none, flags, -1, 0) };
        assert_ne!(mapped, libc::MAP_FAILED);
        // SAFETY: the first page of what was mapped is followed by others.
        let start = unsafe { mapped.cast::<u8>().add(PAGE) };
        let both = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: these pages are ours.
        let opened = unsafe { libc::mprotect(start.cast(), pages * PAGE, both) };
        assert_eq!(opened, 0);
        Fenced { start, pages }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: so many bytes are mapped there, initialised to zeros, and nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.pages * PAGE) }
    }
}

impl Drop for Fenced {
    fn drop(&mut self) {
        // SAFETY: it was mapped so, and is not used any more.
        unsafe { libc::munmap(self.start.sub(PAGE).cast(), (self.pages + 2) * PAGE) };
    }
}

fn check(engine: &mut Engine, key: &Arc<Key>, fenced: &mut [u8], length: usize) {
    let mut batch = Batch::default();
    batch.push(key, length as u64, 0..length + TAG_LEN);
    fenced.fill(0x5a);
    engine.seal(&mut batch, fenced);
    engine.open(&mut batch, fenced);
    assert!(
        batch
            .text(0, fenced)
            .is_some_and(|text| text.iter().all(|byte| *byte == 0x5a))
    );
}

#[test]
fn nothing_before_or_behind_the_buffer_is_touched() {
    let Some(mut engine) = common::ipsec_mb() else {
        return;
    };
    let mut memory = Fenced::new(3);
    let key = Arc::new(Key::new(&[9; 32]).unwrap());
    for length in (0..2_200).chain(8_900..8_940) {
        let size = length + TAG_LEN;
        let bytes = memory.bytes();
        check(&mut engine, &key, &mut bytes[..size], length);
        let end = bytes.len() - size;
        check(&mut engine, &key, &mut bytes[end..], length);
    }
    assert_eq!(engine.name(), "ipsec-mb");
}
