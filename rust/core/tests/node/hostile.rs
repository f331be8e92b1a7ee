//! Peers that hold genuine keys and mean harm, or whose clocks are wrong (faults 15 and 20 to 23).

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use connlib_core::{
    ConfigError, DropReason, Limits, Node, NodeConfig, Output, PeerConfig, Role, Settings,
    TimerConfig, Tunn, TunnConfig,
};
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::net::*;

/// 2100-01-01.
const YEAR_2100: Duration = Duration::from_secs(4_102_444_800);

/// The numbers from which no packet is sealed or opened (paper, section 6.1).
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// Host 1, and host 2 as a bare tunnel, which sends whatever it is given; with a session.
fn hostile() -> (Net, Tunn) {
    let mut net = Net::new([(1, config(1, vec![peer(2)]))]);
    let config = TunnConfig {
        private_key: private_key(2),
        peer_public_key: public_key(1),
        preshared_key: None,
        persistent_keepalive: None,
        unix_time: UNIX_TIME,
        settings: Settings {
            role: Role::Either,
            timers: TimerConfig::default(),
            limits: Limits::default(),
            mtu: 1420,
        },
        indices: None,
        rate_limiter: None,
    };
    let rng = Box::new(ChaCha20Rng::seed_from_u64(2));
    let mut tunn = Tunn::new(config, START, rng).unwrap();
    let mut out = Output::default();
    tunn.initiate_handshake(START, &mut out);
    let [response] = &net.inject(1, address(2), &out.datagrams.bytes)[..] else {
        panic!("no response");
    };
    out.clear();
    tunn.decapsulate(&response.bytes, None, START, &mut out);
    net.inject(1, address(2), &out.datagrams.bytes);
    (net, tunn)
}

fn seal(tunn: &mut Tunn, packet: &[u8]) -> Vec<u8> {
    let mut out = Output::default();
    assert_eq!(tunn.encapsulate(packet, START, &mut out), None);
    out.datagrams.bytes
}

/// What of a peer's payload may be delivered by RFC 791 and RFC 8200, if its source is 10.0.0.2 or fd00::2.
fn deliverable(payload: &[u8]) -> Option<&[u8]> {
    let be_u16 =
        |at: usize| Some(usize::from(payload[at]) << 8 | usize::from(*payload.get(at + 1)?));
    let (length, header) = match payload.first()? >> 4 {
        4 if payload.len() >= 20 => (be_u16(2)?, 20),
        6 if payload.len() >= 40 => (40 + be_u16(4)?, 40),
        _ => return None,
    };
    let packet = payload.get(..length).filter(|_| length >= header)?;
    let own = match header {
        20 => packet[12..16] == Ipv4Addr::new(10, 0, 0, 2).octets(),
        _ => packet[8..24] == Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).octets(),
    };
    own.then_some(packet)
}

/// An IP header of either version with a length of any kind in it, then anything; or anything at all.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let bytes = |most| prop::collection::vec(any::<u8>(), 0..most);
    let length = |rest: usize| prop_oneof![Just(rest as u16), 0..=100u16, any::<u16>()];
    let v4 = bytes(100)
        .prop_flat_map(move |rest| (length(20 + rest.len()), any::<u8>(), 1..=3u8, Just(rest)));
    let v4 = v4.prop_map(|(length, header_length, host, rest)| {
        let mut packet = between(host, 1, &rest);
        // Also header lengths below five words, and beyond the packet.
        packet[0] = 0x40 | header_length & 15;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet
    });
    let v6 = bytes(100)
        .prop_flat_map(move |rest| (length(rest.len()), any::<u8>(), 1..=3u8, Just(rest)));
    let v6 = v6.prop_map(|(length, next_header, host, rest)| {
        let mut packet = packet(&format!("fd00::{host}"), "fd00::1", &rest);
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        packet[6] = next_header;
        packet
    });
    // RFC 2675: a length of zero, and the real one of more than 65,535 bytes in a hop-by-hop option.
    let jumbogram = (1..=3u8, any::<u32>(), bytes(100)).prop_map(|(host, length, rest)| {
        let mut option = vec![17, 0, 0xc2, 4];
        option.extend(length.to_be_bytes());
        option.extend(rest);
        let mut packet = packet(&format!("fd00::{host}"), "fd00::1", &option);
        packet[4..6].fill(0);
        packet[6] = 0;
        packet
    });
    let cut = (
        prop_oneof![v4, v6, jumbogram],
        any::<prop::sample::Index>(),
        any::<bool>(),
    );
    let cut = cut.prop_map(|(mut packet, at, is_cut)| {
        if is_cut {
            packet.truncate(at.index(packet.len()));
        }
        packet
    });
    prop_oneof![4 => cut, 1 => bytes(200)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Fault 15.
    #[test]
    fn an_authentic_payload_is_an_ip_packet_of_the_peers_or_counted(
        payloads in prop::collection::vec(payload(), 1..40)
    ) {
        let (mut net, mut tunn) = hostile();
        for payload in payloads.iter().filter(|payload| !payload.is_empty()) {
            net.host(1).received.clear();
            let counted = |net: &Net| {
                let drops = net.peer_stats(1, 2).drops;
                drops.get(DropReason::InvalidPacket) + drops.get(DropReason::SourceNotAllowed)
            };
            let before = counted(&net);
            // What is sealed is padded with zeros, which belong to no packet but to one that claims them.
            let mut padded = payload.clone();
            padded.resize(payload.len().next_multiple_of(16), 0);
            let datagram = seal(&mut tunn, payload);
            net.inject(1, address(2), &datagram);
            match deliverable(&padded) {
                Some(packet) => prop_assert_eq!(&net.host(1).received, &[packet]),
                None => {
                    prop_assert!(net.host(1).received.is_empty());
                    prop_assert_eq!(counted(&net), before + 1);
                }
            }
        }
        // The session works as before.
        net.host(1).received.clear();
        let datagram = seal(&mut tunn, &between(2, 1, b"genuine"));
        net.inject(1, address(2), &datagram);
        prop_assert_eq!(&net.host(1).received, &[between(2, 1, b"genuine")]);
    }
}

