//! `Encryption`: a backend that is measured, and the one that a configuration wants.

use std::sync::Arc;
use std::time::{Duration, Instant};

use connlib_core::aead::{Batch, Choice, Chosen, Key, MOST, TAG_LEN, choose};
use pyo3::intern;
use pyo3::prelude::*;

use crate::arguments;
use crate::errors::{self, value_error};
use crate::guard::Guarded;

/// The longest message that UDP could carry, and more.
const LONGEST: u64 = 65_535;
/// What is not measured for longer, so that nobody waits for it in vain.
const LONGEST_MEASURE: f64 = 60.0;
/// Before a message, where a datagram has its header.
const HEADER: usize = 16;

/// The backend that is wanted, at work. Raises `ConfigError` if it cannot be had.
pub fn chosen(choice: Choice, py: Python<'_>) -> PyResult<Chosen> {
    choose(choice).map_err(|refusal| {
        let problem = format!("the encryption {} cannot be used: {refusal}", choice.name());
        errors::config(py, &problem, Some(refusal.hint()))
    })
}

/// Raises `ConfigError` if it cannot be had.
pub fn check(choice: Choice, py: Python<'_>) -> PyResult<()> {
    match choice {
        Choice::Auto | Choice::Ring => Ok(()),
        Choice::IpsecMb => chosen(choice, py).map(drop),
    }
}

fn named(name: &str, py: Python<'_>) -> PyResult<Choice> {
    Choice::named(name).ok_or_else(|| {
        let names = Choice::ALL.map(Choice::name).join(", ");
        let problem = format!("there is no encryption {name:?}");
        errors::config(py, &problem, Some(&format!("use one of {names}")))
    })
}

/// What a `connlib.NodeConfig` wants.
pub fn wanted(config: &Bound<'_, PyAny>) -> PyResult<Choice> {
    let py = config.py();
    let value = config.getattr(intern!(py, "encryption"))?;
    let name: &str = value
        .extract()
        .map_err(|_| errors::type_error("encryption must be a str"))?;
    named(name, py)
}

#[pyclass(module = "connlib._native", frozen)]
pub struct Encryption {
    chosen: Guarded<Chosen>,
}

#[pymethods]
impl Encryption {
    #[new]
    #[pyo3(signature = (name="auto"))]
    fn new(py: Python<'_>, name: &str) -> PyResult<Self> {
        Ok(Encryption {
            chosen: Guarded::new(chosen(named(name, py)?, py)?),
        })
    }

    #[getter]
    fn name(&self, py: Python<'_>) -> PyResult<&'static str> {
        self.chosen.call(py, |chosen| chosen.engine.name())
    }

    #[getter]
    fn why(&self, py: Python<'_>) -> PyResult<String> {
        self.chosen.call(py, |chosen| chosen.why().to_string())
    }

    fn measure(
        &self,
        py: Python<'_>,
        size: &Bound<'_, PyAny>,
        seconds: f64,
    ) -> PyResult<(f64, f64)> {
        let size = arguments::integer(size, "size", 0..=LONGEST)? as usize;
        if !(0.0..=LONGEST_MEASURE).contains(&seconds) {
            return Err(value_error(format!(
                "seconds must be 0 to {LONGEST_MEASURE}"
            )));
        }
        let time = Duration::from_secs_f64(seconds);
        self.chosen
            .call_detached(py, |chosen| measure(chosen, size, time))?
            .ok_or_else(|| errors::engine_error("the backend has not opened what it had sealed"))
    }
}

/// Nanoseconds that sealing and opening a message takes, as medians of batches, of which there is one at least.
fn measure(chosen: &mut Chosen, size: usize, time: Duration) -> Option<(f64, f64)> {
    let key = Arc::new(Key::new(&[7; 32]).ok()?);
    let place = HEADER + size + TAG_LEN;
    let mut buffer = vec![0; place * MOST];
    let (mut sealing, mut opening) = (Vec::new(), Vec::new());
    let start = Instant::now();
    for round in 0.. {
        let mut batch = Batch::default();
        for number in 0..MOST {
            let range = number * place + HEADER..(number + 1) * place;
            batch.push(&key, round * MOST as u64 + number as u64, range);
        }
        let before = Instant::now();
        chosen.engine.seal(&mut batch, &mut buffer);
        let between = Instant::now();
        chosen.engine.open(&mut batch, &mut buffer);
        opening.push(between.elapsed());
        sealing.push(between - before);
        if !(0..MOST).all(|number| batch.succeeded(number)) {
            return None;
        }
        if start.elapsed() >= time {
            break;
        }
    }
    Some((median(sealing), median(opening)))
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    middle.as_nanos() as f64 / MOST as f64
}
