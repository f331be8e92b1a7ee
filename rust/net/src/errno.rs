//! Counters of failed system calls, by the name of their errno.

use std::borrow::Cow;
use std::io;

/// How often each errno came back. A handful of different ones occur in practice, so a short list beats a map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorCounts(Vec<(i32, u64)>);

/// Stands for an error that carries no errno, which libraries make up themselves.
const WITHOUT_ERRNO: i32 = 0;

impl ErrorCounts {
    /// Counts `times` failures with the errno of `error`.
    pub fn add(&mut self, error: &io::Error, times: u64) {
        self.add_errno(error.raw_os_error().unwrap_or(WITHOUT_ERRNO), times);
    }

    /// Adds the counters of `other`.
    pub fn merge(&mut self, other: &Self) {
        for &(errno, count) in &other.0 {
            self.add_errno(errno, count);
        }
    }

    fn add_errno(&mut self, errno: i32, times: u64) {
        match self.0.iter_mut().find(|(known, _)| *known == errno) {
            Some((_, count)) => *count = count.saturating_add(times),
            None => self.0.push((errno, times)),
        }
    }

    /// The counters with the names of their errno, for example `("ENOBUFS", 3)`.
    pub fn iter(&self) -> impl Iterator<Item = (Cow<'static, str>, u64)> + '_ {
        self.0.iter().map(|&(errno, count)| (name(errno), count))
    }

    /// The number of failures of one errno.
    pub fn of(&self, errno: i32) -> u64 {
        self.0
            .iter()
            .find(|(known, _)| *known == errno)
            .map_or(0, |&(_, count)| count)
    }

    /// The number of failures of any kind.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|&(_, count)| count).sum()
    }
}

macro_rules! names {
    ($errno:expr; $($name:ident)*) => {
        match $errno {
            WITHOUT_ERRNO => Cow::Borrowed("OTHER"),
            $(libc::$name => Cow::Borrowed(stringify!($name)),)*
            other => Cow::Owned(format!("ERRNO_{other}")),
        }
    };
}

/// What TUN devices and UDP sockets answer with; anything else is shown as `ERRNO_<number>`.
fn name(errno: i32) -> Cow<'static, str> {
    #[cfg(target_os = "linux")]
    match errno {
        libc::EBADFD => return Cow::Borrowed("EBADFD"),
        libc::ENONET => return Cow::Borrowed("ENONET"),
        _ => {}
    }
    names!(errno;
        E2BIG EACCES EADDRINUSE EADDRNOTAVAIL EAFNOSUPPORT EAGAIN EALREADY EBADF EBADMSG EBUSY ECONNABORTED ECONNREFUSED
        ECONNRESET EDESTADDRREQ EEXIST EFAULT EFBIG EHOSTDOWN EHOSTUNREACH EINTR EINVAL EIO EISCONN EMFILE EMSGSIZE
        ENETDOWN ENETRESET ENETUNREACH ENFILE ENOBUFS ENODEV ENOENT ENOMEM ENOPROTOOPT ENOSPC ENOSYS ENOTCONN ENOTSOCK
        ENXIO EOPNOTSUPP EPERM EPIPE EPROTO EPROTONOSUPPORT ESHUTDOWN ESTALE ETIMEDOUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_name() {
        let mut counts = ErrorCounts::default();
        counts.add(&io::Error::from_raw_os_error(libc::ENOBUFS), 2);
        counts.add(&io::Error::from_raw_os_error(libc::EPERM), 1);
        counts.add(&io::Error::from_raw_os_error(libc::ENOBUFS), 1);
        counts.add(&io::Error::from_raw_os_error(4095), 1);
        counts.add(&io::Error::other("made up"), 1);
        let named: Vec<_> = counts
            .iter()
            .map(|(name, n)| format!("{name} {n}"))
            .collect();
        assert_eq!(named, ["ENOBUFS 3", "EPERM 1", "ERRNO_4095 1", "OTHER 1"]);
        assert_eq!(counts.of(libc::ENOBUFS), 3);
        assert_eq!(counts.total(), 6);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_errno_of_a_deleted_device_has_a_name() {
        let mut counts = ErrorCounts::default();
        counts.add(&io::Error::from_raw_os_error(libc::EBADFD), 1);
        assert_eq!(counts.iter().next(), Some((Cow::Borrowed("EBADFD"), 1)));
    }
}
