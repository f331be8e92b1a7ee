//! What a peer costs: an idle one little, and a session's memory goes when the session does.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use connlib_core::policy::{Action, Policy};
use connlib_core::{
    Instant, Node, NodeConfig, PeerConfig, Prefix, PublicKey, Secret, StaticSecret,
};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

struct Counting;

thread_local! {
    /// Bytes that this thread has allocated, less those that it has freed. A test is one thread; what the harness does
    /// meanwhile in another is not counted.
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

fn live() -> isize {
    LIVE.get()
}

// SAFETY: every call is handed to the system's allocator as it came; counting touches nothing of it. The default
// `realloc` allocates, copies and frees.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.set(LIVE.get() + layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get() - layout.size() as isize);
        // SAFETY: the caller keeps the contract of `dealloc`, and `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn private_key(number: u32) -> [u8; 32] {
    let mut key = [0; 32];
    ChaCha20Rng::seed_from_u64(number.into()).fill_bytes(&mut key);
    key
}

fn public_key(number: u32) -> [u8; 32] {
    *PublicKey::from(&StaticSecret::from(private_key(number))).as_bytes()
}

fn address(number: u32) -> SocketAddr {
    SocketAddr::from((number.to_be_bytes(), 51820))
}

/// A peer with an address of each family, as most have.
fn peer(number: u32) -> PeerConfig {
    let prefix = |address, length| Prefix { address, length };
    let v6 = 0xfd00_u128 << 112 | u128::from(number);
    PeerConfig {
        allowed_ips: vec![
            prefix((0x0a00_0000 | number).to_be_bytes().into(), 32),
            prefix(v6.to_be_bytes().into(), 128),
        ],
        endpoint: Some(address(number)),
        ..PeerConfig::new(public_key(number))
    }
}

fn node(number: u32, peers: impl IntoIterator<Item = PeerConfig>) -> Node {
    let config = NodeConfig {
        peers: peers.into_iter().collect(),
        handshake_limit: u64::MAX,
        ..NodeConfig::new(Secret::new(private_key(number)))
    };
    let rng = Box::new(ChaCha20Rng::seed_from_u64(number.into()));
    let unix_time = Duration::from_secs(1_700_000_000);
    Node::new(config, Instant::from_nanos(0), unix_time, rng).unwrap()
}

/// A packet between two hosts, which get each other's addresses from their numbers.
fn packet(from: u32, to: u32) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend((0x0a00_0000 | from).to_be_bytes());
    packet.extend((0x0a00_0000 | to).to_be_bytes());
    packet
}

/// Everything that `from` has to send reaches `to`.
fn deliver(from: &mut Node, source: u32, to: &mut Node, now: Instant) {
    for (_, datagram) in from.output().transmits() {
        to.handle_datagram(address(source), datagram, now);
    }
    from.clear_output();
}

/// The node with `peers` calls its deadlines until `end`, and nobody hears it.
fn alone_until(node: &mut Node, end: Instant) {
    while let Some(next) = node.next_timeout().filter(|next| next.at <= end) {
        node.handle_timeout(next.at);
        node.clear_output();
    }
}

/// Bytes that an idle peer may cost, its share of the node's tables included.
const LIMIT: isize = 2048;

#[test]
fn an_idle_peer_costs_at_most_two_kibibytes() {
    // Just past a power of two is where tables that double are emptiest.
    for count in [100, 1025, 10_000] {
        let before = live();
        let node = node(0, (1..=count).map(peer));
        let each = (live() - before) / count as isize;
        drop(node);
        assert!(each <= LIMIT, "{each} bytes a peer with {count} peers");
        assert_eq!(live(), before);
    }
}

