//! What a device is set up for.

#[cfg(target_os = "linux")]
pub(super) use linux::{header_length, set_offloads, supported};
#[cfg(not(target_os = "linux"))]
pub(super) use other::{header_length, set_offloads, supported};

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd};

    use crate::offload::{Offloads, VNET_HEADER};
    use crate::tun::write::MAX_HEADER;

    // linux/if_tun.h
    const TUN_F_CSUM: libc::c_ulong = 0x01;
    const TUN_F_TSO4: libc::c_ulong = 0x02;
    const TUN_F_TSO6: libc::c_ulong = 0x04;
    const TUN_F_TSO_ECN: libc::c_ulong = 0x08;
    /// Both families: the kernel takes only the two together.
    const TUN_F_USO: libc::c_ulong = 0x20 | 0x40;

    /// Which bits stand for an offload of reading.
    const BITS: [(Offloads, libc::c_ulong); 5] = [
        (Offloads::CHECKSUM, TUN_F_CSUM),
        (Offloads::TSO4, TUN_F_TSO4),
        (Offloads::TSO6, TUN_F_TSO6),
        (Offloads::TSO_ECN, TUN_F_TSO_ECN),
        (Offloads::USO, TUN_F_USO),
    ];

    /// `struct ifreq`: a name, and a union of which the flags are the first two bytes.
    #[repr(C, align(8))]
    struct InterfaceRequest([u8; 40]);

    /// Bytes before each packet; 0 where there are none, or where this is no TUN device.
    pub(in crate::tun) fn header_length(fd: BorrowedFd<'_>) -> usize {
        let mut request = InterfaceRequest([0; 40]);
        // SAFETY: TUNGETIFF fills in a `struct ifreq`, which `request` has the size and the alignment of; it lives until the
        // call returns. What is no TUN device does not know the number.
        if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) } != 0 {
            return 0;
        }
        let flags = u16::from_ne_bytes([request.0[16], request.0[17]]);
        if libc::c_int::from(flags) & libc::IFF_VNET_HDR == 0 {
            return 0;
        }
        let mut length: libc::c_int = 0;
        // SAFETY: TUNGETVNETHDRSZ fills in an integer, which lives until the call returns.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut length) };
        // Kernels that cannot say have no other length than this.
        let length = if result == 0 {
            usize::try_from(length).unwrap_or_default()
        } else {
            VNET_HEADER
        };
        length.clamp(VNET_HEADER, MAX_HEADER)
    }

    /// Tries them out, each by itself, and leaves them switched off.
    pub(in crate::tun) fn supported(fd: BorrowedFd<'_>) -> Offloads {
        let tso = Offloads::TSO4 | Offloads::TSO6;
        let takes = |offloads: Offloads| set_offloads(fd, offloads | Offloads::CHECKSUM).is_ok();
        let mut supported = Offloads::COALESCE_TCP;
        for one in [Offloads::CHECKSUM, Offloads::TSO4, Offloads::TSO6] {
            if takes(one) {
                supported |= one;
            }
        }
        if takes(Offloads::TSO_ECN | (tso & supported)) {
            supported |= Offloads::TSO_ECN;
        }
        if takes(Offloads::USO) {
            // A kernel that cuts into such knows what they are.
            supported |= Offloads::USO | Offloads::COALESCE_UDP;
        }
        let _ = set_offloads(fd, Offloads::NONE);
        supported.consistent()
    }

    /// Those of reading; the device has no say in the others.
    pub(in crate::tun) fn set_offloads(fd: BorrowedFd<'_>, offloads: Offloads) -> io::Result<()> {
        let bits = BITS
            .into_iter()
            .filter(|(one, _)| offloads.contains(*one))
            .fold(0, |bits, (_, bit)| bits | bit);
        // SAFETY: TUNSETOFFLOAD takes a number and touches no memory of ours.
        if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, bits) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Elsewhere, devices have no such header.
#[cfg(not(target_os = "linux"))]
mod other {
    use std::io;
    use std::os::fd::BorrowedFd;

    use crate::offload::Offloads;

    pub(in crate::tun) fn header_length(_fd: BorrowedFd<'_>) -> usize {
        0
    }

    pub(in crate::tun) fn supported(_fd: BorrowedFd<'_>) -> Offloads {
        Offloads::NONE
    }

    pub(in crate::tun) fn set_offloads(_fd: BorrowedFd<'_>, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }
}
