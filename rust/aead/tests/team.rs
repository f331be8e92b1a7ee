//! What several threads make of a batch is what ring makes of its messages one by one, whatever the batch is.

mod common;

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use connlib_aead::{
    Batch, Choice, Engine, Key, MOST, MOST_OF_A_TEAM, MOST_THREADS, TAG_LEN, Why, choose,
    choose_for,
};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

const MESSAGES: usize = 100_000;

fn team(threads: usize) -> Engine {
    choose_for(Choice::Ring, threads).unwrap().engine
}

/// A message as it is put into a batch.
struct Message {
    key: usize,
    counter: u64,
    range: Range<usize>,
    /// Which bit is flipped before it is opened, if one is.
    forged: Option<usize>,
}

struct Check {
    rng: ChaCha20Rng,
    keys: Vec<Arc<Key>>,
    engines: Vec<Engine>,
    count: usize,
    failed: usize,
}

impl Check {
    fn new(engines: Vec<Engine>) -> Self {
        let keys = (1..=4).map(|byte| Arc::new(Key::new(&[byte; 32]).unwrap()));
        Check {
            rng: ChaCha20Rng::seed_from_u64(54),
            keys: keys.collect(),
            engines,
            count: 0,
            failed: 0,
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.rng.next_u64() as usize % bound
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    /// Mostly as they should be: one behind the other, some with something between.
    fn messages(&mut self, count: usize, forges: bool) -> (Vec<Message>, usize) {
        let longest = [100, 1_500, 9_000][self.below(3)];
        let misplaces = self.one_in(2);
        let (mut messages, mut end) = (Vec::new(), 0);
        for _ in 0..count {
            let gap = if self.one_in(3) { self.below(40) } else { 16 };
            let text = if self.one_in(2) {
                longest
            } else {
                self.below(longest)
            };
            let mut range = end + gap..end + gap + text + TAG_LEN;
            end = range.end;
            if misplaces && self.one_in(20) {
                match self.below(5) {
                    0 => range.start = range.start.saturating_sub(gap + 1 + self.below(2_000)),
                    1 => range.end = range.start + self.below(TAG_LEN),
                    2 => range = range.end..range.start,
                    3 => range.end += self.below(3_000),
                    _ => range = usize::MAX - self.below(3)..usize::MAX,
                }
            }
            let forged = forges && self.one_in(12);
            messages.push(Message {
                key: self.below(self.keys.len()),
                counter: self.rng.next_u64(),
                forged: forged.then(|| self.below((text + TAG_LEN) * 8)),
                range,
            });
        }
        // Sometimes the buffer ends before the last ones do.
        let cut = if misplaces {
            self.below(2_000).min(end)
        } else {
            0
        };
        (messages, end - cut)
    }

    fn batch(&self, messages: &[Message]) -> Batch {
        let mut batch = Batch::default();
        for message in messages {
            batch.push(
                &self.keys[message.key],
                message.counter,
                message.range.clone(),
            );
        }
        batch
    }

    /// Has each engine do the same to the same, and returns what ring has left.
    fn each(
        &mut self,
        messages: &[Message],
        buffer: &[u8],
        call: fn(&mut Engine, &mut Batch, &mut [u8]),
    ) -> Vec<u8> {
        let (mut expected, mut left) = (self.batch(messages), buffer.to_vec());
        call(&mut Engine::Ring, &mut expected, &mut left);
        let mut engines = std::mem::take(&mut self.engines);
        for engine in &mut engines {
            let (mut batch, mut bytes) = (self.batch(messages), buffer.to_vec());
            call(engine, &mut batch, &mut bytes);
            for number in 0..messages.len() {
                let context = (self.count, number, engine.threads());
                assert_eq!(
                    batch.succeeded(number),
                    expected.succeeded(number),
                    "{context:?}"
                );
                assert!(
                    batch.text(number, &bytes) == expected.text(number, &left),
                    "{context:?}"
                );
            }
            assert!(bytes == left, "{} {}", self.count, engine.threads());
        }
        self.engines = engines;
        self.failed += (0..messages.len())
            .filter(|number| !expected.succeeded(*number))
            .count();
        left
    }

    fn run(&mut self, count: usize) {
        let (messages, size) = self.messages(count, true);
        let mut buffer = vec![0; size];
        self.rng.fill_bytes(&mut buffer);
        let mut sealed = self.each(&messages, &buffer, Engine::seal);
        for message in &messages {
            if let Some(bit) = message.forged
                && let Some(byte) = sealed.get_mut(message.range.start.saturating_add(bit / 8))
            {
                *byte ^= 1 << (bit % 8);
            }
        }
        self.each(&messages, &sealed, Engine::open);
        self.count += count;
    }
}

#[test]
fn a_team_does_what_ring_does_one_by_one() {
    let mut check = Check::new([2, 3, 8].map(team).into());
    while check.count < MESSAGES {
        let count = match check.below(4) {
            0 => check.below(20),
            1 => MOST_OF_A_TEAM,
            _ => 1 + check.below(400),
        };
        check.run(count);
    }
    assert!(check.failed > MESSAGES / 20, "{}", check.failed);
}

#[test]
fn a_team_of_ipsec_mb_does_what_ring_does() {
    if common::ipsec_mb().is_none() {
        return;
    }
    let engine = choose_for(Choice::IpsecMb, 3).unwrap().engine;
    let mut check = Check::new(vec![engine]);
    while check.count < MESSAGES / 10 {
        let count = 1 + check.below(400);
        check.run(count);
    }
    assert_eq!(check.engines[0].name(), "ipsec-mb", "it was given up");
}

#[test]
fn a_team_is_as_large_as_it_is_wanted_within_bounds() {
    for (wanted, threads) in [
        (0, 1),
        (1, 1),
        (2, 2),
        (5, 5),
        (64, 64),
        (1000, MOST_THREADS),
    ] {
        let chosen = choose_for(Choice::Ring, wanted).unwrap();
        let seen = (
            chosen.threads(),
            chosen.wanted_threads(),
            chosen.engine.name(),
        );
        assert_eq!(seen, (threads, threads, "ring"));
        assert_eq!(chosen.why(), Why::Wanted);
        let engine = &chosen.engine;
        let alone = threads == 1;
        assert_eq!(engine.gains_by_batches(), !alone);
        assert_eq!(engine.most(), if alone { MOST } else { MOST_OF_A_TEAM });
    }
}

#[test]
fn the_choice_of_the_backend_is_the_same_for_several_threads() {
    for choice in Choice::ALL {
        let (Ok(one), Ok(three)) = (choose(choice), choose_for(choice, 3)) else {
            continue;
        };
        assert_eq!(
            (one.engine.name(), one.why()),
            (three.engine.name(), three.why())
        );
        assert_eq!((one.threads(), three.threads()), (1, 3));
    }
}

#[test]
fn a_team_works_on_in_another_thread_and_may_end_there() {
    let mut engine = team(3);
    let mut check = Check::new(Vec::new());
    let (messages, size) = check.messages(300, false);
    let (mut batch, mut here) = (check.batch(&messages), vec![7; size]);
    engine.seal(&mut batch, &mut here);
    let there = std::thread::spawn(move || {
        let mut bytes = vec![7; size];
        engine.seal(&mut batch, &mut bytes);
        bytes
    });
    assert!(there.join().unwrap() == here);
}

/// Not a test: what a packet costs, for batches of several sizes and teams of up to `THREADS` (2).
#[test]
#[ignore = "measures"]
fn measured() {
    const ROUNDS: u64 = 1_000;
    let most = std::env::var("THREADS").map_or(2, |most| most.parse().unwrap());
    let key = Arc::new(Key::new(&[7; 32]).unwrap());
    let place = 16 + 1_420 + TAG_LEN;
    println!("ns/packet of 1,420 B, median (10th to 90th percentile):");
    for choice in [Choice::Ring, Choice::IpsecMb] {
        for count in [16, 64, 128, 256] {
            for threads in 1..=most {
                let Ok(mut chosen) = choose_for(choice, threads) else {
                    continue;
                };
                let mut buffer = vec![0; place * count];
                let mut times = Vec::new();
                for round in 0..ROUNDS {
                    let mut batch = Batch::default();
                    for number in 0..count {
                        let range = number * place + 16..(number + 1) * place;
                        batch.push(&key, (round << 32) + number as u64, range);
                    }
                    let before = Instant::now();
                    chosen.engine.seal(&mut batch, &mut buffer);
                    times.push(before.elapsed().as_nanos() / count as u128);
                }
                times.sort_unstable();
                let [low, median, high] =
                    [10, 50, 90].map(|share| times[times.len() * share / 100]);
                let name = choice.name();
                println!(
                    "{name:>8}, {count:>3} a batch, {threads} threads: {median:>5} ({low} to {high})"
                );
            }
        }
    }
}
