//! From packets that are to be written to superpackets that stand for them.

use super::bytes::{put, short};
use super::checksum::{complement, fold, sum};
use super::header::{GsoKind, GsoKinds, VnetHeader};
use super::runs::{Flow, Part, addresses};
use crate::Packets;

/// So many packets are looked at together. It bounds the memory for it, whatever the packets are.
pub const WINDOW: usize = 512;
/// Runs that may grow at the same time. Where more flows are interleaved, some of them find their place taken.
const SLOTS: usize = 64;
/// IP header and TCP header at their longest.
const MAX_HEADERS: usize = 40 + 60;
/// The largest packet that an IP header has numbers for.
const MAX_BYTES: usize = 65_535;
/// A superpacket stands for so many packets at most. Kernels before 6.9 cut UDP into no more (UDP_MAX_SEGMENTS).
pub const MAX_PACKETS: usize = 64;

const NONE: u16 = u16::MAX;
/// It is part of the run of another packet.
const INSIDE: u16 = u16::MAX - 1;

/// Finds runs among packets. It keeps the order of the packets of a flow, and of all packets between the same two addresses
/// of which one is not plain TCP or UDP; that of others may change.
///
/// Its memory stays and is bounded by [`WINDOW`].
#[derive(Debug)]
pub struct Coalescer {
    items: Vec<Item>,
    runs: Vec<Run>,
    /// Runs that may still grow, by the hash of their flow.
    slots: [u16; SLOTS],
}

#[derive(Debug, Clone, Copy)]
struct Item {
    start: usize,
    length: usize,
    /// The next one in the same run.
    next: u16,
    /// The run that begins here, or `INSIDE`, or `NONE`.
    run: u16,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    flow: Flow,
    head: u16,
    last: u16,
    packets: u16,
    headers: usize,
    /// Of each but the last one.
    segment_size: usize,
    payload: usize,
    /// Whether the checksums of the first one were looked at, which is of use only where there is a second one.
    is_verified: bool,
    is_pushed: bool,
}

/// What one system call is to write.
#[derive(Debug)]
pub enum Write<'a> {
    Packet(&'a [u8]),
    Superpacket(Superpacket<'a>),
}

/// Several packets in one.
#[derive(Debug)]
pub struct Superpacket<'a> {
    pub kind: GsoKind,
    pub header: VnetHeader,
    headers: [u8; MAX_HEADERS],
    headers_length: usize,
    first: u16,
    items: &'a [Item],
    bytes: &'a [u8],
}

impl Default for Coalescer {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            runs: Vec::new(),
            slots: [NONE; SLOTS],
        }
    }
}

impl Coalescer {
    /// Looks at the first [`WINDOW`] packets, or as many as there are. Runs are made of these kinds.
    pub fn plan(&mut self, packets: Packets<'_>, kinds: GsoKinds) {
        self.items.clear();
        self.runs.clear();
        self.slots = [NONE; SLOTS];
        let mut start = 0;
        for &length in packets.lengths.iter().take(WINDOW) {
            self.items.push(Item {
                start,
                length,
                next: NONE,
                run: NONE,
            });
            start += length;
        }
        if self.items.len() < 2 {
            return;
        }
        for (index, packet) in (0..).zip(packets.iter().take(WINDOW)) {
            // `None` would mean that the packet ends before what was found in it.
            let _ = self.place(index, packet, packets.bytes, kinds);
        }
    }

    /// What was planned for these packets, in order.
    pub fn writes<'a>(&'a self, packets: Packets<'a>) -> impl Iterator<Item = Write<'a>> {
        let all = self.items.iter().filter(|item| item.run != INSIDE);
        all.filter_map(move |item| {
            let run = self.runs.get(usize::from(item.run));
            if let Some(run) = run.filter(|run| run.packets > 1)
                && let Some(superpacket) = run.superpacket(&self.items, packets.bytes)
            {
                return Some(Write::Superpacket(superpacket));
            }
            Some(Write::Packet(item.of(packets.bytes)?))
        })
    }

    fn place(&mut self, index: u16, packet: &[u8], bytes: &[u8], kinds: GsoKinds) -> Option<()> {
        let Some(flow) = Flow::of(packet) else {
            self.close_between(packet, bytes);
            return None;
        };
        let part = flow.part(packet);
        let place = usize::try_from(flow.hash >> 58).ok()?;
        let slot = self.slots.get_mut(place)?;
        if let Some(run) = self.runs.get_mut(usize::from(*slot)) {
            let head = self.items.get(usize::from(run.head))?.of(bytes)?;
            if flow.is_same(run.flow, head, packet) {
                if let Some(part) = part
                    && run.takes(part, head, packet)
                {
                    let last = self.items.get_mut(usize::from(run.last))?;
                    last.next = index;
                    self.items.get_mut(usize::from(index))?.run = INSIDE;
                    run.grow(part, index);
                    if part.is_last || part.payload < run.segment_size {
                        *slot = NONE;
                    }
                    return Some(());
                }
                // What comes after this packet stays after it.
                *slot = NONE;
            }
        }
        let part = part.filter(|part| !part.is_last && kinds.contains(flow.kind))?;
        *slot = u16::try_from(self.runs.len()).ok()?;
        self.items.get_mut(usize::from(index))?.run = *slot;
        self.runs.push(Run {
            flow,
            head: index,
            last: index,
            packets: 1,
            headers: part.headers,
            segment_size: part.payload,
            payload: part.payload,
            is_verified: false,
            is_pushed: false,
        });
        Some(())
    }

