//! intel-ipsec-mb, for tests that need it.

use connlib_aead::{Choice, Engine, choose};

/// An engine of intel-ipsec-mb; `None`, and said so, on a machine without, unless in CI.
pub fn ipsec_mb() -> Option<Engine> {
    match choose(Choice::IpsecMb) {
        Ok(chosen) => Some(chosen.engine),
        Err(refusal) => {
            // The same that conftest.py takes for CI.
            let ci = std::env::var("CI").unwrap_or_default().to_lowercase();
            let in_ci = !["", "0", "false"].contains(&ci.as_str());
            assert!(!in_ci || !cfg!(target_arch = "x86_64"), "{refusal}");
            eprintln!("skipped: {refusal}");
            None
        }
    }
}
