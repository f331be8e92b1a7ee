//! What a device with `IFF_VNET_HDR` may be asked to do, by name.

use std::ops::{BitAnd, BitOr, BitOrAssign};

/// A set of offloads. Those of reading are the kernel's to grant (`TUNSETOFFLOAD`), those of writing are ours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads(u8);

impl Offloads {
    pub const NONE: Self = Self(0);
    /// Packets are read without their checksums, which are made here. The others of reading need this one.
    pub const CHECKSUM: Self = Self(1);
    /// Superpackets of TCP over IPv4 are read.
    pub const TSO4: Self = Self(1 << 1);
    /// Superpackets of TCP over IPv6 are read.
    pub const TSO6: Self = Self(1 << 2);
    /// Superpackets of TCP are read also where they say that congestion was noticed (CWR). Needs one of the two before.
    pub const TSO_ECN: Self = Self(1 << 3);
    /// Superpackets of UDP are read.
    pub const USO: Self = Self(1 << 4);
    /// Packets of TCP are written as superpackets.
    pub const COALESCE_TCP: Self = Self(1 << 5);
    /// Packets of UDP are written as superpackets, where the kernel knows what these are.
    pub const COALESCE_UDP: Self = Self(1 << 6);
    pub const ALL: Self = Self(0x7f);

    const NAMED: [(&'static str, Self); 7] = [
        ("checksum", Self::CHECKSUM),
        ("tso4", Self::TSO4),
        ("tso6", Self::TSO6),
        ("tso_ecn", Self::TSO_ECN),
        ("uso", Self::USO),
        ("coalesce_tcp", Self::COALESCE_TCP),
        ("coalesce_udp", Self::COALESCE_UDP),
    ];

    pub fn contains(self, other: Self) -> bool {
        self & other == other
    }

    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        let mut all = Self::NAMED.iter();
        all.find_map(|(known, one)| (*known == name).then_some(*one))
    }

    /// The names of those in the set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let of_this = move |&(name, one): &(_, Self)| self.contains(one).then_some(name);
        Self::NAMED.iter().filter_map(of_this)
    }

    /// With what it needs of others.
    #[must_use]
    pub fn with_needed(self) -> Self {
        let needs_checksum = self & (Self::TSO4 | Self::TSO6 | Self::USO);
        if needs_checksum.is_empty() {
            self
        } else {
            self | Self::CHECKSUM
        }
    }

    /// Without what needs another one that is not in the set.
    #[must_use]
    pub fn consistent(self) -> Self {
        let mut without = Self::NONE;
        if !self.contains(Self::CHECKSUM) {
            without |= Self::TSO4 | Self::TSO6 | Self::USO;
        }
        if (self & (Self::TSO4 | Self::TSO6))
            .without(without)
            .is_empty()
        {
            without |= Self::TSO_ECN;
        }
        self.without(without)
    }

    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for Offloads {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Offloads {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

impl BitAnd for Offloads {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_name_and_a_name_means_it() {
        let mut all = Offloads::NONE;
        for name in Offloads::ALL.names() {
            let one = Offloads::named(name).unwrap();
            assert_eq!(one.names().collect::<Vec<_>>(), [name]);
            assert!(!all.contains(one));
            all |= one;
        }
        assert_eq!(all, Offloads::ALL);
        assert_eq!(Offloads::named("TSO4"), None);
    }

    #[test]
    fn what_needs_another_goes_with_it() {
        let without = |one| Offloads::ALL.without(one).consistent();
        let names = |set: Offloads| set.names().collect::<Vec<_>>();
        let written = ["coalesce_tcp", "coalesce_udp"];
        assert_eq!(names(without(Offloads::CHECKSUM)), written);
        assert!(without(Offloads::TSO4).contains(Offloads::TSO_ECN));
        assert!(!without(Offloads::TSO4 | Offloads::TSO6).contains(Offloads::TSO_ECN));
        assert_eq!(Offloads::ALL.consistent(), Offloads::ALL);
        assert_eq!(Offloads::TSO4.consistent(), Offloads::NONE);
        assert_eq!(names(Offloads::TSO4.with_needed()), ["checksum", "tso4"]);
        assert_eq!(Offloads::TSO_ECN.with_needed(), Offloads::TSO_ECN);
    }
}
