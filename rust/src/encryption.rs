//! `Encryption`: a backend that is measured, and what a configuration wants.

use std::sync::Arc;
use std::time::{Duration, Instant};

use connlib_core::aead::{
    Batch, Choice, Chosen, Key, MOST_THREADS, Refusal, TAG_LEN, choose, choose_for,
};
use pyo3::intern;
use pyo3::prelude::*;

use crate::arguments;
use crate::errors::{self, value_error};
use crate::guard::Guarded;
use crate::rights;

/// The longest message that UDP could carry, and more.
const LONGEST: u64 = 65_535;
/// What is not measured for longer, so that nobody waits for it in vain.
const LONGEST_MEASURE: f64 = 60.0;
/// Before a message, where a datagram has its header.
const HEADER: usize = 16;

/// What is to seal and open packets.
#[derive(Clone, Copy)]
pub struct Wanted {
    pub choice: Choice,
    pub threads: usize,
}

impl Wanted {
    /// The backend at work. Raises `ConfigError` if it cannot be had.
    pub fn chosen(self, py: Python<'_>) -> PyResult<Chosen> {
        // They keep their rights: they only compute, and when the process becomes another user, all of its threads have to.
        let chosen = rights::without_signals(|| Ok(choose_for(self.choice, self.threads)))?;
        chosen.map_err(|refusal| refused(self.choice, &refusal, py))
    }

    /// Raises `ConfigError` if the backend cannot be had.
    pub fn check(self, py: Python<'_>) -> PyResult<()> {
        match self.choice {
            Choice::Auto | Choice::Ring => Ok(()),
            Choice::IpsecMb => choose(self.choice)
                .map(drop)
                .map_err(|refusal| refused(self.choice, &refusal, py)),
        }
    }
}

fn refused(choice: Choice, refusal: &Refusal, py: Python<'_>) -> PyErr {
    let problem = format!("the encryption {} cannot be used: {refusal}", choice.name());
    errors::config(py, &problem, Some(refusal.hint()))
}

/// `threads`.
struct Threads(usize);

impl<'py> FromPyObject<'_, 'py> for Threads {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let threads = arguments::integer(&object, "threads", 1..=MOST_THREADS as u64)?;
        Ok(Threads(threads as usize))
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
pub fn wanted(config: &Bound<'_, PyAny>) -> PyResult<Wanted> {
    let py = config.py();
    let value = config.getattr(intern!(py, "encryption"))?;
    let name: &str = value
        .extract()
        .map_err(|_| errors::type_error("encryption must be a str"))?;
    Ok(Wanted {
        choice: named(name, py)?,
        threads: config
            .getattr(intern!(py, "threads"))?
            .extract::<Threads>()?
            .0,
    })
}

#[pyclass(module = "connlib._native", frozen)]
pub struct Encryption {
    chosen: Guarded<Chosen>,
}

#[pymethods]
impl Encryption {
    #[new]
    #[pyo3(signature = (name="auto", threads=Threads(1)), text_signature = "(name='auto', threads=1)")]
    fn new(py: Python<'_>, name: &str, threads: Threads) -> PyResult<Self> {
        let wanted = Wanted {
            choice: named(name, py)?,
            threads: threads.0,
        };
        Ok(Encryption {
            chosen: Guarded::new(wanted.chosen(py)?),
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

    #[getter]
    fn threads(&self, py: Python<'_>) -> PyResult<usize> {
        self.chosen.call(py, |chosen| chosen.threads())
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
    let most = chosen.engine.most();
    let mut buffer = vec![0; place * most];
    let (mut sealing, mut opening) = (Vec::new(), Vec::new());
    let start = Instant::now();
    for round in 0.. {
        let mut batch = Batch::default();
        for number in 0..most {
            let range = number * place + HEADER..(number + 1) * place;
            batch.push(&key, round * most as u64 + number as u64, range);
        }
        let before = Instant::now();
        chosen.engine.seal(&mut batch, &mut buffer);
        let between = Instant::now();
        chosen.engine.open(&mut batch, &mut buffer);
        opening.push(between.elapsed());
        sealing.push(between - before);
        if !(0..most).all(|number| batch.succeeded(number)) {
            return None;
        }
        if start.elapsed() >= time {
            break;
        }
    }
    let each = |times| median(times) / most as f64;
    Some((each(sealing), each(opening)))
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    middle.as_nanos() as f64
}
