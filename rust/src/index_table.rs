//! `IndexTable`: receiver indices that are unique over many tunnels.

use connlib_core::SharedIndices;
use pyo3::prelude::*;

use crate::fork::Origin;

#[pyclass(module = "connlib._native", frozen)]
pub struct IndexTable {
    origin: Origin,
    table: SharedIndices,
}

impl IndexTable {
    /// For a tunnel of the same process.
    pub fn share(&self) -> PyResult<SharedIndices> {
        self.origin.check()?;
        Ok(self.table.clone())
    }
}

#[pymethods]
impl IndexTable {
    #[new]
    fn new() -> Self {
        IndexTable {
            origin: Origin::here(),
            table: SharedIndices::default(),
        }
    }

    fn __len__(&self) -> PyResult<usize> {
        Ok(self.share()?.lock().len())
    }
}
