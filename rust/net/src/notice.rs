//! How one thread tells another that there is something.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// A descriptor that is readable from [`set`](Notice::set) until [`take`](Notice::take).
#[derive(Debug)]
pub struct Notice(File);

impl Notice {
    /// One that is not set.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes two integers and touches no memory of ours.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made just now, so it is open and nobody else owns it.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    pub fn set(&self) {
        // The only way to fail is that it is set as often as a number can count: then it is readable, too.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }

    /// Whether it was set since it was last taken.
    pub fn take(&self) -> bool {
        (&self.0).read(&mut [0; 8]).is_ok()
    }
}

impl AsFd for Notice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_set_until_it_is_taken_however_often() {
        let notice = Notice::new().unwrap();
        assert!(!notice.take());
        for _ in 0..3 {
            notice.set();
        }
        assert!(notice.take());
        assert!(!notice.take());
    }
}
