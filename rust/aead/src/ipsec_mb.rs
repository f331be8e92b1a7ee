//! Batches by intel-ipsec-mb, which has several packets in flight at once. It is opened at run time, if it is there.
//!
//! The library is C: what it is given are pointers into the caller's buffer, to keys and to places for tags, and it gives back
//! which of its jobs are done. All of that happens within one call of [`IpsecMb::run`]. The pointers to keys are cleared there;
//! the others stay in its jobs, each of which is written anew before it is used again.

mod layout;
mod self_test;
#[cfg(test)]
mod tests;

use std::ffi::c_void;
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::{Arc, OnceLock};

use libloading::Library;
use subtle::ConstantTimeEq;

use crate::batch::{MOST, Part};
use crate::engine::Direction;
use crate::key::{Failed, KEY_LEN, Key, TAG_LEN, nonce};
use layout::{Alloc, Burst, Free, Init, Job, Version};

/// As the dynamic linker finds it.
const SONAME: &str = "libIPSec_MB.so.1";

/// Why intel-ipsec-mb is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The linker does not find it, or cannot load it.
    NotThere,
    /// It lacks a function.
    NoFunction(&'static str),
    /// It is another version than those whose memory we know: major, minor, patch.
    Version(u32, u32, u32),
    /// It gave no memory.
    NoMemory,
    /// It leaves secrets behind.
    Careless,
    /// It computes something wrong.
    Wrong,
}

impl Refusal {
    /// What is to be done about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Refusal::NotThere | Refusal::NoFunction(_) | Refusal::Version(..) => {
                "install intel-ipsec-mb 1.3 (on Debian: libipsec-mb1), or use ring"
            }
            Refusal::Careless => "build it with SAFE_DATA=y, or use ring",
            Refusal::NoMemory | Refusal::Wrong => "use ring",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SONAME} ")?;
        match self {
            Refusal::NotThere => f.write_str("cannot be loaded"),
            Refusal::NoFunction(name) => write!(f, "has no function {name}"),
            Refusal::Version(major, minor, patch) => {
                write!(f, "is of version {major}.{minor}.{patch}")
            }
            Refusal::NoMemory => f.write_str("got no memory"),
            Refusal::Careless => f.write_str("was built to leave secrets in memory"),
            Refusal::Wrong => f.write_str("has failed its self-test on this processor"),
        }
    }
}

impl std::error::Error for Refusal {}

/// The library's functions that have names.
#[derive(Clone, Copy)]
struct Functions {
    version: Version,
    alloc: Alloc,
    init: Init,
    free: Free,
}

impl Functions {
    /// Those of the library, which is opened once and stays.
    fn get() -> Result<Self, Refusal> {
        static FUNCTIONS: OnceLock<Result<Functions, Refusal>> = OnceLock::new();
        FUNCTIONS
            .get_or_init(|| Functions::open(SONAME.as_ref()))
            .clone()
    }

    fn open(name: &std::ffi::OsStr) -> Result<Self, Refusal> {
        // SAFETY: code of the library runs as it is loaded. It is what the system's administrator has installed under this
        // name, as trustworthy as every library that the process is linked with.
        let library = unsafe { Library::new(name) }.map_err(|_| Refusal::NotThere)?;
        fn find<T: Copy>(library: &Library, name: &'static str) -> Result<T, Refusal> {
            // SAFETY: the header declares the functions of these names with these types, in every version that there is.
            let found = unsafe { library.get::<T>(name.as_bytes()) };
            found
                .map(|function| *function)
                .map_err(|_| Refusal::NoFunction(name))
        }
        let functions = Functions {
            version: find(&library, "imb_get_version")?,
            alloc: find(&library, "alloc_mb_mgr")?,
            init: find(&library, "init_mb_mgr_auto")?,
            free: find(&library, "free_mb_mgr")?,
        };
        // It stays loaded: the functions are called for as long as the process lives.
        std::mem::forget(library);
        Ok(functions)
    }
}

/// A message as the library sees it.
struct Work<'a> {
    key: &'a [u8; KEY_LEN],
    nonce: [u8; 12],
    aad: &'a [u8],
    /// Where in the buffer its text begins, and how long it is; its tag lies behind.
    start: usize,
    text: usize,
}

/// A manager of jobs of the library's.
pub struct IpsecMb {
    /// `IMB_MGR`. Nobody else has it.
    manager: NonNull<c_void>,
    free: Free,
    get_next_burst: Burst,
    submit_burst: Burst,
    flush_burst: Burst,
    arch: u32,
}

// SAFETY: the manager is plain memory that belongs to no thread, and only the owner calls the library with it.
unsafe impl Send for IpsecMb {}

impl fmt::Debug for IpsecMb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IpsecMb")
    }
}

