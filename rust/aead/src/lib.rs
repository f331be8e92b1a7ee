//! ChaCha20-Poly1305 (RFC 8439) as WireGuard uses it: a message has a counter in place of a nonce and no associated data.
//!
//! A [`Key`] seals and opens one message where it stands. A [`Batch`] is many messages in one buffer, each with its own key and
//! counter, which an [`Engine`] seals or opens together. Which engine is a matter of the machine: ring everywhere, and
//! intel-ipsec-mb where that is faster and there, by one thread or by several ([`choose`]).
//!
//! No clock, no socket, no randomness. Nothing that a message holds can cause a panic.

#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

mod batch;
mod choice;
mod engine;
#[cfg(all(target_arch = "x86_64", unix))]
mod ipsec_mb;
#[cfg(not(all(target_arch = "x86_64", unix)))]
#[path = "no_ipsec_mb.rs"]
mod ipsec_mb;
mod key;
mod team;

pub use batch::{Batch, MOST, MOST_OF_A_TEAM};
pub use choice::{Choice, Chosen, Why, choose, choose_for};
pub use engine::Engine;
pub use ipsec_mb::Refusal;
pub use key::{Failed, KEY_LEN, Key, TAG_LEN};
pub use team::MOST_THREADS;
