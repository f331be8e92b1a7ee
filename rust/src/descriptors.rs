//! What the classes around descriptors share: borrowing one, and closing for good.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use pyo3::PyResult;

use crate::call_error::CallError;
use crate::errors::{os_error, value_error};

/// Something that can be closed once, and whose counters can be read afterwards.
pub enum Closable<T, C> {
    Open(T, fn(&T) -> C),
    Closed(C),
}

impl<T, C: Clone> Closable<T, C> {
    pub fn new(inner: T, counts: fn(&T) -> C) -> Self {
        Closable::Open(inner, counts)
    }

    /// `CallError::Closed` after `close`.
    pub fn get(&mut self) -> Result<&mut T, CallError> {
        match self {
            Closable::Open(inner, _) => Ok(inner),
            Closable::Closed(_) => Err(CallError::Closed),
        }
    }

    pub fn counts(&self) -> C {
        match self {
            Closable::Open(inner, counts) => counts(inner),
            Closable::Closed(counts) => counts.clone(),
        }
    }

    pub fn close(&mut self) {
        *self = Closable::Closed(self.counts());
    }
}

/// Lend a descriptor of the caller's to something that duplicates it.
pub fn with_borrowed<T>(
    fd: RawFd,
    call: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
) -> PyResult<T> {
    if fd < 0 {
        return Err(value_error("a descriptor is not negative"));
    }
    // SAFETY: it is not -1, and it is borrowed for the duration of this call only. If it is not open, the first system
    // call on it, which duplicates it, fails.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    call(borrowed).map_err(os_error)
}
