//! `BootTimer`: a descriptor that becomes readable at an instant of CLOCK_BOOTTIME.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use pyo3::prelude::*;

use crate::arguments::Now;
use crate::call_error::CallError;
use crate::descriptors::Closable;
use crate::errors::os_error;
use crate::guard::Guarded;

#[pyclass(module = "connlib._native", frozen)]
pub struct BootTimer {
    timer: Guarded<Closable<connlib_net::BootTimer, ()>>,
}

#[pymethods]
impl BootTimer {
    #[new]
    fn new() -> PyResult<Self> {
        let timer = connlib_net::BootTimer::new().map_err(os_error)?;
        Ok(BootTimer {
            timer: Guarded::new(Closable::new(timer, |_| ())),
        })
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        let fd = self.timer.call(py, |timer| -> Result<RawFd, CallError> {
            Ok(timer.get()?.as_fd().as_raw_fd())
        })??;
        Ok(fd)
    }

    #[pyo3(signature = (at))]
    fn set(&self, py: Python<'_>, at: Option<Now>) -> PyResult<()> {
        let nanos = at.map(|at| at.0.as_nanos());
        self.timer.call(py, |timer| -> Result<(), CallError> {
            Ok(timer.get()?.set(nanos)?)
        })??;
        Ok(())
    }

    fn fired(&self, py: Python<'_>) -> PyResult<bool> {
        let fired = self.timer.call(py, |timer| -> Result<bool, CallError> {
            Ok(timer.get()?.fired()?)
        })??;
        Ok(fired)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.timer.call(py, Closable::close)
    }
}
