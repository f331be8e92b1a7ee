//! Measures one engine at a time, when asked: `tools/bench.py` asks all of them, and Python, in turn.
//!
//! On standard input come lines `ENGINE SIZE MILLISECONDS`; for each, one line goes to standard output with the
//! nanoseconds that sealing and opening a packet of SIZE bytes took: `SEAL OPEN`. An engine is made at its first line and
//! kept. Both phases work on batches of 64 packets; only the calls themselves are timed.

mod connlib;
mod pristine;
mod ring_alone;
mod workload;

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

use connlib::Way;
use connlib_core::aead::Choice;
use workload::{BATCH, Engine};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut engines = BTreeMap::new();
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, size, milliseconds] = words[..] else {
            return Err(format!("not a request: {line}").into());
        };
        let size: usize = size.parse()?;
        let engine = match engines.entry((name.to_owned(), size)) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(make(name, size)?),
        };
        let (seal, open) = measure(
            engine.as_mut(),
            Duration::from_millis(milliseconds.parse()?),
        )?;
        writeln!(out, "{seal:.1} {open:.1}")?;
        out.flush()?;
    }
    Ok(())
}

fn make(name: &str, size: usize) -> Result<Box<dyn Engine>, Failure> {
    Ok(match name {
        "ring" => Box::new(ring_alone::Ring::new(size)?),
        "boringtun" => Box::new(pristine::Pristine::new(size)?),
        "in-place" => Box::new(connlib::InPlace::new(size)?),
        "tunn" => Box::new(connlib::Tunnels::new(size)?),
        "node" => Box::new(connlib::Nodes::new(size, Way::OneByOne)?),
        "node-batch" => Box::new(connlib::Nodes::new(size, Way::Batch(Choice::Ring))?),
        "node-together" => Box::new(connlib::Nodes::new(size, Way::Together)?),
        "node-ipsec-mb" => Box::new(connlib::Nodes::new(size, Way::Batch(Choice::IpsecMb))?),
        _ => return Err(format!("no engine is called {name}").into()),
    })
}

/// Nanoseconds per packet of sealing and of opening, over as many batches as fit into `time`, one at least.
fn measure(engine: &mut dyn Engine, time: Duration) -> Result<(f64, f64), Failure> {
    let start = Instant::now();
    let (mut sealing, mut opening, mut packets) = (Duration::ZERO, Duration::ZERO, 0.0);
    loop {
        let before = Instant::now();
        engine.seal()?;
        let between = Instant::now();
        engine.open()?;
        sealing += between - before;
        opening += between.elapsed();
        packets += BATCH as f64;
        if start.elapsed() >= time {
            return Ok((
                sealing.as_secs_f64() * 1e9 / packets,
                opening.as_secs_f64() * 1e9 / packets,
            ));
        }
    }
}
