//! `Worker`: threads that wait and take turns without the interpreter, which hears of it only where there is something
//! for it.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use connlib_net::Notice;
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::call_error::CallError;
use crate::descriptors::Closable;
use crate::fork::Origin;
use crate::guard::Guarded;
use crate::lane::{Lane, Shared, Thread};
use crate::node::{Engine, Node};
use crate::rights;
use crate::tun_io::{self, TunIo};
use crate::turn::Watch;
use crate::udp_io::{self, UdpIo};

#[pyclass(module = "connlib._native", frozen)]
pub struct Worker {
    running: Guarded<Closable<Running, Counts>>,
}

#[derive(Clone, Copy)]
struct Counts {
    turns: u64,
    timer_wakes: u64,
}

/// A queue of the device, and sockets.
type Ends = (Arc<Guarded<tun_io::Io>>, Arc<Guarded<udp_io::Io>>);

/// The threads, and what ends them.
struct Running {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    origin: Origin,
}

#[pymethods]
impl Worker {
    #[new]
    #[pyo3(signature = (tun, udp, node, unix_epoch, beside=Vec::new()))]
    fn new(
        py: Python<'_>,
        tun: &TunIo,
        udp: &UdpIo,
        node: &Node,
        unix_epoch: f64,
        beside: Vec<(PyRef<'_, TunIo>, PyRef<'_, UdpIo>)>,
    ) -> PyResult<Self> {
        node.for_io()?;
        let mut ends = vec![(tun.io.clone(), udp.io.clone())];
        for (tun, udp) in beside {
            ends.push((tun.io.clone(), udp.io.clone()));
        }
        for (tun, udp) in &ends {
            tun.check()?;
            udp.check()?;
        }
        let node = node.engine.clone();
        let running = py.detach(|| Running::start(ends, node, unix_epoch))?;
        Ok(Worker {
            running: Guarded::new(Closable::new(running, Running::counts)),
        })
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.with(py, |running| Ok(running.shared.news.as_fd().as_raw_fd()))
    }

    fn wake(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |running| {
            running.shared.wake();
            Ok(())
        })
    }

    fn give_up(&self, py: Python<'_>) -> PyResult<()> {
        self.running
            .call_detached(py, |running| -> Result<(), CallError> {
                running.get()?.give_up();
                Ok(())
            })??;
        Ok(())
    }

    fn take(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |running| {
            let shared = &running.shared;
            shared.news.take();
            // Only now: what is told later is told again.
            shared.is_told.store(false, Ordering::SeqCst);
            shared.failure.lock().take().map_or(Ok(()), Err)
        })
    }

    #[getter]
    fn turns(&self, py: Python<'_>) -> PyResult<u64> {
        self.running.call(py, |running| running.counts().turns)
    }

    #[getter]
    fn timer_wakes(&self, py: Python<'_>) -> PyResult<u64> {
        self.running
            .call(py, |running| running.counts().timer_wakes)
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        self.running.call_detached(py, |running| {
            // What is closed has no thread any more.
            if let Ok(running) = running.get() {
                running.stop();
            }
        })
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.stop(py)?;
        self.running.call_detached(py, Closable::close)
    }
}

impl Worker {
    fn with<R: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&Running) -> Result<R, CallError> + Send,
    ) -> PyResult<R> {
        let result = self.running.call(py, |running| -> Result<R, CallError> {
            call(running.get()?)
        })??;
        Ok(result)
    }
}

impl Running {
    fn start(ends: Vec<Ends>, node: Arc<Engine>, unix_epoch: f64) -> Result<Self, CallError> {
        let lane = |(tun, udp)| {
            Ok(Arc::new(Lane {
                tun,
                udp,
                call: Notice::new()?,
                gives_up: AtomicBool::new(false),
            }))
        };
        let lanes = ends.into_iter().map(lane).collect::<io::Result<_>>()?;
        let timestamps = node.call_inside(|node| node.timestamps_version())?;
        let shared = Arc::new(Shared {
            node,
            lanes,
            ends: AtomicBool::new(false),
            news: Notice::new()?,
            is_told: AtomicBool::new(false),
            turns: AtomicU64::new(0),
            timer_wakes: AtomicU64::new(0),
            failure: Mutex::new(None),
            unix_epoch: AtomicU64::new(unix_epoch.to_bits()),
        });
        // Ends those that there are, should there be no more.
        let mut running = Running {
            shared: shared.clone(),
            threads: Vec::new(),
            origin: Origin::here(),
        };
        let first = Watch::new(timestamps)?;
        let beside = || Watch::beside(&first);
        let others = (1..shared.lanes.len()).map(|_| beside());
        let others = others.collect::<Result<Vec<_>, _>>()?;
        for (lane, watch) in shared.lanes.iter().zip([first].into_iter().chain(others)) {
            let thread = Thread::new(&shared, lane, watch)?;
            running.threads.push(rights::without_signals(|| {
                let builder = thread::Builder::new().name("connlib".to_string());
                builder.spawn(move || thread.run())
            })?);
        }
        Ok(running)
    }

    /// Has the threads give up their capabilities, and waits until they have.
    fn give_up(&self) {
        for lane in &self.shared.lanes {
            lane.gives_up.store(true, Ordering::SeqCst);
            lane.call.set();
        }
        for (lane, thread) in self.shared.lanes.iter().zip(&self.threads) {
            while lane.gives_up.load(Ordering::SeqCst) && !thread.is_finished() {
                thread::sleep(Duration::from_micros(100));
            }
        }
    }

    /// Ends the threads, after their turns if they are in the middle of one.
    fn stop(&mut self) {
        let threads = mem::take(&mut self.threads);
        if !self.origin.is_here() {
            // There are no such threads in a child process.
            return mem::forget(threads);
        }
        self.shared.end();
        for thread in threads {
            // It catches panics, so that there is nothing to learn from it.
            let _ = thread.join();
        }
    }

    fn counts(&self) -> Counts {
        Counts {
            turns: self.shared.turns.load(Ordering::Relaxed),
            timer_wakes: self.shared.timer_wakes.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}
