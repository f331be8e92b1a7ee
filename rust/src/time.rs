//! Between the seconds of Python and the nanoseconds of the engine. Free of Python, so that tests/pure.rs can include it.

use std::time::Duration;

/// The latest instant that is accepted, about 146 years: far from where sums of instants and durations would overflow.
pub const MAX_NANOS: u64 = 1 << 62;

/// Nanoseconds, rounded to nearest; `None` for NaN, infinity, and what is negative or later than `MAX_NANOS`.
pub fn nanos(seconds: f64) -> Option<u64> {
    let nanos = (seconds * 1e9).round();
    // The comparison is false for NaN. 2^62 has an exact representation.
    if !(seconds >= 0.0 && nanos <= MAX_NANOS as f64) {
        return None;
    }
    // In range, by the comparison above: the cast only drops a fraction that `round` has removed already.
    Some(nanos as u64)
}

/// As `nanos`, for a length of time.
pub fn duration(seconds: f64) -> Option<Duration> {
    nanos(seconds).map(Duration::from_nanos)
}

/// The smallest seconds found that `nanos` takes to the deadline or past it, so that feeding a deadline back fires.
///
/// A float of that size resolves up to 128 nanoseconds (2^60 ns are 36 years), so that rounding to nearest may land
/// before the deadline. Deadlines beyond `MAX_NANOS` come back as `MAX_NANOS`.
pub fn deadline(nanoseconds: u64) -> f64 {
    let nanoseconds = nanoseconds.min(MAX_NANOS);
    let mut seconds = nanoseconds as f64 / 1e9;
    while nanos(seconds).is_some_and(|back| back < nanoseconds) {
        seconds = seconds.next_up();
    }
    seconds
}
