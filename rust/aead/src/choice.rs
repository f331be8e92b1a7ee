//! Which backend, and why.

use std::fmt;

use crate::engine::Engine;
use crate::ipsec_mb::{IpsecMb, Refusal};
use crate::team::{MOST_THREADS, Team};

/// What somebody wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The faster one of those that there are.
    #[default]
    Auto,
    Ring,
    IpsecMb,
}

impl Choice {
    pub const ALL: [Choice; 3] = [Choice::Auto, Choice::Ring, Choice::IpsecMb];

    /// As users write it.
    pub fn name(self) -> &'static str {
        match self {
            Choice::Auto => "auto",
            Choice::Ring => "ring",
            Choice::IpsecMb => "ipsec-mb",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Choice::ALL.into_iter().find(|choice| choice.name() == name)
    }
}

/// Why it is this backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was asked for.
    Wanted,
    /// The processor has AVX-512, and the library is there.
    Avx512,
    /// intel-ipsec-mb would be no faster than ring.
    NoAvx512,
    /// intel-ipsec-mb would be faster, and is not used because of this.
    Refused(Refusal),
    /// intel-ipsec-mb was used until it failed.
    Failed,
    /// It is this backend because of that, and one thread alone though several were asked for.
    Alone(Box<Why>),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Wanted => f.write_str("it was asked for"),
            Why::Avx512 => f.write_str("this processor has AVX-512, and the library is there"),
            Why::NoAvx512 => f.write_str("this processor has no AVX-512"),
            Why::Refused(refusal) => refusal.fmt(f),
            Why::Failed => f.write_str("intel-ipsec-mb has failed at work"),
            Why::Alone(why) => write!(f, "{why}; the system has no more threads for it"),
        }
    }
}

/// A backend at work, and why it is that one.
#[derive(Debug)]
pub struct Chosen {
    pub choice: Choice,
    pub engine: Engine,
    why: Why,
    wanted_threads: usize,
}

impl Default for Chosen {
    /// ring, which is there always.
    fn default() -> Self {
        Chosen {
            choice: Choice::Ring,
            engine: Engine::Ring,
            why: Why::Wanted,
            wanted_threads: 1,
        }
    }
}

impl Chosen {
    /// Why it is this one now.
    pub fn why(&self) -> Why {
        let was_library = match &self.why {
            Why::Wanted => self.choice == Choice::IpsecMb,
            why => *why == Why::Avx512,
        };
        let why = match self.engine.name() {
            "ring" if was_library => Why::Failed,
            _ => self.why.clone(),
        };
        if self.threads() < self.wanted_threads {
            Why::Alone(Box::new(why))
        } else {
            why
        }
    }

    /// How many threads work.
    pub fn threads(&self) -> usize {
        self.engine.threads()
    }

    /// How many were asked for.
    pub fn wanted_threads(&self) -> usize {
        self.wanted_threads
    }
}

/// An engine as it is wanted.
///
/// # Errors
/// intel-ipsec-mb was asked for, and cannot be used.
pub fn choose(choice: Choice) -> Result<Chosen, Refusal> {
    choose_for(choice, 1)
}

/// The same for so many threads: the caller's, and others that are made here, for as long as the engine lives. Without
/// enough of them it is the caller's alone, and says so.
///
/// # Errors
/// intel-ipsec-mb was asked for, and cannot be used.
pub fn choose_for(choice: Choice, threads: usize) -> Result<Chosen, Refusal> {
    let wanted_threads = threads.clamp(1, MOST_THREADS);
    let (own, why) = alone(choice)?;
    let others = (1..wanted_threads).map(|_| alone(choice).map(|(engine, _)| engine));
    let others = others.collect::<Result<Vec<_>, _>>()?;
    let engine = match others.is_empty() {
        true => own,
        false => Team::new(own, others).map_or_else(|own| own, |team| Engine::Team(Box::new(team))),
    };
    Ok(Chosen {
        choice,
        engine,
        why,
        wanted_threads,
    })
}

/// An engine for one thread.
fn alone(choice: Choice) -> Result<(Engine, Why), Refusal> {
    let by = |library| Engine::IpsecMb(Box::new(library));
    Ok(match choice {
        Choice::Ring => (Engine::Ring, Why::Wanted),
        Choice::IpsecMb => (by(IpsecMb::new()?), Why::Wanted),
        Choice::Auto if !has_avx512() => (Engine::Ring, Why::NoAvx512),
        Choice::Auto => match IpsecMb::new() {
            Ok(library) if library.uses_avx512() => (by(library), Why::Avx512),
            Ok(_) => (Engine::Ring, Why::NoAvx512),
            Err(refusal) => (Engine::Ring, Why::Refused(refusal)),
        },
    })
}

/// What the library's code for AVX-512 needs, and the system lets programs use.
#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}
