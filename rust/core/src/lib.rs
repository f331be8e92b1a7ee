//! The protocol without I/O: packets and the time go in, packets and the next deadline come out.
//!
//! `Tunn` is one pair of peers, `Node` an interface with many. Nothing in here reads a clock, opens a socket, or draws from
//! a global source of randomness; `clippy.toml` forbids the calls.

mod drop_reason;
mod indices;
mod tunn;

pub use connlib_boringtun::Instant;
pub use connlib_boringtun::noise::rate_limiter::RateLimiter;
pub use connlib_boringtun::noise::{
    Event, Limits, Output, Packets, Role, Stats, TimerConfig, Timeout, TimeoutReason,
};
pub use connlib_boringtun::x25519::{PublicKey, StaticSecret};
pub use drop_reason::DropReason;
pub use indices::{IndexTable, SharedIndices};
pub use tunn::{Rng, Secret, SharedLimiter, Tunn, TunnConfig};
