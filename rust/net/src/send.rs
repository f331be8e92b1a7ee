//! What to hand to the kernel in one call, and what to do when it refuses.
//!
//! The kernel cuts one large buffer into datagrams of equal size (UDP_SEGMENT), which costs it one trip through its
//! network stack instead of dozens. Not every route can: the attempt then fails as a whole, and the datagrams go one by one.

use std::io;
use std::net::SocketAddr;

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

/// Datagrams back to back, each with its destination.
#[derive(Debug, Clone, Copy, Default)]
pub struct Datagrams<'a> {
    pub bytes: &'a [u8],
    pub lengths: &'a [usize],
    /// As many as there are lengths.
    pub destinations: &'a [SocketAddr],
}

impl<'a> Datagrams<'a> {
    /// The datagrams cut where the destination changes.
    pub(crate) fn by_destination(self) -> impl Iterator<Item = (SocketAddr, Run<'a>)> {
        let Self {
            mut bytes,
            mut lengths,
            mut destinations,
        } = self;
        std::iter::from_fn(move || {
            let destination = *destinations.first()?;
            let same = destinations
                .iter()
                .take_while(|next| **next == destination)
                .count();
            let (run_lengths, other_lengths) = lengths.split_at_checked(same)?;
            let (run_bytes, other_bytes) = bytes.split_at_checked(run_lengths.iter().sum())?;
            bytes = other_bytes;
            lengths = other_lengths;
            destinations = destinations.get(same..)?;
            Some((
                destination,
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
    backlog: Queue<SocketAddr>,
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
            counts: SendCounts::default(),
        }
    }

    pub(crate) fn counts(&self) -> &SendCounts {
        &self.counts
    }

    pub(crate) fn backlog(&self) -> &Queue<SocketAddr> {
        &self.backlog
    }

    /// Sends what waits, as far as the socket takes it.
    pub(crate) fn flush(&mut self, transmit: &mut dyn FnMut(&Transmit<'_>) -> io::Result<()>) {
        while let Some((destination, datagram)) = self.backlog.pop() {
            if !self.send_one(destination, &datagram, transmit) {
                self.backlog.unpop(destination, datagram);
                return;
            }
        }
    }

    /// Sends a run; what the socket does not take for now joins what waits already.
    pub(crate) fn send(
        &mut self,
        destination: SocketAddr,
        mut run: Run<'_>,
        transmit: &mut dyn FnMut(&Transmit<'_>) -> io::Result<()>,
    ) {
        while !run.lengths.is_empty() {
            if !self.backlog.is_empty() {
                return self.postpone(destination, run);
            }
            let count = run.segments();
            let Some((head, tail)) = run.split(count) else {
                return;
            };
            self.send_alike(destination, head, transmit);
            run = tail;
        }
    }

    /// Sends datagrams that the kernel may cut from one buffer.
    fn send_alike(
        &mut self,
        destination: SocketAddr,
        run: Run<'_>,
        transmit: &mut dyn FnMut(&Transmit<'_>) -> io::Result<()>,
    ) {
        let size = run.lengths.first().copied().unwrap_or_default();
        if run.lengths.len() == 1 || !self.segmentation.allows(size) {
            return self.send_each(destination, run, transmit);
        }
        let Err(refusal) = self.send_segments(destination, run, size, transmit) else {
            return;
        };
        // Where one datagram gets through, it was the segmentation. Where none does, it is the destination.
        let before = self.counts.datagrams;
        self.send_each(destination, run, transmit);
        if self.counts.datagrams > before {
            self.counts.segmentation_refused += 1;
            self.segmentation.refused(&refusal, size);
        }
    }

    fn postpone(&mut self, destination: SocketAddr, mut run: Run<'_>) {
        while let Some((one, rest)) = run.split(1) {
            self.backlog.push(destination, one.bytes);
            run = rest;
        }
    }

    fn send_each(
        &mut self,
        destination: SocketAddr,
        mut run: Run<'_>,
        transmit: &mut dyn FnMut(&Transmit<'_>) -> io::Result<()>,
    ) {
        while let Some((one, rest)) = run.split(1) {
            if !self.send_one(destination, one.bytes, transmit) {
                return self.postpone(destination, run);
            }
            run = rest;
        }
    }

    /// False: the socket is full. Else the datagram is sent, or lost and counted.
    fn send_one(
        &mut self,
        destination: SocketAddr,
        datagram: &[u8],
        transmit: &mut dyn FnMut(&Transmit<'_>) -> io::Result<()>,
    ) -> bool {
        match transmit(&Transmit {
            destination,
            ecn: None,
            contents: datagram,
            segment_size: None,
            src_ip: None,
        }) {
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
        destination: SocketAddr,
        run: Run<'_>,
        size: usize,
        transmit: &mut dyn FnMut(&Transmit<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        match transmit(&Transmit {
            destination,
            ecn: None,
            contents: run.bytes,
            segment_size: Some(size),
            src_ip: None,
        }) {
            Ok(()) => self.sent(run.lengths.len(), run.bytes.len()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.postpone(destination, run)
            }
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

    /// A socket that answers each call from a list, then takes everything. It records size and segment size.
    struct Fake {
        answers: Vec<io::Result<()>>,
        calls: Vec<(usize, Option<usize>)>,
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
            }
        }

        fn call(&mut self) -> impl FnMut(&Transmit<'_>) -> io::Result<()> + '_ {
            |transmit| {
                self.calls
                    .push((transmit.contents.len(), transmit.segment_size));
                self.answers.pop().unwrap_or(Ok(()))
            }
        }
    }

    fn send(sender: &mut Sender, fake: &mut Fake, lengths: &[usize]) {
        let bytes = vec![0; lengths.iter().sum()];
        let destinations = vec![A.parse().unwrap(); lengths.len()];
        let batch = Datagrams {
            bytes: &bytes,
            lengths,
            destinations: &destinations,
        };
        for (destination, run) in batch.by_destination() {
            sender.send(destination, run, &mut fake.call());
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
    fn destinations_are_not_mixed() {
        let (a, b): (SocketAddr, SocketAddr) = (A.parse().unwrap(), B.parse().unwrap());
        let batch = Datagrams {
            bytes: &[1, 2, 3, 4, 5, 6],
            lengths: &[1, 1, 2, 2],
            destinations: &[a, a, b, a],
        };
        let runs: Vec<_> = batch
            .by_destination()
            .map(|(to, run)| (to, run.bytes.to_vec(), run.lengths.len()))
            .collect();
        assert_eq!(
            runs,
            [(a, vec![1, 2], 2), (b, vec![3, 4], 1), (a, vec![5, 6], 1)]
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
}
