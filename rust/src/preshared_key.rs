//! `PresharedKey`: a secret that both peers share beside their static keys.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::arguments::Data;
use crate::errors;
use crate::key_material::Secret;

#[pyclass(module = "connlib._native", frozen)]
pub struct PresharedKey {
    pub secret: Secret,
}

#[pymethods]
impl PresharedKey {
    #[staticmethod]
    fn generate() -> PyResult<Self> {
        let secret = Secret::generate()?;
        Ok(PresharedKey { secret })
    }

    #[staticmethod]
    fn from_base64(text: &str) -> PyResult<Self> {
        let secret = Secret::from_base64(text, "preshared key")?;
        Ok(PresharedKey { secret })
    }

    #[staticmethod]
    fn from_bytes(data: Data<'_>) -> PyResult<Self> {
        let secret = Secret::from_data(&data, "preshared key")?;
        Ok(PresharedKey { secret })
    }

    fn to_base64(&self) -> String {
        String::clone(&self.secret.to_base64())
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.secret.bytes())
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.secret == other.secret
    }

    fn __repr__(&self) -> &'static str {
        "<PresharedKey: hidden>"
    }

    fn __copy__(&self) -> PyResult<()> {
        Err(errors::secrets_stay("PresharedKey", "copied"))
    }

    fn __deepcopy__(&self, memo: &Bound<'_, PyAny>) -> PyResult<()> {
        let _ = memo;
        Err(errors::secrets_stay("PresharedKey", "copied"))
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(errors::secrets_stay("PresharedKey", "pickled"))
    }
}