    /// Ends the runs between the addresses of a packet that may be of any of their flows: a fragment, for example.
    #[cold]
    fn close_between(&mut self, packet: &[u8], bytes: &[u8]) {
        let is_ipv4 = match packet.first().map(|first| first >> 4) {
            Some(4) => true,
            Some(6) => false,
            _ => return,
        };
        let ends = addresses(packet, is_ipv4);
        for slot in &mut self.slots {
            let Some(run) = self.runs.get(usize::from(*slot)) else {
                continue;
            };
            let head = self.items.get(usize::from(run.head));
            let other = head.and_then(|head| run.flow.addresses(head.of(bytes)?));
            if run.flow.is_ipv4 == is_ipv4 && other == ends {
                *slot = NONE;
            }
        }
    }
}

impl Item {
    fn of<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        bytes.get(self.start..)?.get(..self.length)
    }
}

impl Run {
    /// Whether the packet goes on where the run ends.
    fn takes(&mut self, part: Part, head: &[u8], packet: &[u8]) -> bool {
        if usize::from(self.packets) >= MAX_PACKETS
            || part.headers != self.headers
            || part.payload > self.segment_size
            || self.headers + self.payload + part.payload > MAX_BYTES
        {
            return false;
        }
        let offset = u32::try_from(self.payload).unwrap_or(u32::MAX);
        let follows = self
            .flow
            .follows(head, packet, self.headers, self.packets, offset);
        if follows != Some(true) {
            return false;
        }
        if !self.is_verified {
            if self.flow.is_sound(head) != Some(true) {
                return false;
            }
            self.is_verified = true;
        }
        self.flow.is_sound(packet) == Some(true)
    }

    fn grow(&mut self, part: Part, index: u16) {
        self.last = index;
        self.packets += 1;
        self.payload += part.payload;
        self.is_pushed = part.is_last;
    }

    /// The first packet's headers, changed to those of the whole.
    fn superpacket<'a>(&self, items: &'a [Item], bytes: &'a [u8]) -> Option<Superpacket<'a>> {
        let head = items.get(usize::from(self.head))?.of(bytes)?;
        let transport = self.flow.transport();
        let kind = self.flow.kind;
        let mut headers = [0; MAX_HEADERS];
        let ours = headers.get_mut(..self.headers)?;
        ours.copy_from_slice(head.get(..self.headers)?);
        let length = short(self.headers + self.payload)?;
        let covered = short(self.headers + self.payload - transport)?;
        let pseudo = fold(self.flow.pseudo_header(head, covered)?);
        let (ip, segment) = ours.split_at_mut_checked(transport)?;
        if self.flow.is_ipv4 {
            put(ip, 2, length.to_be_bytes())?;
            put(ip, 10, [0, 0])?;
            put(ip, 10, complement(sum(ip)))?;
        } else {
            put(ip, 4, covered.to_be_bytes())?;
        }
        if kind.is_tcp() {
            const PSH: u8 = 0x08;
            *segment.get_mut(13)? |= if self.is_pushed { PSH } else { 0 };
            put(segment, 16, pseudo)?;
        } else {
            put(segment, 4, covered.to_be_bytes())?;
            put(segment, 6, pseudo)?;
        }
        Some(Superpacket {
            kind,
            header: VnetHeader::superpacket(
                kind,
                short(self.headers)?,
                short(self.segment_size)?,
                short(transport)?,
            ),
            headers,
            headers_length: self.headers,
            first: self.head,
            items,
            bytes,
        })
    }
}

impl Superpacket<'_> {
    /// The headers of IP and of TCP or UDP.
    pub fn headers(&self) -> &[u8] {
        self.headers.get(..self.headers_length).unwrap_or_default()
    }

    /// What follows them, in pieces.
    pub fn payloads(&self) -> impl Iterator<Item = &[u8]> {
        self.packets()
            .map(|packet| packet.get(self.headers_length..).unwrap_or_default())
    }

    /// The packets that it stands for.
    pub fn packets(&self) -> impl Iterator<Item = &[u8]> {
        let mut next = self.items.get(usize::from(self.first));
        std::iter::from_fn(move || {
            let item = next?;
            next = self.items.get(usize::from(item.next));
            item.of(self.bytes)
        })
    }
}
