//! What every object with a state has around it: a lock, the process it belongs to, and a net for panics.

use parking_lot::{Mutex, MutexGuard};
use pyo3::prelude::*;

use crate::fork::Held;
use crate::panics::{Failure, Fragile};

/// A state that Python objects share between threads.
///
/// The lock is one that goes to whoever waits for it, now and then: a thread that moves packets takes it again as soon as it
/// has given it back.
///
/// No Python code runs while the lock is held: it could come back for the same object. So a call returns plain values, also
/// where it fails (`CallError`), and only its caller makes Python's of them.
pub struct Guarded<T> {
    state: Held<Mutex<Fragile<T>>>,
}

impl<T: Send> Guarded<T> {
    pub fn new(value: T) -> Self {
        Guarded {
            state: Held::new(Mutex::new(Fragile::new(value)), is_idle),
        }
    }

    /// Raises `ForkedError` in a child process.
    pub fn check(&self) -> PyResult<()> {
        Ok(self.state.origin().check()?)
    }

    /// For calls that are shorter than letting other threads run, which happens only where the lock has to be waited for.
    ///
    /// Nobody waits for the interpreter with the lock in hand: that would hold up a thread that does without.
    #[inline]
    pub fn call<R: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&mut T) -> R + Send,
    ) -> PyResult<R> {
        self.check()?;
        let Some(mut state) = self.state.try_lock() else {
            return self.call_detached(py, call);
        };
        let result = state.call(call);
        // Before an error is made, which runs Python code.
        drop(state);
        Ok(result?)
    }

    /// Let other threads run meanwhile.
    pub fn call_detached<R: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&mut T) -> R + Send,
    ) -> PyResult<R> {
        self.check()?;
        // The lock is given back before Python is entered again: a thread that waits for it may hold the interpreter.
        let result: Result<R, Failure> = py.detach(|| self.lock().call(call));
        Ok(result?)
    }

    /// Inside a detached call on something else, after `check`. Locks are taken in one order: I/O, then node.
    pub fn call_inside<R>(&self, call: impl FnOnce(&mut T) -> R) -> Result<R, Failure> {
        self.lock().call(call)
    }

    fn lock(&self) -> MutexGuard<'_, Fragile<T>> {
        self.state.lock()
    }
}

/// Whether no call is going on. Without waiting: in a child process, a call of a thread of the parent never ends.
fn is_idle<T>(state: &Mutex<T>) -> bool {
    !state.is_locked()
}
