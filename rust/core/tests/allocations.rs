//! The data path of a node allocates nothing once its buffers have grown.

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use connlib_core::aead::{Choice, choose};
use connlib_core::policy::{Action, Policy, Rule};
use connlib_core::{
    Instant, Node, NodeConfig, PeerConfig, Prefix, PublicKey, Secret, StaticSecret,
};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator as it came; counting touches nothing of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `realloc`, and `pointer` came from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 51820))
}

/// Host `number`, whose only peer is `other`.
fn node(number: u8, other: u8, policy: &Option<Arc<Policy>>) -> Node {
    let private = Secret::new([number; 32]);
    let public = PublicKey::from(&StaticSecret::from([other; 32]));
    let peer = PeerConfig {
        allowed_ips: vec![Prefix {
            address: [10, 0, 0, other].into(),
            length: 32,
        }],
        endpoint: Some(address(other)),
        policy: policy.clone(),
        ..PeerConfig::new(*public.as_bytes())
    };
    let config = NodeConfig {
        peers: vec![peer],
        ..NodeConfig::new(private)
    };
    let rng = Box::new(ChaCha20Rng::from_seed([number; 32]));
    Node::new(
        config,
        Instant::from_nanos(0),
        Duration::from_secs(1_700_000_000),
        rng,
    )
    .unwrap()
}

/// An IPv4 packet of 1,420 bytes.
fn packet(from: u8, to: u8) -> Vec<u8> {
    let mut packet = vec![
        0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, from, 10, 0, 0, to,
    ];
    packet.resize(1420, 0);
    packet[2..4].copy_from_slice(&1420u16.to_be_bytes());
    packet
}

/// Everything that `from` has to send reaches `to`.
fn deliver(source: SocketAddr, from: &mut Node, to: &mut Node, now: Instant, way: Way) -> usize {
    let count = from.output().datagrams.len();
    let datagrams = from.output().transmits().map(|(_, datagram)| datagram);
    match way {
        One => datagrams.for_each(|datagram| to.handle_datagram(source, datagram, now)),
        _ => to.handle_datagrams(datagrams.map(|datagram| (source.into(), 0, datagram)), now),
    }
    from.drain_datagrams(count);
    let count = to.output().packets.len();
    to.drain_packets(count);
    count
}

// One test, because what another one allocates would be counted too.
#[test]
fn a_steady_flow_allocates_nothing_with_a_policy_or_without_and_with_a_flow_log() {
    let rules = vec![Rule::default(); 10];
    let policy = Policy::new(rules, Action::Deny, Action::Allow).unwrap();
    let policy = Some(Arc::new(policy));
    run(None, 0, One);
    run(policy.clone(), 0, One);
    run(policy.clone(), 100, One);
    run(policy.clone(), 100, Together);
    if let Ok(library) = choose(Choice::IpsecMb) {
        drop(library);
        run(policy, 100, TogetherByIpsecMb);
    }
}

/// How packets are handled.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    One,
    Together,
    TogetherByIpsecMb,
}
use Way::*;

fn run(policy: Option<Arc<Policy>>, logged: usize, way: Way) {
    let (mut one, mut two) = (node(1, 2, &policy), node(2, 1, &policy));
    one.log_flows(logged);
    two.log_flows(logged);
    for node in [&mut one, &mut two] {
        match way {
            One => {}
            Together => node.always_together(),
            TogetherByIpsecMb => node.set_encryption(choose(Choice::IpsecMb).unwrap()),
        }
    }
    let (there, back) = (packet(1, 2), packet(2, 1));
    let mut now = Instant::from_nanos(1);
    let mut batch = |one: &mut Node, two: &mut Node| {
        now += Duration::from_millis(1);
        for (node, packet) in [(&mut *one, &there), (&mut *two, &back)] {
            let packets = std::iter::repeat_n(packet.as_slice(), 64);
            match way {
                One => packets.for_each(|packet| node.handle_packet(packet, now)),
                _ => node.handle_packets(packets, now),
            }
        }
        let there = deliver(address(1), one, two, now, way);
        let back = deliver(address(2), two, one, now, way);
        one.handle_timeout(now);
        two.handle_timeout(now);
        let _ = (one.next_timeout(), two.next_timeout());
        there + back
    };
    // The handshake, and buffers that grow to their size.
    for _ in 0..10 {
        batch(&mut one, &mut two);
    }
    drop((one.take_events(), two.take_events()));
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let delivered: usize = (0..100).map(|_| batch(&mut one, &mut two)).sum();
    let allocated = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert_eq!(delivered, 100 * 128);
    assert_eq!(allocated, 0);
}
