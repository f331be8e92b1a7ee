//! What goes out to Python: outputs, batches, events, deadlines, statistics.

use std::cell::RefCell;
use std::time::Duration;

use connlib_core::{DropReason, Event, NodeTimeout, Output, Packets, Stats};
use pyo3::IntoPyObjectExt;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::classes::{Classes, classes};
use crate::time;

/// A buffer of this size at most is kept for the next call of the thread.
const KEPT_BYTES: usize = 1 << 20;

thread_local! {
    static SCRATCH: RefCell<Output> = RefCell::new(Output::default());
}

/// An empty output whose memory was used before: fresh pages would cost more than the copy.
pub fn take_scratch() -> Output {
    SCRATCH.with(|scratch| std::mem::take(&mut *scratch.borrow_mut()))
}

pub fn return_scratch(mut output: Output) {
    let kept = output.datagrams.bytes.capacity() + output.packets.bytes.capacity();
    if kept <= KEPT_BYTES {
        output.clear();
        SCRATCH.with(|scratch| *scratch.borrow_mut() = output);
    }
}

/// How often each reason occurred.
#[derive(Clone)]
pub struct Drops(Vec<u64>);

impl Drops {
    pub fn new() -> Self {
        Drops(vec![0; DropReason::ALL.len()])
    }

    pub fn add(&mut self, reason: DropReason, count: u64) {
        if let Some(counter) = self.0.get_mut(reason as usize) {
            *counter = counter.saturating_add(count);
        }
    }

    /// Count the packets that events say were dropped.
    pub fn add_events(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::GaveUp { dropped } => self.add(DropReason::GaveUp, *dropped as u64),
                Event::Dropped { reason, count } => self.add((*reason).into(), *count as u64),
                _ => {}
            }
        }
    }

    pub fn nonzero(&self) -> Vec<(DropReason, u64)> {
        let all = DropReason::ALL.iter().copied();
        all.zip(self.0.iter().copied())
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

pub fn drops_to_python<'py>(
    drops: &[(DropReason, u64)],
    py: Python<'py>,
) -> PyResult<Bound<'py, PyDict>> {
    let classes = classes(py)?;
    let dict = PyDict::new(py);
    for (reason, count) in drops {
        dict.set_item(classes.drop_reason(*reason, py), count)?;
    }
    Ok(dict)
}

pub fn packets_to_list<'py>(packets: &Packets, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
    if packets.is_empty() {
        return Ok(PyList::empty(py));
    }
    let items: Vec<_> = packets
        .iter()
        .map(|packet| PyBytes::new(py, packet))
        .collect();
    PyList::new(py, items)
}

pub fn event_to_python<'py>(
    event: &Event,
    classes: &Classes,
    py: Python<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    match event {
        Event::HandshakeStarted => classes.handshake_started.bind(py).call0(),
        Event::SessionEstablished { initiator } => {
            classes.session_established.bind(py).call1((*initiator,))
        }
        Event::SessionExpired => classes.session_expired.bind(py).call0(),
        Event::GaveUp { dropped } => classes.gave_up.bind(py).call1((*dropped,)),
        Event::PeerSilent => classes.peer_silent.bind(py).call0(),
        Event::Poisoned => classes.poisoned.bind(py).call0(),
        Event::Dropped { reason, count } => {
            let reason = classes.drop_reason((*reason).into(), py);
            classes.dropped.bind(py).call1((reason, *count))
        }
    }
}

fn events_to_list<'py>(
    events: &[Event],
    classes: &Classes,
    py: Python<'py>,
) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for event in events {
        list.append(event_to_python(event, classes, py)?)?;
    }
    Ok(list)
}

/// `connlib.Output`.
pub fn output_to_python<'py>(
    output: Output,
    error: Option<DropReason>,
    py: Python<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let classes = classes(py)?;
    let items = (
        packets_to_list(&output.datagrams, py)?,
        packets_to_list(&output.packets, py)?,
        events_to_list(&output.events, classes, py)?,
        error.and_then(|reason| classes.drop_reason(reason, py)),
    );
    return_scratch(output);
    classes.named_tuple(&classes.output, items, py)
}

/// `connlib.Batch`: its main result, and what else the calls caused.
pub fn batch_to_python<'py>(
    (data, lengths): (Bound<'py, PyBytes>, Vec<usize>),
    others: &Packets,
    events: &[Event],
    errors: &[(usize, DropReason)],
    py: Python<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let classes = classes(py)?;
    let error_list = PyList::empty(py);
    for (index, reason) in errors {
        error_list.append((*index, classes.drop_reason(*reason, py)))?;
    }
    let items = (
        data,
        PyList::new(py, lengths)?,
        packets_to_list(others, py)?,
        events_to_list(events, classes, py)?,
        error_list,
    );
    classes.named_tuple(&classes.batch, items, py)
}

/// `connlib.Timeout`, or None.
pub fn timeout_to_python<'py>(
    timeout: Option<NodeTimeout>,
    py: Python<'py>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let Some(timeout) = timeout else {
        return Ok(None);
    };
    let classes = classes(py)?;
    let items = (
        time::deadline(timeout.at.as_nanos()),
        classes.timeout_reason(timeout.reason, py)?,
    );
    classes.named_tuple(&classes.timeout, items, py).map(Some)
}

/// `connlib.TunnStats`.
pub fn stats_to_python<'py>(
    stats: &Stats,
    drops: &[(DropReason, u64)],
    py: Python<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let fields = [
        (
            intern!(py, "last_handshake"),
            seconds(stats.last_handshake, py)?,
        ),
        (intern!(py, "session_age"), seconds(stats.session_age, py)?),
        (
            intern!(py, "tx_bytes"),
            stats.tx_bytes.into_bound_py_any(py)?,
        ),
        (
            intern!(py, "rx_bytes"),
            stats.rx_bytes.into_bound_py_any(py)?,
        ),
        (
            intern!(py, "tx_packets"),
            stats.tx_packets.into_bound_py_any(py)?,
        ),
        (
            intern!(py, "rx_packets"),
            stats.rx_packets.into_bound_py_any(py)?,
        ),
        (intern!(py, "queued"), stats.queued.into_bound_py_any(py)?),
        (
            intern!(py, "sessions"),
            stats.sessions.into_bound_py_any(py)?,
        ),
        (
            intern!(py, "initiations_sent"),
            stats.initiations_sent.into_bound_py_any(py)?,
        ),
        (
            intern!(py, "responses_sent"),
            stats.responses_sent.into_bound_py_any(py)?,
        ),
        (
            intern!(py, "keepalives_sent"),
            stats.keepalives_sent.into_bound_py_any(py)?,
        ),
        (intern!(py, "loss"), stats.loss.into_bound_py_any(py)?),
        (intern!(py, "rtt"), seconds(stats.rtt, py)?),
        (
            intern!(py, "handshake_pending"),
            stats.handshake_pending.into_bound_py_any(py)?,
        ),
        (intern!(py, "drops"), drops_to_python(drops, py)?.into_any()),
    ];
    let classes = classes(py)?;
    classes.dataclass(&classes.tunn_stats, &fields, py)
}

/// A float, or None.
pub fn seconds<'py>(duration: Option<Duration>, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
    duration
        .map(|duration| duration.as_secs_f64())
        .into_bound_py_any(py)
}
