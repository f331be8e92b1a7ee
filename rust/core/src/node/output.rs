//! What a node's calls bring about, until somebody drains it.

use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;

use connlib_boringtun::noise::{Event, Output, Packets};

use super::path::Path;
use crate::policy::Refusal;

/// What happened to a peer.
///
/// Of those that whoever is at the other end can bring about with every datagram, there is one a second of each peer at most:
/// the first one at once, and then the latest state of things with the first call that concerns the peer a second or more
/// after the last event of its kind. There is no deadline for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    /// To its tunnel.
    Tunnel(Event),
    /// It is somewhere else than was last told or configured: what is authentic came from there.
    Roamed {
        from: Option<SocketAddr>,
        to: SocketAddr,
    },
    /// Its policy refused packets.
    Denied(Refusal),
}

impl From<Event> for NodeEvent {
    fn from(event: Event) -> Self {
        NodeEvent::Tunnel(event)
    }
}

/// Calls into a node append to this. Its buffers keep their memory, so that a steady flow allocates nothing.
///
/// Nothing in here bounds its growth: whoever calls the node drains it after each batch, and a batch of n packets adds at
/// most n packets, n datagrams, and what was queued in the tunnels.
///
/// `datagrams`, for UDP, their `ecn`, and `packets`, for the TUN device, are those of an [`Output`], to which the tunnels
/// append directly: nothing is copied or moved on the way. Here, there are as many of `ecn` as of datagrams.
#[derive(Debug, Default)]
pub struct NodeOutput {
    pub(crate) tunnels: Output,
    /// Where each of `datagrams` goes.
    pub destinations: Vec<SocketAddr>,
    /// From which address of ours each of `datagrams` is to come; `None` leaves it to the system.
    pub sources: Vec<Option<IpAddr>>,
    /// What happened, with the peer's public key, in order.
    pub events: Vec<([u8; 32], NodeEvent)>,
}

/// Bytes and packets of the two buffers, and events, at one moment.
pub(crate) struct Mark {
    datagrams: (usize, usize),
    packets: (usize, usize),
    events: usize,
}

impl Deref for NodeOutput {
    type Target = Output;

    fn deref(&self) -> &Output {
        &self.tunnels
    }
}

impl NodeOutput {
    /// Each datagram with its destination.
    pub fn transmits(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        self.destinations.iter().copied().zip(self.datagrams.iter())
    }

