//! `Node`: an interface with many peers.

use std::net::SocketAddr;
use std::sync::Arc;

use connlib_core::{CaptureConfig, DropReason, NodeOutput, Packets, Path};
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use rand_core::OsRng;

use crate::arguments::{self, Address, Data, Lengths, MAX_PACKET, Now, UnixTime};
use crate::encryption;
use crate::errors::{engine_error, type_error, value_error};
use crate::flow_output::{self, dated};
use crate::guard::Guarded;
use crate::key_log::Lines;
use crate::key_material::{has_handshake, is_handshake, without_a_trace, without_a_trace_if};
use crate::node_config::{config_error, diff_to_python, node_config};
use crate::node_output::{self, Drained};
use crate::public_key::PublicKey;
use crate::results;
use crate::rights;
use crate::timestamps;
use crate::tunnels::Tunnels;

/// In one place from the start: it holds keys, and a move would leave a copy.
pub type Engine = Guarded<Box<connlib_core::Node>>;

#[pyclass(module = "connlib._native", subclass, frozen)]
pub struct Node {
    pub engine: Arc<Engine>,
    seeded: bool,
}

impl Node {
    pub fn make(
        config: &Bound<'_, PyAny>,
        now: Now,
        unix_time: &UnixTime,
        rng: connlib_core::Rng,
        seeded: bool,
    ) -> PyResult<Self> {
        let py = config.py();
        let mut node = without_a_trace(|| {
            let config = node_config(config)?;
            let node = connlib_core::Node::new(config, now.0, unix_time.0, rng);
            node.map(Box::new).map_err(|error| config_error(error, py))
        })?;
        let encryption = encryption::wanted(config)?;
        // A world has thousands of nodes, and no traffic to speak of.
        if !seeded {
            node.set_encryption(encryption.chosen(py)?);
        }
        Ok(Node {
            engine: Arc::new(Guarded::new(node)),
            seeded,
        })
    }

    /// What a bug in the engine would do to a peer.
    pub fn panic_in(&self, py: Python<'_>, peer: &PublicKey, now: Now) -> PyResult<()> {
        let result = self
            .engine
            .call(py, |node| node.panic_in(&peer.bytes, now.0))?;
        result.map_err(|_| unknown(peer))
    }

    /// For I/O on descriptors. Whoever knows the seed of a node of the laboratory knows its keys.
    pub fn for_io(&self) -> PyResult<&Engine> {
        if self.seeded {
            return Err(type_error(
                "a LabNode has predictable keys and is not for real traffic: use a Node",
            ));
        }
        self.engine.check()?;
        Ok(&self.engine)
    }
}

/// What comes of somebody's calls.
#[derive(Default)]
pub struct Outbox {
    pub output: NodeOutput,
    /// Packets and datagrams that no peer was found for.
    pub refused: u64,
}

/// A call that puts out here what it causes, or leaves it in the node.
pub fn putting_out<R>(
    node: &mut connlib_core::Node,
    here: Option<&mut Outbox>,
    call: impl FnOnce(&mut connlib_core::Node) -> R,
) -> R {
    let Some(here) = here else {
        return call(node);
    };
    let before = node.unclaimed();
    let result = node.putting_out(&mut here.output, call);
    here.refused += node.unclaimed().saturating_sub(before);
    result
}

/// Hand datagrams to a node and leave no trace of its keys on the stack.
pub fn handle_datagrams<'a>(
    node: &mut connlib_core::Node,
    datagrams: impl Iterator<Item = (Path, u8, &'a [u8])>,
    now: Now,
) {
    tracelessly(node, |node| {
        let mut handshakes = false;
        let datagrams = datagrams.inspect(|(_, _, datagram)| handshakes |= is_handshake(datagram));
        node.handle_datagrams(datagrams, now.0);
        handshakes
    });
}

/// The same with packets: each may make an initiation necessary.
pub fn handle_packets<'a>(
    node: &mut connlib_core::Node,
    packets: impl Iterator<Item = &'a [u8]>,
    now: Now,
) {
    tracelessly(node, |node| {
        node.handle_packets(packets, now.0);
        false
    });
}

/// The same with a deadline: handshakes are made again.
pub fn handle_timeout(node: &mut connlib_core::Node, now: Now) {
    without_a_trace(|| node.handle_timeout(now.0));
}

/// Leave no trace of keys on the stack if the call says that it used them, or has put a handshake message out.
fn tracelessly(node: &mut connlib_core::Node, call: impl FnOnce(&mut connlib_core::Node) -> bool) {
    without_a_trace_if(
        || {
            let datagrams = &node.output().datagrams;
            let before = (datagrams.lengths.len(), datagrams.bytes.len());
            call(node) || has_handshake(&node.output().datagrams, before)
        },
        |used_keys| *used_keys,
    );
}

