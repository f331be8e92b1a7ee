//! What comes of packets and datagrams in a batch is what comes of them one by one.
//!
//! Hubs with the same keys and the same randomness get the same input: one by one, in batches with ring, in batches with three
//! threads, and in batches with intel-ipsec-mb, if that is there. Everything that can be seen of them is compared after each step. The spokes talk to the
//! first one, whose answers are those of all.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use connlib_core::aead::{Choice, choose, choose_for};
use connlib_core::policy::{Action, Policy, Protocol, Rule};
use connlib_core::{
    CaptureConfig, DropReason, Instant, Limits, Node, NodeConfig, Path, PeerConfig, Role,
};
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::net::*;

const SPOKES: std::ops::RangeInclusive<u8> = 2..=5;
/// Few, so that sessions are at their end in the midst of a batch.
const LIMITS: Limits = Limits {
    rekey_after_messages: 120,
    reject_after_messages: 180,
    queue_packets: 40,
};
/// Datagrams that came earlier and may come again.
const HISTORY: usize = 200;

fn hub_config() -> NodeConfig {
    let deny = Rule {
        action: Action::Deny,
        protocol: Protocol::Udp,
        ports: vec![9..=9],
        ..Rule::default()
    };
    let some = Policy::new(vec![deny], Action::Allow, Action::Allow).unwrap();
    let asks = Policy::new(vec![], Action::Ask, Action::Ask).unwrap();
    let with = |number, policy: Policy| PeerConfig {
        policy: Some(Arc::new(policy)),
        ..peer(number)
    };
    let unknown = PeerConfig {
        endpoint: None,
        role: Role::Responder,
        ..peer(5)
    };
    NodeConfig {
        limits: LIMITS,
        handshake_limit: 8,
        ..config(1, vec![peer(2), with(3, some), with(4, asks), unknown])
    }
}

fn spoke_config(number: u8) -> NodeConfig {
    NodeConfig {
        limits: LIMITS,
        ..config(number, vec![peer(1)])
    }
}

