//! `Worker`: a thread that waits and takes turns without the interpreter, which hears of it only where there is something
//! for it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use connlib_core::Instant;
use connlib_net::{BootTimer, MAX_WATCHED, Notice, clock, wait_readable};
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::arguments::Now;
use crate::call_error::CallError;
use crate::descriptors::Closable;
use crate::fork::Origin;
use crate::guard::Guarded;
use crate::node::{self, Engine, Node};
use crate::pace::{GATHERING, MODERATION, Next, Pace, RESPITE};
use crate::panics;
use crate::rights;
use crate::tun_io::{self, TunIo};
use crate::turn::{self, Turn, Watch};
use crate::udp_io::{self, UdpIo};

/// Packets and datagrams that one turn moves before whoever waits for the ends has its chance.
const BUDGET: usize = 1024;

/// Seconds by which the wall clock has to be off to count as set. Slewing stays far below.
const CLOCK_STEP: f64 = 1.0;

/// Places in the poller.
const CALL: usize = turn::OTHERS;
const TIMER: usize = turn::OTHERS + 1;

#[pyclass(module = "connlib._native", frozen)]
pub struct Worker {
    running: Guarded<Closable<Running, Counts>>,
}

#[derive(Clone, Copy)]
struct Counts {
    turns: u64,
    timer_wakes: u64,
}

/// The thread, and what ends it.
struct Running {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    origin: Origin,
}

/// What the thread and its owner know of each other.
struct Shared {
    tun: Arc<Guarded<tun_io::Io>>,
    udp: Arc<Guarded<udp_io::Io>>,
    node: Arc<Engine>,
    /// For the thread: something was put out, or it is to end.
    call: Notice,
    ends: AtomicBool,
    gives_up: AtomicBool,
    /// For the interpreter: there is something to see to. Whether it was told of it, and has not come yet.
    news: Notice,
    is_told: AtomicBool,
    turns: AtomicU64,
    timer_wakes: AtomicU64,
    failure: Mutex<Option<CallError>>,
}

#[pymethods]
impl Worker {
    #[new]
    fn new(
        py: Python<'_>,
        tun: &TunIo,
        udp: &UdpIo,
        node: &Node,
        unix_epoch: f64,
    ) -> PyResult<Self> {
        node.for_io()?;
        let (tun, udp, node) = (tun.io.clone(), udp.io.clone(), node.engine.clone());
        tun.check()?;
        udp.check()?;
        let running = py.detach(|| Running::start(tun, udp, node, unix_epoch))?;
        Ok(Worker {
            running: Guarded::new(Closable::new(running, Running::counts)),
        })
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.with(py, |running| Ok(running.shared.news.as_fd().as_raw_fd()))
    }

