//! What a node hands to Python.

use std::net::SocketAddr;

use connlib_core::policy::Direction;
use connlib_core::{Captured, Input, Layer, NodeEvent, NodeStats, Packets, PolicyStats};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

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
    let events = PyList::empty(py);
    for (peer, event) in &drained.events {
        let items = (PublicKey::new(*peer), event_to_python(event, classes, py)?);
        events.append(classes.named_tuple(&classes.peer_event, items, py)?)?;
    }
    let items = (
        transmits,
        results::packets_to_list(&drained.packets, py)?,
        events,
    );
    classes.named_tuple(&classes.node_output, items, py)
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
    let classes = classes(py)?;
    let mut peers = Vec::new();
    for peer in &stats.peers {
        let drops: Vec<_> = peer.drops.iter().collect();
        let fields = PyDict::new(py);
        fields.set_item("public_key", PublicKey::new(peer.public_key))?;
        fields.set_item("endpoint", peer.endpoint.map(address_to_python))?;
        fields.set_item(
            "tunnel",
            results::stats_to_python(&peer.tunnel, &drops, py)?,
        )?;
        let heard = peer.heard.map(|heard| heard.as_secs_f64());
        fields.set_item("last_heard", heard)?;
        let trouble = (
            peer.trouble.unreadable,
            peer.trouble.source_not_allowed,
            peer.trouble.cookie_replies,
            peer.trouble.gave_up,
        );
        let trouble = classes.named_tuple(&classes.peer_trouble, trouble, py)?;
        fields.set_item("trouble", trouble)?;
        let next = results::timeout_to_python(peer.next_timeout.map(Into::into), py)?;
        fields.set_item("next_timeout", next)?;
        fields.set_item("poisoned", peer.poisoned)?;
        if let Some(policy) = &peer.policy {
            fields.set_item("policy", policy_stats_to_python(policy, py)?)?;
        }
        peers.push(classes.peer_stats.bind(py).call((), Some(&fields))?);
    }
    let drops: Vec<_> = stats.drops.iter().collect();
    let fields = PyDict::new(py);
    fields.set_item("peers", PyTuple::new(py, peers)?)?;
    fields.set_item("drops", results::drops_to_python(&drops, py)?)?;
    classes.node_stats.bind(py).call((), Some(&fields))
}

/// `connlib.PolicyStats`.
fn policy_stats_to_python<'py>(
    stats: &PolicyStats,
    py: Python<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let fields = PyDict::new(py);
    fields.set_item("flows", stats.flows)?;
    fields.set_item("flows_evicted", stats.evicted)?;
    fields.set_item("answers", stats.answered)?;
    fields.set_item("flows_pending", stats.pending)?;
    fields.set_item("questions", stats.asked)?;
    classes(py)?.policy_stats.bind(py).call((), Some(&fields))
}
