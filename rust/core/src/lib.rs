//! The protocol without I/O: packets and the time go in, packets and the next deadline come out.
//!
//! `Tunn` is one pair of peers, `Node` an interface with many. Nothing in here reads a clock, opens a socket, or draws from
//! a global source of randomness; `clippy.toml` forbids the calls.

// Nothing that comes in may make it panic, and no order of a hash table may show.
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
#![deny(clippy::iter_over_hash_type)]

mod allowed_ips;
mod bucket;
mod drop_reason;
mod indices;
pub mod key_log;
mod node;
pub mod policy;
mod tunn;

pub use allowed_ips::AllowedIps;
pub use connlib_aead as aead;
pub use connlib_boringtun::Instant;
pub use connlib_boringtun::noise::rate_limiter::RateLimiter;
pub use connlib_boringtun::noise::{
    Event, Limits, Output, Packets, Role, Settings, Stats, Timeout, TimeoutReason, TimerConfig,
};
pub use connlib_boringtun::x25519::{PublicKey, StaticSecret};
pub use drop_reason::DropReason;
pub use indices::{IndexTable, SharedIndices};
pub use node::{
    CaptureConfig, Captured, ConfigDiff, ConfigError, DEFAULT_HANDSHAKE_LIMIT, DEFAULT_MTU,
    DropCounts, Input, InputKind, KeysTaken, Layer, Missed, Node, NodeConfig, NodeEvent,
    NodeOutput, NodeStats, NodeTimeout, NodeTimeoutReason, Path, PeerChange, PeerConfig, PeerStats,
    PolicyStats, Prefix, Trouble, Tunnels,
};
/// The longest IP packet that a tunnel sends: sealed, with 32 bytes around it, it must fit into the 65,507 bytes that UDP
/// over IPv4 carries, whether it is padded (to a multiple of 16) or not.
pub const LARGEST_PACKET: usize = 65_472;

pub use tunn::{Rng, Secret, SharedLimiter, Tunn, TunnConfig};
