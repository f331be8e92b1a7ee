//! What to hand to the kernel in one call, and what to do when it refuses.
//!
//! The kernel cuts one large buffer into datagrams of equal size (UDP_SEGMENT), which costs it one trip through its
//! network stack instead of dozens. Not every route can: the attempt then fails as a whole, and the datagrams go one by one.
//!
//! A datagram may name the address of ours that it is to come from. Addresses go away, and routes change: where the kernel
//! refuses one, the datagram goes from an address of the kernel's choice, and whoever named that one is told.

use std::io;
use std::net::{IpAddr, SocketAddr};

use quinn_udp::{EcnCodepoint, Transmit};

use crate::{ErrorCounts, Queue};

#[cfg(test)]
mod tests;

/// Kernels before 6.9 cut a buffer into at most so many datagrams (UDP_MAX_SEGMENTS).
const MAX_SEGMENTS: usize = 64;
/// The largest IPv4 payload of a UDP datagram bounds the whole buffer, on IPv6 as well.
const MAX_BYTES: usize = 65_507;
/// After so many datagrams sent one by one it is worth trying again: routes and interfaces change.
const RETRY_AFTER: u32 = 10_000;
/// What a socket does not take at once is kept up to these bounds.
const BACKLOG_DATAGRAMS: usize = 1_024;
const BACKLOG_BYTES: usize = 2 << 20;
/// So many ways with a source address that was refused are remembered until somebody asks; of more, the kernel says so again.
const REFUSED_SOURCES: usize = 64;

/// Datagrams back to back, each with its destination.
#[derive(Debug, Clone, Copy, Default)]
pub struct Datagrams<'a> {
    pub bytes: &'a [u8],
    pub lengths: &'a [usize],
    /// As many as there are lengths.
    pub destinations: &'a [SocketAddr],
    /// As many again: from which address of ours; `None` for whichever the kernel chooses.
    pub sources: &'a [Option<IpAddr>],
    /// And the ECN field of the IP header that each gets, in the two low bits.
    pub ecn: &'a [u8],
}

/// Where datagrams go, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    pub destination: SocketAddr,
    pub source: Option<IpAddr>,
    pub ecn: u8,
}

impl<'a> Datagrams<'a> {
    /// The datagrams cut where the way changes.
    pub(crate) fn by_way(self) -> impl Iterator<Item = (Way, Run<'a>)> {
        let Self {
            mut bytes,
            mut lengths,
            mut destinations,
            mut sources,
            mut ecn,
        } = self;
        std::iter::from_fn(move || {
            let way = Way {
                destination: *destinations.first()?,
                source: *sources.first()?,
                ecn: *ecn.first()?,
            };
            let same = destinations
                .iter()
                .zip(sources)
                .zip(ecn)
                .take_while(|((destination, source), ecn)| {
                    (*destination, *source, *ecn) == (&way.destination, &way.source, &way.ecn)
                })
                .count();
            let (run_lengths, other_lengths) = lengths.split_at_checked(same)?;
            let (run_bytes, other_bytes) = bytes.split_at_checked(run_lengths.iter().sum())?;
            bytes = other_bytes;
            lengths = other_lengths;
            destinations = destinations.get(same..)?;
            sources = sources.get(same..)?;
            ecn = ecn.get(same..)?;
            Some((
                way,
                Run {
                    bytes: run_bytes,
                    lengths: run_lengths,
                },
            ))
        })
    }
}

/// Datagrams to one destination.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a> {
    bytes: &'a [u8],
    lengths: &'a [usize],
}

impl<'a> Run<'a> {
    pub(crate) fn len(self) -> usize {
        self.lengths.len()
    }

    /// Cuts off the first `count` datagrams.
    fn split(self, count: usize) -> Option<(Self, Self)> {
        let (lengths, other_lengths) = self.lengths.split_at_checked(count)?;
        let (bytes, other_bytes) = self.bytes.split_at_checked(lengths.iter().sum())?;
        Some((
            Self { bytes, lengths },
            Self {
                bytes: other_bytes,
                lengths: other_lengths,
            },
        ))
    }