impl Drop for IpsecMb {
    fn drop(&mut self) {
        // SAFETY: it came from the library's `alloc_mb_mgr`, and is not used any more.
        unsafe { (self.free)(self.manager.as_ptr()) };
    }
}

impl IpsecMb {
    /// # Errors
    /// Why it cannot be used.
    pub fn new() -> Result<Self, Refusal> {
        IpsecMb::with(Functions::get()?)
    }

    fn with(functions: Functions) -> Result<Self, Refusal> {
        // SAFETY: it takes nothing, and reads a constant.
        let version = unsafe { (functions.version)() };
        if !layout::VERSIONS.contains(&version) {
            let [_, major, minor, patch] = version.to_be_bytes().map(u32::from);
            return Err(Refusal::Version(major, minor, patch));
        }
        // SAFETY: no flag is set. Null says that there is no memory.
        let manager = NonNull::new(unsafe { (functions.alloc)(0) }).ok_or(Refusal::NoMemory)?;
        // SAFETY: the manager is fresh, and where the name of the processor's kind would go may be null.
        unsafe { (functions.init)(manager.as_ptr(), ptr::null_mut()) };
        // SAFETY: a manager of this version has these fields there, aligned, and they were set by `init`. Function pointers
        // of C are null or valid, as is an option of Rust's.
        let (features, arch, get_next_burst, submit_burst, flush_burst) = unsafe {
            (
                read::<u64>(manager, layout::FEATURES),
                read::<u32>(manager, layout::USED_ARCH),
                read::<Option<Burst>>(manager, layout::GET_NEXT_BURST),
                read::<Option<Burst>>(manager, layout::SUBMIT_BURST),
                read::<Option<Burst>>(manager, layout::FLUSH_BURST),
            )
        };
        let (Some(get_next_burst), Some(submit_burst), Some(flush_burst)) =
            (get_next_burst, submit_burst, flush_burst)
        else {
            // SAFETY: it came from the library's `alloc_mb_mgr`, and is not used any more.
            unsafe { (functions.free)(manager.as_ptr()) };
            return Err(Refusal::Wrong);
        };
        let mut library = IpsecMb {
            manager,
            free: functions.free,
            get_next_burst,
            submit_burst,
            flush_burst,
            arch,
        };
        if features & layout::SAFE_DATA == 0 {
            return Err(Refusal::Careless);
        }
        let has_failed =
            features & layout::SELF_TEST != 0 && features & layout::SELF_TEST_PASS == 0;
        if has_failed || self_test::run(&mut library).is_err() {
            return Err(Refusal::Wrong);
        }
        Ok(library)
    }

    /// Whether it works with AVX-512.
    pub fn uses_avx512(&self) -> bool {
        self.arch == layout::ARCH_AVX512
    }

    /// Seals or opens what has not failed yet, and notes what fails.
    ///
    /// # Errors
    /// The library did not do what it was asked for. Whatever was not done has failed.
    pub(crate) fn run(
        &mut self,
        direction: Direction,
        keys: &[Arc<Key>],
        part: &mut Part<'_>,
    ) -> Result<(), Failed> {
        let mut result = Ok(());
        for messages in part.messages.chunks_mut(MOST) {
            let work = messages.iter().map(|message| {
                let key = keys.get(message.key).filter(|_| !message.failed)?;
                Some(Work {
                    key: key.bytes(),
                    nonce: nonce(message.counter),
                    aad: &[],
                    start: message.place(part.start)?.start,
                    text: message.range.len().checked_sub(TAG_LEN)?,
                })
            });
            let mut done = [false; MOST];
            if result.is_ok() {
                result = self.burst(direction, work, part.bytes, &mut done);
            }
            for (message, done) in messages.iter_mut().zip(done) {
                message.failed |= !done;
            }
        }
        result
    }

