//! Notice `fork()`: a child that went on with its parent's sessions would repeat their nonces.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use pyo3::PyResult;

use crate::errors;

/// How many forks lie between this process and the one that loaded the module.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// The process that something was made in.
#[derive(Clone, Copy)]
pub struct Origin(u32);

impl Origin {
    pub fn here() -> Self {
        static WATCH: Once = Once::new();
        WATCH.call_once(watch);
        Origin(GENERATION.load(Ordering::Relaxed))
    }

    /// Raises `ForkedError` in every other process.
    #[inline]
    pub fn check(self) -> PyResult<()> {
        if GENERATION.load(Ordering::Relaxed) == self.0 {
            return Ok(());
        }
        Err(errors::forked())
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
