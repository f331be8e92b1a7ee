//! Packets from and to a TUN device.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::offload::{FaultCounts, Offloads};
use crate::{ErrorCounts, Packets, ReadBatch, socket};

mod device;
mod read;
#[cfg(test)]
mod tests;
mod write;

use read::Reader;
use write::{Framing, Writer};

/// The largest IP packet. Every read offers this much room, whatever the device's MTU is now: the MTU can be changed
/// under us, and a buffer that is too short makes the kernel truncate packets silently.
pub const MAX_PACKET: usize = 65_535;

/// What the last system call said about the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceState {
    /// It takes packets, as far as we know.
    Up,
    /// It is administratively down (EIO). It may come up again; packets are dropped until then.
    Down,
    /// It was deleted, or the other end was closed. It will never work again.
    Gone,
}

/// Packets and bytes count what superpackets stand for: they are the same with offloads and without.
#[derive(Debug, Clone, Default)]
pub struct TunCounts {
    pub packets_read: u64,
    pub bytes_read: u64,
    pub packets_written: u64,
    pub bytes_written: u64,
    /// Packets of which the device took a part only.
    pub short_writes: u64,
    /// How often reading was left off, because the network took no more.
    pub held_back: u64,
    pub superpackets_read: u64,
    /// Those of the packets read that superpackets were cut into.
    pub packets_cut: u64,
    pub superpackets_written: u64,
    /// Those of the packets written that superpackets stood for.
    pub packets_merged: u64,
    /// Superpackets that the device would not take, so that their packets went one by one.
    pub superpackets_refused: u64,
    /// Packets that were read and made no sense.
    pub faults: FaultCounts,
    pub errors: ErrorCounts,
}

/// That of a device, which all of its queues know: only one of them may have packets to learn by.
#[derive(Debug, Default)]
struct State(Arc<AtomicU8>);

impl State {
    fn get(&self) -> DeviceState {
        match self.0.load(Ordering::Relaxed) {
            0 => DeviceState::Up,
            1 => DeviceState::Down,
            _ => DeviceState::Gone,
        }
    }

    fn set(&self, state: DeviceState) {
        // Written only when there is news, so that it stays in the caches of all who read it.
        if self.get() != state {
            self.0.store(state as u8, Ordering::Relaxed);
        }
    }
}

/// What is known of the device, to its reader and its writer.
#[derive(Debug)]
struct Status {
    state: State,
    counts: TunCounts,
}

impl Status {
    /// Counts what cost so many packets, or none, and learns from it.
    fn failed(&mut self, error: &io::Error, count: u64) {
        self.counts.errors.add(error, count);
        if is_gone(error) {
            self.state.set(DeviceState::Gone);
        }
    }
}

/// A TUN device opened without packet information.
///
/// One that has a header before each packet (`IFF_VNET_HDR`) reads and writes superpackets, as far as it can and
/// [`Self::set_offloads`] says; without it, one read or write is one IP packet. So it is with a socket pair that keeps packet
/// boundaries (SOCK_SEQPACKET, SOCK_DGRAM), which serves as well. An empty read means that the other end of such a pair was
/// closed.
#[derive(Debug)]
pub struct Tun {
    file: File,
    status: Status,
    /// Of the header before each packet; 0: there is none.
    header_length: usize,
    supported: Offloads,
    active: Offloads,
    reader: Reader,
    writer: Writer,
}

impl Tun {
    /// Duplicates the descriptor, so that nothing here depends on how long the caller keeps its own, and makes the open
    /// file non-blocking, for the caller's descriptor too. Offloads are tried out, and are off.
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        socket::set_nonblocking(fd)?;
        let file = File::from(fd.try_clone_to_owned()?);
        let header_length = device::header_length(file.as_fd());
        let supported = match header_length {
            0 => Offloads::NONE,
            _ => device::supported(file.as_fd()),
        };
        Ok(Self {
            file,
            status: Status {
                state: State::default(),
                counts: TunCounts::default(),
            },
            header_length,
            supported,
            active: Offloads::NONE,
            reader: Reader::default(),
            writer: Writer::default(),
        })
    }

    /// They are queues of one device: what one learns of its state, the other knows.
    pub fn is_beside(&mut self, other: &Tun) {
        self.status.state = State(other.status.state.0.clone());
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub fn state(&self) -> DeviceState {
        self.status.state.get()
    }

    pub fn counts(&self) -> &TunCounts {
        &self.status.counts
    }

    /// Switches those on that are wanted and supported, and all others off. Returns what is on now. What is in the device's
    /// queue already comes as it is.
    pub fn set_offloads(&mut self, wanted: Offloads) -> Offloads {
        let wanted = (wanted.with_needed() & self.supported).consistent();
        if wanted != self.active {
            match device::set_offloads(self.file.as_fd(), wanted) {
                Ok(()) => self.active = wanted,
                Err(error) => self.status.failed(&error, 1),
            }
        }
        self.active
    }

    /// Whether packets of a superpacket that was read wait for the next read: the descriptor says nothing of these.
    pub fn has_rest(&self) -> bool {
        self.reader.has_rest()
    }

    /// Counts that the device is not read for a while, although it could be.
    pub fn hold_back(&mut self) {
        self.status.counts.held_back += 1;
    }

    /// Packets that wait until the device is writable.
    pub fn backlog(&self) -> usize {
        self.writer.backlog().len()
    }

    /// Packets that waited for too long.
    pub fn backlog_dropped(&self) -> u64 {
        self.writer.backlog().dropped()
    }

    /// Replaces the content of `batch` by about `budget` packets; fewer mean that the device has no more for now, or that
    /// reading failed, which [`Self::state`] and the counters tell. A superpacket is not left half cut at the budget, unless
    /// it is of very many packets: these come with the next call.
    pub fn read(&mut self, budget: usize, batch: &mut ReadBatch) -> usize {
        let Self {
            file,
            status,
            reader,
            header_length,
            ..
        } = self;
        match *header_length {
            0 => read::read_packets(file, status, budget, batch),
            header_length => reader.read(file, status, header_length, budget, batch),
        }
        status.counts.packets_read += batch.lengths.len() as u64;
        status.counts.bytes_read += batch.lengths.iter().sum::<usize>() as u64;
        batch.lengths.len()
    }

    /// Writes what waits and then `packets`, and returns how many of all these the device took. What it would not take
    /// yet waits ([`Self::backlog`]); what it refuses is dropped and counted.
    pub fn write(&mut self, packets: Packets<'_>) -> usize {
        let framing = Framing {
            header_length: self.header_length,
            offloads: self.active,
        };
        let mut file = &self.file;
        self.writer
            .write(packets, framing, &mut self.status, &mut |parts| {
                file.write_vectored(parts)
            })
    }
}

/// A deleted device answers EBADFD (Linux) or ENODEV / ENXIO; the last three are those of a socket pair whose other end
/// was closed.
fn is_gone(error: &io::Error) -> bool {
    #[cfg(target_os = "linux")]
    if error.raw_os_error() == Some(libc::EBADFD) {
        return true;
    }
    matches!(
        error.raw_os_error(),
        Some(
            libc::EBADF
                | libc::ENODEV
                | libc::ENXIO
                | libc::EPIPE
                | libc::ECONNRESET
                | libc::ECONNREFUSED
        )
    )
}
