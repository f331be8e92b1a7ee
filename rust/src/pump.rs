//! `Pump`: both ways at once, between a TUN descriptor, UDP sockets and a node, which it waits for as one.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use connlib_net::{DeviceState, Poller};
use pyo3::prelude::*;

use crate::arguments::Now;
use crate::call_error::CallError;
use crate::descriptors::Closable;
use crate::guard::Guarded;
use crate::node::{Engine, Node};
use crate::time;
use crate::tun_io::{self, TunIo};
use crate::udp_io::{self, FAMILIES, UdpIo};

/// Packets or datagrams that one round moves each way: few enough that they are still in the processor's caches when they
/// are written.
const ROUND: usize = 64;

/// The device's place in the poller: after those of the sockets.
const DEVICE: usize = FAMILIES.len();

#[pyclass(module = "connlib._native", frozen)]
pub struct Pump {
    tun: Py<TunIo>,
    udp: Py<UdpIo>,
    node: Py<Node>,
    watch: Guarded<Closable<Watch, ()>>,
}

struct Watch {
    poller: Poller,
    /// Whether the device is watched for packets. If not, it is held back.
    reads_device: bool,
    /// What the last turn told, so that the next one can say what is new.
    timestamps: u64,
    was_blocked: bool,
    was_down: bool,
}

/// How much was moved, how much of it in vain, the next deadline, and whether there is anything else to see to.
type Told = (usize, u64, Option<f64>, bool);

#[pymethods]
impl Pump {
    #[new]
    fn new(py: Python<'_>, tun: Py<TunIo>, udp: Py<UdpIo>, node: Py<Node>) -> PyResult<Self> {
        let engine = node.get().for_io()?;
        let watch = Watch {
            poller: Poller::new().map_err(CallError::from)?,
            reads_device: true,
            timestamps: engine.call(py, |node| node.timestamps_version())?,
            was_blocked: false,
            was_down: false,
        };
        let pump = Pump {
            tun,
            udp,
            node,
            watch: Guarded::new(Closable::new(watch, |_| ())),
        };
        pump.watch(py)?;
        Ok(pump)
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        let fd = self.watch.call(py, |watch| -> Result<RawFd, CallError> {
            Ok(watch.get()?.poller.as_fd().as_raw_fd())
        })??;
        Ok(fd)
    }

    fn turn(&self, py: Python<'_>, now: Now, budget: usize) -> PyResult<Told> {
        let node = self.node.get().for_io()?;
        self.with_ends(py, |watch, tun, udp| {
            turn(watch, tun, udp, node, now, budget)
        })
    }

    fn watch(&self, py: Python<'_>) -> PyResult<()> {
        self.with_ends(py, Watch::update)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.watch.call(py, Closable::close)
    }
}

impl Pump {
    fn with_ends<R: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&mut Watch, &mut tun_io::Io, &mut udp_io::Io) -> Result<R, CallError> + Send,
    ) -> PyResult<R> {
        let (tun, udp) = (&self.tun.get().io, &self.udp.get().io);
        tun.check()?;
        udp.check()?;
        let result = self
            .watch
            .call_detached(py, |watch| -> Result<R, CallError> {
                let watch = watch.get()?;
                tun.call_inside(|tun| udp.call_inside(|udp| call(watch, tun, udp)))??
            })??;
        Ok(result)
    }
}

impl Watch {
    /// Waits for what is full to be writable, and for the device only while the network takes what it has.
    fn update(&mut self, tun: &mut tun_io::Io, udp: &mut udp_io::Io) -> Result<(), CallError> {
        udp.watch(&mut self.poller)?;
        let reads = !udp.is_full()?;
        if self.reads_device && !reads {
            tun.hold_back()?;
        }
        self.reads_device = reads;
        // Also where it was not a turn that filled them: the next turn looks whether they still are.
        self.was_blocked = !reads || tun.is_blocked()?;
        tun.watch(&mut self.poller, DEVICE, reads)
    }
}

fn turn(
    watch: &mut Watch,
    tun: &mut tun_io::Io,
    udp: &mut udp_io::Io,
    node: &Engine,
    now: Now,
    budget: usize,
) -> Result<Told, CallError> {
    let before = node.call_inside(|node| node.unclaimed())?;
    let moved = move_both_ways(watch, tun, udp, node, now, budget)?;
    let is_blocked = tun.is_blocked()? || udp.is_full()?;
    if is_blocked || watch.was_blocked {
        watch.update(tun, udp)?;
    }
    let is_down = tun.state()? != DeviceState::Up;
    let (refused, deadline, has_news, timestamps) = node.call_inside(|node| {
        let deadline = node.next_timeout();
        (
            node.unclaimed() - before,
            deadline.map(|next| time::deadline(next.at.as_nanos())),
            node.has_news(),
            node.timestamps_version(),
        )
    })?;
    let is_notable = has_news
        || timestamps != watch.timestamps
        // That it is up again is news, too.
        || is_down
        || watch.was_down;
    watch.timestamps = timestamps;
    watch.was_down = is_down;
    Ok((moved, refused, deadline, is_notable))
}

/// Rounds, until one finds little or about `budget` packets and datagrams were moved.
fn move_both_ways(
    watch: &Watch,
    tun: &mut tun_io::Io,
    udp: &mut udp_io::Io,
    node: &Engine,
    now: Now,
    budget: usize,
) -> Result<usize, CallError> {
    let ready = watch.poller.ready();
    // What waited for a descriptor to be writable goes first.
    let mut moved = tun.write(node)? + udp.send(node)?;
    // A socket that has nothing, or nothing any more, is not asked again.
    let mut is_quiet: [bool; FAMILIES.len()] =
        std::array::from_fn(|place| !ready.get(place).is_some_and(|ready| *ready));
    let is_ready = ready.get(DEVICE).is_some_and(|ready| *ready);
    // Of what was read already the poller knows nothing.
    let mut has_packets = is_ready || tun.has_rest()?;
    // It was not asked for packets, and yet says something: it may be gone.
    let may_be_gone = is_ready && !watch.reads_device;
    loop {
        let mut count = 0;
        for (family, is_quiet) in FAMILIES.into_iter().zip(&mut is_quiet) {
            if !*is_quiet {
                let received = udp.receive(node, now, ROUND, family)?;
                *is_quiet = received == 0;
                count += received;
            }
        }
        if count > 0 {
            tun.write(node)?;
            udp.send(node)?;
        }
        // What was written may have been answered already.
        if (has_packets || count > 0) && (may_be_gone || !udp.is_full()?) {
            let read = tun.read(node, now, ROUND)?;
            has_packets = read > 0;
            if read > 0 {
                udp.send(node)?;
                // What a policy refuses is answered.
                tun.write(node)?;
                count += read;
            }
        }
        moved += count;
        if count < ROUND || moved >= budget {
            return Ok(moved);
        }
    }
}
