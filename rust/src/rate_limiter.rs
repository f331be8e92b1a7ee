//! `RateLimiter`: the handshake limiter that the tunnels of one static key share.

use std::sync::Arc;

use connlib_core::SharedLimiter;
use parking_lot::Mutex;
use pyo3::prelude::*;
use rand_core::OsRng;

use crate::arguments::{self, Now};
use crate::errors::value_error;
use crate::fork::Origin;
use crate::public_key::PublicKey;

#[pyclass(module = "connlib._native", frozen)]
pub struct RateLimiter {
    origin: Origin,
    limiter: SharedLimiter,
    own_public_key: [u8; 32],
}

impl RateLimiter {
    /// For a tunnel of the same process and the same static key: MAC1 of every handshake is made with that key.
    pub fn share(&self, own_public_key: [u8; 32]) -> PyResult<SharedLimiter> {
        self.origin.check()?;
        if own_public_key != self.own_public_key {
            return Err(value_error(
                "rate_limiter was made for another public key than that of private_key",
            ));
        }
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
            own_public_key: own_public_key.bytes,
        })
    }
}
