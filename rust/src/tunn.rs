//! `Tunn`: one pair of peers.

use std::net::SocketAddr;

use connlib_core::{DropReason, Event, Output};
use pyo3::prelude::*;
use rand_core::OsRng;

use crate::arguments::{self, Address, Data, Lengths, MAX_PACKET, MAX_SENT, Now, UnixTime};
use crate::batch::{self, Target, Writer};
use crate::errors::value_error;
use crate::fork::Held;
use crate::guard::Guarded;
use crate::index_table::IndexTable;
use crate::key_material::{has_handshake, is_handshake, without_a_trace, without_a_trace_if};
use crate::preshared_key::PresharedKey;
use crate::private_key::PrivateKey;
use crate::public_key::PublicKey;
use crate::rate_limiter::RateLimiter;
use crate::results::{self, Drops};
use crate::tunn_options::TunnOptions;

#[pyclass(module = "connlib._native", subclass, frozen)]
pub struct Tunn {
    engine: Guarded<Engine>,
}

struct Engine {
    /// In one place from the start: it holds keys, and a move would leave a copy.
    tunn: Held<Box<connlib_core::Tunn>>,
    drops: Drops,
    mtu: usize,
}

impl Engine {
    /// Count what was dropped in one call.
    fn count(&mut self, error: Option<DropReason>, events: &[Event]) {
        if let Some(reason) = error {
            self.drops.add(reason, 1);
        }
        self.drops.add_events(events);
    }
}

impl Tunn {
    pub fn make(
        options: TunnOptions<'_, '_>,
        now: Now,
        rng: connlib_core::Rng,
        py: Python<'_>,
    ) -> PyResult<Self> {
        let (tunn, mtu) = without_a_trace(|| {
            let config = options.check(py)?;
            let mtu = config.settings.mtu;
            // Dropping it gives its indices back, for which it locks the table: in a child process, a thread of the parent
            // may have that lock for good. A table of its own is only locked in calls.
            let intact: fn(&_) -> bool = match config.indices {
                Some(_) => |_| false,
                None => |_| true,
            };
            let tunn = connlib_core::Tunn::new(config, now.0, rng).map_err(|_| {
                value_error("peer_public_key is of low order: no session with it can be secret")
            })?;
            PyResult::Ok((Held::new(Box::new(tunn), intact), mtu))
        })?;
        Ok(Tunn {
            engine: Guarded::new(Engine {
                tunn,
                drops: Drops::new(),
                mtu,
            }),
        })
    }

    /// Raises `ForkedError` in a child process.
    pub fn check(&self) -> PyResult<()> {
        self.engine.check()
    }

    /// Run a call that appends to an output, and hand all of it to Python. Any call may make an initiation.
    fn drain<'py>(
        &self,
        py: Python<'py>,
        call: impl FnOnce(&mut connlib_core::Tunn, &mut Output) -> Option<DropReason> + Send,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut output = results::take_scratch();
        let output_ref = &mut output;
        let (error, _) = without_a_trace_if(
            || {
                self.engine.call(py, |engine| {
                    let error = call(&mut engine.tunn, output_ref);
                    engine.count(error, &output_ref.events);
                    (error, has_handshake(&output_ref.datagrams, (0, 0)))
                })
            },
            |result| matches!(result, Ok((_, true))),
        )?;
        results::output_to_python(output, error, py)
    }

    /// The same for many inputs, while other threads run, with the main result in `target`.
    fn drain_batch<'py, 'a>(
        &self,
        py: Python<'py>,
        items: impl Iterator<Item = &'a [u8]> + Send,
        mut target: Target<'py>,
        call: impl Fn(&mut Engine, &[u8], &mut Writer<'_>, &mut Output) -> Option<DropReason> + Send,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut output = results::take_scratch();
        let output_ref = &mut output;
        let mut writer = target.writer();
        let (written, errors, _) = without_a_trace_if(
            || {
                self.engine.call_detached(py, move |engine| {
                    let mut errors = Vec::new();
                    for (index, item) in items.enumerate() {
                        if let Some(reason) = call(engine, item, &mut writer, output_ref) {
                            engine.drops.add(reason, 1);
                            errors.push((index, reason));
                        }
                    }
                    engine.drops.add_events(&output_ref.events);
                    let written = writer.finish();
                    let handshake =
                        written.has_handshake || has_handshake(&output_ref.datagrams, (0, 0));
                    (written, errors, handshake)
                })
            },
            |result| matches!(result, Ok((_, _, true))),
        )?;
        let main = target.finish(written);
        // The main part of the output was moved to the target, and the other one is what is left.
        let others = match output.packets.is_empty() {
            true => &output.datagrams,
            false => &output.packets,
        };
        let batch = results::batch_to_python(main, others, &output.events, &errors, py);
        results::return_scratch(output);
        batch
    }
}

