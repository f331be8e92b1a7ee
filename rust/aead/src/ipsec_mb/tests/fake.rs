//! A library of ours, behind the functions of intel-ipsec-mb, that computes with ring and can be made to fail. Each thread has
//! one.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::ptr;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::super::Functions;
use super::super::layout::{self, Burst, Job};

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// It gets no memory.
    NoMemory,
    /// Its table of functions is empty.
    NoFunctions,
    /// It has no free job.
    NoneFree,
    /// It never completes anything.
    Nothing,
    /// It completes the first half.
    Half,
    /// It gives every job back as invalid.
    Invalid,
    /// It flips a bit of what it writes.
    WrongText,
    /// It flips a bit of each tag.
    WrongTag,
    /// Nothing is wrong: most jobs are done when they are flushed, last ones first.
    Late,
}

const JOBS: usize = 64;
const MANAGER: Layout = Layout::new::<[u64; 200]>();

struct Fake {
    fault: Fault,
    version: u32,
    features: u64,
    allocated: isize,
    seen: usize,
    jobs: Vec<Job>,
    ahead: Vec<*mut Job>,
}

thread_local! {
    static FAKE: RefCell<Fake> = const {
        RefCell::new(Fake {
            fault: Fault::None,
            version: 0,
            features: 0,
            allocated: 0,
            seen: 0,
            jobs: Vec::new(),
            ahead: Vec::new(),
        })
    };
}

pub fn reset(fault: Fault) {
    FAKE.with_borrow_mut(|fake| {
        *fake = Fake {
            fault,
            version: 0x10300,
            features: layout::SAFE_DATA | layout::SELF_TEST | layout::SELF_TEST_PASS,
            allocated: 0,
            seen: 0,
            // SAFETY: a job of numbers and pointers may be all zeros.
            jobs: (0..JOBS).map(|_| unsafe { std::mem::zeroed() }).collect(),
            ahead: Vec::new(),
        }
    });
}

pub fn set_fault(fault: Fault) {
    FAKE.with_borrow_mut(|fake| fake.fault = fault);
}

pub fn set_version(version: u32) {
    FAKE.with_borrow_mut(|fake| fake.version = version);
}

pub fn set_features(features: u64) {
    FAKE.with_borrow_mut(|fake| fake.features = features);
}

pub fn allocated() -> isize {
    FAKE.with_borrow(|fake| fake.allocated)
}

pub fn jobs_seen() -> usize {
    FAKE.with_borrow(|fake| fake.seen)
}

/// How many jobs point to keys.
pub fn key_pointers() -> usize {
    FAKE.with_borrow(|fake| {
        let points = |job: &&Job| !job.enc_keys.is_null() || !job.dec_keys.is_null();
        fake.jobs.iter().filter(points).count()
    })
}

pub fn functions() -> Functions {
    Functions {
        version,
        alloc,
        init,
        free,
    }
}

unsafe extern "C" fn version() -> u32 {
    FAKE.with_borrow(|fake| fake.version)
}

unsafe extern "C" fn alloc(_: u64) -> *mut c_void {
    FAKE.with_borrow_mut(|fake| {
        if fake.fault == Fault::NoMemory {
            return ptr::null_mut();
        }
        fake.allocated += 1;
        // SAFETY: the layout is not empty.
        unsafe { alloc_zeroed(MANAGER) }.cast()
    })
}

unsafe extern "C" fn free(manager: *mut c_void) {
    FAKE.with_borrow_mut(|fake| fake.allocated -= 1);
    // SAFETY: `alloc` gave it.
    unsafe { dealloc(manager.cast(), MANAGER) };
}

unsafe extern "C" fn init(manager: *mut c_void, _: *mut c_int) {
    FAKE.with_borrow(|fake| {
        // SAFETY: `alloc` gave so much memory, aligned to eight bytes.
        unsafe {
            manager
                .byte_add(layout::FEATURES)
                .cast::<u64>()
                .write(fake.features);
            manager
                .byte_add(layout::USED_ARCH)
                .cast::<u32>()
                .write(layout::ARCH_AVX512);
        }
        if fake.fault != Fault::NoFunctions {
            let table: [(usize, Burst); 3] = [
                (layout::GET_NEXT_BURST, get_next_burst),
                (layout::SUBMIT_BURST, submit_burst),
                (layout::FLUSH_BURST, flush_burst),
            ];
            for (offset, function) in table {
                // SAFETY: as above.
                unsafe { manager.byte_add(offset).cast::<Burst>().write(function) };
            }
        }
    });
}