struct World {
    now: Instant,
    rng: ChaCha20Rng,
    hubs: Vec<Node>,
    spokes: Vec<Node>,
    /// On their way to the hub.
    pool: Vec<(u8, Vec<u8>)>,
    history: Vec<(u8, Vec<u8>)>,
    questions: Vec<u64>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut hubs = vec![node(hub_config()), node(hub_config()), node(hub_config())];
        hubs[1].always_together();
        hubs[2].set_encryption(choose_for(Choice::Ring, 3).unwrap());
        match choose(Choice::IpsecMb) {
            Ok(library) => {
                let mut hub = node(hub_config());
                hub.set_encryption(library);
                hubs.push(hub);
            }
            Err(refusal) => {
                // The same that conftest.py takes for CI.
                let ci = std::env::var("CI").unwrap_or_default().to_lowercase();
                let in_ci = !["", "0", "false"].contains(&ci.as_str());
                assert!(!in_ci || !cfg!(target_arch = "x86_64"), "{refusal}");
            }
        }
        for hub in &mut hubs {
            hub.record(100_000);
            hub.log_flows(10_000);
            hub.ask(true, START);
        }
        World {
            now: START,
            rng: ChaCha20Rng::seed_from_u64(seed),
            hubs,
            spokes: SPOKES.map(|number| node(spoke_config(number))).collect(),
            pool: Vec::new(),
            history: Vec::new(),
            questions: Vec::new(),
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.rng.next_u64() as usize % bound
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    fn spoke(&mut self) -> u8 {
        SPOKES.start() + self.below(SPOKES.count()) as u8
    }

    /// The same for all hubs.
    fn each(&mut self, mut call: impl FnMut(&mut Node)) {
        self.hubs.iter_mut().for_each(&mut call);
    }

    fn step(&mut self) {
        let now = self.now;
        match self.below(20) {
            0..=5 => self.spoke_sends(),
            6..=9 => self.hub_sends(),
            10..=14 => self.deliver(),
            15 | 16 => self.wait(),
            17 => {
                let number = self.spoke();
                self.each(|hub| {
                    let _ = hub.initiate_handshake(&public_key(number), now);
                });
            }
            18 => {
                let (allow, rest) = (self.one_in(2), self.below(3));
                let answered = self.questions.split_off(rest.min(self.questions.len()));
                for id in answered {
                    self.each(|hub| {
                        hub.decide(id, allow, now);
                    });
                }
            }
            _ if self.one_in(3) => {
                let number = self.spoke();
                self.each(|hub| hub.panic_in(&public_key(number), now).unwrap());
            }
            _ => {
                let captures = self.one_in(3).then_some(CaptureConfig {
                    capacity: 1 << 24,
                    outer: true,
                    inner: true,
                    snaplen: 65_535,
                });
                self.each(|hub| hub.capture(captures));
            }
        }
        self.compare();
        self.exchange();
    }

    /// A UDP packet, sometimes to the port that a policy denies.
    fn payload(&mut self) -> Vec<u8> {
        let port = if self.one_in(8) {
            9
        } else {
            443 + self.below(3) as u16
        };
        let size = match self.below(4) {
            0 => self.below(1_400),
            1 => 1_392,
            _ => self.below(64),
        };
        let mut payload = [5000u16, port, 8 + size as u16, 0]
            .map(u16::to_be_bytes)
            .concat();
        payload.resize(8 + size, size as u8);
        payload
    }

    fn spoke_sends(&mut self) {
        let number = self.spoke();
        for _ in 0..1 + self.below(90) {
            let payload = self.payload();
            // Some with another's address, and some that understand congestion.
            let source = if self.one_in(30) { 9 } else { number };
            let mut packet = between(source, 1, &payload);
            packet[1] = self.below(3) as u8;
            let now = self.now;
            self.spokes[usize::from(number - 2)].handle_packet(&packet, now);
        }
        self.collect(number);
    }

    /// What a spoke has to send is on its way.
    fn collect(&mut self, number: u8) {
        let spoke = &mut self.spokes[usize::from(number - 2)];
        let sent = spoke.output().transmits();
        self.pool
            .extend(sent.map(|(_, datagram)| (number, datagram.to_vec())));
        spoke.clear_output();
        drop(spoke.take_events());
    }

    fn hub_sends(&mut self) {
        let only = self.one_in(2).then(|| self.spoke());
        let packets: Vec<Vec<u8>> = (0..1 + self.below(150))
            .map(|_| {
                let to = only.unwrap_or_else(|| self.spoke());
                match self.below(40) {
                    0 => Vec::new(),
                    1 => vec![0x15; 30],
                    2 => between(1, 77, b"no route"),
                    _ => {
                        let payload = self.payload();
                        let mut packet = between(1, to, &payload);
                        packet[1] = self.below(4) as u8;
                        packet
                    }
                }
            })
            .collect();
        let now = self.now;
        let (first, others) = self.hubs.split_first_mut().unwrap();
        packets
            .iter()
            .for_each(|packet| first.handle_packet(packet, now));
        for hub in others {
            hub.handle_packets(packets.iter().map(Vec::as_slice), now);
        }
    }

    /// What is on its way arrives: most of it as it was sent.
    fn deliver(&mut self) {
        let mut arriving = std::mem::take(&mut self.pool);
        if self.one_in(4) {
            self.pool = arriving.split_off(arriving.len() / 2);
        }
        let mut datagrams: Vec<(Path, u8, Vec<u8>)> = Vec::new();
        for (number, mut bytes) in arriving {
            let mut from = address(number);
            let copies = match self.below(25) {
                0 => 0,
                1 => 2 + self.below(3),
                2 => {
                    let bit = self.below(bytes.len() * 8);
                    bytes[bit / 8] ^= 1 << (bit % 8);
                    1
                }
                3 => {
                    bytes.truncate(self.below(bytes.len()));
                    1
                }
                4 => {
                    from.set_port(1024 + self.below(3) as u16);
                    1
                }
                _ => 1,
            };
            for _ in 0..copies {
                let ecn = if self.one_in(6) {
                    self.below(4) as u8
                } else {
                    0
                };
                datagrams.push((from.into(), ecn, bytes.clone()));
            }
            if self.history.len() < HISTORY {
                self.history.push((number, bytes));
            } else {
                let place = self.below(HISTORY);
                self.history[place] = (number, bytes);
            }
        }
        // What was seen earlier comes again, anywhere; and what is no message.
        for _ in 0..self.below(12) {
            let place = self.below(datagrams.len() + 1);
            let one = match self.history.len() {
                0 => (2, vec![4, 0, 0, 0]),
                count => {
                    let at = self.below(count);
                    self.history[at].clone()
                }
            };
            datagrams.insert(place, (address(one.0).into(), 0, one.1));
        }
        if self.one_in(3) {
            for _ in 0..datagrams.len() / 4 {
                let (one, other) = (self.below(datagrams.len()), self.below(datagrams.len()));
                datagrams.swap(one, other);
            }
        }
        let now = self.now;
        let (first, others) = self.hubs.split_first_mut().unwrap();
        for (from, ecn, bytes) in &datagrams {
            first.handle_marked_datagram(*from, *ecn, bytes, now);
        }
        for hub in others {
            let datagrams = datagrams.iter();
            hub.handle_datagrams(
                datagrams.map(|(from, ecn, bytes)| (*from, *ecn, &bytes[..])),
                now,
            );
        }
    }

    fn wait(&mut self) {
        let waits = [0.01, 0.3, 5.0, 10.0, 25.0, 121.0, 171.0, 181.0];
        let wait = waits[self.below(waits.len())];
        self.now += Duration::from_secs_f64(wait);
        let now = self.now;
        // Somebody who is late calls for nothing.
        if self.one_in(2) {
            self.each(|hub| hub.handle_timeout(now));
        }
        for number in SPOKES {
            self.spokes[usize::from(number - 2)].handle_timeout(now);
            self.collect(number);
        }
    }

    fn compare(&mut self) {
        let now = self.now;
        let mut seen = self.hubs.iter_mut().map(|hub| seen(hub, now));
        let first = seen.next().unwrap();
        for (number, other) in seen.enumerate() {
            for (one, other) in first.iter().zip(&other) {
                assert!(one == other, "hub {}:\n{one}\n{other}", number + 1);
            }
        }
        let questions = self.hubs.iter_mut().map(|hub| hub.take_questions());
        let questions: Vec<Vec<u64>> = questions
            .map(|all| all.iter().map(|question| question.id).collect())
            .collect();
        assert!(questions.iter().all(|ids| *ids == questions[0]));
        self.questions.extend(&questions[0]);
    }

    /// The first hub's datagrams reach the spokes, and what all have brought about is taken away.
    fn exchange(&mut self) {
        let now = self.now;
        let sent = self.hubs[0].output().transmits();
        let sent: Vec<_> = sent.map(|(to, datagram)| (to, datagram.to_vec())).collect();
        for (to, datagram) in sent {
            if let Some(number) = SPOKES
                .into_iter()
                .find(|number| address(*number).ip() == to.ip())
            {
                self.spokes[usize::from(number - 2)].handle_datagram(address(1), &datagram, now);
            }
        }
        SPOKES.for_each(|number| self.collect(number));
        self.each(Node::clear_output);
    }
}

/// All that a node says of itself, part by part.
fn seen(hub: &mut Node, now: Instant) -> Vec<String> {
    let output = hub.output();
    let mut parts = vec![
        format!("{:?}", output.datagrams),
        format!("{:?}", output.ecn),
        format!("{:?} {:?}", output.destinations, output.sources),
        format!("{:?}", output.packets),
        format!("{:?}", output.events),
    ];
    parts.push(format!("{:?}", hub.next_timeout()));
    parts.push(format!("{:?}", hub.stats(now)));
    parts.push(format!("{:?}", hub.take_recorded()));
    parts.push(format!("{:?}", hub.take_flows(now)));
    parts.push(format!("{:?}", hub.take_captured(usize::MAX)));
    parts.push(format!("{:?}", hub.take_withdrawn()));
    parts
}

fn run(seed: u64, steps: usize) -> World {
    let mut world = World::new(seed);
    for _ in 0..steps {
        world.step();
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_batch_is_its_packets_one_by_one(seed in any::<u64>(), steps in 1..60usize) {
        run(seed, steps);
    }
}

#[test]
fn what_is_compared_is_worth_it() {
    let mut reasons = BTreeSet::new();
    let (mut sent, mut received) = (0, 0);
    for seed in 0..12 {
        let world = run(seed, 60);
        let stats = world.hubs[0].stats(world.now);
        for peer in &stats.peers {
            reasons.extend(peer.drops.iter().map(|(reason, _)| reason));
            sent += peer.tunnel.tx_packets;
            received += peer.tunnel.rx_packets;
        }
        reasons.extend(stats.drops.iter().map(|(reason, _)| reason));
    }
    use DropReason::*;
    for reason in [
        InvalidAeadTag,
        DuplicateCounter,
        InvalidCounter,
        WrongIndex,
        InvalidPacket,
        InvalidMac,
        QueueFull,
        NoRoute,
        NotIp,
        SourceNotAllowed,
        CongestionMark,
        Denied,
        PeerPoisoned,
        ReplayedInitiation,
        CookieReplySent,
    ] {
        assert!(
            reasons.contains(&reason),
            "{reason:?} is not in {reasons:?}"
        );
    }
    assert!(sent > 2_000 && received > 2_000, "{sent} {received}");
}
