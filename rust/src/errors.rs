//! The exceptions of `connlib._errors`, and what becomes one.

use std::io;

use pyo3::exceptions::{PyOSError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict, PyType};

use crate::call_error::CallError;
use crate::fork::Forked;
use crate::panics::Failure;

struct Errors {
    key_format: Py<PyType>,
    config: Py<PyType>,
    closed: Py<PyType>,
    forked: Py<PyType>,
    engine: Py<PyType>,
}

fn errors(py: Python<'_>) -> PyResult<&'static Errors> {
    static ERRORS: PyOnceLock<Errors> = PyOnceLock::new();
    ERRORS.get_or_try_init(py, || {
        let module = py.import("connlib._errors")?;
        let class = |name: &str| -> PyResult<Py<PyType>> {
            Ok(module.getattr(name)?.cast_into::<PyType>()?.unbind())
        };
        Ok(Errors {
            key_format: class("KeyFormatError")?,
            config: class("ConfigError")?,
            closed: class("ClosedError")?,
            forked: class("ForkedError")?,
            engine: class("EngineError")?,
        })
    })
}

fn raise(pick: impl FnOnce(&Errors) -> &Py<PyType>, message: String) -> PyErr {
    Python::attach(|py| match errors(py) {
        Ok(errors) => PyErr::from_type(pick(errors).bind(py).clone(), message),
        Err(error) => error,
    })
}

/// An `OSError` with its errno, by which Python code tells what to do about it.
pub fn os_error(error: io::Error) -> PyErr {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(errno) => {
            let words = text.split(" (os error").next().unwrap_or_default();
            PyOSError::new_err((errno, words.to_owned()))
        }
        None => PyOSError::new_err(text),
    }
}

pub fn value_error(message: impl Into<String>) -> PyErr {
    PyValueError::new_err(message.into())
}

pub fn engine_error(message: impl Into<String>) -> PyErr {
    raise(|errors| &errors.engine, message.into())
}

pub fn type_error(message: impl Into<String>) -> PyErr {
    PyTypeError::new_err(message.into())
}

pub fn key_format(message: impl Into<String>) -> PyErr {
    raise(|errors| &errors.key_format, message.into())
}

/// A `ConfigError` that no file is known of.
pub fn config(py: Python<'_>, problem: &str, hint: Option<&str>) -> PyErr {
    let make = || -> PyResult<PyErr> {
        let class = errors(py)?.config.bind(py);
        let error = class.call((problem,), Some(&[("hint", hint)].into_py_dict(py)?))?;
        Ok(PyErr::from_value(error))
    };
    make().unwrap_or_else(|error| error)
}

fn closed() -> PyErr {
    raise(|errors| &errors.closed, "this object is closed".into())
}

fn forked() -> PyErr {
    raise(
        |errors| &errors.forked,
        "this object was made before fork() and must not be used in the child: make a new one"
            .into(),
    )
}

pub fn secrets_stay(class: &str, verb: &str) -> PyErr {
    type_error(format!(
        "a {class} cannot be {verb}: use to_bytes() if the secret is to leave this object"
    ))
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        let message = match failure {
            Failure::Panicked(message) => {
                format!(
                    "internal error in the engine: {message}; please report it as a bug of connlib"
                )
            }
            Failure::Broken => {
                "this object stopped at an internal error that was raised before: make a new one"
                    .into()
            }
        };
        raise(|errors| &errors.engine, message)
    }
}

impl From<Forked> for PyErr {
    fn from(_: Forked) -> Self {
        forked()
    }
}

impl From<CallError> for PyErr {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Closed => closed(),
            CallError::Engine(failure) => failure.into(),
            CallError::System(error) => os_error(error),
        }
    }
}
