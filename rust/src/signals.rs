//! Signals, which are for the threads of the interpreter.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// Makes a thread that signals leave alone: threads inherit what is blocked. One of ours that took a signal would wake the
/// interpreter late, or never.
pub fn blocked<R>(spawn: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
    let mut all = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    // SAFETY: `sigfillset` initializes `all`, and only a call that failed, of which there is none for these arguments, does
    // not initialize `before`, which is then not read.
    let result = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr())
    };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    let spawned = spawn();
    // SAFETY: the call above has initialized `before`.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    spawned
}
