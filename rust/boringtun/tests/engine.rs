//! What only shows below the Python interface: caller's buffers, counters near their end, keys of low order.

use connlib_boringtun::Instant;
use connlib_boringtun::noise::{
    Env, Event, Indices, Limits, Output, Received, Role, Settings, TimerConfig, Tunn, TunnParams,
    WireGuardError,
};
use connlib_boringtun::x25519::{PublicKey, StaticSecret};
use rand_chacha::ChaCha20Rng;
use rand_core::{CryptoRngCore, RngCore, SeedableRng};
use std::collections::BTreeSet;
use std::time::Duration;

#[derive(Default)]
struct Table(BTreeSet<u32>);

impl Indices for Table {
    fn allocate(&mut self, rng: &mut dyn CryptoRngCore) -> u32 {
        loop {
            let index = rng.next_u32();
            if self.0.insert(index) {
                return index;
            }
        }
    }

    fn release(&mut self, index: u32) {
        assert!(self.0.remove(&index), "an index was released twice");
    }
}

struct Side {
    tunn: Tunn,
    rng: ChaCha20Rng,
    table: Table,
    now: Instant,
}

impl Side {
    fn call<T>(
        &mut self,
        f: impl FnOnce(&mut Tunn, &mut Env<'_>, &mut Output) -> T,
    ) -> (T, Output) {
        let mut out = Output::default();
        let mut env = Env {
            now: self.now,
            rng: &mut self.rng,
            indices: &mut self.table,
        };
        let result = f(&mut self.tunn, &mut env, &mut out);
        (result, out)
    }

    fn send(&mut self, packet: &[u8]) -> Output {
        let (result, out) = self.call(|tunn, env, out| tunn.encapsulate(packet, env, out));
        assert_eq!(result, Ok(()));
        out
    }

    fn receive(&mut self, datagram: &[u8]) -> (Result<Received, WireGuardError>, Output) {
        let packet = Tunn::parse_incoming_packet(datagram).expect("a message");
        self.call(|tunn, env, out| tunn.handle_verified_packet(packet, env, out))
    }
}

fn settings(role: Role, limits: Limits) -> Settings {
    Settings {
        role,
        timers: TimerConfig::default(),
        limits,
        mtu: 1420,
    }
}

fn pair(limits: Limits) -> (Side, Side) {
    let secrets = [[1; 32], [2; 32]].map(StaticSecret::from);
    let side = |own: usize, peer: usize| Side {
        tunn: Tunn::new(
            TunnParams {
                static_private: secrets[own].clone(),
                peer_static_public: PublicKey::from(&secrets[peer]),
                preshared_key: None,
                settings: settings(Role::Either, limits),
                unix_time: Duration::from_secs(1_700_000_000),
            },
            Instant::default(),
        )
        .expect("good keys"),
        rng: ChaCha20Rng::seed_from_u64(own as u64),
        table: Table::default(),
        now: Instant::default(),
    };
    (side(0, 1), side(1, 0))
}

fn ipv4(length: usize) -> Vec<u8> {
    let mut packet = vec![0; length];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    packet
}

/// Both sides share a session that both have used.
fn connected(limits: Limits) -> (Side, Side) {
    let (mut a, mut b) = pair(limits);
    let (_, initiation) = a.call(|tunn, env, out| tunn.initiate_handshake(env, out));
    let (result, response) = b.receive(&initiation.datagrams.bytes);
    assert_eq!(result, Ok(Received::Initiation));
    let (result, keepalive) = a.receive(&response.datagrams.bytes);
    assert_eq!(result, Ok(Received::Response));
    let (result, out) = b.receive(&keepalive.datagrams.bytes);
    assert_eq!(result, Ok(Received::Transport { invalid: None }));
    assert_eq!(out.events, [Event::SessionEstablished { initiator: false }]);
    (a, b)
}

#[test]
fn a_packet_is_sealed_and_opened_where_it_stands() {
    let (mut a, mut b) = connected(Limits::default());
    for length in [20, 21, 64, 1420] {
        let packet = ipv4(length);
        let padded = length.next_multiple_of(16).min(1420);
        let mut buffer = vec![0xff; padded + 32];
        buffer[16..16 + length].copy_from_slice(&packet);
        let (sealed, out) =
            a.call(|tunn, env, out| tunn.seal_in_place(&mut buffer, length, env, out));
        assert_eq!(sealed, Ok(padded + 32));
        assert!(out.datagrams.is_empty());
        let (opened, _) = b.call(|tunn, env, out| {
            tunn.open_in_place(&mut buffer, env, out)
                .map(<[u8]>::to_vec)
        });
        assert_eq!(opened, Ok(packet));
    }
}

#[test]
fn every_buffer_that_is_too_short_is_an_error_and_nothing_else() {
    let (mut a, _) = connected(Limits::default());
    let before = a.tunn.stats(a.now);
    for length in 0..16 + 64 + 16 {
        let mut buffer = vec![0; length];
        let (result, out) = a.call(|tunn, env, out| tunn.seal_in_place(&mut buffer, 64, env, out));
        assert_eq!(result, Err(WireGuardError::DestinationBufferTooSmall));
        assert!(out.datagrams.is_empty() && out.events.is_empty());
    }
    assert_eq!(a.tunn.stats(a.now), before);
}

#[test]
fn random_bytes_with_a_live_index_are_errors_at_every_length() {
    let (mut a, mut b) = connected(Limits::default());
    let index = a.send(&ipv4(20)).datagrams.bytes[4..8].to_vec();
    let mut rng = ChaCha20Rng::seed_from_u64(7);
    for length in 32..2048 {
        let mut datagram = vec![0; length];
        rng.fill_bytes(&mut datagram);
        datagram[..4].copy_from_slice(&[4, 0, 0, 0]);
        datagram[4..8].copy_from_slice(&index);
        let (result, out) = b.receive(&datagram);
        assert!(matches!(
            result,
            Err(WireGuardError::InvalidAeadTag | WireGuardError::InvalidCounter)
        ));
        assert!(out.packets.is_empty() && out.datagrams.is_empty() && out.events.is_empty());
        assert!(out.packets.bytes.is_empty());
    }
}

#[test]
fn no_packet_is_sealed_or_opened_at_the_message_limit() {
    let limits = Limits {
        rekey_after_messages: 4,
        reject_after_messages: 6,
        queue_packets: 256,
    };
    let (mut a, mut b) = connected(limits);
    // Number 0 was the keepalive that confirmed the session.
    let sent: Vec<Output> = (1..6).map(|_| a.send(&ipv4(20))).collect();
    let initiations = |out: &Output| out.datagrams.iter().filter(|d| d[0] == 1).count();
    // The packet numbered 3 is the fourth: it asks for a new session, once.
    assert_eq!(
        sent.iter().map(initiations).collect::<Vec<_>>(),
        [0, 0, 1, 0, 0]
    );
    let queued = a.send(&ipv4(20));
    assert!(queued.datagrams.is_empty());
    assert_eq!(a.tunn.stats(a.now).queued, 1);
    for out in &sent {
        let data = out.datagrams.iter().find(|d| d[0] == 4).expect("data");
        assert_eq!(b.receive(data).1.packets.len(), 1);
    }
    // What the limit keeps from being sealed, a receiver with a lower one refuses.
    let lower = Limits {
        reject_after_messages: 1,
        ..limits
    };
    let (mut a, _) = connected(limits);
    let (_, mut strict) = connected(lower);
    let datagram = a.send(&ipv4(20)).datagrams.bytes;
    assert_eq!(
        strict.receive(&datagram).0,
        Err(WireGuardError::InvalidCounter)
    );
}

#[test]
fn the_seven_public_keys_of_low_order_are_refused() {
    let point = |hex: &str| -> [u8; 32] {
        let byte = |i: usize| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex");
        std::array::from_fn(byte)
    };
    // RFC 7748's curve: the points whose order divides eight, and their encodings that are not reduced.
    let points = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    for hex in points {
        let result = Tunn::new(
            TunnParams {
                static_private: StaticSecret::from([1; 32]),
                peer_static_public: PublicKey::from(point(hex)),
                preshared_key: None,
                settings: settings(Role::Either, Limits::default()),
                unix_time: Duration::ZERO,
            },
            Instant::default(),
        );
        assert_eq!(result.err(), Some(WireGuardError::InvalidKey), "{hex}");
    }
}

#[test]
fn every_index_goes_back_when_the_tunnel_goes() {
    let (mut a, mut b) = connected(Limits::default());
    for second in 1..400 {
        for side in [&mut a, &mut b] {
            side.now = Instant::default() + Duration::from_secs(second * 7);
        }
        let (_, out) = a.call(|tunn, env, out| tunn.initiate_handshake(env, out));
        // Every third initiation is lost, every third response.
        if second % 3 == 0 || out.datagrams.is_empty() {
            let _ = a.call(|tunn, env, out| tunn.handle_timeout(env, out));
            continue;
        }
        let (_, response) = b.receive(&out.datagrams.bytes);
        if second % 3 == 1 {
            let (_, out) = a.receive(&response.datagrams.bytes);
            let _ = b.receive(&out.datagrams.bytes);
        }
    }
    for mut side in [a, b] {
        assert!(side.table.0.len() <= 5);
        side.tunn.release_indices(&mut side.table);
        assert!(side.table.0.is_empty());
    }
}

#[test]
fn a_tunnel_that_becomes_a_responder_withdraws_its_initiation_and_keeps_its_session() {
    let (mut a, mut b) = connected(Limits::default());
    a.now += Duration::from_secs(1);
    b.now += Duration::from_secs(1);
    let (_, initiation) = a.call(|tunn, env, out| tunn.initiate_handshake(env, out));
    let (_, response) = b.receive(&initiation.datagrams.bytes);
    let responder = settings(Role::Responder, Limits::default());
    let _ = a.call(|tunn, env, out| tunn.reconfigure(responder, env, out));
    assert!(!a.tunn.stats(a.now).handshake_pending);
    assert_eq!(
        a.receive(&response.datagrams.bytes).0,
        Err(WireGuardError::UnexpectedPacket)
    );
    let datagram = a.send(&ipv4(20)).datagrams.bytes;
    assert_eq!(b.receive(&datagram).1.packets.len(), 1);
    a.now += Duration::from_secs(100);
    let (_, out) = a.call(|tunn, env, out| tunn.handle_timeout(env, out));
    assert_eq!(out.events, [Event::PeerSilent]);
    assert!(out.datagrams.is_empty());
}

#[test]
fn a_clock_at_either_end_of_its_range_does_no_harm() {
    let (mut a, mut b) = connected(Limits::default());
    for nanos in [0, u64::MAX, 5, u64::MAX / 2] {
        a.now = Instant::from_nanos(nanos);
        b.now = Instant::from_nanos(u64::MAX - nanos);
        for side in [&mut a, &mut b] {
            let _ = side.call(|tunn, env, out| tunn.handle_timeout(env, out));
            let _ = side.send(&ipv4(20));
            let _ = side.tunn.next_timeout();
            let _ = side.tunn.stats(side.now);
        }
    }
}
