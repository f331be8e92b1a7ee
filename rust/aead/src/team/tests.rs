//! How a batch is shared.

use std::sync::{Arc, Barrier};
use std::thread;

use super::{EACH, Rest, SMALLEST, cost};
use crate::batch::{Batch, Part};
use crate::key::{Key, TAG_LEN};

/// A batch of messages of these lengths, tags included, one byte apart.
fn batch(lengths: impl Iterator<Item = usize>) -> (Batch, Vec<u8>) {
    let key = Arc::new(Key::new(&[1; 32]).unwrap());
    let mut batch = Batch::default();
    let mut end = 0;
    for (counter, length) in (0..).zip(lengths) {
        let start = end + 1;
        end = start + length;
        batch.push(&key, counter, start..end);
    }
    (batch, vec![0; end])
}

/// The parts that one after another takes.
fn parts<'a>(part: &'a mut Part<'_>, threads: usize) -> Vec<Part<'a>> {
    let cost = part.messages.iter().map(cost).sum();
    let rest = Rest::new(part, cost, threads);
    std::iter::from_fn(|| rest.take()).collect()
}

#[test]
fn parts_follow_each_other_and_together_are_the_batch() {
    for threads in [2, 3, 8, 64] {
        let lengths = (0..256).map(|n| TAG_LEN + n * 37 % 1500);
        let (mut batch, mut buffer) = batch(lengths);
        let size = buffer.len();
        let (_, mut all) = batch.checked(&mut buffer);
        let parts = parts(&mut all, threads);
        let mut counters = Vec::new();
        let mut end = 0;
        for part in &parts {
            assert_eq!(part.start, end);
            end += part.bytes.len();
            for message in &*part.messages {
                assert!(part.start <= message.range.start && message.range.end <= end);
                counters.push(message.counter);
            }
        }
        assert!(end == size && counters.iter().copied().eq(0..256));
    }
}

#[test]
fn parts_become_smaller_towards_the_end_but_not_too_small() {
    let (mut batch, mut buffer) = batch((0..256).map(|_| 1436));
    let (_, mut all) = batch.checked(&mut buffer);
    let costs: Vec<usize> = parts(&mut all, 2)
        .iter()
        .map(|part| part.messages.iter().map(cost).sum())
        .collect();
    // A quarter of what is left each time, which is half of one's half.
    let large = [64, 48, 36, 27].map(|count| count * (1436 + EACH));
    assert_eq!(costs[..4], large);
    assert!(costs.is_sorted_by(|one, next| one >= next), "{costs:?}");
    let (last, others) = costs.split_last().unwrap();
    assert!(others.iter().all(|cost| *cost >= SMALLEST), "{costs:?}");
    assert!(*last > 0 && costs.len() < 16, "{costs:?}");
}

#[test]
fn a_message_that_has_failed_costs_nothing_and_is_in_a_part() {
    let key = Arc::new(Key::new(&[1; 32]).unwrap());
    let mut batch = Batch::default();
    for place in [
        50..100,
        0..60,
        100..110,
        120..150,
        140..160,
        900..990,
        160..180,
    ] {
        batch.push(&key, 0, place);
    }
    let mut buffer = [0; 200];
    let (_, all) = batch.checked(&mut buffer);
    let costs: Vec<usize> = all.messages.iter().map(cost).collect();
    assert_eq!(costs, [50 + EACH, 0, 0, 30 + EACH, 0, 0, 20 + EACH]);
    let (first, second) = all.split(5);
    assert_eq!((first.messages.len(), first.bytes.len()), (5, 150));
    assert_eq!(
        (second.messages.len(), second.bytes.len(), second.start),
        (2, 50, 150)
    );
    // Nothing in it has a place: the cut is where it was.
    let (none, rest) = second.split(1);
    assert_eq!(
        (none.bytes.len(), rest.start, rest.bytes.len()),
        (0, 150, 50)
    );
}

#[test]
fn threads_take_parts_at_the_same_time() {
    let (mut batch, mut buffer) = batch((0..64).map(|_| 1000));
    let (_, mut all) = batch.checked(&mut buffer);
    let cost = all.messages.iter().map(cost).sum();
    let rest = Rest::new(&mut all, cost, 4);
    let both_have_one = Barrier::new(4);
    let taken: Vec<usize> = thread::scope(|scope| {
        let take = || {
            let part = rest.take().unwrap();
            both_have_one.wait();
            part.messages.len()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(taken.iter().all(|count| *count > 0), "{taken:?}");
}
