//! What to hand to the kernel in one call, and what to do when it refuses.
//!
//! The kernel cuts one large buffer into datagrams of equal size (UDP_SEGMENT), which costs it one trip through its
//! network stack instead of dozens. Not every route can: the attempt then fails as a whole, and the datagrams go one by one.
//!
//! A datagram may name the address of ours that it is to come from. Addresses go away, and routes change: where the kernel
//! refuses one, the datagram goes from an address of the kernel's choice, and whoever named that one is told.

use std::io;
use std::net::{IpAddr, SocketAddr};

use quinn_udp::Transmit;

use crate::{ErrorCounts, Queue};

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
}

/// Where datagrams go, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    pub destination: SocketAddr,
    pub source: Option<IpAddr>,
}

impl<'a> Datagrams<'a> {
    /// The datagrams cut where the way changes.
    pub(crate) fn by_way(self) -> impl Iterator<Item = (Way, Run<'a>)> {
        let Self {
            mut bytes,
            mut lengths,
            mut destinations,
            mut sources,
        } = self;
        std::iter::from_fn(move || {
            let (destination, source) = (*destinations.first()?, *sources.first()?);
            let same = destinations
                .iter()
                .zip(sources)
                .take_while(|next| *next == (&destination, &source))
                .count();
            let (run_lengths, other_lengths) = lengths.split_at_checked(same)?;
            let (run_bytes, other_bytes) = bytes.split_at_checked(run_lengths.iter().sum())?;
            bytes = other_bytes;
            lengths = other_lengths;
            destinations = destinations.get(same..)?;
            sources = sources.get(same..)?;
            Some((
                Way {
                    destination,
                    source,
                },
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
        } = way;
        let from = |src_ip| Transmit {
            destination,
            ecn: None,
            contents,
            segment_size,
            src_ip,
        };
        let known = |source| self.refused.contains(&(destination, source));
        let Some(source) = source.filter(|source| !known(*source)) else {
            return transmit(&from(None));
        };
        match transmit(&from(Some(source))) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
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

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "192.0.2.1:1000";
    const B: &str = "[2001:db8::1]:2000";
    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

    /// A socket that answers each call from a list, then takes everything. It records size and segment size.
    struct Fake {
        answers: Vec<io::Result<()>>,
        calls: Vec<(usize, Option<usize>)>,
        sources: Vec<Option<IpAddr>>,
    }

    impl Fake {
        fn answering(errnos: &[i32]) -> Self {
            let answers = errnos
                .iter()
                .rev()
                .map(|&errno| Err(io::Error::from_raw_os_error(errno)))
                .collect();
            Self {
                answers,
                calls: Vec::new(),
                sources: Vec::new(),
            }
        }

        fn call(&mut self) -> impl FnMut(&Transmit<'_>) -> io::Result<()> + '_ {
            |transmit| {
                self.calls
                    .push((transmit.contents.len(), transmit.segment_size));
                self.sources.push(transmit.src_ip);
                self.answers.pop().unwrap_or(Ok(()))
            }
        }
    }

    fn send(sender: &mut Sender, fake: &mut Fake, lengths: &[usize]) {
        send_from(sender, fake, lengths, None);
    }

    fn send_from(sender: &mut Sender, fake: &mut Fake, lengths: &[usize], source: Option<IpAddr>) {
        let bytes = vec![0; lengths.iter().sum()];
        let destinations = vec![A.parse().unwrap(); lengths.len()];
        let batch = Datagrams {
            bytes: &bytes,
            lengths,
            destinations: &destinations,
            sources: &vec![source; lengths.len()],
        };
        for (way, run) in batch.by_way() {
            sender.send(way, run, &mut fake.call());
        }
    }

    fn calls_for(lengths: &[usize]) -> Vec<(usize, Option<usize>)> {
        let mut fake = Fake::answering(&[]);
        send(&mut Sender::new(true), &mut fake, lengths);
        fake.calls
    }

    #[test]
    fn equal_sizes_share_a_call_and_a_shorter_one_ends_it() {
        assert_eq!(calls_for(&[100]), [(100, None)]);
        assert_eq!(calls_for(&[100, 100, 40]), [(240, Some(100))]);
        assert_eq!(
            calls_for(&[100, 40, 40, 40]),
            [(140, Some(100)), (80, Some(40))]
        );
        assert_eq!(calls_for(&[40, 100, 100]), [(40, None), (200, Some(100))]);
        assert_eq!(calls_for(&[0, 0, 10]), [(0, None), (0, None), (10, None)]);
        assert_eq!(calls_for(&[10, 10, 0]), [(20, Some(10)), (0, None)]);
    }

    #[test]
    fn a_call_stays_within_the_kernels_bounds() {
        let calls = calls_for(&[1452; 100]);
        assert_eq!(
            calls,
            [
                (45 * 1452, Some(1452)),
                (45 * 1452, Some(1452)),
                (10 * 1452, Some(1452))
            ]
        );
        assert_eq!(
            calls_for(&[10; 130]),
            [(640, Some(10)), (640, Some(10)), (20, Some(10))]
        );
        assert_eq!(
            calls_for(&[65_507, 65_507]),
            [(65_507, None), (65_507, None)]
        );
    }

    #[test]
    fn destinations_and_sources_are_not_mixed() {
        let (a, b): (SocketAddr, SocketAddr) = (A.parse().unwrap(), B.parse().unwrap());
        let batch = Datagrams {
            bytes: &[1, 2, 3, 4, 5, 6, 7],
            lengths: &[1, 1, 2, 2, 1],
            destinations: &[a, a, b, a, a],
            sources: &[None, None, None, None, Some(HERE)],
        };
        let runs: Vec<_> = batch
            .by_way()
            .map(|(way, run)| (way.destination, run.bytes.to_vec(), run.lengths.len()))
            .collect();
        assert_eq!(
            runs,
            [
                (a, vec![1, 2], 2),
                (b, vec![3, 4], 1),
                (a, vec![5, 6], 1),
                (a, vec![7], 1)
            ]
        );
    }

    #[test]
    fn a_route_that_cannot_segment_gets_single_datagrams() {
        for errno in [libc::EIO, libc::EINVAL, libc::EMSGSIZE] {
            let mut sender = Sender::new(true);
            let mut fake = Fake::answering(&[errno]);
            send(&mut sender, &mut fake, &[100, 100]);
            send(&mut sender, &mut fake, &[100, 100]);
            let calls = [
                (200, Some(100)),
                (100, None),
                (100, None),
                (100, None),
                (100, None),
            ];
            assert_eq!(fake.calls, calls);
            assert_eq!(sender.counts().datagrams, 4);
            assert_eq!(sender.counts().segmentation_refused, 1);
            assert_eq!(sender.counts().errors.total(), 0, "nothing was lost");
        }
    }

    #[test]
    fn a_destination_that_refuses_everything_says_nothing_about_segmentation() {
        for errno in [libc::EIO, libc::EINVAL, libc::EMSGSIZE] {
            let mut sender = Sender::new(true);
            let mut fake = Fake::answering(&[errno, errno, errno]);
            send(&mut sender, &mut fake, &[100, 100]);
            send(&mut sender, &mut fake, &[100, 100]);
            assert_eq!(fake.calls.last(), Some(&(200, Some(100))));
            assert_eq!(sender.counts().segmentation_refused, 0);
            assert_eq!(sender.counts().errors.total(), 2);
            assert_eq!(sender.counts().datagrams, 2);
        }
    }

    #[test]
    fn only_datagrams_too_large_for_the_path_go_one_by_one() {
        let mut sender = Sender::new(true);
        let mut fake = Fake::answering(&[libc::EMSGSIZE]);
        send(&mut sender, &mut fake, &[1452, 1452]);
        send(&mut sender, &mut fake, &[100, 100]);
        assert_eq!(fake.calls.last(), Some(&(200, Some(100))));
    }

    #[test]
    fn segmentation_is_tried_again_later() {
        let mut sender = Sender::new(true);
        let mut fake = Fake::answering(&[libc::EIO]);
        for _ in 0..=RETRY_AFTER / 2 {
            send(&mut sender, &mut fake, &[100, 100]);
        }
        let grouped = fake.calls.iter().filter(|(_, size)| size.is_some()).count();
        assert_eq!(grouped, 1);
        send(&mut sender, &mut fake, &[100, 100]);
        assert_eq!(fake.calls.last(), Some(&(200, Some(100))));
    }

    #[test]
    fn a_full_socket_makes_the_rest_wait_in_order() {
        let mut sender = Sender::new(true);
        let mut fake = Fake::answering(&[libc::EAGAIN]);
        send(&mut sender, &mut fake, &[100, 100, 100]);
        send(&mut sender, &mut fake, &[7]);
        assert_eq!(sender.backlog().len(), 4);
        assert_eq!(fake.calls.len(), 1, "a full socket is asked once");
        sender.flush(&mut fake.call());
        assert_eq!(
            fake.calls
                .iter()
                .skip(1)
                .map(|call| call.0)
                .collect::<Vec<_>>(),
            [100, 100, 100, 7]
        );
        assert!(sender.backlog().is_empty());
        assert_eq!(sender.counts().datagrams, 4);
    }

    #[test]
    fn flushing_into_a_full_socket_loses_nothing() {
        let mut sender = Sender::new(false);
        let mut fake = Fake::answering(&[libc::EAGAIN]);
        send(&mut sender, &mut fake, &[1, 2, 3]);
        let mut fake = Fake::answering(&[libc::EAGAIN]);
        sender.flush(&mut fake.call());
        assert_eq!(sender.backlog().len(), 3);
        sender.flush(&mut fake.call());
        assert_eq!(
            fake.calls.iter().map(|call| call.0).collect::<Vec<_>>(),
            [1, 1, 2, 3]
        );
    }

    #[test]
    fn a_socket_that_stays_full_costs_the_oldest_datagrams() {
        let mut sender = Sender::new(true);
        let mut fake = Fake::answering(&[libc::EAGAIN]);
        for _ in 0..BACKLOG_DATAGRAMS + 10 {
            send(&mut sender, &mut fake, &[100]);
        }
        assert_eq!(sender.backlog().len(), BACKLOG_DATAGRAMS);
        assert_eq!(sender.backlog().dropped(), 10);
    }

    #[test]
    fn every_datagram_lost_is_counted_under_its_errno() {
        let mut sender = Sender::new(true);
        let mut fake = Fake::answering(&[libc::ENOBUFS, libc::ENETUNREACH, libc::EPERM]);
        send(&mut sender, &mut fake, &[100, 100, 100]);
        send(&mut sender, &mut fake, &[10]);
        send(&mut sender, &mut fake, &[10]);
        send(&mut sender, &mut fake, &[10]);
        let errors = &sender.counts().errors;
        assert_eq!(errors.of(libc::ENOBUFS), 3);
        assert_eq!(errors.of(libc::ENETUNREACH), 1);
        assert_eq!(errors.of(libc::EPERM), 1);
        assert_eq!(sender.counts().datagrams, 1);
    }

    #[test]
    fn a_source_address_that_is_refused_is_left_out_and_reported_once() {
        let mut sender = Sender::new(true);
        let mut fake = Fake::answering(&[libc::EINVAL]);
        send_from(&mut sender, &mut fake, &[100, 100, 100, 40, 7], Some(HERE));
        assert_eq!(fake.calls, [(340, Some(100)), (340, Some(100)), (7, None)]);
        assert_eq!(fake.sources, [Some(HERE), None, None]);
        assert_eq!(sender.counts().source_refused, 1);
        assert_eq!(sender.counts().datagrams, 5);
        assert_eq!(sender.counts().segmentation_refused, 0);
        assert_eq!(sender.counts().errors.total(), 0, "nothing was lost");
        assert_eq!(sender.take_refused_sources(), [(A.parse().unwrap(), HERE)]);
        assert_eq!(sender.take_refused_sources(), []);
        let mut fake = Fake::answering(&[]);
        send_from(&mut sender, &mut fake, &[7], Some(HERE));
        assert_eq!(fake.sources, [Some(HERE)]);
    }

    #[test]
    fn a_destination_that_refuses_everything_says_nothing_about_the_source() {
        let mut sender = Sender::new(true);
        let mut fake = Fake::answering(&[libc::ENETUNREACH, libc::ENETUNREACH]);
        send_from(&mut sender, &mut fake, &[7], Some(HERE));
        assert_eq!(fake.sources, [Some(HERE), None]);
        assert_eq!(sender.counts().errors.of(libc::ENETUNREACH), 1);
        assert_eq!(sender.counts().source_refused, 0);
        assert_eq!(sender.take_refused_sources(), []);
    }

    #[test]
    fn segmentation_that_is_refused_says_nothing_about_the_source() {
        let mut sender = Sender::new(true);
        let mut fake = Fake::answering(&[libc::EIO, libc::EIO]);
        send_from(&mut sender, &mut fake, &[100, 100], Some(HERE));
        assert_eq!(fake.calls.last(), Some(&(100, None)));
        assert_eq!(fake.sources, [Some(HERE), None, Some(HERE), Some(HERE)]);
        assert_eq!(sender.counts().segmentation_refused, 1);
        assert_eq!(sender.take_refused_sources(), []);
    }

    #[test]
    fn a_full_socket_keeps_the_source_of_what_waits() {
        let mut sender = Sender::new(true);
        let mut fake = Fake::answering(&[libc::EAGAIN]);
        send_from(&mut sender, &mut fake, &[7], Some(HERE));
        sender.flush(&mut fake.call());
        assert_eq!(fake.sources, [Some(HERE), Some(HERE)]);
        assert_eq!(sender.counts().source_refused, 0);
    }
}