/// Hand a datagram to a tunnel and leave no trace of the static key on the stack.
fn decapsulate(
    tunn: &mut connlib_core::Tunn,
    datagram: &[u8],
    source: Option<SocketAddr>,
    now: Now,
    output: &mut Output,
) -> Option<DropReason> {
    if is_handshake(datagram) {
        return without_a_trace(|| tunn.decapsulate(datagram, source, now.0, output));
    }
    tunn.decapsulate(datagram, source, now.0, output)
}

#[pymethods]
impl Tunn {
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
        Tunn::make(options, now, Box::new(OsRng), py)
    }

    fn encapsulate<'py>(
        &self,
        py: Python<'py>,
        packet: Data<'py>,
        now: Now,
    ) -> PyResult<Bound<'py, PyAny>> {
        let packet = packet.packet(MAX_SENT)?;
        self.drain(py, |tunn, output| tunn.encapsulate(packet, now.0, output))
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
        self.drain(py, |tunn, output| {
            decapsulate(tunn, datagram, source, now, output)
        })
    }

    fn handle_timeout<'py>(&self, py: Python<'py>, now: Now) -> PyResult<Bound<'py, PyAny>> {
        self.drain(py, |tunn, output| {
            tunn.handle_timeout(now.0, output);
            None
        })
    }

    fn initiate_handshake<'py>(&self, py: Python<'py>, now: Now) -> PyResult<Bound<'py, PyAny>> {
        self.drain(py, |tunn, output| tunn.initiate_handshake(now.0, output))
    }

    fn next_timeout<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let timeout = self.engine.call(py, |engine| engine.tunn.next_timeout())?;
        results::timeout_to_python(timeout.map(Into::into), py)
    }

    fn stats<'py>(&self, py: Python<'py>, now: Now) -> PyResult<Bound<'py, PyAny>> {
        let (stats, drops) = self.engine.call(py, |engine| {
            (engine.tunn.stats(now.0), engine.drops.nonzero())
        })?;
        results::stats_to_python(&stats, &drops, py)
    }

    fn set_persistent_keepalive<'py>(
        &self,
        py: Python<'py>,
        seconds: Option<f64>,
        now: Now,
    ) -> PyResult<Bound<'py, PyAny>> {
        let interval = arguments::persistent_keepalive(seconds, "seconds")?;
        self.drain(py, |tunn, output| {
            tunn.set_persistent_keepalive(interval, now.0, output);
            None
        })
    }

    /// It counts at once for handshakes, one that is pending included.
    pub fn set_preshared_key(
        &self,
        py: Python<'_>,
        key: Option<&PresharedKey>,
        now: Now,
    ) -> PyResult<()> {
        self.engine.call(py, |engine| {
            without_a_trace(|| {
                let key = key.map(|key| key.secret.to_engine());
                engine.tunn.set_preshared_key(key, now.0);
            });
        })
    }

    fn set_unix_time(&self, py: Python<'_>, unix_time: UnixTime, now: Now) -> PyResult<()> {
        self.engine.call(py, |engine| {
            engine.tunn.set_unix_time(unix_time.0, now.0);
        })
    }

    fn encapsulate_batch<'py>(
        &self,
        py: Python<'py>,
        packets: Data<'py>,
        lengths: Lengths,
        now: Now,
    ) -> PyResult<Bound<'py, PyAny>> {
        let packets = packets.bytes();
        let items = lengths.cut(packets, MAX_SENT)?;
        let mtu = self.engine.call(py, |engine| engine.mtu)?;
        let sizes = lengths
            .cut(packets, MAX_SENT)?
            .map(|packet| batch::sealed_len(packet.len(), mtu));
        let target = Target::new(py, sizes.sum())?;
        self.drain_batch(py, items, target, |engine, packet, writer, output| {
            batch::encapsulate(&mut engine.tunn, packet, mtu, now.0, writer, output)
        })
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
        let datagrams = datagrams.bytes();
        let items = lengths.cut(datagrams, MAX_PACKET)?;
        let sizes = lengths.cut(datagrams, MAX_PACKET)?.map(batch::opened_len);
        let target = Target::new(py, sizes.sum())?;
        let source = source.map(|address| address.0);
        self.drain_batch(py, items, target, |engine, datagram, writer, output| {
            let tunn = &mut engine.tunn;
            batch::decapsulate(tunn, datagram, now.0, writer, output, |tunn, output| {
                decapsulate(tunn, datagram, source, now, output)
            })
        })
    }
}
