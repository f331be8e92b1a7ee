//! The share of handshake messages of each source: its rate, its burst, and how many sources are known; and how many cookies
//! there are for all.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use connlib_boringtun::Instant;
use connlib_boringtun::noise::sources::{Replies, Sources};

const START: Instant = Instant::from_nanos(1_000_000_000_000);

fn after(millis: u64) -> Instant {
    START + Duration::from_millis(millis)
}

fn v4(number: u32) -> IpAddr {
    Ipv4Addr::from(number).into()
}

fn taken(sources: &mut Sources, address: IpAddr, now: Instant, of: usize) -> usize {
    (0..of).filter(|_| sources.take(address, now)).count()
}

#[test]
fn five_at_once_and_twenty_a_second() {
    let mut sources = Sources::default();
    assert_eq!(taken(&mut sources, v4(1), START, 100), 5);
    let next_second = (1..=1000).filter(|millis| sources.take(v4(1), after(*millis)));
    assert_eq!(next_second.count(), 20);
    assert_eq!(taken(&mut sources, v4(1), after(3000), 100), 5);
}

#[test]
fn another_source_has_a_share_of_its_own() {
    let mut sources = Sources::default();
    assert_eq!(taken(&mut sources, v4(1), START, 100), 5);
    assert_eq!(taken(&mut sources, v4(2), START, 100), 5);
    // The same bits in an IPv6 address are somebody else.
    let mapped = Ipv6Addr::from(u128::from(1u32) << 64).into();
    assert_eq!(taken(&mut sources, mapped, START, 100), 5);
}

/// Fault 4.
#[test]
fn all_addresses_of_a_64_are_one_source() {
    let mut sources = Sources::default();
    let address = |network: u128, host: u128| -> IpAddr {
        Ipv6Addr::from(0x2001_0db8 << 96 | network << 64 | host).into()
    };
    let answered = (0..65_536u128)
        .filter(|host| sources.take(address(0, *host), START))
        .count();
    assert_eq!((answered, sources.len()), (5, 1));
    assert!(sources.take(address(1, 0), START));
    assert_eq!(sources.len(), 2);
}

/// Fault 4.
#[test]
fn no_more_than_65536_sources_are_known_and_they_are_forgotten() {
    let mut sources = Sources::default();
    for number in 0..70_000 {
        assert_eq!(sources.take(v4(number), START), number < 65_536);
    }
    assert_eq!(sources.len(), 65_536);
    // Those that are known go on.
    assert!(sources.take(v4(0), START));
    assert!(sources.take(v4(70_000), after(1000)));
    assert_eq!(sources.len(), 1);
}

/// Fault 2.
#[test]
fn a_thousand_cookie_replies_at_once_and_twenty_a_millisecond() {
    let mut replies = Replies::default();
    let mut take = |millis, of| (0..of).filter(|_| replies.take(after(millis))).count();
    assert_eq!(take(0, 5_000), 1_000);
    assert_eq!(take(1, 5_000), 20);
    assert_eq!(take(11, 5_000), 200);
    assert_eq!(take(61, 5_000), 1_000);
    assert_eq!(take(60, 1), 0);
}
