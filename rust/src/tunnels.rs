//! `Tunnels`: those of a configuration's peers, made ahead.

use pyo3::prelude::*;
use rand_core::OsRng;

use crate::arguments::{Now, UnixTime};
use crate::encryption;
use crate::guard::Guarded;
use crate::key_material::without_a_trace;
use crate::node_config::{config_error, node_config};

#[pyclass(module = "connlib._native", frozen)]
pub struct Tunnels {
    /// `None` once a node has them.
    made: Guarded<Option<Box<connlib_core::Tunnels>>>,
}

impl Tunnels {
    pub fn take(&self, py: Python<'_>) -> PyResult<Option<Box<connlib_core::Tunnels>>> {
        self.made.call(py, Option::take)
    }
}

#[pymethods]
impl Tunnels {
    #[new]
    #[pyo3(signature = (config, *, now, unix_time))]
    fn new(config: &Bound<'_, PyAny>, now: Now, unix_time: UnixTime) -> PyResult<Self> {
        let py = config.py();
        let checked = without_a_trace(|| node_config(config).map(Box::new))?;
        encryption::wanted(config)?.check(py)?;
        let made = py.detach(|| {
            without_a_trace(|| {
                let rng = Box::new(OsRng);
                connlib_core::Tunnels::make(*checked, now.0, unix_time.0, rng).map(Box::new)
            })
        });
        Ok(Tunnels {
            made: Guarded::new(Some(made.map_err(|error| config_error(error, py))?)),
        })
    }
}
