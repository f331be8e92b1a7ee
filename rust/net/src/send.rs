//! What to hand to the kernel in one call, and what to do when it refuses.
//!
//! The kernel cuts one large buffer into datagrams of equal size (UDP_SEGMENT), which costs it one trip through its
//! network stack instead of dozens. Not every route can: the attempt then fails as a whole, and the datagrams go one by one.
//!
//! A datagram may name the address of ours that it is to come from. Addresses go away, and routes change: where the kernel
//! refuses one, the datagram goes from an address of the kernel's choice, and whoever named that one is told.

use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::{ErrorCounts, Queue};

#[cfg(target_os = "linux")]
pub(crate) mod linux;
mod plan;
#[cfg(not(target_os = "linux"))]
pub(crate) mod portable;
#[cfg(test)]
mod tests;

use plan::Plan;
pub(crate) use plan::{Message, Way};

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

impl<'a> Datagrams<'a> {
    /// The way of each, and its length.
    fn ways(self) -> impl Iterator<Item = (Way, usize)> {
        let to = self.destinations.iter().zip(self.sources).zip(self.ecn);
        to.zip(self.lengths)
            .map(|(((&destination, &source), &ecn), &length)| {
                let way = Way {
                    destination,
                    source,
                    ecn,
                };
                (way, length)
            })
    }
}

/// Some of the messages of a batch, for one call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Messages<'a> {
    One(Message<'a>),
    Planned {
        plan: &'a Plan,
        from: usize,
        datagrams: Datagrams<'a>,
        /// Those that are not to be named as sources.
        refused: &'a [(SocketAddr, IpAddr)],
    },
}

impl<'a> Messages<'a> {
    pub(crate) fn iter(self) -> impl Iterator<Item = Message<'a>> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let index = next;
            next += 1;
            match self {
                Messages::One(message) => (index == 0).then_some(message),
                Messages::Planned {
                    plan,
                    from,
                    datagrams,
                    refused,
                } => {
                    let message = plan.message(from + index, datagrams)?;
                    Some(without_refused(message, refused))
                }
            }
        })
    }
}

fn without_refused<'a>(message: Message<'a>, refused: &[(SocketAddr, IpAddr)]) -> Message<'a> {
    let Way {
        destination,
        source,
        ..
    } = message.way;
    match source {
        Some(source) if refused.contains(&(destination, source)) => message.without_source(),
        _ => message,
    }
}