    fn wake(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |running| {
            running.shared.call.set();
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
    fn start(
        tun: Arc<Guarded<tun_io::Io>>,
        udp: Arc<Guarded<udp_io::Io>>,
        node: Arc<Engine>,
        unix_epoch: f64,
    ) -> Result<Self, CallError> {
        let shared = Arc::new(Shared {
            tun,
            udp,
            node,
            call: Notice::new()?,
            ends: AtomicBool::new(false),
            gives_up: AtomicBool::new(false),
            news: Notice::new()?,
            is_told: AtomicBool::new(false),
            turns: AtomicU64::new(0),
            timer_wakes: AtomicU64::new(0),
            failure: Mutex::new(None),
        });
        let thread = Thread::new(shared.clone(), unix_epoch)?;
        let thread = rights::without_signals(|| {
            let builder = thread::Builder::new().name("connlib".to_string());
            builder.spawn(move || thread.run())
        })?;
        Ok(Running {
            shared,
            thread: Some(thread),
            origin: Origin::here(),
        })
    }

    /// Has the thread give up its capabilities, and waits until it has.
    fn give_up(&self) {
        self.shared.gives_up.store(true, Ordering::SeqCst);
        self.shared.call.set();
        let is_there = || {
            self.thread
                .as_ref()
                .is_some_and(|thread| !thread.is_finished())
        };
        while self.shared.gives_up.load(Ordering::SeqCst) && is_there() {
            thread::sleep(Duration::from_micros(100));
        }
    }

    /// Ends the thread, after its turn if it is in the middle of one.
    fn stop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        if !self.origin.is_here() {
            // There is no such thread in a child process.
            return std::mem::forget(thread);
        }
        self.shared.ends.store(true, Ordering::SeqCst);
        self.shared.call.set();
        // It catches panics, so that there is nothing to learn from it.
        let _ = thread.join();
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

impl Shared {
    fn tell(&self) {
        if !self.is_told.swap(true, Ordering::SeqCst) {
            self.news.set();
        }
    }
}

/// What is the thread's own.
struct Thread {
    shared: Arc<Shared>,
    watch: Watch,
    timer: BootTimer,
    /// When the timer fires: at the deadline, or before it, so that a deadline that moves away costs no system call.
    timer_at: Option<Instant>,
    deadline: Option<Instant>,
    /// Another descriptor of the device, to wait for without its lock.
    device: OwnedFd,
    /// What the wall clock showed when the other one was at zero, in seconds.
    unix_epoch: f64,
}

impl Thread {
    fn new(shared: Arc<Shared>, unix_epoch: f64) -> Result<Self, CallError> {
        let timestamps = shared.node.call_inside(|node| node.timestamps_version())?;
        let mut watch = Watch::new(timestamps)?;
        let timer = BootTimer::new()?;
        watch.add(CALL, shared.call.as_fd())?;
        watch.add(TIMER, timer.as_fd())?;
        let device = shared.tun.call_inside(|tun| {
            shared.udp.call_inside(|udp| watch.update(tun, udp))??;
            tun.duplicated()
        })??;
        Ok(Thread {
            shared,
            watch,
            timer,
            timer_at: None,
            deadline: None,
            device,
            unix_epoch,
        })
    }

    fn run(mut self) {
        let shared = self.shared.clone();
        let result = panics::catch(|| self.serve());
        if let Err(error) = result.map_err(CallError::from).and_then(|result| result) {
            *shared.failure.lock() = Some(error);
            shared.tell();
        }
    }

    /// Takes turns until it is to end, from the first call on.
    fn serve(&mut self) -> Result<(), CallError> {
        while !self.shared.call.take() {
            wait_readable([self.shared.call.as_fd()], Duration::MAX);
        }
        let mut pace = Pace::default();
        // The first turn finds out when the node wants to be called.
        let mut next = Next::Again;
        loop {
            let ready = self.wait(next, pace.is_busy());
            if ready[CALL] {
                self.shared.call.take();
            }
            if self.shared.ends.load(Ordering::SeqCst) {
                return Ok(());
            }
            if self.shared.gives_up.load(Ordering::SeqCst) {
                // Where that is forbidden, the process cannot give them up either, and has what it was started with.
                let _ = rights::give_up();
                self.shared.gives_up.store(false, Ordering::SeqCst);
            }
            if ready[TIMER] && self.timer.fired()? {
                self.timer_at = None;
            }
            let turn = self.turn(&ready)?;
            self.deadline = turn.deadline;
            self.set_timer()?;
            if turn.is_notable {
                self.shared.tell();
            }
            let was_ready = ready[..turn::OTHERS].contains(&true);
            next = pace.after(turn.moved, turn.refused, was_ready, clock::since_boot());
        }
    }

    fn wait(&self, next: Next, is_busy: bool) -> [bool; MAX_WATCHED] {
        let (call, timer) = (self.shared.call.as_fd(), self.timer.as_fd());
        match next {
            Next::Wait => {
                let ready = self.watch.poller().wait();
                if !is_busy {
                    return ready;
                }
                let end = clock::since_boot() + MODERATION;
                while clock::since_boot() < end {
                    thread::yield_now();
                }
            }
            Next::Again => (),
            Next::Gather => wait_readable([self.device.as_fd(), call, timer], GATHERING),
            Next::LeaveAlone => wait_readable([call, timer], RESPITE),
        }
        self.watch.poller().ready()
    }

    fn turn(&mut self, ready: &[bool; MAX_WATCHED]) -> Result<Turn, CallError> {
        let shared = &self.shared;
        let since_boot = clock::since_boot();
        let now = Now(Instant::from_nanos(nanos(since_boot)));
        let unix_time = clock::since_1970();
        let unix_epoch = unix_time.as_secs_f64() - since_boot.as_secs_f64();
        let was_set = (unix_epoch - self.unix_epoch).abs() > CLOCK_STEP;
        let is_due = self.deadline.is_some_and(|at| at <= now.0);
        if was_set || is_due {
            shared.node.call_inside(|node| {
                if was_set {
                    node.set_unix_time(unix_time, now.0);
                }
                if is_due {
                    node::handle_timeout(node, now);
                }
            })?;
        }
        if was_set {
            self.unix_epoch = unix_epoch;
            // Who logs it.
            shared.tell();
        }
        shared.turns.fetch_add(1, Ordering::Relaxed);
        if is_due {
            shared.timer_wakes.fetch_add(1, Ordering::Relaxed);
        }
        let watch = &mut self.watch;
        shared.tun.call_inside(|tun| {
            shared
                .udp
                .call_inside(|udp| turn::turn(watch, tun, udp, &shared.node, now, BUDGET, ready))
        })??
    }

    fn set_timer(&mut self) -> Result<(), CallError> {
        if let Some(at) = self.deadline
            && self.timer_at.is_none_or(|set| at < set)
        {
            self.timer.set(Some(at.as_nanos()))?;
            self.timer_at = Some(at);
        }
        Ok(())
    }
}

fn nanos(since_boot: Duration) -> u64 {
    u64::try_from(since_boot.as_nanos()).unwrap_or(u64::MAX)
}
