//! Which datagrams go together: those of one way that the kernel can cut from one buffer, wherever in the batch they are.
//!
//! A gateway's datagrams are of many peers, in the order in which packets came for them. The order of those of one peer is
//! kept; that between peers means nothing.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use super::{Datagrams, Segmentation};

/// Kernels before 6.9 cut a buffer into at most so many datagrams (UDP_MAX_SEGMENTS).
pub(super) const MAX_SEGMENTS: usize = 64;
/// The largest IPv4 payload of a UDP datagram bounds the whole buffer, on IPv6 as well.
const MAX_BYTES: usize = 65_507;
/// So many messages are looked through for one to join. Of more destinations at a time, each datagram is its own.
const OPEN: usize = 32;
/// Elsewhere a message is one piece of memory.
const GATHERS: bool = cfg!(target_os = "linux");

/// Where datagrams go, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    pub destination: SocketAddr,
    pub source: Option<IpAddr>,
    pub ecn: u8,
}

/// What one buffer of the kernel's is made of: datagrams of one way and one size, of which the last may be shorter.
#[derive(Debug, Clone, Copy)]
struct Planned {
    way: Way,
    size: usize,
    bytes: usize,
    count: usize,
    /// The last datagram, and whether there can be another one after it.
    last: usize,
    is_open: bool,
    /// Its place in the order.
    start: usize,
}

/// Reused from batch to batch, so that a steady flow allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    messages: Vec<Planned>,
    /// The message of each datagram; `None`: it is not for this socket.
    assigned: Vec<Option<usize>>,
    /// Where each datagram begins.
    offsets: Vec<usize>,
    /// The datagrams, message by message.
    order: Vec<usize>,
}

impl Plan {
    pub(super) fn make(
        &mut self,
        datagrams: Datagrams<'_>,
        is_ours: impl Fn(&SocketAddr) -> bool,
        segmentation: &Segmentation,
    ) {
        self.messages.clear();
        self.assigned.clear();
        self.offsets.clear();
        let mut offset = 0;
        for (index, (way, length)) in datagrams.ways().enumerate() {
            self.offsets.push(offset);
            offset += length;
            let message =
                is_ours(&way.destination).then(|| self.place(index, way, length, segmentation));
            self.assigned.push(message);
        }
        let mut start = 0;
        for message in &mut self.messages {
            message.start = start;
            start += message.count;
        }
        self.order.clear();
        self.order.resize(start, 0);
        // The next free place of each message, while they are filled.
        for (index, message) in self.assigned.iter().enumerate() {
            let Some(message) = message.and_then(|message| self.messages.get_mut(message)) else {
                continue;
            };
            if let Some(place) = self.order.get_mut(message.start) {
                *place = index;
            }
            message.start += 1;
        }
        for message in &mut self.messages {
            message.start -= message.count;
        }
    }

    /// The message that a datagram joins or begins.
    fn place(
        &mut self,
        index: usize,
        way: Way,
        length: usize,
        segmentation: &Segmentation,
    ) -> usize {
        // The newest to this destination is the only one that keeps the order of what goes there.
        let newest = self
            .messages
            .iter_mut()
            .enumerate()
            .rev()
            .take(OPEN)
            .find(|(_, message)| message.way.destination == way.destination);
        if let Some((place, message)) = newest
            && message.is_open
            && message.way == way
            && (GATHERS || message.last + 1 == index)
            && length > 0
            && length <= message.size
            && message.bytes + length <= MAX_BYTES
        {
            message.count += 1;
            message.bytes += length;
            message.last = index;
            message.is_open = length == message.size && message.count < MAX_SEGMENTS;
            return place;
        }
        self.messages.push(Planned {
            way,
            size: length,
            bytes: length,
            count: 1,
            last: index,
            is_open: length > 0 && segmentation.allows(length),
            start: 0,
        });
        self.messages.len() - 1
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// One of the messages, with the bytes that it was planned for.
    pub(super) fn message<'a>(
        &'a self,
        index: usize,
        datagrams: Datagrams<'a>,
    ) -> Option<Message<'a>> {
        let planned = self.messages.get(index)?;
        Some(Message {
            way: planned.way,
            size: planned.size,
            bytes: planned.bytes,
            content: Content::Many {
                order: self
                    .order
                    .get(planned.start..planned.start + planned.count)
                    .unwrap_or_default(),
                offsets: &self.offsets,
                datagrams,
            },
        })
    }
}

/// What the kernel is to send with one call, or as one of several.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub way: Way,
    size: usize,
    bytes: usize,
    content: Content<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Content<'a> {
    One(&'a [u8]),
    Many {
        order: &'a [usize],
        offsets: &'a [usize],
        datagrams: Datagrams<'a>,
    },
}

impl<'a> Message<'a> {
    pub(super) fn of_one(way: Way, datagram: &'a [u8]) -> Self {
        Self {
            way,
            size: datagram.len(),
            bytes: datagram.len(),
            content: Content::One(datagram),
        }
    }

    pub(super) fn without_source(self) -> Self {
        let way = Way {
            source: None,
            ..self.way
        };
        Self { way, ..self }
    }

    /// How many datagrams it is cut into.
    pub(super) fn count(&self) -> usize {
        match self.content {
            Content::One(_) => 1,
            Content::Many { order, .. } => order.len(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The size of each but the last, if there are several.
    pub(super) fn segment_size(&self) -> Option<usize> {
        (self.count() > 1).then_some(self.size)
    }

    /// The datagrams, in order.
    pub(super) fn datagrams(self) -> impl Iterator<Item = &'a [u8]> {
        self.ranges()
            .map(move |range| self.memory().get(range).unwrap_or_default())
    }

    /// The same, with those that lie back to back in one piece.
    pub(super) fn parts(self) -> impl Iterator<Item = &'a [u8]> {
        let mut ranges = self.ranges().peekable();
        std::iter::from_fn(move || {
            let mut part = ranges.next()?;
            while let Some(next) = ranges.next_if(|next| next.start == part.end) {
                part.end = next.end;
            }
            self.memory().get(part)
        })
    }

    fn memory(&self) -> &'a [u8] {
        match self.content {
            Content::One(datagram) => datagram,
            Content::Many { datagrams, .. } => datagrams.bytes,
        }
    }

    /// Where the datagrams are in it.
    fn ranges(self) -> impl Iterator<Item = Range<usize>> {
        let (one, order, offsets, lengths) = match self.content {
            Content::One(datagram) => (
                Some(0..datagram.len()),
                [].as_slice(),
                [].as_slice(),
                [].as_slice(),
            ),
            Content::Many {
                order,
                offsets,
                datagrams,
            } => (None, order, offsets, datagrams.lengths),
        };
        one.into_iter().chain(order.iter().map(move |&index| {
            let start = offsets.get(index).copied().unwrap_or_default();
            let length = lengths.get(index).copied().unwrap_or_default();
            start..start + length
        }))
    }
}
