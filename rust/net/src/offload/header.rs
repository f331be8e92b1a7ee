//! The header before each packet of a TUN device with `IFF_VNET_HDR`: `struct virtio_net_hdr` of linux/virtio_net.h.

/// Bytes that it takes. A device may be set to a longer one (`TUNSETVNETHDRSZ`), of which these are the first.
pub const VNET_HEADER: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What a superpacket is to be cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GsoKind {
    Tcp4,
    Tcp6,
    /// Over IPv4 and IPv6.
    Udp,
}

impl GsoKind {
    pub fn is_tcp(self) -> bool {
        self != GsoKind::Udp
    }
}

/// Those kinds that superpackets may be made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GsoKinds {
    pub tcp4: bool,
    pub tcp6: bool,
    pub udp: bool,
}

impl GsoKinds {
    pub const NONE: Self = Self {
        tcp4: false,
        tcp6: false,
        udp: false,
    };
    pub const ALL: Self = Self {
        tcp4: true,
        tcp6: true,
        udp: true,
    };

    pub fn contains(self, kind: GsoKind) -> bool {
        match kind {
            GsoKind::Tcp4 => self.tcp4,
            GsoKind::Tcp6 => self.tcp6,
            GsoKind::Udp => self.udp,
        }
    }
}

/// All of its fields are the machine's own numbers, in the machine's byte order, not the network's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VnetHeader {
    pub flags: u8,
    pub gso_type: u8,
    /// A hint for how much to copy at once. It does not say where the payload begins.
    pub header_length: u16,
    /// Bytes of payload in each packet but the last.
    pub gso_size: u16,
    /// Where what the checksum covers begins.
    pub checksum_start: u16,
    /// Where the checksum stands, from there. It holds the sum of the pseudo-header until it is made.
    pub checksum_offset: u16,
}

impl VnetHeader {
    /// The header of a superpacket that we make.
    pub(super) fn superpacket(
        kind: GsoKind,
        headers: u16,
        segment_size: u16,
        transport: u16,
    ) -> Self {
        Self {
            flags: NEEDS_CSUM,
            gso_type: match kind {
                GsoKind::Tcp4 => GSO_TCPV4,
                GsoKind::Tcp6 => GSO_TCPV6,
                GsoKind::Udp => GSO_UDP_L4,
            },
            header_length: headers,
            gso_size: segment_size,
            checksum_start: transport,
            checksum_offset: if kind.is_tcp() { 16 } else { 6 },
        }
    }

    pub fn from_bytes(bytes: &[u8; VNET_HEADER]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h] = *bytes;
        Self {
            flags,
            gso_type,
            header_length: u16::from_ne_bytes([a, b]),
            gso_size: u16::from_ne_bytes([c, d]),
            checksum_start: u16::from_ne_bytes([e, f]),
            checksum_offset: u16::from_ne_bytes([g, h]),
        }
    }

    pub fn to_bytes(self) -> [u8; VNET_HEADER] {
        let [a, b] = self.header_length.to_ne_bytes();
        let [c, d] = self.gso_size.to_ne_bytes();
        let [e, f] = self.checksum_start.to_ne_bytes();
        let [g, h] = self.checksum_offset.to_ne_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h]
    }

    /// Whether the checksum of the packet is still to be made.
    pub fn needs_checksum(&self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }

    /// Whether this is a superpacket, of whatever kind.
    pub(super) fn is_superpacket(&self) -> bool {
        self.gso_type & !GSO_ECN != GSO_NONE
    }

    /// What kind of superpacket this is, if it is one that we asked for.
    pub(super) fn kind(&self) -> Option<GsoKind> {
        match self.gso_type & !GSO_ECN {
            GSO_TCPV4 => Some(GsoKind::Tcp4),
            GSO_TCPV6 => Some(GsoKind::Tcp6),
            GSO_UDP_L4 => Some(GsoKind::Udp),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let header = VnetHeader::superpacket(GsoKind::Tcp6, 72, 1380, 40);
        let bytes = header.to_bytes();
        assert_eq!(bytes[..2], [1, 4]);
        assert_eq!(bytes[4..6], 1380u16.to_ne_bytes());
        assert_eq!(VnetHeader::from_bytes(&bytes), header);
        assert_eq!(VnetHeader::default().to_bytes(), [0; 10]);
    }

    #[test]
    fn congestion_notification_is_no_kind_of_its_own() {
        let of = |gso_type| VnetHeader {
            gso_type,
            ..VnetHeader::default()
        };
        assert_eq!(of(0x81).kind(), Some(GsoKind::Tcp4));
        assert!(!of(0x80).is_superpacket());
        assert!(of(3).is_superpacket() && of(3).kind().is_none());
    }
}