    /// The same without the first `before`, and without going through them.
    pub(crate) fn transmits_from(
        &self,
        before: usize,
    ) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        let Packets { bytes, lengths } = &self.datagrams;
        let lengths = lengths.get(before..).unwrap_or_default();
        let start = bytes.len().saturating_sub(lengths.iter().sum());
        let mut rest = bytes.get(start..).unwrap_or_default();
        let datagrams = lengths.iter().map_while(move |length| {
            let (datagram, after) = rest.split_at_checked(*length)?;
            rest = after;
            Some(datagram)
        });
        let destinations = self.destinations.get(before..).unwrap_or_default();
        destinations.iter().copied().zip(datagrams)
    }

    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty() && self.packets.is_empty() && self.events.is_empty()
    }

    pub fn clear(&mut self) {
        self.drain_datagrams(usize::MAX);
        self.drain_packets(usize::MAX);
        self.events.clear();
    }

    /// Takes the datagrams and packets of another one, but not its events.
    pub(crate) fn append(&mut self, other: &mut NodeOutput) {
        self.destinations.append(&mut other.destinations);
        self.sources.append(&mut other.sources);
        let (to, from) = (&mut self.tunnels, &mut other.tunnels);
        to.ecn.append(&mut from.ecn);
        for (to, from) in [
            (&mut to.datagrams, &mut from.datagrams),
            (&mut to.packets, &mut from.packets),
        ] {
            to.bytes.append(&mut from.bytes);
            to.lengths.append(&mut from.lengths);
        }
    }

    /// Takes the first `count` datagrams out, or as many as there are.
    pub fn drain_datagrams(&mut self, count: usize) {
        drain(&mut self.tunnels.datagrams, count);
        let count = count.min(self.destinations.len());
        self.tunnels.ecn.drain(..count.min(self.tunnels.ecn.len()));
        self.destinations.drain(..count);
        self.sources.drain(..count);
    }

    /// Takes the first `count` packets out, or as many as there are.
    pub fn drain_packets(&mut self, count: usize) {
        drain(&mut self.tunnels.packets, count);
    }

    pub(crate) fn push_datagram(&mut self, path: Path, datagram: &[u8]) {
        self.tunnels.datagrams.push(datagram);
        self.address(Some(path));
    }

    pub(crate) fn push_packet(&mut self, packet: &[u8]) {
        self.tunnels.packets.push(packet);
    }

    pub(crate) fn take_back_last_packet(&mut self) {
        let rest = self.packets.len().saturating_sub(1);
        self.tunnels.packets.truncate(rest);
    }

    pub(crate) fn last_packet_mut(&mut self) -> Option<&mut [u8]> {
        let Packets { bytes, lengths } = &mut self.tunnels.packets;
        let start = bytes.len().checked_sub(*lengths.last()?)?;
        bytes.get_mut(start..)
    }

    pub(crate) fn last_packet(&self) -> Option<&[u8]> {
        let Packets { bytes, lengths } = &self.packets;
        bytes.get(bytes.len().checked_sub(*lengths.last()?)?..)
    }

    /// How much of the tunnels' output there is: what a call that fails has to leave.
    #[inline]
    pub(crate) fn mark(&self) -> Mark {
        let Output {
            datagrams,
            packets,
            events,
            ..
        } = &self.tunnels;
        Mark {
            datagrams: (datagrams.bytes.len(), datagrams.lengths.len()),
            packets: (packets.bytes.len(), packets.lengths.len()),
            events: events.len(),
        }
    }

    /// Takes back what came after the mark, whole or not.
    pub(crate) fn roll_back(&mut self, mark: Mark) {
        let Output {
            datagrams,
            packets,
            events,
            ecn,
            ..
        } = &mut self.tunnels;
        ecn.truncate(mark.datagrams.1);
        for (buffer, (bytes, lengths)) in [(datagrams, mark.datagrams), (packets, mark.packets)] {
            buffer.bytes.truncate(bytes);
            buffer.lengths.truncate(lengths);
        }
        events.truncate(mark.events);
        self.tunnels.forget_taken_back();
    }

    /// Sends the datagrams that have no destination yet this way; without one they are taken back. Returns how many
    /// were.
    pub(crate) fn address(&mut self, path: Option<Path>) -> usize {
        let addressed = self.destinations.len();
        match path {
            Some(Path { remote, source }) => {
                self.destinations.resize(self.datagrams.len(), remote);
                self.sources.resize(self.datagrams.len(), source);
                self.tunnels.ecn.resize(self.datagrams.len(), 0);
                0
            }
            None => {
                let lost = self.datagrams.len().saturating_sub(addressed);
                self.tunnels.datagrams.truncate(addressed);
                self.tunnels.ecn.truncate(addressed);
                self.tunnels.forget_taken_back();
                lost
            }
        }
    }
}

fn drain(packets: &mut Packets, count: usize) {
    let count = count.min(packets.lengths.len());
    let bytes: usize = packets.lengths.drain(..count).sum();
    packets.bytes.drain(..bytes.min(packets.bytes.len()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output() -> NodeOutput {
        let mut output = NodeOutput::default();
        for port in 1..=3u16 {
            let datagram = vec![port as u8; port.into()];
            let to = SocketAddr::from(([127, 0, 0, 1], port));
            output.push_datagram(to.into(), &datagram);
            output.tunnels.packets.push(&datagram);
        }
        output
    }

    #[test]
    fn draining_takes_from_the_front_and_keeps_the_rest_in_order() {
        let mut output = output();
        output.drain_datagrams(2);
        let rest: Vec<_> = output.transmits().collect();
        assert_eq!(rest, [(([127, 0, 0, 1], 3).into(), [3, 3, 3].as_slice())]);
        assert_eq!(output.packets.len(), 3, "packets are drained on their own");
        output.drain_packets(1);
        assert_eq!(
            output.packets.iter().collect::<Vec<_>>(),
            [[2, 2].as_slice(), &[3, 3, 3]]
        );
    }

    #[test]
    fn draining_more_than_there_is_empties_it_and_keeps_the_memory() {
        let mut output = output();
        let capacity = output.datagrams.bytes.capacity();
        output.clear();
        assert!(output.is_empty());
        assert!(output.destinations.is_empty() && output.sources.is_empty());
        assert_eq!(output.datagrams.bytes.capacity(), capacity);
    }

    #[test]
    fn datagrams_without_a_destination_are_taken_back() {
        let mut output = output();
        output.tunnels.datagrams.push(&[9]);
        output.tunnels.datagrams.push(&[9, 9]);
        assert_eq!(output.address(None), 2);
        assert_eq!(output.transmits().count(), 3);
        output.tunnels.datagrams.push(&[9]);
        let to = SocketAddr::from(([127, 0, 0, 1], 9));
        assert_eq!(output.address(Some(to.into())), 0);
        assert_eq!(output.sources, [None; 4]);
        assert_eq!(output.transmits().last(), Some((to, [9].as_slice())));
    }
}