/// The system call: sends the first of these and returns how many it took, at least one; an error is of the first.
pub(crate) type Call<'a> = dyn FnMut(Messages<'_>) -> io::Result<usize> + 'a;

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
        let limit = match error.raw_os_error() {
            Some(libc::EMSGSIZE) => size.saturating_sub(1),
            _ => 0,
        };
        // Of what was planned together, a larger size may be refused after a smaller one.
        self.limit = self.limit.min(limit);
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
    plan: Plan,
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
            plan: Plan::default(),
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
    pub(crate) fn flush(&mut self, call: &mut Call<'_>) {
        while let Some((way, datagram)) = self.backlog.pop() {
            if !self.send_one(way, &datagram, call) {
                self.backlog.unpop(way, datagram);
                return;
            }
        }
    }

    /// Sends those whose destination is of this socket; what it does not take for now joins what waits already.
    pub(crate) fn send(
        &mut self,
        datagrams: Datagrams<'_>,
        is_ours: impl Fn(&SocketAddr) -> bool,
        call: &mut Call<'_>,
    ) {
        let mut plan = std::mem::take(&mut self.plan);
        plan.make(datagrams, is_ours, &self.segmentation);
        let mut next = 0;
        while next < plan.len() {
            if !self.backlog.is_empty() {
                (next..plan.len())
                    .filter_map(|index| plan.message(index, datagrams))
                    .for_each(|message| self.postpone(message));
                break;
            }
            next += self.send_from(&plan, next, datagrams, call);
        }
        self.plan = plan;
    }

    /// Sends the first of the messages and those after it that go with the same call. Returns how many are settled.
    fn send_from(
        &mut self,
        plan: &Plan,
        from: usize,
        datagrams: Datagrams<'_>,
        call: &mut Call<'_>,
    ) -> usize {
        let messages = Messages::Planned {
            plan,
            from,
            datagrams,
            refused: &self.refused,
        };
        match call(messages) {
            Ok(taken) => {
                let taken = taken.max(1);
                (from..from + taken)
                    .filter_map(|index| plan.message(index, datagrams))
                    .for_each(|message| self.sent(&message));
                self.counts.calls += 1;
                taken
            }
            Err(error) => {
                if let Some(message) = plan.message(from, datagrams) {
                    let message = without_refused(message, &self.refused);
                    self.refused_at_first(message, error, call);
                }
                1
            }
        }
    }

    /// After the kernel refused a message as it was.
    fn refused_at_first(&mut self, message: Message<'_>, error: io::Error, call: &mut Call<'_>) {
        let Err(error) = self.without_source(message, error, call) else {
            return;
        };
        if error.kind() == io::ErrorKind::WouldBlock {
            self.postpone(message);
        } else if message.count() > 1 && may_mean_segmentation(&error) {
            // Where one datagram gets through, it was the segmentation. Where none does, it is the destination.
            let before = self.counts.datagrams;
            self.send_each(message, call);
            if self.counts.datagrams > before {
                self.counts.segmentation_refused += 1;
                let size = message.segment_size().unwrap_or_default();
                self.segmentation.refused(&error, size);
            }
        } else {
            self.lost(&message, &error);
        }
    }

    /// Tries once more, from any address, if the error may mean the one that was named.
    fn without_source(
        &mut self,
        message: Message<'_>,
        error: io::Error,
        call: &mut Call<'_>,
    ) -> io::Result<()> {
        let Some(source) = message.way.source.filter(|_| may_mean_the_source(&error)) else {
            return Err(error);
        };
        // Where it does not go from any address either, it is not the address that is wrong.
        call(Messages::One(message.without_source()))?;
        self.counts.calls += 1;
        self.sent(&message);
        self.counts.source_refused += 1;
        if self.refused.len() < REFUSED_SOURCES {
            self.refused.push((message.way.destination, source));
        }
        Ok(())
    }

    fn postpone(&mut self, message: Message<'_>) {
        for datagram in message.datagrams() {
            self.backlog.push(message.way, datagram);
        }
    }

    fn send_each(&mut self, message: Message<'_>, call: &mut Call<'_>) {
        for datagram in message.datagrams() {
            if !self.backlog.is_empty() || !self.send_one(message.way, datagram, call) {
                self.backlog.push(message.way, datagram);
            }
        }
    }

    /// False: the socket is full. Else the datagram is sent, or lost and counted.
    fn send_one(&mut self, way: Way, datagram: &[u8], call: &mut Call<'_>) -> bool {
        let message = without_refused(Message::of_one(way, datagram), &self.refused);
        let result = match call(Messages::One(message)) {
            Ok(_) => {
                self.counts.calls += 1;
                self.sent(&message);
                Ok(())
            }
            Err(error) => self.without_source(message, error, call),
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => self.lost(&message, &error),
            Ok(()) => {}
        }
        true
    }

    fn sent(&mut self, message: &Message<'_>) {
        self.counts.datagrams += message.count() as u64;
        self.counts.bytes += message.bytes() as u64;
        self.passed(message);
    }

    fn lost(&mut self, message: &Message<'_>, error: &io::Error) {
        self.counts.errors.add(error, message.count() as u64);
        self.passed(message);
    }

    fn passed(&mut self, message: &Message<'_>) {
        if message.count() == 1 {
            self.segmentation.sent_one();
        }
    }
}

fn may_mean_segmentation(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMSGSIZE | libc::EIO | libc::EINVAL)
    )
}

/// Whether it is what the kernel says of an address that is not ours, or that has no way to the destination. A firewall that
/// forbids a datagram, or a queue that is full, says nothing about the address, and the next one may go from it.
fn may_mean_the_source(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EHOSTUNREACH)
    )
}
