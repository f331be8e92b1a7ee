//! The system call: many messages with one, each from pieces that lie apart, with what the kernel is to do with it.

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::plan::{MAX_SEGMENTS, Message};

/// Messages that one call takes at most.
const MAX_MESSAGES: usize = 32;
/// Pieces of memory that one call takes at most: any message fits.
const MAX_PARTS: usize = 256;
const _: () = assert!(MAX_PARTS >= MAX_SEGMENTS);

/// Room for the three control messages that there can be, aligned as the kernel wants them.
#[repr(C)]
#[derive(Clone, Copy)]
struct Control([u64; 14]);

#[repr(C)]
#[derive(Clone, Copy)]
union Address {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

/// Sends the first messages and returns how many the kernel took, at least one; an error is of the first.
pub(crate) fn send<'a>(
    socket: BorrowedFd<'_>,
    messages: impl Iterator<Item = Message<'a>>,
) -> io::Result<usize> {
    let empty = libc::iovec {
        iov_base: ptr::null_mut(),
        iov_len: 0,
    };
    let mut parts = [empty; MAX_PARTS];
    let mut controls = [Control([0; 14]); MAX_MESSAGES];
    // SAFETY: all zeros are a value of both kinds of address.
    let mut addresses: [Address; MAX_MESSAGES] = unsafe { mem::zeroed() };
    // SAFETY: all zeros are a header without address, content and control messages.
    let mut headers: [libc::mmsghdr; MAX_MESSAGES] = unsafe { mem::zeroed() };

    let mut used = 0;
    let mut rest = &mut parts[..];
    let places = headers.iter_mut().zip(&mut addresses).zip(&mut controls);
    for (message, ((header, address), control)) in messages.zip(places) {
        let needed = message.parts().count();
        let Some((mine, others)) = mem::take(&mut rest).split_at_mut_checked(needed) else {
            break;
        };
        rest = others;
        for (part, bytes) in mine.iter_mut().zip(message.parts()) {
            *part = libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            };
        }
        let header = &mut header.msg_hdr;
        header.msg_iov = mine.as_mut_ptr();
        header.msg_iovlen = mine.len() as _;
        header.msg_namelen = put_address(address, &message.way.destination);
        header.msg_name = ptr::from_mut(address).cast();
        put_control(header, control, &message);
        used += 1;
    }
    loop {
        // SAFETY: the first `used` headers point to an address, to pieces of memory and to control messages, with their
        // lengths, all of which live until the call returns. The kernel only reads what they point to, and writes the
        // `msg_len` of each.
        let taken = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                used,
                libc::MSG_DONTWAIT as _,
            )
        };
        match usize::try_from(taken) {
            Ok(taken) => return Ok(taken),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Returns its length.
fn put_address(address: &mut Address, destination: &SocketAddr) -> libc::socklen_t {
    match destination {
        SocketAddr::V4(v4) => {
            address.v4 = libc::sockaddr_in {
                sin_family: libc::AF_INET as _,
                sin_port: v4.port().to_be(),
                sin_addr: in_addr(v4.ip()),
                sin_zero: [0; 8],
            };
            size_of::<libc::sockaddr_in>() as _
        }
        SocketAddr::V6(v6) => {
            address.v6 = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as _,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: in6_addr(v6.ip()),
                sin6_scope_id: v6.scope_id(),
            };
            size_of::<libc::sockaddr_in6>() as _
        }
    }
}

fn in_addr(address: &std::net::Ipv4Addr) -> libc::in_addr {
    libc::in_addr {
        s_addr: u32::from_ne_bytes(address.octets()),
    }
}

fn in6_addr(address: &std::net::Ipv6Addr) -> libc::in6_addr {
    libc::in6_addr {
        s6_addr: address.octets(),
    }
}

fn put_control(header: &mut libc::msghdr, control: &mut Control, message: &Message<'_>) {
    let mut used = 0;
    let mut put = |level, kind, content: &[u8]| {
        // SAFETY: both compute with the length alone.
        let (space, length) = unsafe {
            (
                libc::CMSG_SPACE(content.len() as _) as usize,
                libc::CMSG_LEN(content.len() as _),
            )
        };
        let start = ptr::from_mut(control).cast::<u8>();
        if used + space > size_of::<Control>() {
            return;
        }
        // SAFETY: `space` bytes from `used` on lie within `control`, by the check above, which is aligned for a header of a
        // control message and so is every sum of spaces; the content follows that header, and is shorter than the space.
        unsafe {
            let place = start.add(used).cast::<libc::cmsghdr>();
            (*place).cmsg_level = level;
            (*place).cmsg_type = kind;
            (*place).cmsg_len = length as _;
            ptr::copy_nonoverlapping(content.as_ptr(), libc::CMSG_DATA(place), content.len());
        }
        used += space;
    };
    let is_v4 = message.way.destination.is_ipv4();
    if message.way.ecn != 0 {
        let ecn = libc::c_int::from(message.way.ecn).to_ne_bytes();
        match is_v4 {
            true => put(libc::IPPROTO_IP, libc::IP_TOS, &ecn),
            false => put(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &ecn),
        }
    }
    if let Some(size) = message.segment_size() {
        // The kernel refuses any other width. No datagram is longer than this can say.
        let size = u16::try_from(size).unwrap_or(u16::MAX).to_ne_bytes();
        put(libc::SOL_UDP, libc::UDP_SEGMENT, &size);
    }
    match message.way.source {
        Some(IpAddr::V4(source)) => {
            // struct in_pktinfo: the interface, the address to send from, and one that is of receiving.
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&source.octets());
            put(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
        Some(IpAddr::V6(source)) => {
            // struct in6_pktinfo: the address, and the interface.
            let mut info = [0; 20];
            info[..16].copy_from_slice(&source.octets());
            put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        }
        None => {}
    }
    // Last, because writing through another pointer would end what this one may do.
    if used > 0 {
        header.msg_control = ptr::from_mut(control).cast();
        header.msg_controllen = used as _;
    }
}
