//! Writing, of packets and of superpackets, and what to do when the device refuses.

use std::io::{self, IoSlice};

use super::{DeviceState, Status};
use crate::offload::{
    Coalescer, GsoKind, GsoKinds, MAX_PACKETS, Offloads, Superpacket, VnetHeader, WINDOW, Write,
};
use crate::{Packets, Queue};

/// What a device did not take at once is kept up to these bounds.
const BACKLOG_PACKETS: usize = 1_024;
const BACKLOG_BYTES: usize = 2 << 20;
/// After so many packets it is worth trying again what was refused: what is behind the device changes.
const RETRY_AFTER: usize = 10_000;
/// The header before a packet, the headers of the packet, and the payloads of those that a superpacket stands for.
const MAX_PARTS: usize = 2 + MAX_PACKETS;
/// The longest header before a packet that is written: `struct virtio_net_hdr` and what others have made of it.
pub(super) const MAX_HEADER: usize = 32;

/// The system call: it writes these parts as one packet.
type Call<'a> = dyn FnMut(&[IoSlice<'_>]) -> io::Result<usize> + 'a;

/// How packets are to be written now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Framing {
    /// 0: there is no header before a packet, and there are no offloads.
    pub header_length: usize,
    pub offloads: Offloads,
}

#[derive(Debug)]
pub(super) struct Writer {
    backlog: Queue<()>,
    coalescer: Coalescer,
    refused: Refused,
}

/// For each kind of superpacket that the device has refused, how many packets are to be written before it is tried again.
#[derive(Debug, Clone, Copy, Default)]
struct Refused {
    tcp4: usize,
    tcp6: usize,
    udp: usize,
}

impl Default for Writer {
    fn default() -> Self {
        Self {
            backlog: Queue::new(BACKLOG_PACKETS, BACKLOG_BYTES),
            coalescer: Coalescer::default(),
            refused: Refused::default(),
        }
    }
}

impl Writer {
    pub(super) fn backlog(&self) -> &Queue<()> {
        &self.backlog
    }

    /// How many the device took, of what waited and of `packets`.
    pub(super) fn write(
        &mut self,
        packets: Packets<'_>,
        framing: Framing,
        status: &mut Status,
        call: &mut Call<'_>,
    ) -> usize {
        let before = status.counts.packets_written;
        let mut out = Out {
            backlog: &mut self.backlog,
            header_length: framing.header_length,
            status,
            call,
        };
        out.write_backlog();
        self.refused.tick(packets.lengths.len());
        let mut rest = packets;
        while !rest.lengths.is_empty() {
            let kinds = framing.kinds().without(self.refused);
            if kinds == GsoKinds::NONE {
                rest.iter().for_each(|packet| out.offer(packet));
                break;
            }
            let (window, others) = rest.split_at(WINDOW);
            rest = others;
            self.coalescer.plan(window, kinds);
            for write in self.coalescer.writes(window) {
                match write {
                    Write::Packet(packet) => out.offer(packet),
                    Write::Superpacket(superpacket) => {
                        if !out.offer_superpacket(&superpacket) {
                            self.refused.add(superpacket.kind);
                        }
                    }
                }
            }
        }
        usize::try_from(out.status.counts.packets_written - before).unwrap_or(usize::MAX)
    }
}

impl Framing {
    fn kinds(self) -> GsoKinds {
        let tcp = self.offloads.contains(Offloads::COALESCE_TCP);
        GsoKinds {
            tcp4: tcp,
            tcp6: tcp,
            udp: self.offloads.contains(Offloads::COALESCE_UDP),
        }
    }
}

impl GsoKinds {
    fn without(self, refused: Refused) -> Self {
        Self {
            tcp4: self.tcp4 && refused.tcp4 == 0,
            tcp6: self.tcp6 && refused.tcp6 == 0,
            udp: self.udp && refused.udp == 0,
        }
    }
}

impl Refused {
    fn add(&mut self, kind: GsoKind) {
        let Self { tcp4, tcp6, udp } = self;
        *match kind {
            GsoKind::Tcp4 => tcp4,
            GsoKind::Tcp6 => tcp6,
            GsoKind::Udp => udp,
        } = RETRY_AFTER;
    }

    fn tick(&mut self, packets: usize) {
        for left in [&mut self.tcp4, &mut self.tcp6, &mut self.udp] {
            *left = left.saturating_sub(packets);
        }
    }
}

