//! What a thread of ours is left with: no signals, which are for the interpreter's threads, and, when it is told so, none of the
//! process's capabilities. Free of Python, so that tests/pure.rs can include it.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// Makes a thread that signals leave alone: threads inherit what is blocked. One of ours that took a signal would wake the
/// interpreter late, or never.
pub fn without_signals<R>(spawn: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
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

/// `struct __user_cap_header_struct` of linux/capability.h.
#[repr(C)]
struct Header {
    version: u32,
    thread: libc::c_int,
}

/// `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`, which has two of `Sets`.
const VERSION: u32 = 0x2008_0522;

/// Gives up all capabilities of this thread. Each has its own: a process that gives its own up later keeps those of a thread
/// that was there already. Not before the process has become another user: the C library has every thread do so, and ends the
/// process if one may not.
pub fn give_up() -> io::Result<()> {
    let header = Header {
        version: VERSION,
        thread: 0,
    };
    let none = [Sets {
        effective: 0,
        permitted: 0,
        inheritable: 0,
    }; 2];
    // SAFETY: both are laid out as the kernel reads them in this version, live until the call returns, and are not kept;
    // `header` would be written to only if the kernel did not know the version.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
