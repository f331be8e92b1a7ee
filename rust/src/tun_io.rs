//! `TunIo`: packets between a TUN descriptor and a node.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use connlib_core::NodeOutput;
use connlib_net::offload::Offloads;
use connlib_net::{DeviceState, Interest, Packets, Poller, ReadBatch, Tun, TunCounts};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arguments::Now;
use crate::call_error::CallError;
use crate::descriptors::{self, Closable};
use crate::errors::value_error;
use crate::guard::Guarded;
use crate::node::{self, Engine, Node, Outbox, handle_packets};

#[pyclass(module = "connlib._native", frozen)]
pub struct TunIo {
    pub io: Arc<Guarded<Io>>,
}

pub struct Io {
    tun: Closable<Tun, (TunCounts, u64)>,
    batch: ReadBatch,
}

impl Io {
    /// out: where what comes of it goes; `None` leaves it in the node.
    pub fn read(
        &mut self,
        node: &Engine,
        now: Now,
        budget: usize,
        out: Option<&mut Outbox>,
    ) -> Result<usize, CallError> {
        let count = self.tun.get()?.read(budget, &mut self.batch);
        if count > 0 {
            let packets = self.batch.iter();
            node.call_inside(|node| {
                node::putting_out(node, out, |node| handle_packets(node, packets, now))
            })?;
        }
        Ok(count)
    }

    /// Writes the packets that were put out.
    pub fn write(&mut self, out: &NodeOutput) -> Result<usize, CallError> {
        let packets = &out.packets;
        Ok(self.tun.get()?.write(Packets {
            bytes: &packets.bytes,
            lengths: &packets.lengths,
        }))
    }

    /// Another descriptor of the device.
    pub fn duplicated(&mut self) -> Result<OwnedFd, CallError> {
        Ok(self.tun.get()?.as_fd().try_clone_to_owned()?)
    }

    pub fn has_rest(&mut self) -> Result<bool, CallError> {
        Ok(self.tun.get()?.has_rest())
    }

    /// From now on the device is left alone, because what comes from it would have no room.
    pub fn hold_back(&mut self) -> Result<(), CallError> {
        self.tun.get()?.hold_back();
        Ok(())
    }

    /// Whether packets wait for the device to be writable.
    pub fn is_blocked(&mut self) -> Result<bool, CallError> {
        Ok(self.tun.get()?.backlog() > 0)
    }

    /// Has it watched: for reading unless it is held back, and for writing if it is full.
    pub fn watch(
        &mut self,
        poller: &mut Poller,
        place: usize,
        reads: bool,
    ) -> Result<(), CallError> {
        let tun = self.tun.get()?;
        let writes = tun.backlog() > 0;
        Ok(poller.watch(place, tun.as_fd(), Interest { reads, writes })?)
    }

    pub fn state(&mut self) -> Result<DeviceState, CallError> {
        Ok(self.tun.get()?.state())
    }
}

fn counts(tun: &Tun) -> (TunCounts, u64) {
    (tun.counts().clone(), tun.backlog_dropped())
}

#[pymethods]
impl TunIo {
    #[new]
    #[pyo3(signature = (fd, beside=None))]
    fn new(py: Python<'_>, fd: i32, beside: Option<PyRef<'_, TunIo>>) -> PyResult<Self> {
        let mut tun = descriptors::with_borrowed(fd, Tun::new)?;
        if let Some(other) = beside {
            other.io.call(py, |other| -> Result<(), CallError> {
                tun.is_beside(other.tun.get()?);
                Ok(())
            })??;
        }
        Ok(TunIo {
            io: Arc::new(Guarded::new(Io {
                tun: Closable::new(tun, counts),
                batch: ReadBatch::default(),
            })),
        })
    }

    fn read(&self, py: Python<'_>, node: &Node, now: Now, budget: usize) -> PyResult<usize> {
        let node = node.for_io()?;
        let count = self
            .io
            .call_detached(py, |io| io.read(node, now, budget, None))??;
        Ok(count)
    }

    fn write(&self, py: Python<'_>, node: &Node) -> PyResult<usize> {
        let node = node.for_io()?;
        let count = self
            .io
            .call_detached(py, |io| -> Result<usize, CallError> {
                node.call_inside(|node| {
                    let count = io.write(node.output());
                    node.drain_packets(usize::MAX);
                    count
                })?
            })??;
        Ok(count)
    }

    fn set_offloads(&self, py: Python<'_>, names: Vec<String>) -> PyResult<Vec<&'static str>> {
        let mut wanted = Offloads::NONE;
        for name in names {
            wanted |= Offloads::named(&name)
                .ok_or_else(|| value_error(format!("there is no offload {name:?}")))?;
        }
        let active = self.io.call(py, |io| -> Result<Offloads, CallError> {
            Ok(io.tun.get()?.set_offloads(wanted))
        })??;
        Ok(active.names().collect())
    }

    #[getter]
    fn blocked(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.io.call(py, Io::is_blocked)??)
    }

    #[getter]
    fn state(&self, py: Python<'_>) -> PyResult<&'static str> {
        Ok(match self.io.call(py, Io::state)?? {
            DeviceState::Up => "up",
            DeviceState::Down => "down",
            DeviceState::Gone => "gone",
        })
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (counts, backlog_dropped) = self.io.call(py, |io| io.tun.counts())?;
        let stats = PyDict::new(py);
        stats.set_item("packets_read", counts.packets_read)?;
        stats.set_item("bytes_read", counts.bytes_read)?;
        stats.set_item("packets_written", counts.packets_written)?;
        stats.set_item("bytes_written", counts.bytes_written)?;
        stats.set_item("short_writes", counts.short_writes)?;
        stats.set_item("held_back", counts.held_back)?;
        stats.set_item("backlog_dropped", backlog_dropped)?;
        stats.set_item("superpackets_read", counts.superpackets_read)?;
        stats.set_item("packets_cut", counts.packets_cut)?;
        stats.set_item("superpackets_written", counts.superpackets_written)?;
        stats.set_item("packets_merged", counts.packets_merged)?;
        stats.set_item("superpackets_refused", counts.superpackets_refused)?;
        for (fault, count) in counts.faults.iter() {
            stats.set_item(format!("bad_{}", fault.name()), count)?;
        }
        for (errno, count) in counts.errors.iter() {
            stats.set_item(errno, count)?;
        }
        Ok(stats)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.io.call(py, |io| io.tun.close())
    }
}
