//! Why a call on a descriptor failed, as long as Python must not be asked.

use std::io;

use crate::panics::Failure;

/// Why a call on a descriptor failed. Inside a lock there is only this: making a Python exception of it runs Python code.
pub enum CallError {
    Closed,
    Engine(Failure),
    System(io::Error),
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        CallError::Engine(failure)
    }
}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> Self {
        CallError::System(error)
    }
}
