//! `UdpIo`: datagrams between UDP sockets and a node.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use connlib_core::{NodeOutput, Path};
use connlib_net::{Datagrams, Family, Interest, Poller, ReceiveBuffers, UdpCounts, UdpPair};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arguments::Now;
use crate::call_error::CallError;
use crate::descriptors::{self, Closable};
use crate::errors::value_error;
use crate::guard::Guarded;
use crate::node::{self, Engine, Node, Outbox, handle_datagrams};

#[pyclass(module = "connlib._native", frozen)]
pub struct UdpIo {
    pub io: Arc<Guarded<Io>>,
}

pub struct Io {
    sockets: Closable<UdpPair, UdpCounts>,
    buffers: ReceiveBuffers,
}

impl Io {
    pub fn receive(
        &mut self,
        node: &Engine,
        now: Now,
        budget: usize,
        family: Family,
        mut out: Option<&mut Outbox>,
    ) -> Result<usize, CallError> {
        let mut result = Ok(());
        let received = self
            .sockets
            .get()?
            .receive(family, budget, &mut self.buffers, |buffers| {
                let datagrams = buffers.iter().map(|one| {
                    let (remote, source) = (one.source, one.local);
                    (Path { remote, source }, one.ecn, one.bytes)
                });
                let out = out.as_deref_mut();
                let handled = node.call_inside(|node| {
                    node::putting_out(node, out, |node| handle_datagrams(node, datagrams, now))
                });
                if handled.is_err() {
                    result = handled;
                }
            });
        result?;
        Ok(received)
    }

    /// Sends the datagrams that were put out. [`Self::refused_sources`] may have something then.
    pub fn send(&mut self, out: &NodeOutput) -> Result<usize, CallError> {
        Ok(self.sockets.get()?.send(Datagrams {
            bytes: &out.datagrams.bytes,
            lengths: &out.datagrams.lengths,
            destinations: &out.destinations,
            sources: &out.sources,
            ecn: &out.ecn,
        }))
    }

    /// Where the kernel would not let datagrams come from, for `Node::source_refused`.
    pub fn refused_sources(&mut self) -> Result<Vec<(SocketAddr, IpAddr)>, CallError> {
        Ok(self.sockets.get()?.take_refused_sources().collect())
    }

    /// Has the sockets watched, from place 0 on: for reading, and for writing if one is full.
    pub fn watch(&mut self, poller: &mut Poller) -> Result<(), CallError> {
        let sockets = self.sockets.get()?;
        for (place, family) in FAMILIES.into_iter().enumerate() {
            if let Some(fd) = sockets.as_fd(family) {
                let writes = sockets.backlog(family) > 0;
                let reads = true;
                poller.watch(place, fd, Interest { reads, writes })?;
            }
        }
        Ok(())
    }

    /// Whether datagrams wait for a socket, of any family.
    pub fn is_full(&mut self) -> Result<bool, CallError> {
        let sockets = self.sockets.get()?;
        Ok(FAMILIES.iter().any(|&family| sockets.backlog(family) > 0))
    }

    /// Whether datagrams wait for the socket of this family to be writable.
    pub fn is_blocked(&mut self, family: Family) -> Result<bool, CallError> {
        Ok(self.sockets.get()?.backlog(family) > 0)
    }
}

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// As Python's sockets name it.
fn family(number: i32) -> PyResult<Family> {
    match number {
        libc::AF_INET => Ok(Family::V4),
        libc::AF_INET6 => Ok(Family::V6),
        _ => Err(value_error("family must be AF_INET or AF_INET6")),
    }
}

#[pymethods]
impl UdpIo {
    #[new]
    #[pyo3(signature = (fd4, fd6))]
    fn new(fd4: Option<i32>, fd6: Option<i32>) -> PyResult<Self> {
        let sockets = match (fd4, fd6) {
            (None, None) => return Err(value_error("fd4 or fd6 must be a socket")),
            (Some(fd4), None) => descriptors::with_borrowed(fd4, |v4| UdpPair::new(Some(v4), None)),
            (None, Some(fd6)) => descriptors::with_borrowed(fd6, |v6| UdpPair::new(None, Some(v6))),
            (Some(fd4), Some(fd6)) => descriptors::with_borrowed(fd4, |v4| {
                Ok(descriptors::with_borrowed(fd6, |v6| {
                    UdpPair::new(Some(v4), Some(v6))
                }))
            })?,
        }?;
        Ok(UdpIo {
            io: Arc::new(Guarded::new(Io {
                sockets: Closable::new(sockets, UdpPair::counts),
                buffers: ReceiveBuffers::default(),
            })),
        })
    }

    #[pyo3(signature = (node, now, budget, family=None))]
    fn receive(
        &self,
        py: Python<'_>,
        node: &Node,
        now: Now,
        budget: usize,
        family: Option<i32>,
    ) -> PyResult<usize> {
        let node = node.for_io()?;
        let families = match family {
            None => FAMILIES.to_vec(),
            Some(number) => vec![self::family(number)?],
        };
        let received = self
            .io
            .call_detached(py, |io| -> Result<usize, CallError> {
                let mut received = 0;
                for family in families {
                    received += io.receive(node, now, budget, family, None)?;
                }
                Ok(received)
            })??;
        Ok(received)
    }

    fn send(&self, py: Python<'_>, node: &Node) -> PyResult<usize> {
        let node = node.for_io()?;
        let sent = self
            .io
            .call_detached(py, |io| -> Result<usize, CallError> {
                node.call_inside(|node| {
                    let sent = io.send(node.output())?;
                    for (remote, source) in io.refused_sources()? {
                        node.source_refused(remote, source);
                    }
                    node.drain_datagrams(usize::MAX);
                    Ok(sent)
                })?
            })??;
        Ok(sent)
    }

    fn blocked(&self, py: Python<'_>, family: i32) -> PyResult<bool> {
        let family = self::family(family)?;
        Ok(self.io.call(py, |io| io.is_blocked(family))??)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counts = self.io.call(py, |io| io.sockets.counts())?;
        let stats = PyDict::new(py);
        stats.set_item("received", counts.received)?;
        stats.set_item("received_bytes", counts.received_bytes)?;
        stats.set_item("receive_calls", counts.receive_calls)?;
        stats.set_item("sent", counts.sent.datagrams)?;
        stats.set_item("sent_bytes", counts.sent.bytes)?;
        stats.set_item("send_calls", counts.sent.calls)?;
        stats.set_item("segmentation_refused", counts.sent.segmentation_refused)?;
        stats.set_item("source_refused", counts.sent.source_refused)?;
        stats.set_item("backlog_dropped", counts.backlog_dropped)?;
        for (errno, count) in counts.receive_errors.iter() {
            stats.set_item(format!("receive_{errno}"), count)?;
        }
        for (errno, count) in counts.sent.errors.iter() {
            stats.set_item(format!("send_{errno}"), count)?;
        }
        Ok(stats)
    }

    fn buffer_sizes(&self, py: Python<'_>, family: i32) -> PyResult<Option<(usize, usize)>> {
        let family = self::family(family)?;
        let sizes = self.io.call(py, |io| {
            Result::<_, CallError>::Ok(io.sockets.get()?.buffer_sizes(family))
        })??;
        Ok(sizes.map(|sizes| (sizes.receive, sizes.send)))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.io.call(py, |io| io.sockets.close())
    }
}
