//! Packets, most of which go on where one before them ended, and what hostile people make of them.

use crate::reference::{checksum, transport_checksum};

/// Where choices come from.
pub trait Source {
    /// Less than `limit`.
    fn below(&mut self, limit: u32) -> u32;

    fn one_in(&mut self, count: u32) -> bool {
        self.below(count) == count - 1
    }
}

/// Marsaglia's xorshift: cheap, and the same for each run.
pub struct XorShift(pub u64);

impl Source for XorShift {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (((self.0 >> 32) * u64::from(limit)) >> 32) as u32
    }
}

/// Choices that somebody else wrote down, and zeros when they are over: what is shorter means less.
pub struct Script<'a>(pub &'a [u8]);

impl Source for Script<'_> {
    fn below(&mut self, limit: u32) -> u32 {
        let count = if limit > 256 { 2 } else { 1 };
        let mut value = 0;
        for _ in 0..count {
            let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
            value = value << 8 | u32::from(*first);
            self.0 = rest;
        }
        value % limit
    }
}

/// One direction of a connection, or of what looks like one.
#[derive(Clone)]
struct Stream {
    is_ipv4: bool,
    is_tcp: bool,
    /// The last byte of the source's address, and of its port.
    host: u8,
    port: u8,
    size: usize,
    sequence: u32,
    identification: u16,
    acknowledged: u32,
    service: u8,
    may_be_fragmented: bool,
    timestamp: Option<u32>,
}

/// A few streams between few hosts.
pub struct Traffic {
    streams: Vec<Stream>,
}

impl Traffic {
    pub fn new(source: &mut impl Source) -> Self {
        let count = 1 + source.below(5);
        let streams = (0..count)
            .map(|number| Stream {
                is_ipv4: source.below(2) == 0,
                is_tcp: source.below(3) != 2,
                host: source.below(2) as u8,
                port: number as u8 % 4,
                size: [1, 7, 8, 64, 100, 536, 1380][source.below(7) as usize],
                // Near the end of the numbers, where they begin again.
                sequence: source.below(3000).wrapping_sub(1500),
                identification: (source.below(40) as u16).wrapping_sub(20),
                acknowledged: source.below(1000),
                service: source.below(4) as u8,
                may_be_fragmented: source.one_in(3),
                timestamp: (source.below(2) == 0).then(|| source.below(1000)),
            })
            .collect();
        Self { streams }
    }

    /// The next packet of one of the streams, or of none of them.
    pub fn next(&mut self, source: &mut impl Source) -> Vec<u8> {
        if source.one_in(200) {
            return (0..source.below(80))
                .map(|_| source.below(256) as u8)
                .collect();
        }
        // Mostly of the first one, so that there are runs.
        let limit = if source.below(4) < 3 {
            1
        } else {
            self.streams.len()
        };
        let which = source.below(limit as u32) as usize;
        let stream = &mut self.streams[which];
        if source.one_in(60) {
            let limit = if source.one_in(8) { 9000 } else { 600 };
            stream.size = 1 + source.below(limit) as usize;
        }
        let mut size = stream.size;
        if source.one_in(12) {
            size = source.below(1 + size as u32) as usize;
        }
        let mut packet = stream.packet(size, source);
        if source.one_in(10) {
            spoil(&mut packet, stream, source);
        }
        packet
    }
}

impl Stream {
    fn transport(&self) -> usize {
        if self.is_ipv4 { 20 } else { 40 }
    }