    /// How many datagrams from the first on may go in one buffer: all of one size, of which the last may be shorter.
    fn segments(self) -> usize {
        let size = self.lengths.first().copied().unwrap_or_default();
        let mut total = 0;
        let mut count = 0;
        for &length in self.lengths.iter().take(MAX_SEGMENTS) {
            if length > size || length == 0 || total + length > MAX_BYTES {
                break;
            }
            total += length;
            count += 1;
            if length < size {
                break;
            }
        }
        count.max(1)
    }
}

#[derive(Debug, Clone, Default)]
pub struct SendCounts {
    pub datagrams: u64,
    pub bytes: u64,
    /// System calls that took datagrams.
    pub calls: u64,
    /// Buffers that the kernel would not cut, so that their datagrams went one by one.
    pub segmentation_refused: u64,
    /// Calls that the kernel took only without the source address that was wanted.
    pub source_refused: u64,
    /// Datagrams that were lost, by reason. A refused buffer is no loss and is not counted here.
    pub errors: ErrorCounts,
}

/// What the route has said about segmentation.
#[derive(Debug)]
struct Segmentation {
    supported: bool,
    /// The largest datagrams that are worth trying.
    limit: usize,
    /// Datagrams to go one by one until the limit is lifted.
    retry_after: u32,
}

impl Segmentation {
    fn allows(&self, size: usize) -> bool {
        self.supported && size <= self.limit
    }

    fn refused(&mut self, error: &io::Error, size: usize) {
        // EMSGSIZE speaks of datagrams of this size and larger; the others, of segmentation as such.
        self.limit = match error.raw_os_error() {
            Some(libc::EMSGSIZE) => size.saturating_sub(1),
            _ => 0,
        };
        self.retry_after = RETRY_AFTER;
    }

    fn sent_one(&mut self) {
        if self.retry_after > 0 {
            self.retry_after -= 1;
            if self.retry_after == 0 {
                self.limit = usize::MAX;
            }
        }
    }
}

/// The sending half of one socket; the system call itself is passed in, so that tests can refuse.
#[derive(Debug)]
pub(crate) struct Sender {
    segmentation: Segmentation,
    backlog: Queue<Way>,
    /// Ways whose source address the kernel refused.
    refused: Vec<(SocketAddr, IpAddr)>,
    counts: SendCounts,
}

impl Sender {
    pub(crate) fn new(segmentation_supported: bool) -> Self {
        Self {
            segmentation: Segmentation {
                supported: segmentation_supported,
                limit: usize::MAX,
                retry_after: 0,
            },
            backlog: Queue::new(BACKLOG_DATAGRAMS, BACKLOG_BYTES),
            refused: Vec::new(),
            counts: SendCounts::default(),
        }
    }

    pub(crate) fn counts(&self) -> &SendCounts {
        &self.counts
    }

    pub(crate) fn backlog(&self) -> &Queue<Way> {
        &self.backlog
    }

    /// Destinations with the source address that was refused for them, since this was last asked.
    pub(crate) fn take_refused_sources(&mut self) -> Vec<(SocketAddr, IpAddr)> {
        std::mem::take(&mut self.refused)
    }

