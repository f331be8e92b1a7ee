//! Cryptokey routing: which peer owns an address, by the longest prefix that covers it.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use rustc_hash::FxHashMap;

/// A table of IPv4 and IPv6 prefixes. A lookup costs the same few steps with one prefix and with a hundred thousand.
///
/// The two families never meet: an IPv4-mapped IPv6 address is an IPv6 address here, as it is on the wire.
#[derive(Clone, Debug)]
pub struct AllowedIps<T> {
    v4: PrefixMap<Ipv4Net, T>,
    v6: PrefixMap<Ipv6Net, T>,
    /// The prefixes that are one address, once more: nothing can be longer, most peers have only these, and asking here
    /// first takes a fraction of the time that the trie takes.
    hosts: FxHashMap<IpAddr, T>,
}

impl<T> Default for AllowedIps<T> {
    fn default() -> Self {
        Self {
            v4: PrefixMap::new(),
            v6: PrefixMap::new(),
            hosts: FxHashMap::default(),
        }
    }
}

impl<T: Copy> AllowedIps<T> {
    /// Gives `prefix` to `owner`, and returns who had exactly this prefix before. Host bits are ignored.
    pub fn insert(&mut self, prefix: IpNet, owner: T) -> Option<T> {
        if is_host(prefix) {
            self.hosts.insert(prefix.addr(), owner);
        }
        match prefix {
            IpNet::V4(prefix) => self.v4.insert(prefix.trunc(), owner),
            IpNet::V6(prefix) => self.v6.insert(prefix.trunc(), owner),
        }
    }

    /// Takes exactly this prefix away, and returns who had it. Longer and shorter ones stay.
    pub fn remove(&mut self, prefix: IpNet) -> Option<T> {
        if is_host(prefix) {
            self.hosts.remove(&prefix.addr());
        }
        match prefix {
            IpNet::V4(prefix) => self.v4.remove(&prefix.trunc()),
            IpNet::V6(prefix) => self.v6.remove(&prefix.trunc()),
        }
    }

    /// The owner of exactly this prefix.
    pub fn get(&self, prefix: IpNet) -> Option<T> {
        match prefix {
            IpNet::V4(prefix) => self.v4.get(&prefix.trunc()).copied(),
            IpNet::V6(prefix) => self.v6.get(&prefix.trunc()).copied(),
        }
    }

    /// The owner of the longest prefix that covers `address`.
    #[inline]
    pub fn longest_match(&self, address: IpAddr) -> Option<T> {
        if let Some(owner) = self.hosts.get(&address) {
            return Some(*owner);
        }
        match address {
            IpAddr::V4(address) => {
                let found = self.v4.get_lpm(&Ipv4Net::from(address));
                found.map(|(_, owner)| *owner)
            }
            IpAddr::V6(address) => {
                let found = self.v6.get_lpm(&Ipv6Net::from(address));
                found.map(|(_, owner)| *owner)
            }
        }
    }

    /// Every prefix with its owner: IPv4 first, each family in the order of its addresses, shorter prefixes first.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, T)> + '_ {
        let v4 = self
            .v4
            .iter()
            .map(|(prefix, owner)| (IpNet::V4(prefix), *owner));
        let v6 = self
            .v6
            .iter()
            .map(|(prefix, owner)| (IpNet::V6(prefix), *owner));
        v4.chain(v6)
    }

    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

fn is_host(prefix: IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    // Few distinct bits, at both ends and in the middle of the address: prefixes nest and collide often.
    fn v4_address() -> impl Strategy<Value = IpAddr> {
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from(bits & 0xc103_0083)))
    }

    fn v6_address() -> impl Strategy<Value = IpAddr> {
        let mask = 0xc001_0000_0000_0003_8000_0000_0100_0083;
        any::<u128>().prop_map(move |bits| IpAddr::V6(Ipv6Addr::from(bits & mask)))
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![v4_address(), v6_address()]
    }

    fn prefix() -> impl Strategy<Value = IpNet> {
        (address(), any::<prop::sample::Index>()).prop_map(|(address, index)| {
            let lengths = if address.is_ipv4() { 33 } else { 129 };
            IpNet::new(address, index.index(lengths) as u8)
                .unwrap()
                .trunc()
        })
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(IpNet, u8),
        Remove(IpNet),
        RemoveNth(prop::sample::Index),
        Look(IpAddr),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (prefix(), any::<u8>()).prop_map(|(prefix, owner)| Step::Insert(prefix, owner)),
            1 => prefix().prop_map(Step::Remove),
            1 => any::<prop::sample::Index>().prop_map(Step::RemoveNth),
            4 => address().prop_map(Step::Look),
        ]
    }

    /// The definition, word for word: of all prefixes that contain the address, the longest.
    fn brute_force(model: &BTreeMap<IpNet, u8>, address: IpAddr) -> Option<u8> {
        let covering = model.iter().filter(|(prefix, _)| prefix.contains(&address));
        covering
            .max_by_key(|(prefix, _)| prefix.prefix_len())
            .map(|(_, owner)| *owner)
    }

    proptest! {
        #[test]
        fn the_longest_prefix_wins_as_in_a_brute_force_model(steps in prop::collection::vec(step(), 1..200)) {
            let mut table = AllowedIps::default();
            let mut model = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Insert(prefix, owner) => {
                        prop_assert_eq!(table.insert(prefix, owner), model.insert(prefix, owner));
                    }
                    Step::Remove(prefix) => prop_assert_eq!(table.remove(prefix), model.remove(&prefix)),
                    Step::RemoveNth(index) => {
                        if !model.is_empty() {
                            let prefix = *model.keys().nth(index.index(model.len())).unwrap();
                            prop_assert_eq!(table.remove(prefix), model.remove(&prefix));
                        }
                    }
                    Step::Look(address) => {
                        prop_assert_eq!(table.longest_match(address), brute_force(&model, address));
                    }
                }
                prop_assert_eq!(table.len(), model.len());
            }
            let listed: Vec<_> = table.iter().collect();
            let expected: Vec<_> = model.into_iter().collect();
            prop_assert_eq!(listed, expected);
        }
    }

    #[test]
    fn the_default_routes_of_both_families_are_separate() {
        let mut table = AllowedIps::default();
        table.insert("0.0.0.0/0".parse().unwrap(), 4);
        assert_eq!(table.longest_match("203.0.113.1".parse().unwrap()), Some(4));
        assert_eq!(
            table.longest_match("::ffff:203.0.113.1".parse().unwrap()),
            None
        );
        table.insert("::/0".parse().unwrap(), 6);
        assert_eq!(
            table.longest_match("::ffff:203.0.113.1".parse().unwrap()),
            Some(6)
        );
    }

    #[test]
    fn host_bits_of_a_prefix_are_ignored() {
        let mut table = AllowedIps::default();
        table.insert("10.1.2.3/8".parse().unwrap(), 1);
        assert_eq!(table.get("10.0.0.0/8".parse().unwrap()), Some(1));
        assert_eq!(table.longest_match("10.9.9.9".parse().unwrap()), Some(1));
        assert_eq!(table.remove("10.200.0.0/8".parse().unwrap()), Some(1));
        assert!(table.is_empty());
    }
}
