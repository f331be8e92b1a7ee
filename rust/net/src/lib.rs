//! Batch I/O between the kernel and whoever holds the protocol state.
//!
//! This crate moves bytes and counts what went wrong. It knows nothing of peers, sessions or keys. The caller decides when a
//! descriptor is worth reading and what the bytes mean; for callers that are threads there is something to wait with
//! ([`Poller::wait`]) and to tell the time by ([`clock`]), and nothing here does either by itself.
//!
//! - [`Tun`]: IP packets from and to a TUN device (or anything that keeps packet boundaries).
//! - [`UdpPair`]: datagrams from and to an IPv4 and an IPv6 socket, with the kernel's segmentation and coalescing.
//! - [`Poller`]: one descriptor that stands for all of these.
//! - [`Notice`]: a descriptor by which one thread tells another that there is something.
//! - [`BootTimer`]: a descriptor that becomes readable at an instant of the clock that also runs during suspend.
//!
//! Errors of the network are never returned and never swallowed: each is counted under its errno name in [`ErrorCounts`].

mod batch;
#[cfg(target_os = "linux")]
pub mod clock;
mod errno;
#[cfg(target_os = "linux")]
mod notice;
pub mod offload;
#[cfg(target_os = "linux")]
mod poller;
mod queue;
mod send;
mod socket;
#[cfg(target_os = "linux")]
mod timer;
mod tun;
mod udp;

pub use batch::{Packets, ReadBatch};
pub use errno::ErrorCounts;
#[cfg(target_os = "linux")]
pub use notice::Notice;
#[cfg(target_os = "linux")]
pub use poller::{Interest, MAX_WATCHED, Poller, wait_readable};
pub use queue::Queue;
pub use send::{Datagrams, SendCounts};
pub use socket::BufferSizes;
#[cfg(target_os = "linux")]
pub use timer::BootTimer;
pub use tun::{DeviceState, MAX_PACKET, Tun, TunCounts};
pub use udp::{Family, ReceiveBuffers, Received, UdpCounts, UdpPair};
