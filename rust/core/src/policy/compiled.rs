//! Finding the first of many rules: per dimension (protocol, destination, port or type) a sorted list of the values at which
//! the set of matching rules changes, with that set as a row of bits. A packet is looked up in each dimension by bisection,
//! and the first bit that all its rows have in common is the rule. That takes as long with one rule as with a few dozen, and
//! sixteen words per row at most.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::{
    Action, Flow, ICMP, ICMPV6, MAX_RANGES, MAX_RULES, PolicyError, Protocol, Rule, TCP, Transport,
    UDP,
};

/// Beyond the numbers of protocols: ICMP over IPv4 and ICMPv6 over IPv6, and not the one over the other.
const ICMP_OVER_V4: u128 = 256;
const ICMP_OVER_V6: u128 = 257;

#[derive(Debug)]
pub(super) struct Compiled {
    actions: Vec<Action>,
    protocols: Dimension,
    v4: Dimension,
    v6: Dimension,
    ports: Dimension,
    icmp_types: Dimension,
    /// Rules without ports and types, for protocols that have none.
    unrestricted: Vec<u64>,
}

impl Compiled {
    pub fn new(rules: &[Rule]) -> Result<Self, PolicyError> {
        if rules.len() > MAX_RULES {
            return Err(PolicyError::TooManyRules);
        }
        let ranges =
            |rule: &Rule| rule.destinations.len() + rule.ports.len() + rule.icmp_types.len();
        if rules.iter().map(ranges).sum::<usize>() > MAX_RANGES {
            return Err(PolicyError::TooManyRanges);
        }
        let mut protocols = Vec::with_capacity(rules.len());
        let (mut v4, mut v6) = (protocols.clone(), protocols.clone());
        let (mut ports, mut icmp_types) = (protocols.clone(), protocols.clone());
        let mut unrestricted = vec![0; words(rules.len())];
        for (number, rule) in rules.iter().enumerate() {
            check(number, rule)?;
            protocols.push(protocol_ranges(rule.protocol));
            let (of_v4, of_v6) = destination_ranges(number, rule)?;
            v4.push(of_v4);
            v6.push(of_v6);
            ports.push(wide(&rule.ports));
            icmp_types.push(wide(&rule.icmp_types));
            if rule.ports.is_empty() && rule.icmp_types.is_empty() {
                set(&mut unrestricted, number);
            }
        }
        Ok(Compiled {
            actions: rules.iter().map(|rule| rule.action).collect(),
            protocols: Dimension::new(&protocols),
            v4: Dimension::new(&v4),
            v6: Dimension::new(&v6),
            ports: Dimension::new(&ports),
            icmp_types: Dimension::new(&icmp_types),
            unrestricted,
        })
    }

    /// The first rule that matches, and what it says.
    pub fn first_match(&self, flow: &Flow) -> Option<(usize, Action)> {
        let (destination, icmp) = match flow.destination {
            IpAddr::V4(address) => (self.v4.row(address.to_bits().into()), ICMP_OVER_V4),
            IpAddr::V6(address) => (self.v6.row(address.to_bits()), ICMP_OVER_V6),
        };
        let (protocol, rest) = match flow.transport {
            Transport::Tcp(port) => (TCP.into(), self.ports.row(port.into())),
            Transport::Udp(port) => (UDP.into(), self.ports.row(port.into())),
            Transport::Icmp(kind) => (icmp, self.icmp_types.row(kind.into())),
            Transport::Other(protocol) => (protocol.into(), self.unrestricted.as_slice()),
        };
        let rows = self
            .protocols
            .row(protocol)
            .iter()
            .zip(destination)
            .zip(rest);
        let (word, bits) = rows
            .map(|((protocol, destination), rest)| protocol & destination & rest)
            .enumerate()
            .find(|(_, bits)| *bits != 0)?;
        let rule = word * 64 + bits.trailing_zeros() as usize;
        Some((rule, self.actions.get(rule).copied()?))
    }
}

type Ranges = Vec<RangeInclusive<u128>>;

fn everything() -> Ranges {
    vec![0..=u128::MAX]
}

fn check(number: usize, rule: &Rule) -> Result<(), PolicyError> {
    use Protocol::{Icmp, Number, Tcp, Udp};
    if !rule.ports.is_empty() && !matches!(rule.protocol, Tcp | Udp | Number(TCP | UDP)) {
        return Err(PolicyError::Ports { rule: number });
    }
    if !rule.icmp_types.is_empty() && !matches!(rule.protocol, Icmp | Number(ICMP | ICMPV6)) {
        return Err(PolicyError::IcmpTypes { rule: number });
    }
    let empty = rule.ports.iter().any(RangeInclusive::is_empty)
        || rule.icmp_types.iter().any(RangeInclusive::is_empty);
    if empty {
        return Err(PolicyError::EmptyRange { rule: number });
    }
    Ok(())
}

