//! Which backend, and why.

use std::fmt;

use crate::engine::Engine;
use crate::ipsec_mb::{IpsecMb, Refusal};

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
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Wanted => f.write_str("it was asked for"),
            Why::Avx512 => f.write_str("this processor has AVX-512, and the library is there"),
            Why::NoAvx512 => f.write_str("this processor has no AVX-512"),
            Why::Refused(refusal) => refusal.fmt(f),
            Why::Failed => f.write_str("intel-ipsec-mb has failed at work"),
        }
    }
}

/// A backend at work, and why it is that one.
#[derive(Debug)]
pub struct Chosen {
    pub choice: Choice,
    pub engine: Engine,
    why: Why,
}

impl Default for Chosen {
    /// ring, which is there always.
    fn default() -> Self {
        Chosen {
            choice: Choice::Ring,
            engine: Engine::Ring,
            why: Why::Wanted,
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
        match self.engine {
            Engine::Ring if was_library => Why::Failed,
            _ => self.why.clone(),
        }
    }
}

/// An engine as it is wanted.
///
/// # Errors
/// intel-ipsec-mb was asked for, and cannot be used.
pub fn choose(choice: Choice) -> Result<Chosen, Refusal> {
    let chosen = |engine, why| {
        Ok(Chosen {
            choice,
            engine,
            why,
        })
    };
    match choice {
        Choice::Ring => chosen(Engine::Ring, Why::Wanted),
        Choice::IpsecMb => {
            let library = IpsecMb::new()?;
            chosen(Engine::IpsecMb(Box::new(library)), Why::Wanted)
        }
        Choice::Auto if !has_avx512() => chosen(Engine::Ring, Why::NoAvx512),
        Choice::Auto => match IpsecMb::new() {
            Ok(library) if library.uses_avx512() => {
                chosen(Engine::IpsecMb(Box::new(library)), Why::Avx512)
            }
            Ok(_) => chosen(Engine::Ring, Why::NoAvx512),
            Err(refusal) => chosen(Engine::Ring, Why::Refused(refusal)),
        },
    }
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
