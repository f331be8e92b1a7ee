//! One descriptor that stands for several.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// What to wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Interest {
    pub reads: bool,
    pub writes: bool,
}

/// How many descriptors one poller can tell apart.
pub const MAX_WATCHED: usize = 5;

/// An epoll instance: it is readable while any of the descriptors that it watches is as wanted, or has an error, which cannot
/// be left out. An event loop waits for it alone, and then asks which ones it was.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
    watched: [Option<Interest>; MAX_WATCHED],
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes an integer and touches no memory of ours.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: the descriptor was made just now, so it is open and nobody else owns it.
            epoll: unsafe { OwnedFd::from_raw_fd(fd) },
            watched: [None; MAX_WATCHED],
        })
    }

    /// Watches a descriptor, which keeps its `place` (less than [`MAX_WATCHED`]) for as long as it is open. Costs nothing
    /// where nothing changes.
    ///
    /// # Errors
    /// EPERM for what cannot be waited for, such as a file; EINVAL for a place that there is not.
    pub fn watch(
        &mut self,
        place: usize,
        fd: BorrowedFd<'_>,
        interest: Interest,
    ) -> io::Result<()> {
        let watched = self
            .watched
            .get_mut(place)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        if *watched == Some(interest) {
            return Ok(());
        }
        let verb = match watched {
            None => libc::EPOLL_CTL_ADD,
            Some(_) => libc::EPOLL_CTL_MOD,
        };
        let flag = |on, flag: libc::c_int| if on { flag as u32 } else { 0 };
        let mut event = libc::epoll_event {
            events: flag(interest.reads, libc::EPOLLIN) | flag(interest.writes, libc::EPOLLOUT),
            u64: place as u64,
        };
        // SAFETY: `event` lives until the call returns and is only read; both descriptors are open.
        let result = unsafe {
            libc::epoll_ctl(self.epoll.as_raw_fd(), verb, fd.as_raw_fd(), &raw mut event)
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        *watched = Some(interest);
        Ok(())
    }

    /// Which places are as wanted now, or have an error. All of them, if the kernel does not say.
    pub fn ready(&self) -> [bool; MAX_WATCHED] {
        self.asked(0)
    }

    /// The same, once there is one, for a thread that has nothing else to do.
    pub fn wait(&self) -> [bool; MAX_WATCHED] {
        self.asked(-1)
    }

    fn asked(&self, timeout: libc::c_int) -> [bool; MAX_WATCHED] {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; MAX_WATCHED];
        // SAFETY: the kernel writes at most as many events as there is room for, by the length that it is given.
        let count = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                MAX_WATCHED as libc::c_int,
                timeout,
            )
        };
        let Ok(count) = usize::try_from(count) else {
            return [true; MAX_WATCHED];
        };
        let mut ready = [false; MAX_WATCHED];
        for event in events.iter().take(count) {
            let place = event.u64;
            if let Some(ready) = usize::try_from(place)
                .ok()
                .and_then(|place| ready.get_mut(place))
            {
                *ready = true;
            }
        }
        ready
    }
}

/// Waits until one of these is readable or has an error, at most about so long, or until a signal arrives.
pub fn wait_readable<const N: usize>(fds: [BorrowedFd<'_>; N], at_most: Duration) {
    let mut fds = fds.map(|fd| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    let millis = libc::c_int::try_from(at_most.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the pointer and the length are those of an array that lives until the call returns.
    unsafe { libc::poll(fds.as_mut_ptr(), N as libc::nfds_t, millis) };
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    const READS: Interest = Interest {
        reads: true,
        writes: false,
    };

    #[test]
    fn it_says_which_descriptor_has_something() {
        let mut poller = Poller::new().unwrap();
        let pairs = [(); 2].map(|()| UnixDatagram::pair().unwrap());
        for (place, (ours, _)) in pairs.iter().enumerate() {
            poller.watch(place, ours.as_fd(), READS).unwrap();
        }
        assert_eq!(poller.ready(), [false; MAX_WATCHED]);
        pairs[1].1.send(&[1]).unwrap();
        let second = [false, true, false, false, false];
        assert_eq!(poller.wait(), second);
        assert_eq!(poller.ready(), second, "until it is read");
        pairs[1].0.recv(&mut [0]).unwrap();
        assert_eq!(poller.ready(), [false; MAX_WATCHED]);
    }

    #[test]
    fn what_it_waits_for_can_change() {
        let mut poller = Poller::new().unwrap();
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.send(&[1]).unwrap();
        poller.watch(0, ours.as_fd(), Interest::default()).unwrap();
        assert!(!poller.ready()[0]);
        for (reads, writes) in [(true, false), (false, true), (true, true)] {
            poller
                .watch(0, ours.as_fd(), Interest { reads, writes })
                .unwrap();
            assert!(poller.ready()[0]);
        }
        poller.watch(0, ours.as_fd(), Interest::default()).unwrap();
        assert!(!poller.ready()[0]);
    }

    #[test]
    fn who_waits_for_several_goes_on_with_the_first_that_has_something() {
        let pairs = [(); 2].map(|()| UnixDatagram::pair().unwrap());
        pairs[1].1.send(&[1]).unwrap();
        let long = Duration::from_secs(600);
        wait_readable([pairs[0].0.as_fd(), pairs[1].0.as_fd()], long);
        wait_readable([pairs[0].0.as_fd()], Duration::ZERO);
    }

    #[test]
    fn what_cannot_be_waited_for_is_an_error() {
        let mut poller = Poller::new().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        for _ in 0..2 {
            let error = poller.watch(0, file.as_fd(), READS).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        }
        let error = poller.watch(MAX_WATCHED, file.as_fd(), READS).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
