//! The modules of the bindings that know nothing of Python.

#[cfg(unix)]
#[path = "../src/fork.rs"]
mod fork;
#[path = "../src/panics.rs"]
mod panics;
#[path = "../src/time.rs"]
mod time;

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
