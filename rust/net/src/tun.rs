//! Packets from and to a TUN device.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;

use crate::{ErrorCounts, Queue, ReadBatch, socket};

/// The largest IP packet. Every read offers this much room, whatever the device's MTU is now: the MTU can be changed
/// under us, and a buffer that is too short makes the kernel truncate packets silently.
pub const MAX_PACKET: usize = 65_535;

/// What a device did not take at once is kept up to these bounds.
const BACKLOG_PACKETS: usize = 1_024;
const BACKLOG_BYTES: usize = 2 << 20;

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

#[derive(Debug, Clone, Default)]
pub struct TunCounts {
    pub packets_read: u64,
    pub bytes_read: u64,
    pub packets_written: u64,
    pub bytes_written: u64,
    /// Packets of which the device took a part only.
    pub short_writes: u64,
    pub errors: ErrorCounts,
}

/// A TUN device opened without packet information and without offloads: one read or write is one IP packet.
///
/// A socket pair that keeps packet boundaries (SOCK_SEQPACKET, SOCK_DGRAM) serves as well. An empty read means that the
/// other end of such a pair was closed.
#[derive(Debug)]
pub struct Tun {
    file: File,
    state: DeviceState,
    backlog: Queue<()>,
    counts: TunCounts,
}

impl Tun {
    /// Duplicates the descriptor, so that nothing here depends on how long the caller keeps its own, and makes the open
    /// file non-blocking, for the caller's descriptor too.
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        socket::set_nonblocking(fd)?;
        Ok(Self {
            file: File::from(fd.try_clone_to_owned()?),
            state: DeviceState::Up,
            backlog: Queue::new(BACKLOG_PACKETS, BACKLOG_BYTES),
            counts: TunCounts::default(),
        })
    }

    pub fn state(&self) -> DeviceState {
        self.state
    }

    pub fn counts(&self) -> &TunCounts {
        &self.counts
    }

    /// Packets that wait until the device is writable.
    pub fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// Packets that waited for too long.
    pub fn backlog_dropped(&self) -> u64 {
        self.backlog.dropped()
    }

    /// Replaces the content of `batch` by at most `budget` packets; fewer mean that the device has no more for now, or
    /// that reading failed, which [`Self::state`] and the counters tell.
    pub fn read(&mut self, budget: usize, batch: &mut ReadBatch) -> usize {
        batch.lengths.clear();
        let mut used = 0;
        while batch.lengths.len() < budget && self.state != DeviceState::Gone {
            // Grows to what one batch needs and stays there: clearing 64 KiB anew for each packet would cost more
            // than reading it.
            if batch.bytes.len() < used + MAX_PACKET {
                batch.bytes.resize(used + MAX_PACKET, 0);
            }
            let Some(room) = batch.bytes.get_mut(used..) else {
                break;
            };
            match (&self.file).read(room) {
                Ok(0) => self.state = DeviceState::Gone,
                Ok(length) => {
                    batch.lengths.push(length);
                    used += length;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.counts.errors.add(&error, 1);
                    if is_gone(&error) {
                        self.state = DeviceState::Gone;
                    }
                    break;
                }
            }
        }
        self.counts.packets_read += batch.lengths.len() as u64;
        self.counts.bytes_read += used as u64;
        batch.lengths.len()
    }

    /// Writes what waits and then `packets`, and returns how many of all these the device took. What it would not take
    /// yet waits ([`Self::backlog`]); what it refuses is dropped and counted.
    pub fn write<'a>(&mut self, packets: impl Iterator<Item = &'a [u8]>) -> usize {
        let before = self.counts.packets_written;
        let mut blocked = !self.write_backlog();
        for packet in packets {
            if !blocked {
                blocked = !self.write_one(packet);
            }
            if blocked {
                self.backlog.push((), packet);
            }
        }
        usize::try_from(self.counts.packets_written - before).unwrap_or(usize::MAX)
    }

    fn write_backlog(&mut self) -> bool {
        while let Some(((), packet)) = self.backlog.pop() {
            if !self.write_one(&packet) {
                self.backlog.unpop((), packet);
                return false;
            }
        }
        true
    }

    /// False: the device takes nothing for now, and the packet is still the caller's. Else it is written or dropped.
    fn write_one(&mut self, packet: &[u8]) -> bool {
        if self.state == DeviceState::Gone {
            return true;
        }
        loop {
            match (&self.file).write(packet) {
                Ok(length) => {
                    self.state = DeviceState::Up;
                    self.counts.packets_written += 1;
                    self.counts.bytes_written += length as u64;
                    if length < packet.len() {
                        self.counts.short_writes += 1;
                    }
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.counts.errors.add(&error, 1);
                    if is_gone(&error) {
                        self.state = DeviceState::Gone;
                    } else if error.raw_os_error() == Some(libc::EIO) {
                        self.state = DeviceState::Down;
                    }
                    return true;
                }
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    fn pair() -> (Tun, UnixDatagram) {
        let (device, application) = UnixDatagram::pair().unwrap();
        application.set_nonblocking(true).unwrap();
        (Tun::new(device.as_fd()).unwrap(), application)
    }

    fn read(tun: &mut Tun, budget: usize) -> Vec<Vec<u8>> {
        let mut batch = ReadBatch::default();
        tun.read(budget, &mut batch);
        batch.iter().map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn packets_keep_their_boundaries() {
        let (mut tun, application) = pair();
        for length in [20, 1, 1420, 65_535] {
            application.send(&vec![7; length]).unwrap();
        }
        let lengths: Vec<usize> = read(&mut tun, 64).iter().map(Vec::len).collect();
        assert_eq!(lengths, [20, 1, 1420, 65_535]);
        assert_eq!(tun.counts().packets_read, 4);
        assert_eq!(tun.counts().bytes_read, 20 + 1 + 1420 + 65_535);
    }

    #[test]
    fn a_budget_ends_a_batch_and_the_rest_stays() {
        let (mut tun, application) = pair();
        for number in 0..5u8 {
            application.send(&[number]).unwrap();
        }
        let mut batch = ReadBatch::default();
        assert_eq!(tun.read(3, &mut batch), 3);
        assert_eq!(tun.read(3, &mut batch), 2);
        assert_eq!(batch.iter().collect::<Vec<_>>(), [[3], [4]]);
        assert_eq!(tun.read(3, &mut batch), 0);
        assert!(batch.is_empty());
        assert_eq!(tun.state(), DeviceState::Up);
        assert_eq!(tun.counts().errors.total(), 0);
    }

    #[test]
    fn packets_are_written_in_order() {
        let (mut tun, application) = pair();
        let packets: [&[u8]; 3] = [b"one", b"two", b"three"];
        assert_eq!(tun.write(packets.into_iter()), 3);
        let mut buffer = [0; 100];
        for packet in packets {
            let length = application.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], packet);
        }
        assert_eq!(tun.counts().bytes_written, 11);
    }

    #[test]
    fn what_the_device_does_not_take_waits_for_it() {
        let (mut tun, application) = pair();
        let packet = [5; 1000];
        let mut written = 0;
        while tun.backlog() == 0 {
            written += tun.write([&packet[..]].into_iter());
            assert!(written < 100_000, "the pair never filled up");
        }
        assert_eq!(tun.write([&b"last"[..]].into_iter()), 0);
        assert_eq!(tun.backlog(), 2);
        let mut buffer = [0; 2000];
        while application.recv(&mut buffer).is_ok() {}
        assert_eq!(tun.write(std::iter::empty()), 2);
        assert_eq!(application.recv(&mut buffer).unwrap(), 1000);
        assert_eq!(application.recv(&mut buffer).unwrap(), 4);
    }

    #[test]
    fn a_closed_other_end_is_a_device_that_is_gone() {
        let (mut tun, application) = pair();
        drop(application);
        tun.write([&b"x"[..]].into_iter());
        assert_eq!(tun.state(), DeviceState::Gone);
        assert_eq!(tun.counts().errors.total(), 1);
        assert_eq!(tun.write([&b"x"[..]].into_iter()), 0);
        assert_eq!(
            tun.counts().errors.total(),
            1,
            "a device that is gone is left alone"
        );
    }

    #[test]
    fn other_errors_are_counted_by_name_and_the_packet_is_dropped() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut tun = Tun::new(full.as_fd()).unwrap();
        assert_eq!(tun.write([&b"x"[..], &b"y"[..]].into_iter()), 0);
        assert_eq!(tun.counts().errors.of(libc::ENOSPC), 2);
        assert_eq!(tun.state(), DeviceState::Up);
        assert_eq!(tun.backlog(), 0);
    }

    #[test]
    fn errno_of_a_deleted_device_means_gone() {
        for errno in [libc::EBADFD, libc::ENODEV] {
            assert!(is_gone(&io::Error::from_raw_os_error(errno)));
        }
        assert!(!is_gone(&io::Error::from_raw_os_error(libc::EIO)));
    }
}
