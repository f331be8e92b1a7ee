//! Keys, batches and the choice of an engine.

mod common;

use std::sync::Arc;

use connlib_aead::{Batch, Choice, Engine, Failed, Key, TAG_LEN, Why, choose};
use proptest::prelude::*;

fn key(byte: u8) -> Arc<Key> {
    Arc::new(Key::new(&[byte; 32]).unwrap())
}

/// Every engine that this machine has.
fn engines() -> Vec<Engine> {
    [Some(Engine::Ring), common::ipsec_mb()]
        .into_iter()
        .flatten()
        .collect()
}

#[test]
fn a_message_is_sealed_as_wireguard_does_it() {
    // AEAD_CHACHA20_POLY1305 with the nonce 00000000 || 08 07 06 05 04 03 02 01 and no associated data.
    let bytes: [u8; 32] = std::array::from_fn(|n| n as u8 + 1);
    let key = Key::new(&bytes).unwrap();
    let mut message = [0; 20];
    message[..4].copy_from_slice(b"ping");
    key.seal(0x0102_0304_0506_0708, &mut message).unwrap();
    assert_eq!(message, VECTOR);
    assert_eq!(key.open(0x0102_0304_0506_0708, &mut message), Ok(4));
    assert_eq!(&message[..4], b"ping");
}

/// Computed by hand from RFC 8439, sections 2.3, 2.5 and 2.8.
const VECTOR: [u8; 20] = [
    28, 33, 138, 79, 184, 45, 128, 101, 150, 68, 84, 122, 15, 7, 60, 198, 235, 142, 191, 58,
];

#[test]
fn of_a_message_that_is_not_authentic_nothing_is_left() {
    let key = key(1);
    let mut sealed = [7; 80];
    key.seal(3, &mut sealed).unwrap();
    for (counter, flip) in [
        (4, None),
        (3, Some(0)),
        (3, Some(63)),
        (3, Some(64)),
        (3, Some(79)),
    ] {
        let mut message = sealed;
        if let Some(byte) = flip {
            message[byte] ^= 1;
        }
        assert_eq!(key.open(counter, &mut message), Err(Failed));
        assert_eq!(message, [0; 80]);
    }
}

#[test]
fn what_is_shorter_than_a_tag_is_no_message() {
    for length in 0..TAG_LEN {
        let mut message = vec![1; length];
        assert_eq!(key(1).seal(0, &mut message), Err(Failed));
        assert_eq!(message, vec![1; length]);
        assert_eq!(key(1).open(0, &mut message), Err(Failed));
    }
}

#[test]
fn a_key_is_not_shown() {
    let key = Arc::new(Key::new(&[0xab; 32]).unwrap());
    let mut batch = Batch::default();
    batch.push(&key, 0, 0..16);
    for text in [format!("{key:?}"), format!("{batch:?}")] {
        assert!(text.contains("redacted"), "{text}");
        assert!(!text.contains("171") && !text.contains("ab, "), "{text}");
    }
}

#[test]
fn a_batch_holds_a_key_until_it_is_cleared_and_no_longer() {
    let (one, two) = (key(1), key(2));
    let mut batch = Batch::default();
    for counter in 0..10 {
        let start = counter as usize * 16;
        batch.push(&one, counter, start..start + 16);
    }
    batch.push(&two, 0, 160..176);
    assert_eq!((Arc::strong_count(&one), Arc::strong_count(&two)), (2, 2));
    batch.clear();
    assert_eq!((Arc::strong_count(&one), Arc::strong_count(&two)), (1, 1));
    assert!(batch.is_empty());
}

#[test]
fn messages_that_were_cut_off_are_gone() {
    let key = key(1);
    let mut batch = Batch::default();
    for start in [0, 20, 40] {
        batch.push(&key, 0, start..start + 20);
    }
    batch.truncate(60);
    assert_eq!(batch.len(), 3);
    batch.truncate(59);
    assert_eq!(batch.len(), 2);
    batch.truncate(20);
    assert_eq!(batch.len(), 1);
    batch.truncate(0);
    assert!(batch.is_empty());
}

