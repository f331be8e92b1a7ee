//! `PrivateKey`: a static Curve25519 key.

use std::sync::OnceLock;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::arguments::Data;
use crate::errors;
use crate::key_material::{Secret, without_a_trace};
use crate::public_key::PublicKey;

#[pyclass(module = "connlib._native", frozen)]
pub struct PrivateKey {
    pub secret: Secret,
    /// Computed once: every configuration with this key asks for it.
    public: OnceLock<[u8; 32]>,
}

impl PrivateKey {
    fn new(secret: Secret) -> Self {
        PrivateKey {
            secret,
            public: OnceLock::new(),
        }
    }

    pub fn own_public_key(&self) -> [u8; 32] {
        *self.public.get_or_init(|| {
            without_a_trace(|| {
                let private = connlib_core::StaticSecret::from(*self.secret.bytes());
                connlib_core::PublicKey::from(&private).to_bytes()
            })
        })
    }
}

#[pymethods]
impl PrivateKey {
    #[staticmethod]
    fn generate() -> PyResult<Self> {
        let secret = Secret::generate()?.clamped();
        Ok(PrivateKey::new(secret))
    }

    #[staticmethod]
    fn from_base64(text: &str) -> PyResult<Self> {
        let secret = Secret::from_base64(text, "private key")?;
        Ok(PrivateKey::new(secret))
    }

    #[staticmethod]
    fn from_bytes(data: Data<'_>) -> PyResult<Self> {
        let secret = Secret::from_data(&data, "private key")?;
        Ok(PrivateKey::new(secret))
    }

    fn to_base64(&self) -> String {
        String::clone(&self.secret.to_base64())
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.secret.bytes())
    }

    fn public_key(&self) -> PublicKey {
        PublicKey::new(self.own_public_key())
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.secret == other.secret
    }

    fn __repr__(&self) -> &'static str {
        "<PrivateKey: hidden>"
    }

    fn __copy__(&self) -> PyResult<()> {
        Err(errors::secrets_stay("PrivateKey", "copied"))
    }

    fn __deepcopy__(&self, memo: &Bound<'_, PyAny>) -> PyResult<()> {
        let _ = memo;
        Err(errors::secrets_stay("PrivateKey", "copied"))
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(errors::secrets_stay("PrivateKey", "pickled"))
    }
}
