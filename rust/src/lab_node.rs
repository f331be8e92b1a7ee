//! `LabNode`: a `Node` whose randomness is seeded, for simulations.

use pyo3::prelude::*;

use crate::arguments::{Now, UnixTime};
use crate::lab_tunn::seeded;
use crate::node::Node;
use crate::public_key::PublicKey;

#[pyclass(module = "connlib._native", extends = Node, frozen)]
pub struct LabNode;

#[pymethods]
impl LabNode {
    #[new]
    #[pyo3(signature = (config, *, now, unix_time, seed))]
    fn new(
        config: &Bound<'_, PyAny>,
        now: Now,
        unix_time: UnixTime,
        seed: &Bound<'_, PyAny>,
    ) -> PyResult<PyClassInitializer<Self>> {
        let node = Node::make(config, now, &unix_time, Box::new(seeded(seed)?), true)?;
        Ok(PyClassInitializer::from(node).add_subclass(LabNode))
    }

    fn panic(slf: PyRef<'_, Self>, py: Python<'_>, peer: &PublicKey, now: Now) -> PyResult<()> {
        slf.as_super().panic_in(py, peer, now)
    }
}
