//! The system's clocks.

use std::time::Duration;

/// Since the machine started, suspend included (CLOCK_BOOTTIME).
pub fn since_boot() -> Duration {
    read(libc::CLOCK_BOOTTIME)
}

/// Since 1970, as the wall clock shows it. May step.
pub fn since_1970() -> Duration {
    read(libc::CLOCK_REALTIME)
}

fn read(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` lives until the call returns and nothing else uses it.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    debug_assert_eq!(
        result, 0,
        "every kernel that connlib runs on has these clocks"
    );
    // Neither is negative, unless the wall clock was set to before 1970.
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn the_wall_clock_is_the_standard_librarys() {
        let before = SystemTime::now();
        let shown = SystemTime::UNIX_EPOCH + since_1970();
        assert!(before <= shown && shown <= SystemTime::now());
    }

    #[test]
    fn the_other_one_never_goes_back() {
        let first = since_boot();
        assert!(first > Duration::ZERO && first <= since_boot());
    }
}
