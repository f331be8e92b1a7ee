//! `RateLimiter`: the handshake limiter that the tunnels of one static key share.

use std::sync::Arc;

use connlib_core::SharedLimiter;
use parking_lot::Mutex;
use pyo3::prelude::*;
use rand_core::OsRng;

use crate::arguments::{self, Now};
use crate::fork::Origin;
use crate::public_key::PublicKey;

#[pyclass(module = "connlib._native", frozen)]
pub struct RateLimiter {
    origin: Origin,
    limiter: SharedLimiter,
}

impl RateLimiter {
    /// For a tunnel of the same process.
    pub fn share(&self) -> PyResult<SharedLimiter> {
        self.origin.check()?;
        Ok(self.limiter.clone())
    }
}

#[pymethods]
impl RateLimiter {
    #[new]
    fn new(own_public_key: &PublicKey, limit: &Bound<'_, PyAny>, now: Now) -> PyResult<Self> {
        let limit = arguments::integer(limit, "limit", 0..=u64::MAX)?;
        let key = connlib_core::PublicKey::from(own_public_key.bytes);
        let limiter = connlib_core::RateLimiter::new(&key, limit, now.0, &mut OsRng);
        Ok(RateLimiter {
            origin: Origin::here(),
            limiter: Arc::new(Mutex::new(limiter)),
        })
    }
}
