//! Timestamps of initiations by public key, as a node gives them out and takes them back.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::arguments::Data;
use crate::errors::{type_error, value_error};
use crate::public_key::PublicKey;

type Stamps = Vec<([u8; 32], [u8; 12])>;

pub fn to_python<'py>(
    stamps: &[([u8; 32], [u8; 12])],
    py: Python<'py>,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (key, stamp) in stamps {
        dict.set_item(PublicKey::new(*key), PyBytes::new(py, stamp))?;
    }
    Ok(dict)
}

pub fn from_python(dict: &Bound<'_, PyDict>) -> PyResult<Stamps> {
    let stamp = |(key, stamp): (Bound<'_, PyAny>, Bound<'_, PyAny>)| {
        let key = key.cast::<PublicKey>();
        let key = key.map_err(|_| type_error("timestamps are those of a PublicKey each"))?;
        let stamp: Data<'_> = stamp.extract()?;
        let stamp = stamp.bytes();
        let bytes = stamp.try_into().map_err(|_| {
            value_error(format!(
                "a timestamp has 12 bytes, not the {} that {} has",
                stamp.len(),
                key.get().to_base64()
            ))
        })?;
        Ok((key.get().bytes, bytes))
    };
    dict.iter().map(stamp).collect()
}

pub fn refused(key: [u8; 32]) -> PyErr {
    value_error(format!(
        "what was sent with the public key {} is no TAI64N timestamp from 1970 on",
        PublicKey::new(key).to_base64()
    ))
}