/// Where packets go during one call.
struct Out<'a, 'b> {
    backlog: &'a mut Queue<()>,
    header_length: usize,
    status: &'a mut Status,
    call: &'a mut Call<'b>,
}

impl Out<'_, '_> {
    fn write_backlog(&mut self) {
        while let Some(((), packet)) = self.backlog.pop() {
            if !self.write_packet(&packet) {
                self.backlog.unpop((), packet);
                return;
            }
        }
    }

    /// Writes a packet, or puts it behind what waits already.
    fn offer(&mut self, packet: &[u8]) {
        if !self.backlog.is_empty() || !self.write_packet(packet) {
            self.backlog.push((), packet);
        }
    }

    /// False: the device takes nothing for now, and the packet is still the caller's. Else it is written or dropped.
    fn write_packet(&mut self, packet: &[u8]) -> bool {
        if self.status.state.get() == DeviceState::Gone {
            return true;
        }
        let header = [0; MAX_HEADER];
        let header = header.get(..self.header_length).unwrap_or_default();
        let parts = [IoSlice::new(header), IoSlice::new(packet)];
        // Without a header, one part: what reads the other end of a pair of sockets gets the same, and it is cheaper.
        let parts = if header.is_empty() {
            &parts[1..]
        } else {
            &parts[..]
        };
        match self.call(parts) {
            Ok(length) => self.written(1, packet.len(), length),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => self.failed(&error, 1),
        }
        true
    }

    /// False: the device does not like superpackets of this kind, and its packets went one by one.
    fn offer_superpacket(&mut self, superpacket: &Superpacket<'_>) -> bool {
        if self.status.state.get() == DeviceState::Gone {
            return true;
        }
        if !self.backlog.is_empty() {
            self.postpone(superpacket);
            return true;
        }
        let mut header = [0; MAX_HEADER];
        self.put_header(&superpacket.header, &mut header);
        let header = header.get(..self.header_length).unwrap_or_default();
        let mut parts = [IoSlice::new(&[]); MAX_PARTS];
        let mut used = 0;
        let (mut count, mut length) = (0, 0);
        let all = [header, superpacket.headers()]
            .into_iter()
            .chain(superpacket.payloads());
        for (part, bytes) in parts.iter_mut().zip(all) {
            *part = IoSlice::new(bytes);
            used += 1;
        }
        for packet in superpacket.packets() {
            count += 1;
            length += packet.len();
        }
        let parts = parts.get(..used).unwrap_or_default();
        let expected: usize = parts.iter().map(|part| part.len()).sum();
        match self.call(parts) {
            Ok(taken) => {
                let lost = expected.saturating_sub(taken);
                self.written(count, length, self.header_length + length - lost);
                self.status.counts.superpackets_written += 1;
                self.status.counts.packets_merged += count;
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.postpone(superpacket);
                true
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                // Where one packet gets through, it was the superpacket. Where none does, it is the device.
                let before = self.status.counts.packets_written;
                superpacket.packets().for_each(|packet| self.offer(packet));
                let refused = self.status.counts.packets_written > before;
                self.status.counts.superpackets_refused += u64::from(refused);
                !refused
            }
            Err(error) => {
                self.failed(&error, count);
                true
            }
        }
    }

    fn put_header(&self, header: &VnetHeader, bytes: &mut [u8; MAX_HEADER]) {
        if let Some(place) = bytes.first_chunk_mut() {
            *place = header.to_bytes();
        }
    }

    fn postpone(&mut self, superpacket: &Superpacket<'_>) {
        for packet in superpacket.packets() {
            self.backlog.push((), packet);
        }
    }

    fn call(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            match (self.call)(parts) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn written(&mut self, packets: u64, length: usize, taken: usize) {
        let counts = &mut self.status.counts;
        self.status.state.set(DeviceState::Up);
        counts.packets_written += packets;
        let taken = taken.saturating_sub(self.header_length);
        counts.bytes_written += taken as u64;
        counts.short_writes += u64::from(taken < length);
    }

    fn failed(&mut self, error: &io::Error, packets: u64) {
        self.status.failed(error, packets);
        if error.raw_os_error() == Some(libc::EIO) {
            self.status.state.set(DeviceState::Down);
        }
    }
}
