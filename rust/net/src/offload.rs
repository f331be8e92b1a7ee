//! Superpackets: what a TUN device with `IFF_VNET_HDR` reads and writes in one call, and the packets that it stands for.
//!
//! A superpacket is one header and up to 64 KiB of payload, with a [`VnetHeader`] before it that says into how large pieces
//! it is to be cut. One system call, and one trip through the kernel's network stack, moves what dozens did.
//!
//! - [`cut`] looks at what was read; the [`Cut`] gives the packets one by one, as the kernel would have cut them itself.
//! - [`Coalescer`] finds, among packets that are to be written, runs that a superpacket can stand for: runs that the
//!   kernel, if it has to cut them again, cuts into the same bytes.
//!
//! Everything in here is a function of bytes: no descriptor, no state beyond one batch. The bytes are those of strangers, so
//! that nothing in here may panic, and what makes no sense has a name ([`Fault`]) and is passed as it is, or dropped.

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

mod bytes;
mod checksum;
mod coalesce;
mod features;
mod header;
mod runs;
mod split;

pub use coalesce::{Coalescer, MAX_PACKETS, Superpacket, WINDOW, Write};
pub use features::Offloads;
pub use header::{GsoKind, GsoKinds, VNET_HEADER, VnetHeader};
pub use split::{Cut, Fault, FaultCounts, cut};

/// Room for the largest packet that a device can hand out: an IPv6 header does not count into its own length field.
pub const MAX_SUPERPACKET: usize = 40 + 65_535;