/// Fault 20. The counter is refused before anything is decrypted, so that it need not be authentic to show this.
#[test]
fn a_counter_at_the_end_of_its_range_is_refused_and_changes_nothing() {
    let (mut net, mut tunn) = hostile();
    let genuine = seal(&mut tunn, &between(2, 1, b"genuine"));
    for (counter, reason) in [
        (u64::MAX, DropReason::InvalidCounter),
        (u64::MAX - 1, DropReason::InvalidCounter),
        (REJECT_AFTER_MESSAGES, DropReason::InvalidCounter),
        // One less is not refused for its number.
        (REJECT_AFTER_MESSAGES - 1, DropReason::InvalidAeadTag),
    ] {
        let before = net.drops(1, 2, reason);
        let mut datagram = genuine.clone();
        datagram[8..16].copy_from_slice(&counter.to_le_bytes());
        assert!(net.inject(1, address(2), &datagram).is_empty());
        assert_eq!(net.drops(1, 2, reason), before + 1, "{counter}");
    }
    assert!(net.host(1).received.is_empty());
    net.inject(1, address(2), &genuine);
    assert_eq!(net.host(1).received, [between(2, 1, b"genuine")]);
}

/// Fault 23.
#[test]
fn a_used_up_session_is_renewed_and_no_counter_of_it_used_twice() {
    assert_eq!(
        Limits::default().reject_after_messages,
        REJECT_AFTER_MESSAGES
    );
    let limits = Limits {
        rekey_after_messages: 8,
        reject_after_messages: 10,
        queue_packets: 256,
    };
    let limited = |number, other| NodeConfig {
        limits,
        ..config(number, vec![peer(other)])
    };
    let mut net = Net::new([(1, limited(1, 2)), (2, limited(2, 1))]);
    for number in 0..200u16 {
        net.send(1, &between(1, 2, &number.to_be_bytes()));
        // Now and then so fast that the session is used up before the next one is there.
        net.run_for(if number % 50 < 25 { 0.0 } else { 0.02 });
    }
    net.run_for(10.0);
    let received = (0..200u16).map(|number| between(1, 2, &number.to_be_bytes()));
    let received: BTreeSet<_> = received.collect();
    assert_eq!(
        net.host(2)
            .received
            .iter()
            .cloned()
            .collect::<BTreeSet<_>>(),
        received
    );
    assert_eq!(net.host(2).received.len(), 200);
    let mut used = BTreeSet::new();
    let data = net.log.iter().filter(|sent| sent.kind() == DATA);
    for sent in data {
        let counter = u64::from_le_bytes(sent.bytes[8..16].try_into().unwrap());
        assert!(counter < limits.reject_after_messages);
        assert!(used.insert((sent.source, sent.bytes[4..16].to_vec())));
    }
    assert!(used.len() > 200);
}

/// RFC 7748's curve: the points whose order divides eight, and their encodings that are not reduced.
fn low_order_points() -> [[u8; 32]; 7] {
    let small = |first, last| {
        let mut point = [0xff; 32];
        (point[0], point[31]) = (first, last);
        point
    };
    let hex = |text: &str| -> [u8; 32] {
        let byte = |i: usize| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap();
        std::array::from_fn(byte)
    };
    let mut one = [0; 32];
    one[0] = 1;
    [
        [0; 32],
        one,
        hex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        hex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
        small(0xec, 0x7f),
        small(0xed, 0x7f),
        small(0xee, 0x7f),
    ]
}

