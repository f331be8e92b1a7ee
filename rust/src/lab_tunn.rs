//! `LabTunn`: a `Tunn` whose randomness is seeded, for simulations, and whose keys can be had.

use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use crate::arguments::{self, Now, UnixTime};
use crate::index_table::IndexTable;
use crate::key_log::{KeyLog, Recorder};
use crate::preshared_key::PresharedKey;
use crate::private_key::PrivateKey;
use crate::public_key::PublicKey;
use crate::rate_limiter::RateLimiter;
use crate::tunn::Tunn;
use crate::tunn_options::TunnOptions;

#[pyclass(module = "connlib._native", extends = Tunn, frozen)]
pub struct LabTunn {
    keys: Arc<Mutex<KeyLog>>,
}

/// A generator that gives equal numbers for equal seeds.
pub fn seeded(seed: &Bound<'_, PyAny>) -> PyResult<ChaCha20Rng> {
    let seed = arguments::integer(seed, "seed", 0..=u64::MAX)?;
    Ok(ChaCha20Rng::seed_from_u64(seed))
}

#[pymethods]
impl LabTunn {
    #[new]
    #[pyo3(
        signature = (private_key, peer_public_key, *, now, seed, preshared_key=None, role=None,
                     persistent_keepalive=None, indices=None, rate_limiter=None, unix_time, mtu=None, timers=None,
                     limits=None),
        text_signature = "(private_key, peer_public_key, *, now, seed, preshared_key=None, role=..., \
                          persistent_keepalive=None, indices=None, rate_limiter=None, unix_time, mtu=1420, \
                          timers=..., limits=...)"
    )]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn new<'py>(
        py: Python<'py>,
        private_key: &PrivateKey,
        peer_public_key: &PublicKey,
        now: Now,
        seed: &Bound<'py, PyAny>,
        preshared_key: Option<&PresharedKey>,
        role: Option<&Bound<'py, PyAny>>,
        persistent_keepalive: Option<f64>,
        indices: Option<&IndexTable>,
        rate_limiter: Option<&RateLimiter>,
        unix_time: UnixTime,
        mtu: Option<&Bound<'py, PyAny>>,
        timers: Option<&Bound<'py, PyAny>>,
        limits: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<PyClassInitializer<Self>> {
        let options = TunnOptions {
            private_key,
            peer_public_key,
            preshared_key,
            role,
            persistent_keepalive,
            indices,
            rate_limiter,
            unix_time,
            mtu,
            timers,
            limits,
        };
        let keys = Arc::new(Mutex::new(KeyLog::new(
            private_key.secret.bytes(),
            &peer_public_key.bytes,
            preshared_key.map(|key| key.secret.bytes()),
        )));
        let rng = Recorder::new(seeded(seed)?, &keys);
        let tunn = Tunn::make(options, now, Box::new(rng), py)?;
        // What the constructor drew is for cookies: only from here on are 32 bytes an ephemeral key.
        keys.lock().open();
        Ok(PyClassInitializer::from(tunn).add_subclass(LabTunn { keys }))
    }

    fn set_preshared_key(
        slf: PyRef<'_, Self>,
        key: Option<&PresharedKey>,
        now: Now,
    ) -> PyResult<()> {
        slf.as_super().set_preshared_key(slf.py(), key, now)?;
        let key = key.map(|key| key.secret.bytes());
        slf.keys.lock().set_preshared_key(key);
        Ok(())
    }

    fn key_log(slf: PyRef<'_, Self>) -> PyResult<Vec<String>> {
        slf.as_super().check()?;
        Ok(slf.keys.lock().lines())
    }
}
