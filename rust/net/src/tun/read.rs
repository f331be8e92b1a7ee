//! Reading, of packets and of superpackets.

use std::fs::File;
use std::io::{self, Read};

use super::{DeviceState, MAX_PACKET, Status};
use crate::ReadBatch;
use crate::offload::{Cut, Fault, MAX_SUPERPACKET, VnetHeader, cut};

/// A superpacket of so many packets is still cut to its end, whatever the budget is: as many as one of UDP has at most, and
/// more than 64 KiB are of TCP as a rule.
const WHOLE: usize = 128;

/// From devices that have no header before a packet.
pub(super) fn read_packets(
    mut file: &File,
    status: &mut Status,
    budget: usize,
    batch: &mut ReadBatch,
) {
    batch.lengths.clear();
    let mut used = 0;
    while batch.lengths.len() < budget && status.state.get() != DeviceState::Gone {
        // Grows to what one batch needs and stays there: clearing 64 KiB anew for each packet would cost more
        // than reading it.
        if batch.bytes.len() < used + MAX_PACKET {
            batch.bytes.resize(used + MAX_PACKET, 0);
        }
        let Some(room) = batch.bytes.get_mut(used..) else {
            break;
        };
        match read_once(|| file.read(room), status) {
            Some(length) => {
                batch.lengths.push(length);
                used += length;
            }
            None => break,
        }
    }
}

/// From devices that have one.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Header and packet, as they were read last.
    buffer: Vec<u8>,
    /// What is still to be cut from it.
    rest: Option<(Cut, usize)>,
}

impl Reader {
    pub(super) fn has_rest(&self) -> bool {
        self.rest.is_some()
    }

    pub(super) fn read(
        &mut self,
        mut file: &File,
        status: &mut Status,
        header_length: usize,
        budget: usize,
        batch: &mut ReadBatch,
    ) {
        batch.clear();
        self.buffer.resize(header_length + MAX_SUPERPACKET, 0);
        // Those that made no sense have taken their time, too.
        let mut faults = 0;
        loop {
            self.cut_rest(header_length, budget, batch, status);
            if batch.len() + faults >= budget || status.state.get() == DeviceState::Gone {
                return;
            }
            let buffer = &mut self.buffer;
            let Some(length) = read_once(|| file.read(buffer), status) else {
                return;
            };
            match examine(buffer, header_length, length) {
                Ok(cut) => {
                    status.counts.superpackets_read += u64::from(cut.is_superpacket());
                    self.rest = Some((cut, length));
                }
                Err(fault) => {
                    status.counts.faults.add(fault);
                    faults += 1;
                }
            }
        }
    }

    fn cut_rest(
        &mut self,
        header_length: usize,
        budget: usize,
        batch: &mut ReadBatch,
        status: &mut Status,
    ) {
        let Some((cut, length)) = &mut self.rest else {
            return;
        };
        let before = batch.len();
        let packet = self.buffer.get(header_length..*length).unwrap_or_default();
        let limit = budget.saturating_add(WHOLE);
        while batch.len() < limit && cut.next(packet, batch) {}
        if cut.is_superpacket() {
            status.counts.packets_cut += (batch.len() - before) as u64;
        }
        if cut.remaining() == 0 {
            self.rest = None;
        }
    }
}

fn examine(buffer: &mut [u8], header_length: usize, length: usize) -> Result<Cut, Fault> {
    let (header, packet) = buffer
        .get_mut(..length)
        .and_then(|read| read.split_at_mut_checked(header_length))
        .ok_or(Fault::Short)?;
    let header = VnetHeader::from_bytes(header.first_chunk().ok_or(Fault::Short)?);
    cut(&header, packet)
}

/// How many bytes there were. `None`: there are none for now, or there is an error, which was counted.
fn read_once(mut read: impl FnMut() -> io::Result<usize>, status: &mut Status) -> Option<usize> {
    loop {
        match read() {
            Ok(0) => {
                status.state.set(DeviceState::Gone);
                return None;
            }
            Ok(length) => return Some(length),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                status.failed(&error, 1);
                return None;
            }
        }
    }
}
