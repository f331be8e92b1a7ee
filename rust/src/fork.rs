//! Notice `fork()`: a child that went on with its parent's sessions would repeat their nonces. Free of Python, so that
//! tests/pure.rs can include it.

use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many forks lie between this process and the one that loaded the module.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Something was made in another process. Raised as `ForkedError`.
#[derive(Debug)]
pub struct Forked;

/// The process that something was made in.
#[derive(Clone, Copy)]
pub struct Origin(u32);

impl Origin {
    pub fn here() -> Self {
        static WATCH: Once = Once::new();
        WATCH.call_once(watch);
        Origin(GENERATION.load(Ordering::Relaxed))
    }

    #[inline]
    pub fn is_here(self) -> bool {
        GENERATION.load(Ordering::Relaxed) == self.0
    }

    /// An error in every other process.
    #[inline]
    pub fn check(self) -> Result<(), Forked> {
        if self.is_here() { Ok(()) } else { Err(Forked) }
    }
}

/// Unlike `os.register_at_fork`, this sees the forks of C code too.
#[cfg(unix)]
fn watch() {
    extern "C" fn in_child() {
        GENERATION.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: the handler is a function of this module, which Python never unloads, and an atomic addition is all that
    // it does, so that it may run in the child of a process with threads.
    let result = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    // The only failure is ENOMEM, for a few bytes.
    assert_eq!(result, 0, "no memory to watch for forks");
}

#[cfg(not(unix))]
fn watch() {}

/// Something that a child process must not drop while it is not `intact`.
///
/// A thread that does not exist in the child may have been changing it at the `fork()`, or have held a lock that dropping
/// it takes. Then the child leaves it where it is, which costs memory and no more.
pub struct Held<T> {
    origin: Origin,
    intact: fn(&T) -> bool,
    value: ManuallyDrop<T>,
}

impl<T> Held<T> {
    pub fn new(value: T, intact: fn(&T) -> bool) -> Self {
        Held {
            origin: Origin::here(),
            intact,
            value: ManuallyDrop::new(value),
        }
    }

    pub fn origin(&self) -> Origin {
        self.origin
    }
}

impl<T> Deref for Held<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Held<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        if self.origin.is_here() || (self.intact)(&self.value) {
            // SAFETY: it is not used again: its owner is being dropped.
            unsafe { ManuallyDrop::drop(&mut self.value) }
        }
    }
}
