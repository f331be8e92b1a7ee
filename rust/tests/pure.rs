//! The modules of the bindings that know nothing of Python.

#[cfg(unix)]
#[path = "../src/fork.rs"]
mod fork;
#[path = "../src/pace.rs"]
mod pace;
#[path = "../src/panics.rs"]
mod panics;
#[cfg(target_os = "linux")]
#[path = "../src/rights.rs"]
mod rights;
#[path = "../src/time.rs"]
mod time;

use pace::{GATHERING, MODERATION, Next, Pace, RESPITE};
use panics::{Failure, Fragile, catch};
use proptest::prelude::*;
use std::time::Duration;

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_deadline_fed_back_fires_and_is_no_later_than_floats_allow(nanos in 0..1u64 << 60) {
        let back = time::nanos(time::deadline(nanos)).unwrap();
        prop_assert!(back >= nanos);
        // Half a step of a float before 2^60 ns is 64 ns; the product with 1e9 rounds once more.
        prop_assert!(back - nanos <= 256, "{} late", back - nanos);
    }

    #[test]
    fn a_deadline_within_thirteen_days_comes_back_exactly(nanos in 0..1u64 << 50) {
        prop_assert_eq!(time::nanos(time::deadline(nanos)), Some(nanos));
    }

    #[test]
    fn a_later_deadline_is_never_an_earlier_float(a in 0..1u64 << 60, b in 0..1u64 << 60) {
        prop_assert_eq!(a.max(b), if time::deadline(a) > time::deadline(b) { a } else { a.max(b) });
        prop_assert!(time::deadline(a.min(b)) <= time::deadline(a.max(b)));
    }

    #[test]
    fn any_float_is_either_refused_or_within_the_range(seconds in prop::num::f64::ANY) {
        match time::nanos(seconds) {
            Some(nanos) => prop_assert!(seconds >= 0.0 && nanos <= 1 << 62),
            None => prop_assert!(!(0.0..=4.6e9).contains(&seconds)),
        }
    }
}

#[test]
fn seconds_round_to_the_nearest_nanosecond() {
    assert_eq!(time::nanos(0.0), Some(0));
    assert_eq!(time::nanos(-0.0), Some(0));
    assert_eq!(time::nanos(0.1), Some(100_000_000));
    assert_eq!(time::nanos(1.000_000_000_4), Some(1_000_000_000));
    assert_eq!(time::nanos(1.000_000_000_6), Some(1_000_000_001));
    assert_eq!(time::duration(25.0), Some(Duration::from_secs(25)));
}

#[test]
fn what_is_no_time_is_refused() {
    for seconds in [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        -1e-12,
        -1.0,
        4.7e9,
        1e300,
    ] {
        assert_eq!(time::nanos(seconds), None, "{seconds}");
    }
}

#[test]
fn the_latest_deadline_is_still_accepted_as_a_time() {
    assert_eq!(time::nanos(time::deadline(u64::MAX)), Some(1 << 62));
    assert_eq!(time::nanos(time::deadline(1 << 62)), Some(1 << 62));
}

#[test]
fn a_panic_becomes_an_error_of_one_line() {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let borrowed: Result<(), _> = catch(|| panic!("one"));
    let formatted: Result<(), _> = catch(|| panic!("left: {}\n right: {}", 1, 2));
    let other: Result<(), _> = catch(|| std::panic::panic_any(7));
    std::panic::set_hook(quiet);
    assert_eq!(borrowed, Err(Failure::Panicked("one".into())));
    assert_eq!(formatted, Err(Failure::Panicked("left: 1 right: 2".into())));
    assert_eq!(other, Err(Failure::Panicked("panic".into())));
    assert_eq!(catch(|| 7), Ok(7));
}

#[test]
fn after_a_panic_every_call_is_refused_and_its_neighbour_goes_on() {
    let mut struck = Fragile::new(vec![1]);
    let mut neighbour = Fragile::new(vec![1]);
    assert_eq!(struck.call(|list| list.len()), Ok(1));
    let result: Result<(), _> = struck.call(|list| {
        list.clear();
        panic!("half done")
    });
    assert_eq!(result, Err(Failure::Panicked("half done".into())));
    assert_eq!(struck.call(|list| list.len()), Err(Failure::Broken));
    assert_eq!(neighbour.call(|list| list.len()), Ok(1));
}

#[cfg(unix)]
mod after_a_fork {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::fork::Held;

    static DROPPED: AtomicBool = AtomicBool::new(false);

    struct Telltale;

    impl Drop for Telltale {
        fn drop(&mut self) {
            DROPPED.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a child drops it, which it is free to, and then its parent.
    fn dropped(intact: fn(&Telltale) -> bool) -> (bool, bool) {
        DROPPED.store(false, Ordering::Relaxed);
        let held = Held::new(Telltale, intact);
        assert!(held.origin().check().is_ok());
        // SAFETY: the child takes no lock and allocates nothing before it ends.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            let is_refused = held.origin().check().is_err();
            drop(held);
            let code = i32::from(DROPPED.load(Ordering::Relaxed)) + 2 * i32::from(!is_refused);
            // SAFETY: it ends this process and touches nothing.
            unsafe { libc::_exit(code) }
        }
        let mut status = 0;
        // SAFETY: `status` is a valid place for one.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert!(libc::WIFEXITED(status));
        let code = libc::WEXITSTATUS(status);
        assert!(code < 2, "the child may use it");
        drop(held);
        (code == 1, DROPPED.load(Ordering::Relaxed))
    }

