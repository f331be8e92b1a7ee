//! A timer on the clock that also runs while the machine is suspended.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A descriptor that becomes readable when CLOCK_BOOTTIME reaches an instant.
///
/// Event loops sleep on CLOCK_MONOTONIC, which stands still during suspend: a timer of theirs would fire late by as much
/// as the machine slept.
#[derive(Debug)]
pub struct BootTimer(File);

impl BootTimer {
    /// A timer that is not set.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes two integers and touches no memory of ours.
        let fd = unsafe {
            libc::timerfd_create(libc::CLOCK_BOOTTIME, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made just now, so it is open and nobody else owns it.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Becomes readable once CLOCK_BOOTTIME reads at least `nanos`, at once if it already does; `None`: never. Replaces
    /// what was set before, and its readability.
    pub fn set(&self, nanos: Option<u64>) -> io::Result<()> {
        // Zero would mean "never" to the kernel.
        let nanos = nanos.map_or(0, |at| at.max(1));
        let spec = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: libc::timespec {
                tv_sec: (nanos / NANOS_PER_SECOND) as libc::time_t,
                tv_nsec: (nanos % NANOS_PER_SECOND) as libc::c_long,
            },
        };
        // SAFETY: `spec` lives until the call returns and is only read; a null pointer for the old value is allowed.
        let result = unsafe {
            libc::timerfd_settime(
                self.0.as_raw_fd(),
                libc::TFD_TIMER_ABSTIME,
                &raw const spec,
                ptr::null_mut(),
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Whether the timer fired since it was last set or asked; makes it unreadable again.
    pub fn fired(&self) -> io::Result<bool> {
        match (&self.0).read(&mut [0; 8]) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for BootTimer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> u64 {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: `time` lives until the call returns and nothing else uses it.
        let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
        assert_eq!(result, 0);
        time.tv_sec as u64 * NANOS_PER_SECOND + time.tv_nsec as u64
    }

    fn readable(timer: &BootTimer, timeout_ms: i32) -> bool {
        let mut poll = libc::pollfd {
            fd: timer.as_fd().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: the pointer describes one pollfd that lives until the call returns.
        unsafe { libc::poll(&raw mut poll, 1, timeout_ms) == 1 }
    }

    #[test]
    fn it_fires_at_its_instant_and_not_before() {
        let timer = BootTimer::new().unwrap();
        let at = now() + 30_000_000;
        timer.set(Some(at)).unwrap();
        assert!(readable(&timer, 10_000));
        assert!(now() >= at);
        assert!(timer.fired().unwrap());
        assert!(!timer.fired().unwrap());
        assert!(!readable(&timer, 0));
    }

    #[test]
    fn an_instant_that_has_passed_fires_at_once() {
        let timer = BootTimer::new().unwrap();
        for at in [0, 1, now()] {
            timer.set(Some(at)).unwrap();
            assert!(readable(&timer, 10_000));
        }
    }

    #[test]
    fn setting_it_anew_takes_the_old_instant_back() {
        let timer = BootTimer::new().unwrap();
        timer.set(Some(1)).unwrap();
        timer.set(None).unwrap();
        assert!(!readable(&timer, 20));
        timer.set(Some(1)).unwrap();
        timer.set(Some(u64::MAX)).unwrap();
        assert!(!readable(&timer, 20));
        assert!(!timer.fired().unwrap());
    }
}
