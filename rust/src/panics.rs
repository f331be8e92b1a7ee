//! A panic of the engine becomes a value. Free of Python, so that tests/pure.rs can include it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A state that no call uses any more once one call on it has panicked: it may be half changed.
pub struct Fragile<T> {
    value: T,
    broken: bool,
}

/// Why a call on a `Fragile` gave no result.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// It panicked, with this message.
    Panicked(String),
    /// An earlier one panicked.
    Broken,
}

impl<T> Fragile<T> {
    pub fn new(value: T) -> Self {
        Fragile {
            value,
            broken: false,
        }
    }

    pub fn call<R>(&mut self, call: impl FnOnce(&mut T) -> R) -> Result<R, Failure> {
        if self.broken {
            return Err(Failure::Broken);
        }
        let value = &mut self.value;
        let result = catch(|| call(value));
        self.broken = result.is_err();
        result
    }
}

/// Run something that may panic and leaves nothing behind if it does.
pub fn catch<R>(call: impl FnOnce() -> R) -> Result<R, Failure> {
    catch_unwind(AssertUnwindSafe(call))
        .map_err(|payload| Failure::Panicked(message(payload.as_ref())))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    // One line: what Python raises is printed as one.
    text.unwrap_or("panic")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}
