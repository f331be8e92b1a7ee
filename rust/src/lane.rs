//! What a thread of a [`Worker`](crate::worker::Worker) does: it waits, takes turns, and keeps the node's time.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use connlib_core::Instant;
use connlib_net::{BootTimer, MAX_WATCHED, Notice, clock, wait_readable};
use parking_lot::Mutex;

use crate::arguments::Now;
use crate::call_error::CallError;
use crate::guard::Guarded;
use crate::node::{self, Engine};
use crate::pace::{GATHERING, MODERATION, Next, Pace, RESPITE};
use crate::panics::{self, Failure};
use crate::rights;
use crate::tun_io;
use crate::turn::{self, Turn, Watch};
use crate::udp_io;

/// Packets and datagrams that one turn moves before whoever waits for the ends has its chance.
const BUDGET: usize = 1024;

/// Seconds by which the wall clock has to be off to count as set. Slewing stays far below.
const CLOCK_STEP: f64 = 1.0;

/// Places in the poller.
const CALL: usize = turn::OTHERS;
const TIMER: usize = turn::OTHERS + 1;

/// A queue of the device and sockets, which have a thread of their own.
pub struct Lane {
    pub tun: Arc<Guarded<tun_io::Io>>,
    pub udp: Arc<Guarded<udp_io::Io>>,
    /// For the thread: something was put out, or is due sooner, or it is to end.
    pub call: Notice,
    /// It is to give up its capabilities, and has not yet.
    pub gives_up: AtomicBool,
}

/// What the threads and their owner know of each other.
pub struct Shared {
    pub node: Arc<Engine>,
    /// The first keeps the node's time.
    pub lanes: Vec<Arc<Lane>>,
    pub ends: AtomicBool,
    /// For the interpreter: there is something to see to. Whether it was told of it, and has not come yet.
    pub news: Notice,
    pub is_told: AtomicBool,
    pub turns: AtomicU64,
    pub timer_wakes: AtomicU64,
    pub failure: Mutex<Option<CallError>>,
    /// What the wall clock showed when the other one was at zero, in seconds: the bits of an `f64`.
    pub unix_epoch: AtomicU64,
}

impl Shared {
    fn tell(&self) {
        if !self.is_told.swap(true, Ordering::SeqCst) {
            self.news.set();
        }
    }

    /// One has failed: all end, because without one of them some packets would be left alone for ever.
    fn fail(&self, error: CallError) {
        let mut failure = self.failure.lock();
        // Where one panics in the node, others find it broken, and may be sooner to say so.
        if matches!(*failure, None | Some(CallError::Engine(Failure::Broken))) {
            *failure = Some(error);
        }
        drop(failure);
        self.end();
        self.tell();
    }

    /// Has the first one take a turn: something was put out, or is due sooner.
    pub fn wake(&self) {
        if let Some(first) = self.lanes.first() {
            first.call.set();
        }
    }

    /// Ends all threads, after their turns.
    pub fn end(&self) {
        self.ends.store(true, Ordering::SeqCst);
        for lane in &self.lanes {
            lane.call.set();
        }
    }
}

/// What is the thread's own.
pub struct Thread {
    shared: Arc<Shared>,
    lane: Arc<Lane>,
    watch: Watch,
    timer: BootTimer,
    /// When the timer fires: at the deadline, or before it, so that a deadline that moves away costs no system call.
    timer_at: Option<Instant>,
    deadline: Option<Instant>,
    /// Another descriptor of the device, to wait for without its lock.
    device: OwnedFd,
}

impl Thread {
    pub fn new(
        shared: &Arc<Shared>,
        lane: &Arc<Lane>,
        mut watch: Watch,
    ) -> Result<Self, CallError> {
        let timer = BootTimer::new()?;
        watch.add(CALL, lane.call.as_fd())?;
        watch.add(TIMER, timer.as_fd())?;
        let device = lane.tun.call_inside(|tun| {
            lane.udp.call_inside(|udp| watch.update(tun, udp))??;
            tun.duplicated()
        })??;
        Ok(Thread {
            shared: shared.clone(),
            lane: lane.clone(),
            watch,
            timer,
            timer_at: None,
            deadline: None,
            device,
        })
    }

    pub fn run(mut self) {
        let shared = self.shared.clone();
        let result = panics::catch(|| self.serve());
        if let Err(error) = result.map_err(CallError::from).and_then(|result| result) {
            shared.fail(error);
        }
    }

    /// Takes turns until it is to end, from the first call on.
    fn serve(&mut self) -> Result<(), CallError> {
        while !self.lane.call.take() {
            wait_readable([self.lane.call.as_fd()], Duration::MAX);
        }
        if self.watch.is_first() {
            self.shared
                .lanes
                .iter()
                .skip(1)
                .for_each(|other| other.call.set());
        }
        let mut pace = Pace::default();
        // The first turn finds out when the node wants to be called.
        let mut next = Next::Again;
        loop {
            let ready = self.wait(next, pace.is_busy());
            if ready[CALL] {
                self.lane.call.take();
            }
            if self.shared.ends.load(Ordering::SeqCst) {
                return Ok(());
            }
            if self.lane.gives_up.load(Ordering::SeqCst) {
                // Where that is forbidden, the process cannot give them up either, and has what it was started with.
                let _ = rights::give_up();
                self.lane.gives_up.store(false, Ordering::SeqCst);
            }
            if ready[TIMER] && self.timer.fired()? {
                self.timer_at = None;
            }
            let turn = self.turn(&ready)?;
            if self.watch.is_first() {
                self.deadline = turn.deadline;
                self.set_timer()?;
            } else if turn.is_sooner {
                self.shared.wake();
            }
            if turn.is_notable {
                self.shared.tell();
            }
            let was_ready = ready[..turn::OTHERS].contains(&true);
            next = pace.after(turn.moved, turn.refused, was_ready, clock::since_boot());
        }
    }

    fn wait(&self, next: Next, is_busy: bool) -> [bool; MAX_WATCHED] {
        let (call, timer) = (self.lane.call.as_fd(), self.timer.as_fd());
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
        let known = f64::from_bits(shared.unix_epoch.load(Ordering::Relaxed));
        let was_set = (unix_epoch - known).abs() > CLOCK_STEP;
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
            let bits = unix_epoch.to_bits();
            shared.unix_epoch.store(bits, Ordering::Relaxed);
            // Who logs it.
            shared.tell();
        }
        shared.turns.fetch_add(1, Ordering::Relaxed);
        if is_due {
            shared.timer_wakes.fetch_add(1, Ordering::Relaxed);
        }
        let (watch, lane) = (&mut self.watch, &self.lane);
        lane.tun.call_inside(|tun| {
            lane.udp
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
