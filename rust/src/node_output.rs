//! What a node hands to Python.

use std::net::SocketAddr;

use connlib_core::policy::Direction;
use connlib_core::{Captured, Input, Layer, NodeEvent, NodeStats, Packets, PeerStats, PolicyStats};
use pyo3::IntoPyObjectExt;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use crate::arguments::address_to_python;
use crate::classes::{Classes, classes};
use crate::flow_output;
use crate::public_key::PublicKey;
use crate::results;
use crate::time;

/// A node's output, taken out of it.
pub struct Drained {
    pub datagrams: Packets,
    pub destinations: Vec<SocketAddr>,
    pub packets: Packets,
    pub events: Vec<([u8; 32], NodeEvent)>,
}

/// `connlib.NodeOutput`.
pub fn output_to_python<'py>(drained: &Drained, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
    let classes = classes(py)?;
    let transmits = PyList::empty(py);
    // Runs of datagrams to one destination are the rule.
    let mut last: Option<(SocketAddr, Bound<'py, PyTuple>)> = None;
    for (destination, datagram) in drained.destinations.iter().zip(drained.datagrams.iter()) {
        let address = match &last {
            Some((same, address)) if same == destination => address.clone(),
            _ => address_to_python(*destination).into_pyobject(py)?,
        };
        let items = (&address, PyBytes::new(py, datagram));
        transmits.append(classes.named_tuple(&classes.transmit, items, py)?)?;
        last = Some((*destination, address));
    }
    let items = (
        transmits,
        results::packets_to_list(&drained.packets, py)?,
        events_to_python(&drained.events, py)?,
    );
    classes.named_tuple(&classes.node_output, items, py)
}

/// A list of `connlib.PeerEvent`.
pub fn events_to_python<'py>(
    events: &[([u8; 32], NodeEvent)],
    py: Python<'py>,
) -> PyResult<Bound<'py, PyList>> {
    let classes = classes(py)?;
    let list = PyList::empty(py);
    for (peer, event) in events {
        let items = (PublicKey::new(*peer), event_to_python(event, classes, py)?);
        list.append(classes.named_tuple(&classes.peer_event, items, py)?)?;
    }
    Ok(list)
}

fn event_to_python<'py>(
    event: &NodeEvent,
    classes: &Classes,
    py: Python<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    match event {
        NodeEvent::Tunnel(event) => results::event_to_python(event, classes, py),
        NodeEvent::Roamed { from, to } => {
            let places = (from.map(address_to_python), address_to_python(*to));
            classes.peer_roamed.bind(py).call1(places)
        }
        NodeEvent::Denied(refusal) => flow_output::refusal_to_python(refusal, classes, py),
    }
}

/// A list of `connlib.NodeInput`.
pub fn inputs_to_python<'py>(inputs: &[Input], py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
    let classes = classes(py)?;
    let list = PyList::empty(py);
    for input in inputs {
        let items = (
            time::deadline(input.at.as_nanos()),
            PublicKey::new(input.peer),
            classes.input_kind(input.kind, py)?,
            input.size,
            input.taken,
        );
        list.append(classes.named_tuple(&classes.node_input, items, py)?)?;
    }
    Ok(list)
}

/// A list of `connlib.CapturedPacket`.
pub fn captured_to_python<'py>(
    packets: &[Captured],
    py: Python<'py>,
) -> PyResult<Bound<'py, PyList>> {
    let classes = classes(py)?;
    let list = PyList::empty(py);
    for packet in packets {
        let remote = match packet.layer {
            Layer::Outer(address) => Some(address_to_python(address)),
            Layer::Inner => None,
        };
        let items = (
            packet.at.as_nanos(),
            packet.direction == Direction::ToPeer,
            packet.peer.map(PublicKey::new),
            remote,
            PyBytes::new(py, &packet.bytes),
            packet.size,
        );
        list.append(classes.named_tuple(&classes.captured_packet, items, py)?)?;
    }
    Ok(list)
}

/// `connlib.NodeStats`.
pub fn stats_to_python<'py>(stats: &NodeStats, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
    let mut peers = Vec::with_capacity(stats.peers.len());
    for peer in &stats.peers {
        peers.push(peer_stats_to_python(peer, py)?);
    }
    let drops: Vec<_> = stats.drops.iter().collect();
    let fields = [
        (intern!(py, "peers"), PyTuple::new(py, peers)?.into_any()),
        (
            intern!(py, "drops"),
            results::drops_to_python(&drops, py)?.into_any(),
        ),
    ];
    let classes = classes(py)?;
    classes.dataclass(&classes.node_stats, &fields, py)
}

/// `connlib.PeerStats`.
pub fn peer_stats_to_python<'py>(peer: &PeerStats, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
    let classes = classes(py)?;
    let drops: Vec<_> = peer.drops.iter().collect();
    let trouble = (
        peer.trouble.unreadable,
        peer.trouble.source_not_allowed,
        peer.trouble.cookie_replies,
        peer.trouble.gave_up,
        peer.trouble.congestion_marks,
    );
    let policy = match &peer.policy {
        Some(policy) => Some(policy_stats_to_python(policy, py)?),
        None => None,
    };
    let fields = [
        (
            intern!(py, "public_key"),
            PublicKey::new(peer.public_key).into_bound_py_any(py)?,
        ),
        (
            intern!(py, "endpoint"),
            peer.endpoint.map(address_to_python).into_bound_py_any(py)?,
        ),
        (
            intern!(py, "tunnel"),
            results::stats_to_python(&peer.tunnel, &drops, py)?,
        ),
        (intern!(py, "last_heard"), results::seconds(peer.heard, py)?),
        (
            intern!(py, "trouble"),
            classes.named_tuple(&classes.peer_trouble, trouble, py)?,
        ),
        (
            intern!(py, "next_timeout"),
            results::timeout_to_python(peer.next_timeout.map(Into::into), py)?
                .into_bound_py_any(py)?,
        ),
        (
            intern!(py, "poisoned"),
            peer.poisoned.into_bound_py_any(py)?,
        ),
        (intern!(py, "policy"), policy.into_bound_py_any(py)?),
    ];
    classes.dataclass(&classes.peer_stats, &fields, py)
}

/// `connlib.PolicyStats`.
fn policy_stats_to_python<'py>(
    stats: &PolicyStats,
    py: Python<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let classes = classes(py)?;
    let fields = [
        (intern!(py, "flows"), stats.flows.into_bound_py_any(py)?),
        (
            intern!(py, "flows_evicted"),
            stats.evicted.into_bound_py_any(py)?,
        ),
        (
            intern!(py, "answers"),
            stats.answered.into_bound_py_any(py)?,
        ),
        (
            intern!(py, "flows_pending"),
            stats.pending.into_bound_py_any(py)?,
        ),
        (intern!(py, "questions"), stats.asked.into_bound_py_any(py)?),
    ];
    classes.dataclass(&classes.policy_stats, &fields, py)
}