unsafe extern "C" fn get_next_burst(_: *mut c_void, count: u32, jobs: *mut *mut Job) -> u32 {
    FAKE.with_borrow_mut(|fake| {
        if fake.fault == Fault::NoneFree {
            return 0;
        }
        let count = (count as usize).min(fake.jobs.len());
        for (place, job) in fake.jobs.iter_mut().take(count).enumerate() {
            // SAFETY: the caller has room for `count` pointers.
            unsafe { jobs.add(place).write(job) };
        }
        count as u32
    })
}

unsafe extern "C" fn submit_burst(_: *mut c_void, count: u32, jobs: *mut *mut Job) -> u32 {
    FAKE.with_borrow_mut(|fake| {
        fake.seen += count as usize;
        // SAFETY: the caller gives `count` jobs.
        let given: Vec<*mut Job> = (0..count as usize)
            .map(|place| unsafe { jobs.add(place).read() })
            .collect();
        let now = match fake.fault {
            Fault::Nothing => 0,
            Fault::Half => given.len() / 2,
            Fault::Late => given.len().min(3),
            _ => given.len(),
        };
        for (place, job) in given.iter().take(now).enumerate() {
            // SAFETY: the caller's job, and room for as many pointers as it gave.
            unsafe {
                work(&mut **job, fake.fault);
                jobs.add(place).write(*job);
            }
        }
        fake.ahead = given[now..].to_vec();
        now as u32
    })
}

unsafe extern "C" fn flush_burst(_: *mut c_void, count: u32, jobs: *mut *mut Job) -> u32 {
    FAKE.with_borrow_mut(|fake| {
        if matches!(fake.fault, Fault::Nothing | Fault::Half) {
            return 0;
        }
        let mut done = 0;
        // A few at a time.
        while done < (count as usize).min(5)
            && let Some(job) = fake.ahead.pop()
        {
            // SAFETY: a job that was submitted, and room for `count` pointers.
            unsafe {
                work(&mut *job, fake.fault);
                jobs.add(done).write(job);
            }
            done += 1;
        }
        done as u32
    })
}

/// # Safety
/// The job's pointers are valid for its lengths.
unsafe fn work(job: &mut Job, fault: Fault) {
    if fault == Fault::Invalid {
        job.status = 4;
        return;
    }
    assert_eq!((job.cipher_mode, job.hash_alg), (19, 29));
    assert_eq!((job.key_len_in_bytes, job.iv_len_in_bytes), (32, 12));
    assert_eq!(job.src, job.dst.cast_const());
    assert_eq!(job.msg_len_to_cipher_in_bytes, job.msg_len_to_hash_in_bytes);
    let length = job.msg_len_to_cipher_in_bytes as usize;
    // SAFETY: as the caller says.
    let (key, nonce, aad, text, tag) = unsafe {
        (
            std::slice::from_raw_parts(job.enc_keys.cast::<u8>(), 32),
            job.iv.cast::<[u8; 12]>().read(),
            std::slice::from_raw_parts(job.aad.cast::<u8>(), job.aad_len_in_bytes as usize),
            std::slice::from_raw_parts_mut(job.dst, length),
            std::slice::from_raw_parts_mut(job.auth_tag_output, 16),
        )
    };
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).unwrap());
    let seal = |text: &mut [u8]| {
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_separate_tag(nonce, Aad::from(aad), text)
            .unwrap()
    };
    match (job.cipher_direction, job.chain_order) {
        (1, 1) => tag.copy_from_slice(seal(text).as_ref()),
        (2, 2) => {
            // To seal a ciphertext is to decrypt it, and what comes of it sealed again has its tag.
            let _ = seal(text);
            tag.copy_from_slice(seal(&mut text.to_vec()).as_ref());
        }
        other => panic!("no direction: {other:?}"),
    }
    match fault {
        Fault::WrongText => text.iter_mut().for_each(|byte| *byte ^= 1),
        Fault::WrongTag => tag[15] ^= 0x80,
        _ => {}
    }
    job.status = layout::COMPLETED;
}