#[test]
fn the_memory_of_a_session_and_of_what_waits_for_one_goes_with_it() {
    const COUNT: u32 = 400;
    let before = live();
    let mut hub = node(0, (1..=COUNT).map(peer));
    let each = || (live() - before) / COUNT as isize;
    let mut now = Instant::from_nanos(1);
    let mut rounds = [(0, 0); 3];
    for (round, result) in rounds.iter_mut().enumerate() {
        for number in 1..=COUNT {
            // As many packets wait for the session as may, and leave with it.
            for _ in 0..300 {
                hub.handle_packet(&packet(0, number), now);
            }
            let mut spoke = node(number, [peer(0)]);
            let there = if round < 2 { 2 } else { 0 };
            for _ in 0..there {
                deliver(&mut hub, 0, &mut spoke, now);
                deliver(&mut spoke, number, &mut hub, now);
            }
            hub.clear_output();
        }
        let peers = hub.stats(now).peers;
        let sessions: usize = peers.iter().map(|peer| peer.tunnel.sessions).sum();
        let queued: usize = peers.iter().map(|peer| peer.tunnel.queued).sum();
        match round {
            0 | 1 => assert_eq!((sessions, queued), (COUNT as usize, 0)),
            // The first 32 have 256 each, which is what may wait in all, and each other one has its first.
            _ => assert_eq!((sessions, queued), (0, 8192 + 368)),
        }
        drop(peers);
        let busy = each();
        now += Duration::from_secs(200);
        alone_until(&mut hub, now);
        *result = (busy, each());
    }
    // A session is mostly its replay window of 1 KiB and its two keys.
    for (busy, _) in &rounds[..2] {
        let session = LIMIT + 1000..3 * LIMIT;
        assert!(session.contains(busy), "{rounds:?}");
    }
    assert!(rounds[2].0 > LIMIT + 1000, "{rounds:?}: nothing waited");
    for (_, idle) in &rounds {
        assert!(*idle <= LIMIT, "{rounds:?}");
    }
    // The first round has the shared buffers grow.
    // A counter stays, of the packets that waited in vain.
    assert_eq!(rounds[1].1 + 16, rounds[2].1, "{rounds:?}: something stays");
}

#[test]
fn flows_have_a_bound_and_their_memory_goes_when_they_are_over() {
    let open = Arc::new(Policy::new(vec![], Action::Allow, Action::Allow).unwrap());
    let policy = Some(open);
    let mut hub = node(0, [PeerConfig { policy, ..peer(1) }]);
    let mut spoke = node(1, [peer(0)]);
    let mut now = Instant::from_nanos(1);
    let mut flood = |hub: &mut Node, first: u32, now: Instant| {
        for number in first..first + 20_000 {
            let mut packet = packet(1, 0);
            packet[3] = 28;
            packet.extend(((number << 16) | 443).to_be_bytes());
            packet.extend([0, 8, 0, 0]);
            spoke.handle_packet(&packet, now);
            for _ in 0..3 {
                deliver(&mut spoke, 1, hub, now);
                deliver(hub, 0, &mut spoke, now);
            }
        }
    };
    let before = live();
    flood(&mut hub, 0, now);
    let full = live();
    let stats = hub.stats(now).peers.pop().and_then(|peer| peer.policy);
    assert_eq!(
        stats.map(|stats| (stats.flows, stats.evicted)),
        Some((8192, 20_000 - 8192))
    );
    // 8,192 flows of some 300 bytes, and the session.
    assert!(full - before < 8192 * 400, "{} bytes", full - before);
    flood(&mut hub, 20_000, now);
    assert_eq!(live(), full, "more flows than allowed cost more");
    now += Duration::from_secs(200);
    alone_until(&mut hub, now);
    assert!(live() - before < 100_000, "{} bytes stay", live() - before);
}

#[test]
fn what_waits_for_an_answer_has_a_bound_and_its_memory_goes_with_the_question() {
    let asking = Arc::new(Policy::new(vec![], Action::Deny, Action::Ask).unwrap());
    let peers = (1..=40).map(|number| PeerConfig {
        policy: Some(asking.clone()),
        ..peer(number)
    });
    let mut hub = node(0, peers);
    let now = Instant::from_nanos(1);
    hub.ask(true, now);
    // Of each peer a hundred flows, from this port on, with so many packets of so many bytes.
    let flood = |hub: &mut Node, first: u16, size: u16, count: usize| {
        for number in 1..=40 {
            let mut packet = packet(0, number);
            packet.resize(size.into(), 0);
            packet[2..4].copy_from_slice(&size.to_be_bytes());
            for port in first..first + 100 {
                packet[20..22].copy_from_slice(&port.to_be_bytes());
                (0..count).for_each(|_| hub.handle_packet(&packet, now));
            }
        }
    };
    let over = |hub: &mut Node| {
        hub.ask(false, now);
        hub.clear_output();
        drop(hub.take_events());
        hub.ask(true, now);
    };
    let before = live();
    flood(&mut hub, 0, 1400, 10);
    // 1,024 flows with eight packets each.
    let held = live() - before;
    assert!((1024 * 8 * 1400..16 << 20).contains(&held), "{held} bytes");
    over(&mut hub);
    // What stays is the memory of the output.
    let left = live();
    assert!(left - before < 400_000, "{} bytes stay", left - before);
    for first in [100, 200, 300] {
        flood(&mut hub, first, 1400, 10);
        over(&mut hub);
        assert_eq!(live(), left, "something stays");
    }
    flood(&mut hub, 400, 65_000, 1);
    let held = live() - left;
    assert!((15 << 20..17 << 20).contains(&held), "{held} bytes");
}
