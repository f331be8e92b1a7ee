//! What is done with a library that is another one than it should be, or does not do what it should.

mod fake;
mod header;

use std::sync::Arc;

use super::{Functions, IpsecMb, Refusal, layout};
use crate::batch::{Batch, MOST};
use crate::engine::Engine;
use crate::key::{Key, TAG_LEN};
use crate::team::Team;
use fake::Fault;

fn refused(functions: Functions) -> (Refusal, String) {
    let refusal = IpsecMb::with(functions).expect_err("it was taken");
    let text = refusal.to_string();
    assert!(!text.contains('\n'), "{text}");
    (refusal, text)
}

#[test]
fn a_library_of_a_version_that_is_laid_out_otherwise_is_refused() {
    for (version, parts) in [
        (0x10500, (1, 5, 0)),
        (0x10203, (1, 2, 3)),
        (0x10400, (1, 4, 0)),
    ] {
        fake::reset(Fault::None);
        fake::set_version(version);
        let (refusal, text) = refused(fake::functions());
        assert_eq!(refusal, Refusal::Version(parts.0, parts.1, parts.2));
        assert!(
            text.contains(&format!("{}.{}.{}", parts.0, parts.1, parts.2)),
            "{text}"
        );
        assert_eq!(fake::allocated(), 0, "nothing of it was used");
    }
}

#[test]
fn a_library_without_memory_is_refused() {
    fake::reset(Fault::NoMemory);
    assert_eq!(refused(fake::functions()).0, Refusal::NoMemory);
}

#[test]
fn a_library_that_leaves_secrets_behind_is_refused() {
    fake::reset(Fault::None);
    fake::set_features(layout::SELF_TEST | layout::SELF_TEST_PASS);
    assert_eq!(refused(fake::functions()).0, Refusal::Careless);
    assert_eq!(fake::allocated(), 0, "its memory is given back");
}

#[test]
fn a_library_that_fails_at_our_self_test_or_its_own_is_refused() {
    let faults = [
        Fault::NoFunctions,
        Fault::Nothing,
        Fault::NoneFree,
        Fault::WrongText,
        Fault::WrongTag,
        Fault::Invalid,
    ];
    for fault in faults {
        fake::reset(fault);
        assert_eq!(refused(fake::functions()).0, Refusal::Wrong, "{fault:?}");
        assert_eq!(fake::allocated(), 0, "its memory is given back");
    }
    fake::reset(Fault::None);
    fake::set_features(layout::SAFE_DATA | layout::SELF_TEST);
    assert_eq!(refused(fake::functions()).0, Refusal::Wrong);
    fake::set_features(layout::SAFE_DATA);
    assert!(
        IpsecMb::with(fake::functions()).is_ok(),
        "one without a test of its own"
    );
}

#[test]
fn a_library_that_is_not_there_or_is_another_one_is_refused() {
    let open = |name: &str| Functions::open(name.as_ref()).map(|_| ());
    assert_eq!(open("libIPSec_MB.so.1.of-nobody"), Err(Refusal::NotThere));
    assert!(matches!(open("libc.so.6"), Err(Refusal::NoFunction(_))));
}

/// A batch of `count` messages of 100 bytes and their tags, in turn with two keys.
fn batch(count: usize) -> (Batch, Vec<u8>) {
    let keys = [1, 2].map(|byte| Arc::new(Key::new(&[byte; 32]).unwrap()));
    let mut batch = Batch::default();
    for number in 0..count {
        let start = number * 120;
        batch.push(
            &keys[number % 2],
            number as u64,
            start..start + 100 + TAG_LEN,
        );
    }
    (batch, (0..count * 120).map(|n| n as u8).collect())
}

fn engine() -> Engine {
    Engine::IpsecMb(Box::new(IpsecMb::with(fake::functions()).unwrap()))
}

#[test]
fn jobs_may_be_done_later_and_in_another_order() {
    for (fault, count) in [
        (Fault::None, 200),
        (Fault::Late, 200),
        (Fault::Late, 1),
        (Fault::Late, 65),
    ] {
        fake::reset(fault);
        let mut engine = engine();
        let (mut batch, text) = batch(count);
        let (mut expected, mut sealed) = (text.clone(), text.clone());
        Engine::Ring.seal(&mut batch, &mut expected);
        engine.seal(&mut batch, &mut sealed);
        assert_eq!(sealed, expected);
        // A forged one in the middle fails, and no other.
        let forged = count / 2;
        sealed[forged * 120 + 7] ^= 1;
        engine.open(&mut batch, &mut sealed);
        for number in 0..count {
            let at = number * 120;
            assert_eq!(batch.succeeded(number), number != forged);
            let expected = if number == forged {
                &[0; 100]
            } else {
                &text[at..at + 100]
            };
            assert_eq!(&sealed[at..at + 100], expected);
        }
        assert_eq!(engine.name(), "ipsec-mb");
        drop(engine);
        assert_eq!(fake::allocated(), 0);
    }
}

