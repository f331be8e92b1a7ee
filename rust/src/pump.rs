//! `Pump`: both ways at once, between a TUN descriptor, UDP sockets and a node, which it waits for as one.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use pyo3::prelude::*;

use crate::arguments::Now;
use crate::call_error::CallError;
use crate::descriptors::Closable;
use crate::guard::Guarded;
use crate::node::Node;
use crate::time;
use crate::tun_io::{self, TunIo};
use crate::turn::{self, Watch};
use crate::udp_io::{self, UdpIo};

#[pyclass(module = "connlib._native", frozen)]
pub struct Pump {
    tun: Py<TunIo>,
    udp: Py<UdpIo>,
    node: Py<Node>,
    watch: Guarded<Closable<Watch, ()>>,
}

/// How much was moved, how much of it in vain, the next deadline, and whether there is anything else to see to.
type Told = (usize, u64, Option<f64>, bool);

#[pymethods]
impl Pump {
    #[new]
    fn new(py: Python<'_>, tun: Py<TunIo>, udp: Py<UdpIo>, node: Py<Node>) -> PyResult<Self> {
        let engine = node.get().for_io()?;
        let watch = Watch::new(engine.call(py, |node| node.timestamps_version())?)?;
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
            Ok(watch.get()?.poller().as_fd().as_raw_fd())
        })??;
        Ok(fd)
    }

    fn turn(&self, py: Python<'_>, now: Now, budget: usize) -> PyResult<Told> {
        let node = self.node.get().for_io()?;
        let turn = self.with_ends(py, |watch, tun, udp| {
            let ready = watch.poller().ready();
            turn::turn(watch, tun, udp, node, now, budget, &ready)
        })?;
        let deadline = turn.deadline.map(|at| time::deadline(at.as_nanos()));
        Ok((turn.moved, turn.refused, deadline, turn.is_notable))
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