/// A handshake message with another ephemeral key, and a MAC1 that is right for the receiver.
fn with_ephemeral(message: &[u8], at: usize, point: &[u8; 32], receiver: &[u8; 32]) -> Vec<u8> {
    let mut message = message.to_vec();
    message[at..at + 32].copy_from_slice(point);
    let mac1_at = message.len() - 32;
    let key = Blake2s256::new()
        .chain(b"mac1----")
        .chain(receiver)
        .finalize();
    let mut mac =
        <Blake2sMac<blake2::digest::consts::U16> as KeyInit>::new_from_slice(&key).unwrap();
    mac.update(&message[..mac1_at]);
    message[mac1_at..mac1_at + 16].copy_from_slice(&mac.finalize_fixed());
    message
}

/// Fault 21.
#[test]
fn the_seven_points_of_low_order_make_no_session_and_bring_nothing_out() {
    for point in low_order_points() {
        // As a peer's static key.
        let rng = Box::new(ChaCha20Rng::seed_from_u64(1));
        let refused = Node::new(
            config(1, vec![PeerConfig::new(point)]),
            START,
            UNIX_TIME,
            rng,
        );
        assert_eq!(
            refused.err(),
            Some(ConfigError::InvalidKey { public_key: point })
        );

        // As the ephemeral key of an initiation.
        let mut net = Net::pair(Role::Either, Role::Either);
        net.send(1, &between(1, 2, b"hello"));
        let initiation = net.log[0].bytes.clone();
        let forged = with_ephemeral(&initiation, 8, &point, &public_key(2));
        assert!(net.inject(2, address(1), &forged).is_empty());
        assert_eq!(net.stats(2).drops.get(DropReason::InvalidKey), 1);

        // As that of a response; the genuine one still counts afterwards.
        let response = net.inject(2, address(1), &initiation)[0].bytes.clone();
        let forged = with_ephemeral(&response, 12, &point, &public_key(1));
        assert!(net.inject(1, address(2), &forged).is_empty());
        assert_eq!(net.drops(1, 2, DropReason::InvalidKey), 1);
        assert_eq!(net.peer_stats(1, 2).tunnel.sessions, 0);
        assert_eq!(net.inject(1, address(2), &response).len(), 1);
        assert_eq!(net.peer_stats(1, 2).tunnel.sessions, 1);
    }
    // The forgery is one in its key alone.
    let mut net = Net::pair(Role::Either, Role::Either);
    net.send(1, &between(1, 2, b"hello"));
    let initiation = net.log[0].bytes.clone();
    let ephemeral = initiation[8..40].try_into().unwrap();
    assert_eq!(
        with_ephemeral(&initiation, 8, ephemeral, &public_key(2)),
        initiation
    );
}

/// Fault 22.
#[test]
fn a_clock_in_the_year_2100_locks_out_that_peer_alone_until_its_timestamp_is_forgotten() {
    let hub = || config(1, vec![peer(2), peer(3)]);
    let spoke = |number| {
        (
            number,
            config(
                number,
                vec![PeerConfig {
                    role: Role::Initiator,
                    ..peer(1)
                }],
            ),
        )
    };
    let mut net = Net::new([(1, hub()), spoke(2), spoke(3)]);
    let now = net.now;
    net.call(2, |node| node.set_unix_time(YEAR_2100, now));
    let connects = |net: &mut Net, number: u8| {
        let packet = between(number, 1, b"hello");
        net.host(1).received.clear();
        net.send(number, &packet);
        net.run_for(1.0);
        net.host(1).received == [packet]
    };
    assert!(connects(&mut net, 2) && connects(&mut net, 3));

    // Its machine starts again, with the right time.
    net.run_for(200.0);
    let now = net.now;
    for (number, config) in [spoke(2), spoke(3)] {
        let unix_time = UNIX_TIME + now.duration_since(START);
        let rng = Box::new(ChaCha20Rng::seed_from_u64(20 + u64::from(number)));
        net.host(number).node = Node::new(config, now, unix_time, rng).unwrap();
    }
    assert!(!connects(&mut net, 2));
    assert_eq!(net.drops(1, 2, DropReason::ReplayedInitiation), 1);
    assert!(connects(&mut net, 3));

    for config in [config(1, vec![peer(3)]), hub()] {
        let now = net.now;
        net.call(1, |node| node.apply(config, now)).unwrap();
    }
    net.run_for(10.0);
    assert!(!connects(&mut net, 2) && connects(&mut net, 3));
    assert!(net.host(1).node.forget_timestamp(&public_key(2)));
    net.run_for(10.0);
    assert!(connects(&mut net, 2) && connects(&mut net, 3));
}
