//! `PublicKey`: a Curve25519 public key.

use base64ct::{Base64, Encoding};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::arguments::Data;
use crate::key_material::{self, KEY_LEN};

#[pyclass(module = "connlib._native", frozen, eq)]
#[derive(PartialEq, Eq)]
pub struct PublicKey {
    pub bytes: [u8; KEY_LEN],
}

impl PublicKey {
    pub fn new(bytes: [u8; KEY_LEN]) -> Self {
        PublicKey { bytes }
    }
}

#[pymethods]
impl PublicKey {
    #[staticmethod]
    fn from_base64(text: &str) -> PyResult<Self> {
        let mut bytes = [0; KEY_LEN];
        key_material::decode(text, &mut bytes, "public key")?;
        Ok(PublicKey { bytes })
    }

    #[staticmethod]
    fn from_bytes(data: Data<'_>) -> PyResult<Self> {
        key_material::exactly(&data, "public key").map(|bytes| PublicKey { bytes: *bytes })
    }

    pub fn to_base64(&self) -> String {
        Base64::encode_string(&self.bytes)
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.bytes)
    }

    /// The hash of the bytes, which Python seeds: peers choose their keys.
    fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
        self.to_bytes(py).hash()
    }

    fn __str__(&self) -> String {
        self.to_base64()
    }

    fn __repr__(&self) -> String {
        format!("PublicKey.from_base64('{}')", self.to_base64())
    }

    fn __reduce__<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        let make = py.get_type::<PublicKey>().getattr("from_bytes")?;
        Ok((make, (self.to_bytes(py),)))
    }
}