fn protocol_ranges(protocol: Protocol) -> Ranges {
    let one = |number: u8| u128::from(number)..=u128::from(number);
    match protocol {
        Protocol::Any => everything(),
        Protocol::Tcp => vec![one(TCP)],
        Protocol::Udp => vec![one(UDP)],
        Protocol::Icmp => vec![ICMP_OVER_V4..=ICMP_OVER_V6],
        Protocol::Number(ICMP) => vec![one(ICMP), ICMP_OVER_V4..=ICMP_OVER_V4],
        Protocol::Number(ICMPV6) => vec![one(ICMPV6), ICMP_OVER_V6..=ICMP_OVER_V6],
        Protocol::Number(number) => vec![one(number)],
    }
}

/// The destinations of each family. A prefix of one family matches nothing of the other.
fn destination_ranges(number: usize, rule: &Rule) -> Result<(Ranges, Ranges), PolicyError> {
    if rule.destinations.is_empty() {
        return Ok((everything(), everything()));
    }
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for prefix in &rule.destinations {
        let prefix = *prefix;
        match IpNet::new(prefix.address, prefix.length) {
            Ok(IpNet::V4(net)) => {
                let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
                v4.push(first.into()..=last.into());
            }
            Ok(IpNet::V6(net)) => v6.push(net.network().to_bits()..=net.broadcast().to_bits()),
            Err(_) => {
                return Err(PolicyError::PrefixLength {
                    rule: number,
                    prefix,
                });
            }
        }
    }
    Ok((v4, v6))
}

fn wide<T: Copy + Into<u128>>(ranges: &[RangeInclusive<T>]) -> Ranges {
    if ranges.is_empty() {
        return everything();
    }
    let widen = |range: &RangeInclusive<T>| (*range.start()).into()..=(*range.end()).into();
    ranges.iter().map(widen).collect()
}

/// For every value of one dimension, which rules match it.
#[derive(Debug)]
struct Dimension {
    /// Where the set of rules changes, in order; the first is 0.
    starts: Vec<u128>,
    /// A row of `width` words for each of `starts`.
    rows: Vec<u64>,
    width: usize,
}

impl Dimension {
    /// `rules`: the values that each matches.
    fn new(rules: &[Ranges]) -> Self {
        let mut starts = vec![0];
        for range in rules.iter().flatten() {
            starts.push(*range.start());
            starts.extend(range.end().checked_add(1));
        }
        starts.sort_unstable();
        starts.dedup();
        let width = words(rules.len());
        let mut rows = vec![0; starts.len() * width];
        for (number, ranges) in rules.iter().enumerate() {
            for range in ranges {
                let first = starts.partition_point(|start| start < range.start());
                let after = starts.partition_point(|start| start <= range.end());
                let rows = rows.get_mut(first * width..after * width);
                for row in rows.unwrap_or_default().chunks_exact_mut(width) {
                    set(row, number);
                }
            }
        }
        Dimension {
            starts,
            rows,
            width,
        }
    }

    fn row(&self, value: u128) -> &[u64] {
        let after = self.starts.partition_point(|start| *start <= value);
        let first = after.saturating_sub(1) * self.width;
        self.rows.get(first..first + self.width).unwrap_or_default()
    }
}

/// How many words a row of so many bits has.
fn words(rules: usize) -> usize {
    rules.div_ceil(64).max(1)
}