#[test]
fn a_message_that_lies_where_none_can_fails_alone() {
    let key = key(1);
    for mut engine in engines() {
        let mut batch = Batch::default();
        let mut buffer = vec![5; 200];
        let good = [batch.push(&key, 0, 0..30), {
            batch.push(&key, 1, 20..50); // It overlaps.
            batch.push(&key, 2, 60..75); // It is too short.
            #[allow(clippy::reversed_empty_ranges)]
            batch.push(&key, 3, 90..80);
            batch.push(&key, 4, 180..201); // It ends beyond the buffer.
            batch.push(&key, 5, usize::MAX - 1..usize::MAX);
            batch.push(&key, 6, 80..120)
        }];
        engine.seal(&mut batch, &mut buffer);
        let succeeded: Vec<_> = (0..batch.len()).filter(|n| batch.succeeded(*n)).collect();
        assert_eq!(succeeded, good, "{}", engine.name());
        assert!(!batch.succeeded(7) && batch.text(7, &buffer).is_none());
    }
}

#[test]
fn ring_is_chosen_where_it_is_wanted_and_where_there_is_no_avx512() {
    let chosen = choose(Choice::Ring).unwrap();
    assert_eq!((chosen.engine.name(), chosen.why()), ("ring", Why::Wanted));
    let chosen = choose(Choice::Auto).unwrap();
    let has_avx512 = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|info| {
        ["avx512f", "avx512vl", "avx512bw"]
            .iter()
            .all(|flag| info.contains(flag))
    });
    if has_avx512 {
        assert_ne!(chosen.why(), Why::Wanted);
    } else {
        assert_eq!(
            (chosen.engine.name(), chosen.why()),
            ("ring", Why::NoAvx512)
        );
        assert_eq!(chosen.why().to_string(), "this processor has no AVX-512");
    }
}

#[test]
fn ipsec_mb_is_chosen_where_it_is_wanted() {
    match choose(Choice::IpsecMb) {
        Ok(chosen) => assert_eq!(
            (chosen.engine.name(), chosen.why()),
            ("ipsec-mb", Why::Wanted)
        ),
        Err(refusal) => assert!(refusal.to_string().contains("libIPSec_MB.so.1")),
    }
}

#[test]
fn an_engine_works_on_in_another_thread() {
    for mut engine in engines() {
        let seal = |engine: &mut Engine| {
            let (mut batch, mut buffer) = (Batch::default(), vec![3; 300]);
            batch.push(&key(4), 5, 0..300);
            engine.seal(&mut batch, &mut buffer);
            assert!(batch.succeeded(0));
            buffer
        };
        let here = seal(&mut engine);
        let (mut engine, there) = std::thread::spawn(move || {
            let sealed = seal(&mut engine);
            (engine, sealed)
        })
        .join()
        .unwrap();
        assert_eq!(here, there);
        assert_eq!(here, seal(&mut engine));
    }
}

#[test]
fn choices_have_the_names_that_users_write() {
    for (name, choice) in [
        ("auto", Choice::Auto),
        ("ring", Choice::Ring),
        ("ipsec-mb", Choice::IpsecMb),
    ] {
        assert_eq!((Choice::named(name), choice.name()), (Some(choice), name));
    }
    assert_eq!(Choice::named("aes"), None);
}

proptest! {
    /// Whatever the batch is, it comes to the same as its messages one by one.
    #[test]
    fn a_batch_is_its_messages_one_by_one(
        messages in prop::collection::vec((0..3u8, any::<u64>(), 0..300usize, 0..5usize), 0..150),
    ) {
        let keys = [key(1), key(2), key(3)];
        for mut engine in engines() {
            let (mut batch, mut buffer, mut expected) = (Batch::default(), Vec::new(), Vec::new());
            for (key, counter, text, gap) in &messages {
                let key = &keys[usize::from(*key)];
                buffer.resize(buffer.len() + gap, 0);
                let start = buffer.len();
                buffer.resize(start + text + TAG_LEN, *counter as u8);
                batch.push(key, *counter, start..buffer.len());
                let mut alone = buffer[start..].to_vec();
                key.seal(*counter, &mut alone).unwrap();
                expected.resize(start, 0);
                expected.extend(alone);
            }
            engine.seal(&mut batch, &mut buffer);
            prop_assert_eq!(buffer, expected);
        }
    }
}