#[test]
fn no_job_points_to_a_key_when_a_batch_is_done() {
    for fault in [Fault::None, Fault::Late] {
        fake::reset(fault);
        let mut engine = engine();
        let (mut batch, mut text) = batch(MOST + 5);
        engine.seal(&mut batch, &mut text);
        assert!(fake::jobs_seen() > MOST);
        assert_eq!(fake::key_pointers(), 0);
    }
}

#[test]
fn when_the_library_stops_to_work_nothing_leaves_unsealed_and_ring_goes_on() {
    for fault in [Fault::Nothing, Fault::NoneFree, Fault::Invalid, Fault::Half] {
        fake::reset(Fault::None);
        let mut engine = engine();
        fake::set_fault(fault);
        let (mut batch, text) = batch(MOST * 2);
        let mut sealed = text.clone();
        engine.seal(&mut batch, &mut sealed);
        let mut expected = text.clone();
        let mut failed = 0;
        {
            let mut again = self::batch(MOST * 2).0;
            Engine::Ring.seal(&mut again, &mut expected);
        }
        for number in 0..MOST * 2 {
            let range = number * 120..number * 120 + 100 + TAG_LEN;
            if batch.succeeded(number) {
                assert_eq!(sealed[range.clone()], expected[range], "{fault:?} {number}");
            } else {
                assert!(
                    sealed[range].iter().all(|byte| *byte == 0),
                    "{fault:?} {number}"
                );
                failed += 1;
            }
        }
        assert!(failed >= MOST, "{fault:?}: what comes behind is not tried");
        assert_eq!(engine.name(), "ring", "{fault:?}");
        assert_eq!(fake::allocated(), 0);
        let mut sealed = text;
        engine.seal(&mut batch, &mut sealed);
        assert_eq!(sealed, expected, "ring goes on");
    }
}

#[test]
fn a_batch_that_is_small_is_all_done_by_the_engine_of_the_callers_thread() {
    fake::reset(Fault::None);
    let team = Team::new(engine(), vec![Engine::Ring, Engine::Ring]).unwrap();
    let before = fake::jobs_seen();
    let (mut batch, mut text) = batch(100);
    Engine::Team(Box::new(team)).seal(&mut batch, &mut text);
    assert_eq!(fake::jobs_seen() - before, 100);
}

#[test]
fn a_team_goes_on_with_ring_where_the_library_stops_to_work() {
    fake::reset(Fault::None);
    let team = Team::new(engine(), vec![engine(), engine()]).unwrap();
    let mut team = Engine::Team(Box::new(team));
    assert_eq!((team.name(), team.threads()), ("ipsec-mb", 3));
    fake::set_fault(Fault::Nothing);
    let (mut batch, text) = batch(50);
    let mut sealed = text.clone();
    team.seal(&mut batch, &mut sealed);
    for number in 0..50 {
        assert!(!batch.succeeded(number));
        let wiped = &sealed[number * 120..number * 120 + 100 + TAG_LEN];
        assert!(wiped.iter().all(|byte| *byte == 0));
    }
    assert_eq!((team.name(), team.threads()), ("ring", 3));
    // The others' libraries know of nothing in their threads, and fail as well, once they are asked.
    for _ in 0..50 {
        let (mut batch, text) = self::batch(1_000);
        let (mut expected, mut sealed) = (text.clone(), text);
        team.seal(&mut batch, &mut sealed);
        let succeeded: Vec<_> = (0..1_000).map(|number| batch.succeeded(number)).collect();
        Engine::Ring.seal(&mut batch, &mut expected);
        for (number, succeeded) in succeeded.into_iter().enumerate() {
            let range = number * 120..number * 120 + 100 + TAG_LEN;
            let is_wiped = || sealed[range.clone()].iter().all(|byte| *byte == 0);
            assert!(sealed[range.clone()] == expected[range.clone()] || !succeeded && is_wiped());
        }
    }
}