fn set(row: &mut [u64], bit: usize) {
    if let Some(word) = row.get_mut(bit / 64) {
        *word |= 1 << (bit % 64);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::Prefix;

    // Few distinct bits, so that prefixes nest and ranges meet.
    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<u32>().prop_map(|bits| Ipv4Addr::from(bits & 0xc103_0083).into()),
            any::<u128>()
                .prop_map(|bits| Ipv6Addr::from(bits & 0xc001_u128.rotate_right(8)).into()),
        ]
    }

    fn prefix() -> impl Strategy<Value = Prefix> {
        (address(), any::<prop::sample::Index>()).prop_map(|(address, index)| Prefix {
            address,
            length: index.index(if address.is_ipv4() { 33 } else { 129 }) as u8,
        })
    }

    fn range<T: Copy + Ord + std::fmt::Debug>(
        value: impl Strategy<Value = T> + Clone,
    ) -> impl Strategy<Value = RangeInclusive<T>> {
        (value.clone(), value).prop_map(|(a, b)| a.min(b)..=a.max(b))
    }

    fn port() -> impl Strategy<Value = u16> + Clone {
        prop::sample::select(vec![0, 1, 22, 79, 80, 81, 443, 65_534, 65_535])
    }

    fn kind() -> impl Strategy<Value = u8> + Clone {
        prop::sample::select(vec![0, 3, 7, 8, 128, 255])
    }

    fn protocol() -> impl Strategy<Value = Protocol> {
        use Protocol::*;
        let numbers = [0, ICMP, TCP, UDP, 47, ICMPV6, 255].map(Number);
        prop::sample::select([&[Any, Tcp, Udp, Icmp][..], &numbers].concat())
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let parts = (
            any::<bool>(),
            protocol(),
            prop::collection::vec(prefix(), 0..3),
            prop::collection::vec(range(port()), 0..3),
            prop::collection::vec(range(kind()), 0..3),
        );
        parts.prop_map(|(allow, protocol, destinations, ports, icmp_types)| {
            use Protocol::*;
            let has_ports = matches!(protocol, Tcp | Udp | Number(TCP | UDP));
            let has_types = matches!(protocol, Icmp | Number(ICMP | ICMPV6));
            Rule {
                action: if allow { Action::Allow } else { Action::Deny },
                protocol,
                destinations,
                ports: if has_ports { ports } else { vec![] },
                icmp_types: if has_types { icmp_types } else { vec![] },
                name: None,
            }
        })
    }

    fn flow() -> impl Strategy<Value = Flow> {
        let transport = prop_oneof![
            port().prop_map(Transport::Tcp),
            port().prop_map(Transport::Udp),
            kind().prop_map(Transport::Icmp),
            prop::sample::select(vec![0, ICMP, 47, ICMPV6, 255]).prop_map(Transport::Other),
        ];
        (address(), transport).prop_map(|(destination, transport)| Flow {
            destination,
            transport,
        })
    }

    /// The definition, word for word: does this rule match?
    fn matches(rule: &Rule, flow: &Flow) -> bool {
        let v4 = flow.destination.is_ipv4();
        let number = match flow.transport {
            Transport::Tcp(_) => 6,
            Transport::Udp(_) => 17,
            Transport::Icmp(_) => {
                if v4 {
                    1
                } else {
                    58
                }
            }
            Transport::Other(number) => number,
        };
        let protocol = match rule.protocol {
            Protocol::Any => true,
            Protocol::Tcp => number == 6,
            Protocol::Udp => number == 17,
            Protocol::Icmp => matches!(flow.transport, Transport::Icmp(_)),
            Protocol::Number(wanted) => number == wanted,
        };
        let inside = |prefix: &Prefix| {
            IpNet::new(prefix.address, prefix.length)
                .unwrap()
                .contains(&flow.destination)
        };
        let destination = rule.destinations.is_empty() || rule.destinations.iter().any(inside);
        let ports = match flow.transport {
            Transport::Tcp(port) | Transport::Udp(port) => {
                rule.ports.is_empty() || rule.ports.iter().any(|range| range.contains(&port))
            }
            _ => rule.ports.is_empty(),
        };
        let types = match flow.transport {
            Transport::Icmp(kind) => {
                rule.icmp_types.is_empty()
                    || rule.icmp_types.iter().any(|range| range.contains(&kind))
            }
            _ => rule.icmp_types.is_empty(),
        };
        protocol && destination && ports && types
    }

    proptest! {
        #[test]
        fn the_first_rule_that_matches_decides_as_in_a_brute_force_model(
            rules in prop::collection::vec(rule(), 0..150),
            flows in prop::collection::vec(flow(), 1..100),
        ) {
            let compiled = Compiled::new(&rules).unwrap();
            for flow in flows {
                let expected = rules.iter().position(|rule| matches(rule, &flow));
                let expected = expected.map(|rule| (rule, rules[rule].action));
                prop_assert_eq!(compiled.first_match(&flow), expected);
            }
        }
    }

    #[test]
    fn rules_that_say_nothing_sensible_are_refused_with_their_number() {
        let good = Rule::default();
        let refused = |rule: Rule| Compiled::new(&[good.clone(), rule]).unwrap_err();
        let with_ports = |protocol| Rule {
            protocol,
            ports: vec![80..=80],
            ..Rule::default()
        };
        for protocol in [Protocol::Any, Protocol::Icmp, Protocol::Number(47)] {
            assert_eq!(
                refused(with_ports(protocol)),
                PolicyError::Ports { rule: 1 }
            );
        }
        for protocol in [Protocol::Any, Protocol::Tcp, Protocol::Number(17)] {
            let rule = Rule {
                protocol,
                icmp_types: vec![8..=8],
                ..Rule::default()
            };
            assert_eq!(refused(rule), PolicyError::IcmpTypes { rule: 1 });
        }
        #[allow(clippy::reversed_empty_ranges)]
        let backwards = Rule {
            ports: vec![2..=1],
            ..with_ports(Protocol::Tcp)
        };
        assert_eq!(refused(backwards), PolicyError::EmptyRange { rule: 1 });
        let prefix = Prefix {
            address: [10, 0, 0, 0].into(),
            length: 33,
        };
        let long = Rule {
            destinations: vec![prefix],
            ..Rule::default()
        };
        assert_eq!(refused(long), PolicyError::PrefixLength { rule: 1, prefix });
    }

    #[test]
    fn more_rules_or_ranges_than_allowed_are_refused() {
        let rules = vec![Rule::default(); 1025];
        assert!(Compiled::new(&rules[..1024]).is_ok());
        assert_eq!(
            Compiled::new(&rules).unwrap_err(),
            PolicyError::TooManyRules
        );
        let with = |count| Rule {
            protocol: Protocol::Tcp,
            ports: vec![1..=1; count],
            ..Rule::default()
        };
        assert!(Compiled::new(&[with(8000), with(192)]).is_ok());
        let error = Compiled::new(&[with(8000), with(193)]).unwrap_err();
        assert_eq!(error, PolicyError::TooManyRanges);
    }
}