    /// Sends what waits, as far as the socket takes it.
    pub(crate) fn flush(&mut self, transmit: &mut dyn FnMut(&Transmit<'_>) -> io::Result<()>) {
        while let Some((way, datagram)) = self.backlog.pop() {
            if !self.send_one(way, &datagram, transmit) {
                self.backlog.unpop(way, datagram);
                return;
            }
        }
    }

    /// Sends a run; what the socket does not take for now joins what waits already.
    pub(crate) fn send(
        &mut self,
        way: Way,
        mut run: Run<'_>,
        transmit: &mut dyn FnMut(&Transmit<'_>) -> io::Result<()>,
    ) {
        while !run.lengths.is_empty() {
            if !self.backlog.is_empty() {
                return self.postpone(way, run);
            }
            let count = run.segments();
            let Some((head, tail)) = run.split(count) else {
                return;
            };
            self.send_alike(way, head, transmit);
            run = tail;
        }
    }

    /// Sends datagrams that the kernel may cut from one buffer.
    fn send_alike(
        &mut self,
        way: Way,
        run: Run<'_>,
        transmit: &mut dyn FnMut(&Transmit<'_>) -> io::Result<()>,
    ) {
        let size = run.lengths.first().copied().unwrap_or_default();
        if run.lengths.len() == 1 || !self.segmentation.allows(size) {
            return self.send_each(way, run, transmit);
        }
        let Err(refusal) = self.send_segments(way, run, size, transmit) else {
            return;
        };
        // Where one datagram gets through, it was the segmentation. Where none does, it is the destination.
        let before = self.counts.datagrams;
        self.send_each(way, run, transmit);
        if self.counts.datagrams > before {
            self.counts.segmentation_refused += 1;
            self.segmentation.refused(&refusal, size);
        }
    }

    fn postpone(&mut self, way: Way, mut run: Run<'_>) {
        while let Some((one, rest)) = run.split(1) {
            self.backlog.push(way, one.bytes);
            run = rest;
        }
    }

    fn send_each(
        &mut self,
        way: Way,
        mut run: Run<'_>,
        transmit: &mut dyn FnMut(&Transmit<'_>) -> io::Result<()>,
    ) {
        while let Some((one, rest)) = run.split(1) {
            if !self.send_one(way, one.bytes, transmit) {
                return self.postpone(way, run);
            }
            run = rest;
        }
    }

    /// False: the socket is full. Else the datagram is sent, or lost and counted.
    fn send_one(
        &mut self,
        way: Way,
        datagram: &[u8],
        transmit: &mut dyn FnMut(&Transmit<'_>) -> io::Result<()>,
    ) -> bool {
        match self.hand_over(way, datagram, None, transmit) {
            Ok(()) => self.sent(1, datagram.len()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => self.counts.errors.add(&error, 1),
        }
        self.segmentation.sent_one();
        true
    }

    /// An error: the kernel may not like the segmentation, so the datagrams are to go one by one.
    fn send_segments(
        &mut self,
        way: Way,
        run: Run<'_>,
        size: usize,
        transmit: &mut dyn FnMut(&Transmit<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        match self.hand_over(way, run.bytes, Some(size), transmit) {
            Ok(()) => self.sent(run.lengths.len(), run.bytes.len()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.postpone(way, run),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EMSGSIZE | libc::EIO | libc::EINVAL)
                ) =>
            {
                return Err(error);
            }
            Err(error) => self.counts.errors.add(&error, run.lengths.len() as u64),
        }
        Ok(())
    }

    /// Tries to send from the address that is wanted, and then from any.
    fn hand_over(
        &mut self,
        way: Way,
        contents: &[u8],
        segment_size: Option<usize>,
        transmit: &mut dyn FnMut(&Transmit<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let Way {
            destination,
            source,
            ecn,
        } = way;
        let from = |src_ip| Transmit {
            destination,
            ecn: EcnCodepoint::from_bits(ecn),
            contents,
            segment_size,
            src_ip,
        };
        let known = |source| self.refused.contains(&(destination, source));
        let Some(source) = source.filter(|source| !known(*source)) else {
            return transmit(&from(None));
        };
        match transmit(&from(Some(source))) {
            Err(error) if may_mean_the_source(&error) => {
                // Where it does not go from any address either, it is not the address that is wrong.
                transmit(&from(None))?;
                self.counts.source_refused += 1;
                if self.refused.len() < REFUSED_SOURCES {
                    self.refused.push((destination, source));
                }
                Ok(())
            }
            result => result,
        }
    }

    fn sent(&mut self, datagrams: usize, bytes: usize) {
        self.counts.calls += 1;
        self.counts.datagrams += datagrams as u64;
        self.counts.bytes += bytes as u64;
    }
}

/// Whether it is what the kernel says of an address that is not ours, or that has no way to the destination. A firewall that
/// forbids a datagram, or a queue that is full, says nothing about the address, and the next one may go from it.
fn may_mean_the_source(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EHOSTUNREACH)
    )
}
