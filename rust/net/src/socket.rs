//! Options of descriptors that the standard library does not offer.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Room for some 5,000 full datagrams. The usual 208 KiB overflow within a millisecond of a fast sender, while the event
/// loop does something else; each datagram lost so is a retransmission of the connection inside the tunnel.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;
const SEND_BUFFER: libc::c_int = 4 << 20;

/// What the kernel granted, in its own accounting: it doubles what it is asked for, and counts its own headers in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BufferSizes {
    pub receive: usize,
    pub send: usize,
}

/// Makes the open file non-blocking, whoever shares it.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL takes no argument and touches no memory of ours; `fd` is open for as long as it is borrowed.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_SETFL takes an integer and touches no memory of ours; `fd` is open for as long as it is borrowed.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Asks for large buffers: past the system's limit where we are privileged, up to it where not. Never fails: whatever
/// the kernel grants is reported, and works.
pub(crate) fn enlarge_buffers(fd: BorrowedFd<'_>) -> BufferSizes {
    #[cfg(target_os = "linux")]
    let force = [
        set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER).is_ok(),
        set(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER).is_ok(),
    ];
    #[cfg(not(target_os = "linux"))]
    let force = [false, false];
    let enlarge = |forced: bool, option, size: libc::c_int| {
        let wanted = usize::try_from(size).unwrap_or_default();
        if !forced && get(fd, libc::SOL_SOCKET, option).unwrap_or_default() < wanted {
            let _ = set(fd, libc::SOL_SOCKET, option, size);
        }
        get(fd, libc::SOL_SOCKET, option).unwrap_or_default()
    };
    BufferSizes {
        receive: enlarge(force[0], libc::SO_RCVBUF, RECEIVE_BUFFER),
        send: enlarge(force[1], libc::SO_SNDBUF, SEND_BUFFER),
    }
}

/// Lets the kernel fragment what exceeds the interface's MTU, and makes it ignore ICMP's word on the path's MTU.
///
/// A tunnel cannot lower the MTU of packets that it has already sealed, so a datagram that does not fit is better
/// fragmented than lost; and an ICMP message is unauthenticated, so anyone could shrink the tunnel with one. quinn-udp
/// sets the opposite (QUIC probes the path itself), hence this comes after it.
#[cfg(target_os = "linux")]
pub(crate) fn allow_fragments(fd: BorrowedFd<'_>, ipv4: bool) -> io::Result<()> {
    if ipv4 {
        return set(
            fd,
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_OMIT,
        );
    }
    set(
        fd,
        libc::IPPROTO_IPV6,
        libc::IPV6_MTU_DISCOVER,
        libc::IPV6_PMTUDISC_OMIT,
    )?;
    set(fd, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn allow_fragments(_fd: BorrowedFd<'_>, _ipv4: bool) -> io::Result<()> {
    Ok(())
}

/// Has the kernel put no time on each datagram, which quinn-udp asks for and nothing here reads: some 0.1 us each.
#[cfg(target_os = "linux")]
pub(crate) fn without_timestamps(fd: BorrowedFd<'_>) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 0)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn without_timestamps(_fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(())
}

fn set(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which lives until the call returns and is only read.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn get(fd: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int) -> io::Result<usize> {
    let mut value: libc::c_int = 0;
    let mut length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the pointers describe `value` and `length`, which live until the call returns and which nothing else uses.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(value).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn a_descriptor_becomes_non_blocking() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        set_nonblocking(socket.as_fd()).unwrap();
        let error = socket.recv(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn buffers_never_shrink_and_the_kernels_answer_is_reported() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let before = get(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF).unwrap();
        let sizes = enlarge_buffers(socket.as_fd());
        assert!(sizes.receive >= before);
        assert_eq!(
            sizes.receive,
            get(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF).unwrap()
        );
        assert_eq!(enlarge_buffers(socket.as_fd()), sizes);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_kernel_may_fragment_on_both_families() {
        let v4 = UdpSocket::bind("127.0.0.1:0").unwrap();
        allow_fragments(v4.as_fd(), true).unwrap();
        assert_eq!(
            get(v4.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER).unwrap(),
            5
        );
        let v6 = UdpSocket::bind("[::1]:0").unwrap();
        allow_fragments(v6.as_fd(), false).unwrap();
        assert_eq!(
            get(v6.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER).unwrap(),
            5
        );
        assert_eq!(
            get(v6.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG).unwrap(),
            0
        );
    }

    #[test]
    fn options_of_something_else_fail_with_an_errno() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = set(file.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
        assert_eq!(enlarge_buffers(file.as_fd()), BufferSizes::default());
    }
}