    /// Seals or opens `MOST` messages at most, and says which of them it did. None is left out but those that are `None` or
    /// lie outside of the buffer.
    fn burst<'a>(
        &mut self,
        direction: Direction,
        work: impl Iterator<Item = Option<Work<'a>>>,
        buffer: &mut [u8],
        done: &mut [bool; MOST],
    ) -> Result<(), Failed> {
        let room = buffer.len();
        let mut work = work.take(MOST).enumerate().filter_map(|(number, work)| {
            let work = work?;
            let end = work.start.checked_add(work.text)?.checked_add(TAG_LEN)?;
            (end <= room).then_some((number, work))
        });
        let (mut nonces, mut tags) = ([[0; 12]; MOST], [[0; TAG_LEN]; MOST]);
        let mut texts = [(0, 0); MOST];
        let mut jobs = [ptr::null_mut::<Job>(); MOST];
        let mut numbers = [0; MOST];
        let base = buffer.as_mut_ptr();
        // SAFETY: the array has room for so many, and the manager is ours.
        let free =
            unsafe { (self.get_next_burst)(self.manager.as_ptr(), MOST as u32, jobs.as_mut_ptr()) };
        let mut count = 0;
        let places = nonces.iter_mut().zip(&mut tags).zip(&mut texts);
        let places = jobs.iter().zip(places.zip(&mut numbers));
        // All are done when a burst ends, so that there are always as many free ones.
        if (free as usize) < MOST {
            return Err(Failed);
        }
        for (&job, (((nonce, tag), text), place)) in places {
            let Some((number, work)) = work.next() else {
                break;
            };
            (*nonce, *text, *place) = (work.nonce, (work.start, work.text), number);
            let (cipher_direction, chain_order) = match direction {
                Direction::Seal => layout::ENCRYPT,
                Direction::Open => layout::DECRYPT,
            };
            let key = work.key.as_ptr().cast();
            // SAFETY: the text lies within the buffer, as was seen above.
            let at = unsafe { base.add(work.start) };
            let filled = Job {
                enc_keys: key,
                dec_keys: key,
                key_len_in_bytes: KEY_LEN as u64,
                src: at,
                dst: at,
                cipher_start_src_offset_in_bytes: 0,
                msg_len_to_cipher_in_bytes: work.text as u64,
                hash_start_src_offset_in_bytes: 0,
                msg_len_to_hash_in_bytes: work.text as u64,
                iv: nonce.as_ptr(),
                iv_len_in_bytes: nonce.len() as u64,
                auth_tag_output: tag.as_mut_ptr(),
                auth_tag_output_len_in_bytes: TAG_LEN as u64,
                aad: work.aad.as_ptr().cast(),
                aad_len_in_bytes: work.aad.len() as u64,
                ctx: ptr::null_mut(),
                status: 0,
                cipher_mode: layout::CIPHER,
                cipher_direction,
                hash_alg: layout::AUTH,
                chain_order,
                user_data: ptr::without_provenance_mut(count + 1),
                user_data2: ptr::null_mut(),
                cipher_func: ptr::null_mut(),
                hash_func: ptr::null_mut(),
                sgl_state: 0,
                cipher_fields: ptr::null_mut(),
            };
            // SAFETY: the library gave it as a free job, which is aligned and of this layout.
            unsafe { job.write(filled) };
            count += 1;
        }
        let mut completed = [false; MOST];
        let mut left = count;
        if count > 0 {
            // SAFETY: the first `count` of the jobs are filled, and what they point to lives until this function ends: they
            // are all done by then, or the manager is given up.
            let mut returned = unsafe {
                (self.submit_burst)(self.manager.as_ptr(), count as u32, jobs.as_mut_ptr())
            };
            loop {
                let returned_jobs = jobs
                    .get(..(returned as usize).min(left))
                    .unwrap_or_default();
                for job in returned_jobs {
                    // SAFETY: the library gave it back, and it is one of those that were filled.
                    let job = unsafe { &mut **job };
                    let place = job.user_data.addr().checked_sub(1);
                    if job.status == layout::COMPLETED
                        && let Some(completed) = place.and_then(|place| completed.get_mut(place))
                    {
                        *completed = true;
                    }
                    // Where a key lies is nobody's business any more.
                    (job.enc_keys, job.dec_keys) = (ptr::null(), ptr::null());
                }
                left -= returned_jobs.len();
                if left == 0 || returned_jobs.is_empty() {
                    break;
                }
                // SAFETY: as above; the array has room for `left`.
                returned = unsafe {
                    (self.flush_burst)(self.manager.as_ptr(), left as u32, jobs.as_mut_ptr())
                };
            }
        }
        let results = completed.iter().zip(texts.iter().zip(&tags)).zip(&numbers);
        for ((completed, ((start, text), tag)), number) in results.take(count) {
            let behind = buffer.get_mut(start + text..start + text + TAG_LEN);
            let (Some(behind), Some(done)) = (behind, done.get_mut(*number)) else {
                continue;
            };
            *done = *completed
                && match direction {
                    Direction::Seal => {
                        behind.copy_from_slice(tag);
                        true
                    }
                    Direction::Open => bool::from(tag.ct_eq(behind)),
                };
        }
        let all = completed.iter().take(count).all(|completed| *completed);
        if left == 0 && all {
            Ok(())
        } else {
            Err(Failed)
        }
    }
}

/// # Safety
/// The manager has a value of this type at this offset, aligned.
unsafe fn read<T: Copy>(manager: NonNull<c_void>, offset: usize) -> T {
    // SAFETY: as the caller says.
    unsafe { manager.byte_add(offset).cast::<T>().read() }
}