fn checked_endpoint(endpoint: &Address) -> PyResult<SocketAddr> {
    match endpoint.0.port() {
        0 => Err(value_error("the port of an endpoint is 1 to 65535")),
        _ => Ok(endpoint.0),
    }
}

fn copied(packets: &Packets) -> Packets {
    Packets {
        bytes: packets.bytes.clone(),
        lengths: packets.lengths.clone(),
    }
}

fn unknown(peer: &PublicKey) -> PyErr {
    PyKeyError::new_err(format!("no peer has the public key {}", peer.to_base64()))
}

#[pymethods]
impl Node {
    #[new]
    #[pyo3(signature = (config, *, now, unix_time))]
    fn new(config: &Bound<'_, PyAny>, now: Now, unix_time: UnixTime) -> PyResult<Self> {
        Node::make(config, now, &unix_time, Box::new(OsRng), false)
    }

    #[pyo3(signature = (config, now, tunnels=None, *, through=None, relocate=None))]
    fn apply<'py>(
        &self,
        py: Python<'py>,
        config: &Bound<'py, PyAny>,
        now: Now,
        tunnels: Option<&Tunnels>,
        through: Option<&Bound<'py, PyAny>>,
        relocate: Option<Vec<(PyRef<'py, PublicKey>, Address)>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let new = without_a_trace(|| node_config(config).map(Box::new))?;
        let through = without_a_trace(|| {
            through
                .map(|one| node_config(one).map(Box::new))
                .transpose()
        })?;
        let mut places = Vec::new();
        for (peer, endpoint) in relocate.iter().flatten() {
            places.push((peer.bytes, checked_endpoint(endpoint)?));
        }
        let wanted = encryption::wanted(config)?;
        let changed: Vec<&'static str> = self.engine.call(py, |node| {
            let current = node.encryption();
            let choice = (wanted.choice != current.choice).then_some("encryption");
            let threads = (wanted.threads != current.wanted_threads()).then_some("threads");
            choice.into_iter().chain(threads).collect()
        })?;
        let encryption = match self.seeded || changed.is_empty() {
            true => None,
            false => Some(wanted.chosen(py)?),
        };
        let tunnels = match tunnels {
            Some(tunnels) => tunnels.take(py)?,
            None => None,
        };
        let diff = self
            .engine
            .call_detached(py, |node| {
                let mut diff = without_a_trace(|| {
                    let first = through.map(|one| node.apply(*one, now.0)).transpose()?;
                    let last = match tunnels {
                        Some(tunnels) => node.apply_with(*new, *tunnels, now.0),
                        None => node.apply(*new, now.0),
                    }?;
                    for (peer, endpoint) in places {
                        // Whoever is no peer is nowhere.
                        let _ = node.set_endpoint(&peer, endpoint, true, now.0);
                    }
                    Ok(match first {
                        None => last,
                        Some(mut first) => {
                            first.added.extend(last.added);
                            first
                        }
                    })
                })?;
                if let Some(encryption) = encryption {
                    node.set_encryption(encryption);
                    diff.node.extend(changed);
                }
                Ok(diff)
            })?
            .map_err(|error| config_error(error, py))?;
        diff_to_python(&diff, py)
    }

    fn initiate_handshake(&self, py: Python<'_>, peer: &PublicKey, now: Now) -> PyResult<()> {
        let result = self.engine.call(py, |node| {
            without_a_trace(|| node.initiate_handshake(&peer.bytes, now.0))
        })?;
        result.map_err(|reason| match reason {
            DropReason::UnknownPeer => unknown(peer),
            DropReason::Role => value_error("the role of this peer forbids to start a session"),
            DropReason::NoEndpoint => value_error("the endpoint of this peer is not known yet"),
            DropReason::PeerPoisoned => engine_error(
                "this peer stopped at an internal error: remove it from the configuration and add it again",
            ),
            other => value_error(format!("no handshake was started: {}", other.name())),
        })
    }

    fn set_unix_time(&self, py: Python<'_>, unix_time: UnixTime, now: Now) -> PyResult<()> {
        self.engine
            .call(py, |node| node.set_unix_time(unix_time.0, now.0))
    }

    #[pyo3(signature = (peer, endpoint, now, *, replace=true))]
    fn set_endpoint(
        &self,
        py: Python<'_>,
        peer: &PublicKey,
        endpoint: Address,
        now: Now,
        replace: bool,
    ) -> PyResult<bool> {
        let endpoint = checked_endpoint(&endpoint)?;
        self.engine
            .call(py, |node| {
                without_a_trace(|| node.set_endpoint(&peer.bytes, endpoint, replace, now.0))
            })?
            .map_err(|_| unknown(peer))
    }

    fn forget_sources(&self, py: Python<'_>) -> PyResult<()> {
        self.engine.call(py, |node| node.forget_sources())
    }

    fn handle_packets(
        &self,
        py: Python<'_>,
        packets: Data<'_>,
        lengths: Lengths,
        now: Now,
    ) -> PyResult<()> {
        let items = lengths.cut(packets.bytes(), MAX_PACKET)?;
        self.engine
            .call_detached(py, |node| handle_packets(node, items, now))
    }

    fn handle_datagrams(
        &self,
        py: Python<'_>,
        datagrams: Data<'_>,
        lengths: Lengths,
        sources: Vec<Address>,
        now: Now,
    ) -> PyResult<()> {
        let items = lengths.cut(datagrams.bytes(), MAX_PACKET)?;
        if sources.len() != lengths.len() {
            return Err(value_error(format!(
                "{} sources do not match {} lengths",
                sources.len(),
                lengths.len()
            )));
        }
        let sources = sources.iter().map(|source| source.0.into());
        let items = sources
            .zip(items)
            .map(|(from, datagram)| (from, 0, datagram));
        self.engine
            .call_detached(py, |node| handle_datagrams(node, items, now))
    }

    fn handle_timeout(&self, py: Python<'_>, now: Now) -> PyResult<()> {
        self.engine
            .call_detached(py, |node| handle_timeout(node, now))
    }

    fn drain<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let drained = self.engine.call(py, |node| {
            let output = node.output();
            let drained = Drained {
                datagrams: copied(&output.datagrams),
                destinations: output.destinations.clone(),
                packets: copied(&output.packets),
                events: node.take_events(),
            };
            node.clear_output();
            drained
        })?;
        node_output::output_to_python(&drained, py)
    }

    fn take_events<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let events = self.engine.call(py, |node| node.take_events())?;
        node_output::events_to_python(&events, py)
    }

    fn next_timeout<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let timeout = self.engine.call(py, |node| node.next_timeout())?;
        results::timeout_to_python(timeout, py)
    }

    #[getter]
    fn encryption(&self, py: Python<'_>) -> PyResult<(&'static str, String)> {
        self.engine.call(py, |node| {
            let encryption = node.encryption();
            (encryption.engine.name(), encryption.why().to_string())
        })
    }

    fn give_up_rights(&self, py: Python<'_>) -> PyResult<()> {
        self.engine.call_detached(py, |node| {
            let threads = &node.encryption().engine;
            // Where that is forbidden, the process cannot give them up either.
            threads.in_other_threads(|| drop(rights::give_up()));
        })
    }

    #[getter]
    fn unclaimed(&self, py: Python<'_>) -> PyResult<u64> {
        self.engine.call(py, |node| node.unclaimed())
    }

    fn stats<'py>(&self, py: Python<'py>, now: Now) -> PyResult<Bound<'py, PyAny>> {
        let stats = self.engine.call(py, |node| node.stats(now.0))?;
        node_output::stats_to_python(&stats, py)
    }

    fn peer_stats<'py>(
        &self,
        py: Python<'py>,
        peer: &PublicKey,
        now: Now,
    ) -> PyResult<Bound<'py, PyAny>> {
        let stats = self
            .engine
            .call(py, |node| node.peer_stats(&peer.bytes, now.0))?;
        node_output::peer_stats_to_python(&stats.ok_or_else(|| unknown(peer))?, py)
    }

    fn endpoints<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let endpoints: Vec<_> = self.engine.call(py, |node| node.endpoints().collect())?;
        let dict = PyDict::new(py);
        for (peer, endpoint) in endpoints {
            let endpoint = arguments::address_to_python(endpoint);
            dict.set_item(PublicKey::new(peer), endpoint)?;
        }
        Ok(dict)
    }

    fn record(&self, py: Python<'_>, capacity: &Bound<'_, PyAny>) -> PyResult<()> {
        let capacity = arguments::integer(capacity, "capacity", 0..=1 << 24)? as usize;
        self.engine.call(py, |node| node.record(capacity))
    }

    fn take_recorded<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyList>, u64)> {
        let (inputs, missed) = self.engine.call(py, |node| node.take_recorded())?;
        Ok((node_output::inputs_to_python(&inputs, py)?, missed))
    }

    fn log_flows(&self, py: Python<'_>, capacity: &Bound<'_, PyAny>) -> PyResult<()> {
        let capacity = arguments::integer(capacity, "capacity", 0..=1 << 24)? as usize;
        self.engine.call(py, |node| node.log_flows(capacity))
    }

    fn take_flows<'py>(&self, py: Python<'py>, now: Now) -> PyResult<(Bound<'py, PyList>, u64)> {
        let (records, missed) = self.engine.call(py, |node| {
            let (records, missed) = node.take_flows(now.0);
            (dated(records, node), missed)
        })?;
        Ok((flow_output::records_to_python(&records, py)?, missed))
    }

    fn ask(&self, py: Python<'_>, on: bool, now: Now) -> PyResult<()> {
        self.engine.call_detached(py, |node| {
            tracelessly(node, |node| {
                node.ask(on, now.0);
                false
            })
        })
    }

    fn take_questions<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let questions = self.engine.call(py, |node| node.take_questions())?;
        flow_output::questions_to_python(&questions, py)
    }

    fn take_withdrawn(&self, py: Python<'_>) -> PyResult<Vec<u64>> {
        self.engine.call(py, |node| node.take_withdrawn())
    }

    fn decide(
        &self,
        py: Python<'_>,
        question: &Bound<'_, PyAny>,
        allow: bool,
        now: Now,
    ) -> PyResult<bool> {
        let id = arguments::integer(question, "question", 0..=u64::MAX)?;
        self.engine.call_detached(py, |node| {
            let mut is_open = false;
            // What is released for the peer may start a session.
            tracelessly(node, |node| {
                is_open = node.decide(id, allow, now.0);
                false
            });
            is_open
        })
    }

    fn ask_again(&self, py: Python<'_>, peer: &PublicKey, now: Now) -> PyResult<()> {
        let found = self.engine.call_detached(py, |node| {
            let mut found = Ok(());
            // Of what waits, some may pass by now.
            tracelessly(node, |node| {
                found = node.ask_again(&peer.bytes, now.0);
                false
            });
            found
        })?;
        found.map_err(|_| unknown(peer))
    }

    fn timestamps<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Bound<'py, PyDict>, Bound<'py, PyDict>)> {
        let (received, sent) = self.engine.call(py, |node| {
            (node.received_timestamps(), node.sent_timestamps())
        })?;
        Ok((
            timestamps::to_python(&received, py)?,
            timestamps::to_python(&sent, py)?,
        ))
    }

    fn timestamps_version(&self, py: Python<'_>) -> PyResult<u64> {
        self.engine.call(py, |node| node.timestamps_version())
    }

    fn restore_timestamps(
        &self,
        py: Python<'_>,
        received: &Bound<'_, PyDict>,
        sent: &Bound<'_, PyDict>,
        now: Now,
    ) -> PyResult<()> {
        let received = timestamps::from_python(received)?;
        let sent = timestamps::from_python(sent)?;
        self.engine
            .call(py, |node| node.restore_timestamps(&received, &sent, now.0))?
            .map_err(timestamps::refused)
    }

    fn forget_timestamp(&self, py: Python<'_>, peer: &PublicKey) -> PyResult<bool> {
        self.engine
            .call(py, |node| node.forget_timestamp(&peer.bytes))
    }

    #[pyo3(signature = (capacity, *, outer=true, inner=false, snaplen=None))]
    fn capture(
        &self,
        py: Python<'_>,
        capacity: &Bound<'_, PyAny>,
        outer: bool,
        inner: bool,
        snaplen: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let capacity = arguments::integer(capacity, "capacity", 0..=1 << 30)? as usize;
        let snaplen = match snaplen {
            None => MAX_PACKET,
            Some(snaplen) => {
                arguments::integer(snaplen, "snaplen", 1..=MAX_PACKET as u64)? as usize
            }
        };
        let config = (capacity > 0).then_some(CaptureConfig {
            capacity,
            outer,
            inner,
            snaplen,
        });
        self.engine.call(py, |node| node.capture(config))
    }

    #[getter]
    fn is_captured(&self, py: Python<'_>) -> PyResult<bool> {
        self.engine.call(py, |node| node.is_captured())
    }

    fn take_captured<'py>(
        &self,
        py: Python<'py>,
        limit: &Bound<'py, PyAny>,
    ) -> PyResult<(Bound<'py, PyList>, u64, u64)> {
        let limit = arguments::integer(limit, "limit", 0..=1 << 30)? as usize;
        let (packets, missed) = self.engine.call(py, |node| node.take_captured(limit))?;
        let packets = node_output::captured_to_python(&packets, py)?;
        Ok((packets, missed.outer, missed.inner))
    }

    fn log_keys(&self, py: Python<'_>, on: bool) -> PyResult<()> {
        self.engine.call(py, |node| node.log_keys(on))
    }

    fn take_key_log(&self, py: Python<'_>) -> PyResult<(Vec<String>, Vec<PublicKey>)> {
        let taken = self.engine.call(py, |node| node.take_key_log())?;
        let mut lines = Lines::default();
        lines.add(taken.handshakes.iter());
        let readable = taken.readable.into_iter().map(PublicKey::new);
        Ok((lines.finish(), readable.collect()))
    }

    fn pending(&self, py: Python<'_>) -> PyResult<(usize, usize, usize)> {
        self.engine.call(py, |node| {
            let output = node.output();
            let (datagrams, packets) = (output.datagrams.len(), output.packets.len());
            (datagrams, packets, output.events.len())
        })
    }
}