    #[test]
    fn a_child_drops_only_what_is_intact_and_the_parent_everything() {
        assert_eq!(dropped(|_| true), (true, true));
        assert_eq!(dropped(|_| false), (false, true));
    }
}

/// Turns, one a millisecond: (moved, refused, was ready) each.
fn paced(pace: &mut Pace, turns: impl IntoIterator<Item = (usize, u64, bool)>) -> Vec<Next> {
    let turns = turns.into_iter().zip(1..);
    turns
        .map(|((moved, refused, ready), ms)| {
            pace.after(moved, refused, ready, Duration::from_millis(ms))
        })
        .collect()
}

#[test]
fn pauses_are_shorter_than_anybody_notices() {
    let micros = [MODERATION, GATHERING, RESPITE].map(|pause| pause.as_micros());
    assert_eq!(micros, [80, 2_000, 50_000]);
}

#[test]
fn a_full_turn_is_followed_by_another_one_and_a_small_one_by_a_wait() {
    let next = paced(
        &mut Pace::default(),
        [(64, 0, true), (1000, 0, true), (63, 0, true), (0, 0, true)],
    );
    assert_eq!(next, [Next::Again, Next::Again, Next::Wait, Next::Wait]);
}

#[test]
fn descriptors_that_say_four_times_that_they_are_ready_and_are_not_are_left_alone() {
    let futile = (0, 0, true);
    let next = paced(
        &mut Pace::default(),
        [futile, futile, futile, futile, futile, (1, 0, true), futile],
    );
    let alone = Next::LeaveAlone;
    assert_eq!(
        next,
        [
            Next::Wait,
            Next::Wait,
            Next::Wait,
            alone,
            alone,
            Next::Wait,
            Next::Wait
        ]
    );
    // A call or a deadline is no descriptor that lies.
    let next = paced(&mut Pace::default(), [(0, 0, false); 10]);
    assert_eq!(next, [Next::Wait; 10]);
}

#[test]
fn where_most_is_refused_what_comes_next_is_taken_together_unless_that_gathers_too_little() {
    let mut pace = Pace::default();
    let next = paced(&mut pace, [(7, 7, true), (1, 1, true), (40, 40, true)]);
    assert_eq!(
        next,
        [Next::Wait, Next::Gather, Next::Gather],
        "seven are not judged yet"
    );
    let next = paced(&mut pace, [(31, 31, true)]);
    assert_eq!(next, [Next::Wait], "it was not worth it");
    let next = paced(&mut pace, vec![(31, 31, true); 33]);
    assert_eq!(next, [Next::Wait; 33], "for a thousand more");
    assert_eq!(paced(&mut pace, [(31, 31, true)]), [Next::Gather]);
    let next = paced(&mut Pace::default(), [(40, 20, true)]);
    assert_eq!(next, [Next::Wait], "half of it is not most of it");
}

#[test]
fn who_moves_64_packets_a_millisecond_for_a_while_is_busy_and_who_answers_pings_is_not() {
    let mut pace = Pace::default();
    paced(&mut pace, [(1, 0, true); 100]);
    assert!(!pace.is_busy());
    let mut pace = Pace::default();
    paced(&mut pace, [(127, 0, true)]);
    assert!(!pace.is_busy(), "a burst is not enough");
    let mut pace = Pace::default();
    paced(&mut pace, [(96, 0, true); 10]);
    assert!(pace.is_busy());
    let mut pace = Pace::default();
    paced(&mut pace, [(60, 0, true); 1000]);
    assert!(!pace.is_busy());
    let mut pace = Pace::default();
    paced(&mut pace, [(100_000, 0, true)]);
    assert!(pace.is_busy());
    pace.after(0, 0, true, Duration::from_millis(20));
    assert!(!pace.is_busy(), "not for long");
}

#[cfg(target_os = "linux")]
#[test]
fn a_thread_of_ours_has_neither_signals_nor_capabilities_and_its_maker_has_what_it_had() {
    let field = |status: &str, name: &str| -> Option<u64> {
        let line = status.lines().find(|line| line.starts_with(name))?;
        u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok()
    };
    let status = || std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let own = status();
    let thread = rights::without_signals(|| {
        std::thread::Builder::new().spawn(move || {
            rights::give_up().unwrap();
            status()
        })
    });
    let theirs = thread.unwrap().join().unwrap();
    for set in ["CapPrm:", "CapEff:", "CapInh:"] {
        assert_eq!(field(&theirs, set), Some(0), "{set}");
    }
    let blocked = field(&theirs, "SigBlk:").unwrap();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGCHLD, libc::SIGHUP] {
        assert_ne!(blocked & 1 << (signal - 1), 0, "{signal}");
    }
    for name in ["SigBlk:", "CapPrm:", "CapEff:"] {
        assert_eq!(field(&status(), name), field(&own, name), "{name}");
    }
}
