//! `Pump`: both ways at once, between a TUN descriptor, UDP sockets and a node.

use connlib_net::DeviceState;
use pyo3::prelude::*;

use crate::arguments::Now;
use crate::call_error::CallError;
use crate::guard::Guarded;
use crate::node::{Engine, Node};
use crate::time;
use crate::tun_io::{self, TunIo};
use crate::udp_io::{self, FAMILIES, UdpIo};

/// Packets or datagrams that one round moves each way: few enough that they are still in the processor's caches when they
/// are written.
const ROUND: usize = 64;

#[pyclass(module = "connlib._native", frozen)]
pub struct Pump {
    tun: Py<TunIo>,
    udp: Py<UdpIo>,
    node: Py<Node>,
    seen: Guarded<Seen>,
}

/// What the last turn told, so that the next one can say what is new.
#[derive(Default)]
struct Seen {
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
        let seen = Seen {
            timestamps: engine.call(py, |node| node.timestamps_version())?,
            ..Seen::default()
        };
        Ok(Pump {
            tun,
            udp,
            node,
            seen: Guarded::new(seen),
        })
    }

    fn turn(&self, py: Python<'_>, now: Now, budget: usize) -> PyResult<Told> {
        let node = self.node.get().for_io()?;
        let (tun, udp) = (&self.tun.get().io, &self.udp.get().io);
        tun.check()?;
        udp.check()?;
        let told = self
            .seen
            .call_detached(py, |seen| -> Result<Told, CallError> {
                tun.call_inside(|tun| {
                    udp.call_inside(|udp| turn(seen, tun, udp, node, now, budget))
                })??
            })??;
        Ok(told)
    }
}

fn turn(
    seen: &mut Seen,
    tun: &mut tun_io::Io,
    udp: &mut udp_io::Io,
    node: &Engine,
    now: Now,
    budget: usize,
) -> Result<Told, CallError> {
    let before = node.call_inside(|node| node.unclaimed())?;
    let moved = move_both_ways(tun, udp, node, now, budget)?;
    let is_blocked = tun.is_blocked()? || udp.is_full()?;
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
        || timestamps != seen.timestamps
        // The end of either is news, too.
        || is_blocked
        || seen.was_blocked
        || is_down
        || seen.was_down;
    *seen = Seen {
        timestamps,
        was_blocked: is_blocked,
        was_down: is_down,
    };
    Ok((moved, refused, deadline, is_notable))
}

/// Rounds, until one finds little or about `budget` packets and datagrams were moved.
fn move_both_ways(
    tun: &mut tun_io::Io,
    udp: &mut udp_io::Io,
    node: &Engine,
    now: Now,
    budget: usize,
) -> Result<usize, CallError> {
    // What waited for a descriptor to be writable goes first.
    let mut moved = tun.write(node)? + udp.send(node)?;
    // A family from which nothing comes is asked once.
    let mut is_quiet = [false; FAMILIES.len()];
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
        if udp.is_full()? {
            tun.hold_back()?;
        } else {
            let read = tun.read(node, now, ROUND)?;
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