    fn packet(&mut self, size: usize, source: &mut impl Source) -> Vec<u8> {
        let mut segment = vec![0, self.port, 1, 1];
        if self.is_tcp {
            segment.extend(self.sequence.to_be_bytes());
            segment.extend(self.acknowledged.to_be_bytes());
            let flags = if source.one_in(16) { 0x18 } else { 0x10 };
            let header = if self.timestamp.is_some() { 0x80 } else { 0x50 };
            segment.extend([header, flags, 4, 0, 0, 0, 0, 0]);
            if let Some(timestamp) = self.timestamp {
                segment.extend([1, 1, 8, 10]);
                segment.extend(timestamp.to_be_bytes());
                segment.extend([0; 4]);
            }
            self.sequence = self.sequence.wrapping_add(size as u32);
        } else {
            segment.extend((size as u16 + 8).to_be_bytes());
            segment.extend([0, 0]);
        }
        let salt = source.below(256) as u8;
        segment.extend((0..size).map(|at| (at as u8).wrapping_mul(31) ^ salt));
        let mut packet;
        if self.is_ipv4 {
            packet = vec![0x45, self.service, 0, 0];
            packet.extend(self.identification.to_be_bytes());
            let fragmentation = if self.may_be_fragmented { 0 } else { 0x40 };
            packet.extend([fragmentation, 0, 64, if self.is_tcp { 6 } else { 17 }, 0, 0]);
            packet.extend([10, 0, 0, self.host, 10, 0, 0, 9]);
            self.identification = self.identification.wrapping_add(1);
        } else {
            packet = vec![0x60 | self.service >> 4, self.service << 4, 0, 0, 0, 0];
            packet.extend([if self.is_tcp { 6 } else { 17 }, 64]);
            packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, self.host]);
            packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        }
        packet.extend(segment);
        complete(&mut packet, self.is_ipv4, self.is_tcp);
        packet
    }
}

/// Sets lengths and checksums of a packet with a bare IP header.
pub fn complete(packet: &mut [u8], is_ipv4: bool, is_tcp: bool) {
    let length = packet.len();
    if is_ipv4 {
        packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        packet[10..12].copy_from_slice(&[0, 0]);
        let sum = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[4..6].copy_from_slice(&(length as u16 - 40).to_be_bytes());
    }
    let transport = if is_ipv4 { 20 } else { 40 };
    let at = transport + if is_tcp { 16 } else { 6 };
    packet[at..at + 2].copy_from_slice(&[0, 0]);
    let addresses = if is_ipv4 { 12..20 } else { 8..40 };
    let protocol = if is_tcp { 6 } else { 17 };
    let sum = match transport_checksum(&packet[addresses], protocol, &packet[transport..]) {
        0 => 0xffff,
        sum => sum,
    };
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Changes something that may stand in the way of a merge.
fn spoil(packet: &mut Vec<u8>, stream: &mut Stream, source: &mut impl Source) {
    let transport = stream.transport();
    let mut completes = true;
    match source.below(18) {
        // Lost, repeated, or out of order.
        0 => stream.sequence = stream.sequence.wrapping_add(source.below(3)),
        1 => stream.sequence = stream.sequence.wrapping_sub(source.below(3000)),
        2 => stream.identification = stream.identification.wrapping_add(source.below(3) as u16),
        // Congestion, or another class; another time to live.
        3 => packet[1] ^= source.below(256) as u8,
        4 => stream.service ^= source.below(4) as u8,
        5 => packet[if stream.is_ipv4 { 8 } else { 7 }] ^= 1,
        // Flags, header length, acknowledgement, window, urgent pointer, options.
        6 if stream.is_tcp => packet[transport + 13] = source.below(256) as u8,
        7 if stream.is_tcp => packet[transport + 12] ^= source.below(256) as u8,
        8 => stream.acknowledged += 1,
        9 if stream.is_tcp => packet[transport + 14 + source.below(6) as usize] ^= 1,
        9 => packet[transport + 5] ^= 1,
        10 => stream.timestamp = stream.timestamp.map(|timestamp| timestamp + 1),
        // A fragment, or one that may become one; something else between the headers.
        11 if stream.is_ipv4 => packet[6] = source.below(256) as u8,
        12 if stream.is_ipv4 => packet[7] = source.below(2) as u8,
        13 => {
            packet[if stream.is_ipv4 { 9 } else { 6 }] =
                [0, 1, 44, 50, 6, 17][source.below(6) as usize]
        }
        14 => packet[0] ^= source.below(256) as u8,
        // Bytes that are not what their checksum says.
        15 => {
            let place = source.below(packet.len() as u32) as usize;
            packet[place] ^= 1 << source.below(8);
            completes = false;
        }
        16 => {
            let at = transport + if stream.is_tcp { 16 } else { 6 };
            packet[at..at + 2].fill([0, 0xff][source.below(2) as usize]);
            completes = false;
        }
        _ => {
            let length = source.below(packet.len() as u32) as usize;
            packet.truncate(length);
            completes = false;
        }
    }
    if completes {
        complete(packet, stream.is_ipv4, stream.is_tcp);
    }
}
