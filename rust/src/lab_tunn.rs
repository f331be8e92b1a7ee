//! `LabTunn`: a `Tunn` whose randomness is seeded, for simulations, and whose keys can be had.

use std::sync::Arc;

use connlib_core::Secret;
use connlib_core::key_log::{HandshakeKeys, KeyLog, Noting};
use parking_lot::Mutex;
use pyo3::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use crate::arguments::{self, Now, UnixTime};
use crate::index_table::IndexTable;
use crate::key_log::Lines;
use crate::key_material::KEY_LEN;
use crate::preshared_key::PresharedKey;
use crate::private_key::PrivateKey;
use crate::public_key::PublicKey;
use crate::rate_limiter::RateLimiter;
use crate::tunn::Tunn;
use crate::tunn_options::TunnOptions;

#[pyclass(module = "connlib._native", extends = Tunn, frozen)]
pub struct LabTunn {
    keys: Arc<Mutex<Keys>>,
}

/// The keys of a tunnel, which it hands out. No real one does.
struct Keys {
    own: Secret,
    peer: [u8; KEY_LEN],
    preshared: Option<Arc<Secret>>,
    log: KeyLog,
    is_open: bool,
}

impl Keys {
    fn note(&mut self, ephemeral: &[u8; KEY_LEN]) {
        if self.is_open {
            self.log.add(HandshakeKeys {
                own: self.own.clone(),
                peer: self.peer,
                ephemeral: Secret::new(*ephemeral),
                preshared: self.preshared.iter().cloned().collect(),
            });
        }
    }

    fn set_preshared_key(&mut self, key: Option<Secret>) {
        if let Some(key) = &key {
            self.log.add_preshared(&self.peer, key);
        }
        self.preshared = key.map(Arc::new);
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = Lines::default();
        lines.add_statics(&self.own, &self.peer);
        lines.add(self.log.iter());
        lines.finish()
    }
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
        let keys = Arc::new(Mutex::new(Keys {
            own: private_key.secret.to_engine(),
            peer: peer_public_key.bytes,
            preshared: preshared_key.map(|key| Arc::new(key.secret.to_engine())),
            log: KeyLog::default(),
            is_open: false,
        }));
        let noted = Arc::clone(&keys);
        let rng = Noting::new(seeded(seed)?, move |key: &_| noted.lock().note(key));
        let tunn = Tunn::make(options, now, Box::new(rng), py)?;
        // What the constructor drew is for cookies: only from here on are 32 bytes an ephemeral key.
        keys.lock().is_open = true;
        Ok(PyClassInitializer::from(tunn).add_subclass(LabTunn { keys }))
    }

    fn set_preshared_key(
        slf: PyRef<'_, Self>,
        key: Option<&PresharedKey>,
        now: Now,
    ) -> PyResult<()> {
        slf.as_super().set_preshared_key(slf.py(), key, now)?;
        let key = key.map(|key| key.secret.to_engine());
        slf.keys.lock().set_preshared_key(key);
        Ok(())
    }

    fn key_log(slf: PyRef<'_, Self>) -> PyResult<Vec<String>> {
        slf.as_super().check()?;
        Ok(slf.keys.lock().lines())
    }
}
