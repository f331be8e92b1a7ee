//! `UpstreamTunn`: pristine boringtun with the interface of `Tunn`.

use connlib_core::{DropReason, Limits, Output, Packets, Role, TimerConfig, TunnConfig};
use pyo3::exceptions::PyNotImplementedError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rand_core::{OsRng, RngCore};

use crate::arguments::{Address, Data, Lengths, MAX_PACKET, MAX_SENT, Now, UnixTime};
use crate::classes::classes;
use crate::errors::value_error;
use crate::guard::Guarded;
use crate::index_table::IndexTable;
use crate::key_material::without_a_trace;
use crate::panics::catch;
use crate::preshared_key::PresharedKey;
use crate::private_key::PrivateKey;
use crate::public_key::PublicKey;
use crate::rate_limiter::RateLimiter;
use crate::results::{self, Drops};
use crate::time;
use crate::tunn_options::TunnOptions;
use crate::upstream_engine::UpstreamEngine;

#[pyclass(module = "connlib._native", frozen)]
pub struct UpstreamTunn {
    engine: Guarded<Engine>,
}

struct Engine {
    upstream: Box<UpstreamEngine>,
    drops: Drops,
}

impl UpstreamTunn {
    fn drain<'py>(
        &self,
        py: Python<'py>,
        call: impl FnOnce(&mut UpstreamEngine, &mut Output) -> Option<DropReason> + Send,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut output = results::take_scratch();
        let error = self.engine.call(py, |engine| {
            let error = call(&mut engine.upstream, &mut output);
            if let Some(reason) = error {
                engine.drops.add(reason, 1);
            }
            error
        })?;
        results::output_to_python(output, error, py)
    }

    fn drain_batch<'py, 'a>(
        &self,
        py: Python<'py>,
        items: impl Iterator<Item = &'a [u8]> + Send,
        call: impl Fn(&mut UpstreamEngine, &[u8], &mut Output) -> Option<DropReason> + Send,
    ) -> PyResult<(Output, Vec<(usize, DropReason)>)> {
        let mut output = results::take_scratch();
        let output_ref = &mut output;
        let errors = self.engine.call_detached(py, move |engine| {
            let mut errors = Vec::new();
            for (index, item) in items.enumerate() {
                if let Some(reason) = call(&mut engine.upstream, item, output_ref) {
                    engine.drops.add(reason, 1);
                    errors.push((index, reason));
                }
            }
            errors
        })?;
        Ok((output, errors))
    }
}

/// The main result of a batch, copied.
fn copied<'py>(packets: &Packets, py: Python<'py>) -> (Bound<'py, PyBytes>, Vec<usize>) {
    (PyBytes::new(py, &packets.bytes), packets.lengths.clone())
}

/// Refuse what upstream has no means for, rather than ignore it.
fn check(config: &TunnConfig) -> PyResult<()> {
    let refuse = |name: &str, why: &str| Err(value_error(format!("{name}: upstream {why}")));
    if config.settings.role != Role::Either {
        return refuse("role", "knows no roles");
    }
    if config.indices.is_some() {
        return refuse("indices", "counts its own");
    }
    if config.rate_limiter.is_some() {
        return refuse("rate_limiter", "has a limiter of another kind");
    }
    if config.settings.timers != TimerConfig::default() {
        return refuse("timers", "has fixed ones");
    }
    if config.settings.limits != Limits::default() {
        return refuse("limits", "has fixed ones");
    }
    match config.persistent_keepalive {
        Some(interval) if interval.subsec_nanos() != 0 => {
            refuse("persistent_keepalive", "takes whole seconds")
        }
        _ => Ok(()),
    }
}

fn cannot(what: &str) -> PyErr {
    PyNotImplementedError::new_err(format!("upstream boringtun cannot {what}"))
}

