//! The constructor arguments that all kinds of tunnel share, checked.

use std::ops::RangeInclusive;
use std::time::Duration;

use connlib_core::{DEFAULT_MTU, Limits, Role, Settings, TimerConfig, TunnConfig};
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::arguments::{self, UnixTime};
use crate::classes::classes;
use crate::errors::{type_error, value_error};
use crate::index_table::IndexTable;
use crate::preshared_key::PresharedKey;
use crate::private_key::PrivateKey;
use crate::public_key::PublicKey;
use crate::rate_limiter::RateLimiter;
use crate::time;

/// The arguments as Python gives them; `None` is the default.
pub struct TunnOptions<'a, 'py> {
    pub private_key: &'a PrivateKey,
    pub peer_public_key: &'a PublicKey,
    pub preshared_key: Option<&'a PresharedKey>,
    pub role: Option<&'a Bound<'py, PyAny>>,
    pub persistent_keepalive: Option<f64>,
    pub indices: Option<&'a IndexTable>,
    pub rate_limiter: Option<&'a RateLimiter>,
    pub unix_time: UnixTime,
    pub mtu: Option<&'a Bound<'py, PyAny>>,
    pub timers: Option<&'a Bound<'py, PyAny>>,
    pub limits: Option<&'a Bound<'py, PyAny>>,
}

impl TunnOptions<'_, '_> {
    pub fn check(self, py: Python<'_>) -> PyResult<TunnConfig> {
        Ok(TunnConfig {
            private_key: self.private_key.secret.to_engine(),
            peer_public_key: self.peer_public_key.bytes,
            preshared_key: self.preshared_key.map(|key| key.secret.to_engine()),
            persistent_keepalive: arguments::persistent_keepalive(
                self.persistent_keepalive,
                "persistent_keepalive",
            )?,
            unix_time: self.unix_time.0,
            settings: Settings {
                role: match self.role {
                    Some(role) => classes(py)?.role(role, "role")?,
                    None => Role::Either,
                },
                timers: timers(self.timers, py)?,
                limits: limits(self.limits, py)?,
                mtu: self.mtu.map_or(Ok(DEFAULT_MTU), arguments::mtu)?,
            },
            indices: self.indices.map(IndexTable::share).transpose()?,
            rate_limiter: match self.rate_limiter {
                Some(limiter) => Some(limiter.share(self.private_key.own_public_key())?),
                None => None,
            },
        })
    }
}

/// `connlib.Timers`; `None` is the paper.
pub fn timers(timers: Option<&Bound<'_, PyAny>>, py: Python<'_>) -> PyResult<TimerConfig> {
    let Some(timers) = timers else {
        return Ok(TimerConfig::default());
    };
    expect(timers, &classes(py)?.timers, "timers", "Timers")?;
    let seconds = |name: &str| -> PyResult<Duration> {
        let seconds: f64 = timers.getattr(name)?.extract()?;
        time::duration(seconds)
            .filter(|duration| !duration.is_zero())
            .ok_or_else(|| {
                value_error(format!(
                    "timers.{name} must be a positive number of seconds"
                ))
            })
    };
    Ok(TimerConfig {
        rekey_after_time: seconds("rekey_after_time")?,
        reject_after_time: seconds("reject_after_time")?,
        rekey_attempt_time: seconds("rekey_attempt_time")?,
        rekey_timeout: seconds("rekey_timeout")?,
        keepalive_timeout: seconds("keepalive_timeout")?,
    })
}

/// Messages beyond this number would collide with the counters of the replay window (paper, section 6.1).
const MAX_MESSAGES: u64 = u64::MAX - (1 << 13);
const MAX_QUEUE: u64 = 65_536;

/// `connlib.Limits`; `None` is the paper.
pub fn limits(limits: Option<&Bound<'_, PyAny>>, py: Python<'_>) -> PyResult<Limits> {
    let Some(limits) = limits else {
        return Ok(Limits::default());
    };
    expect(limits, &classes(py)?.limits, "limits", "Limits")?;
    let count = |name: &str, range: RangeInclusive<u64>| -> PyResult<u64> {
        arguments::integer(&limits.getattr(name)?, &format!("limits.{name}"), range)
    };
    Ok(Limits {
        rekey_after_messages: count("rekey_after_messages", 2..=MAX_MESSAGES)?,
        reject_after_messages: count("reject_after_messages", 1..=MAX_MESSAGES)?,
        queue_packets: count("queue_packets", 0..=MAX_QUEUE)? as usize,
    })
}

pub fn expect(
    object: &Bound<'_, PyAny>,
    class: &Py<PyType>,
    name: &str,
    class_name: &str,
) -> PyResult<()> {
    if object.is_instance(class.bind(object.py()))? {
        return Ok(());
    }
    Err(type_error(format!("{name} must be a connlib.{class_name}")))
}