#[pymethods]
impl UpstreamTunn {
    #[new]
    #[pyo3(
        signature = (private_key, peer_public_key, *, now, preshared_key=None, role=None, persistent_keepalive=None,
                     indices=None, rate_limiter=None, unix_time, mtu=None, timers=None, limits=None),
        text_signature = "(private_key, peer_public_key, *, now, preshared_key=None, role=..., \
                          persistent_keepalive=None, indices=None, rate_limiter=None, unix_time, mtu=1420, \
                          timers=..., limits=...)"
    )]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn new<'py>(
        py: Python<'py>,
        private_key: &PrivateKey,
        peer_public_key: &PublicKey,
        now: Now,
        preshared_key: Option<&PresharedKey>,
        role: Option<&Bound<'py, PyAny>>,
        persistent_keepalive: Option<f64>,
        indices: Option<&IndexTable>,
        rate_limiter: Option<&RateLimiter>,
        unix_time: UnixTime,
        mtu: Option<&Bound<'py, PyAny>>,
        timers: Option<&Bound<'py, PyAny>>,
        limits: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Self> {
        let options = TunnOptions {
            private_key,
            peer_public_key,
            preshared_key,
            role,
            persistent_keepalive,
            indices,
            rate_limiter,
            unix_time,
            mtu,
            timers,
            limits,
        };
        let upstream = without_a_trace(|| -> PyResult<_> {
            let config = options.check(py)?;
            check(&config)?;
            // Upstream shifts the index by 8 bits.
            let index = OsRng.next_u32() >> 8;
            Ok(catch(|| {
                Box::new(UpstreamEngine::new(&config, now.0, index))
            })?)
        })?;
        Ok(UpstreamTunn {
            engine: Guarded::new(Engine {
                upstream,
                drops: Drops::new(),
            }),
        })
    }

    fn encapsulate<'py>(
        &self,
        py: Python<'py>,
        packet: Data<'py>,
        now: Now,
    ) -> PyResult<Bound<'py, PyAny>> {
        let packet = packet.packet(MAX_SENT)?;
        self.drain(py, |upstream, output| {
            upstream.encapsulate(packet, now.0, output)
        })
    }

    #[pyo3(signature = (datagram, now, source=None))]
    fn decapsulate<'py>(
        &self,
        py: Python<'py>,
        datagram: Data<'py>,
        now: Now,
        source: Option<Address>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let datagram = datagram.packet(MAX_PACKET)?;
        let source = source.map(|address| address.0);
        self.drain(py, |upstream, output| {
            upstream.decapsulate(datagram, source, now.0, output)
        })
    }

    fn handle_timeout<'py>(&self, py: Python<'py>, now: Now) -> PyResult<Bound<'py, PyAny>> {
        self.drain(py, |upstream, output| {
            upstream.handle_timeout(now.0, output)
        })
    }

    fn initiate_handshake<'py>(&self, py: Python<'py>, now: Now) -> PyResult<Bound<'py, PyAny>> {
        self.drain(py, |upstream, output| {
            upstream.initiate_handshake(now.0, output)
        })
    }

    fn next_timeout<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let at = self.engine.call(py, |engine| engine.upstream.next_tick())?;
        let classes = classes(py)?;
        let items = (time::deadline(at.as_nanos()), classes.tick(py)?);
        classes.named_tuple(&classes.timeout, items, py)
    }

    fn stats<'py>(&self, py: Python<'py>, now: Now) -> PyResult<Bound<'py, PyAny>> {
        let (stats, drops) = self.engine.call(py, |engine| {
            (engine.upstream.stats(now.0), engine.drops.nonzero())
        })?;
        results::stats_to_python(&stats, &drops, py)
    }

    fn set_persistent_keepalive(&self, seconds: Option<f64>, now: Now) -> PyResult<()> {
        let _ = (seconds, now);
        Err(cannot("change the keepalive of a tunnel"))
    }

    fn set_preshared_key(&self, key: Option<&PresharedKey>, now: Now) -> PyResult<()> {
        let _ = (key, now);
        Err(cannot("change the preshared key of a tunnel"))
    }

    fn set_unix_time(&self, unix_time: UnixTime, now: Now) -> PyResult<()> {
        let _ = (unix_time, now);
        Err(cannot("be given a wall clock: it reads the system's"))
    }

    fn encapsulate_batch<'py>(
        &self,
        py: Python<'py>,
        packets: Data<'py>,
        lengths: Lengths,
        now: Now,
    ) -> PyResult<Bound<'py, PyAny>> {
        let items = lengths.cut(packets.bytes(), MAX_SENT)?;
        let (output, errors) = self.drain_batch(py, items, |upstream, packet, output| {
            upstream.encapsulate(packet, now.0, output)
        })?;
        let main = copied(&output.datagrams, py);
        let batch = results::batch_to_python(main, &output.packets, &output.events, &errors, py);
        results::return_scratch(output);
        batch
    }

    #[pyo3(signature = (datagrams, lengths, now, source=None))]
    fn decapsulate_batch<'py>(
        &self,
        py: Python<'py>,
        datagrams: Data<'py>,
        lengths: Lengths,
        now: Now,
        source: Option<Address>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let items = lengths.cut(datagrams.bytes(), MAX_PACKET)?;
        let source = source.map(|address| address.0);
        let (output, errors) = self.drain_batch(py, items, |upstream, datagram, output| {
            upstream.decapsulate(datagram, source, now.0, output)
        })?;
        let main = copied(&output.packets, py);
        let batch = results::batch_to_python(main, &output.datagrams, &output.events, &errors, py);
        results::return_scratch(output);
        batch
    }
}
