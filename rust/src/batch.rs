//! The main result of a batch, written straight into the bytes that Python gets.
//!
//! A copy of the result would cost a tenth of the whole call. So the bytes are made first, as long as the result is going to
//! be, and the engine seals and opens in them. Where the result turns out shorter or longer, it is copied after all.

use std::mem::MaybeUninit;
use std::ptr;

use connlib_core::{DropReason, Instant, Output, Packets, Tunn};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::key_material::is_handshake;

/// Header and tag of a data message (paper, section 5.4.6).
const HEADER: usize = 16;
const TAG: usize = 16;
const PADDING: usize = 16;

/// The length of a datagram that carries a packet: what `Tunn` pads it to. A mistake would cost a copy and nothing else.
pub fn sealed_len(packet_len: usize, mtu: usize) -> usize {
    let padded = packet_len.next_multiple_of(PADDING);
    HEADER + padded.min(mtu).max(packet_len) + TAG
}

/// The length of the packet in a datagram, if it is a data message without padding.
pub fn opened_len(datagram: &[u8]) -> usize {
    match datagram.first() {
        Some(4) => datagram.len().saturating_sub(HEADER + TAG),
        _ => 0,
    }
}

/// Bytes that nobody else can see yet.
pub struct Target<'py>(Bound<'py, PyBytes>);

/// Room to write to, from the front, and what was written.
pub struct Writer<'a> {
    room: &'a mut [MaybeUninit<u8>],
    used: usize,
    lengths: Vec<usize>,
    /// Everything, once there is not enough room.
    spill: Option<Packets>,
    has_handshake: bool,
}

/// What a `Writer` was left with.
pub struct Written {
    used: usize,
    lengths: Vec<usize>,
    spill: Option<Packets>,
    /// Whether a handshake message is among it.
    pub has_handshake: bool,
}

impl<'py> Target<'py> {
    pub fn new(py: Python<'py>, capacity: usize) -> PyResult<Self> {
        let length = ffi::Py_ssize_t::try_from(capacity)?;
        // SAFETY: a null pointer asks for bytes that the caller fills in. The result is a new reference to bytes, or null
        // with an exception set.
        let bytes = unsafe {
            Bound::from_owned_ptr_or_err(py, ffi::PyBytes_FromStringAndSize(ptr::null(), length))?
        };
        Ok(Target(bytes.cast_into()?))
    }

    /// How many bytes there are, without looking at them: they may not be filled in yet.
    fn len(&self) -> usize {
        // SAFETY: this is bytes, and we hold it.
        let length = unsafe { ffi::PyBytes_Size(self.0.as_ptr()) };
        usize::try_from(length).unwrap_or(0)
    }

    pub fn writer(&mut self) -> Writer<'_> {
        let length = self.len();
        let room = if length == 0 {
            // Python has one object for all empty bytes.
            &mut []
        } else {
            // SAFETY: these bytes were made by `new` for us alone: no reference to them has left this object, so that
            // writing to them is what Python's documentation allows. The pointer is the one that Python gives for it,
            // derived from no shared reference, and it stays good while `self` is borrowed. `MaybeUninit` does not care
            // what the bytes hold.
            unsafe {
                let start = ffi::PyBytes_AsString(self.0.as_ptr()).cast::<MaybeUninit<u8>>();
                std::slice::from_raw_parts_mut(start, length)
            }
        };
        Writer {
            room,
            used: 0,
            lengths: Vec::new(),
            spill: None,
            has_handshake: false,
        }
    }

    /// The bytes that were written, and their lengths.
    pub fn finish(self, written: Written) -> (Bound<'py, PyBytes>, Vec<usize>) {
        let py = self.0.py();
        if let Some(spill) = written.spill {
            return (PyBytes::new(py, &spill.bytes), spill.lengths);
        }
        if self.len() <= written.used {
            return (self.0, written.lengths);
        }
        // SAFETY: a writer fills its room from the front, and `used` of it was filled in, which is less than there is.
        let used = unsafe {
            let start = ffi::PyBytes_AsString(self.0.as_ptr()).cast::<u8>();
            std::slice::from_raw_parts(start, written.used)
        };
        (PyBytes::new(py, used), written.lengths)
    }
}

impl Writer<'_> {
    pub fn finish(self) -> Written {
        Written {
            used: self.used,
            lengths: self.lengths,
            spill: self.spill,
            has_handshake: self.has_handshake,
        }
    }

    /// Add an item that is somewhere else.
    fn append(&mut self, item: &[u8]) {
        self.has_handshake |= is_handshake(item);
        if self.spill.is_none() {
            if let Some(room) = self.room.get_mut(self.used..self.used + item.len()) {
                initialise(room, &[item]);
                self.added(item.len());
                return;
            }
            let mut spill = Packets::default();
            spill.bytes.extend_from_slice(self.written());
            spill.lengths = std::mem::take(&mut self.lengths);
            self.spill = Some(spill);
        }
        if let Some(spill) = &mut self.spill {
            spill.push(item);
        }
    }

    fn added(&mut self, length: usize) {
        self.used += length;
        self.lengths.push(length);
    }

    fn written(&self) -> &[u8] {
        let written = self.room.get(..self.used).unwrap_or_default();
        // SAFETY: `used` only grows by what `initialise` has filled in.
        unsafe { std::slice::from_raw_parts(written.as_ptr().cast(), written.len()) }
    }

    /// Seal a packet into the room, or say that it has to go another way.
    fn seal(
        &mut self,
        tunn: &mut Tunn,
        packet: &[u8],
        mtu: usize,
        now: Instant,
        output: &mut Output,
    ) -> bool {
        if self.spill.is_some() || packet.is_empty() {
            return false;
        }
        let length = sealed_len(packet.len(), mtu);
        let Some(room) = self.room.get_mut(self.used..self.used + length) else {
            return false;
        };
        let rest = length - HEADER - packet.len();
        let tail = [0; PADDING + TAG];
        let Some(tail) = tail.get(..rest) else {
            return false;
        };
        let room = initialise(room, &[&[0; HEADER], packet, tail]);
        match tunn.seal_in_place(room, packet.len(), now, output) {
            Ok(length) => {
                self.added(length);
                true
            }
            Err(_) => false,
        }
    }

    /// Open a data message in the room, with the packet where the one before ends, or say that it has to go another way.
    fn open(
        &mut self,
        tunn: &mut Tunn,
        datagram: &[u8],
        now: Instant,
        output: &mut Output,
    ) -> Option<Result<(), DropReason>> {
        if self.spill.is_some() || datagram.first() != Some(&4) {
            return None;
        }
        // The header lies on the end of the packet before, which is put back afterwards.
        let start = self.used.checked_sub(HEADER)?;
        let before: [u8; HEADER] = self.written().last_chunk().copied()?;
        let room = self.room.get_mut(start..start + datagram.len())?;
        let room = initialise(room, &[datagram]);
        let result = tunn.open_in_place(room, now, output).map(<[u8]>::len);
        initialise(self.room.get_mut(start..self.used)?, &[&before]);
        match result {
            Ok(0) => Some(Ok(())),
            Ok(length) => {
                self.added(length);
                Some(Ok(()))
            }
            Err(reason) => Some(Err(reason)),
        }
    }
}

/// Fill `room` with `parts`, which are exactly as long together.
fn initialise<'a>(room: &'a mut [MaybeUninit<u8>], parts: &[&[u8]]) -> &'a mut [u8] {
    let mut rest = &mut *room;
    for part in parts {
        let (front, back) = rest.split_at_mut(part.len());
        // SAFETY: both are `part.len()` bytes long, and a `&mut` overlaps nothing.
        unsafe { ptr::copy_nonoverlapping(part.as_ptr(), front.as_mut_ptr().cast(), part.len()) };
        rest = back;
    }
    assert!(rest.is_empty(), "parts of another length");
    // SAFETY: the parts covered all of it.
    unsafe { std::slice::from_raw_parts_mut(room.as_mut_ptr().cast(), room.len()) }
}

/// `Tunn::encapsulate` into a batch.
pub fn encapsulate(
    tunn: &mut Tunn,
    packet: &[u8],
    mtu: usize,
    now: Instant,
    writer: &mut Writer<'_>,
    output: &mut Output,
) -> Option<DropReason> {
    let error = if writer.seal(tunn, packet, mtu, now, output) {
        None
    } else {
        tunn.encapsulate(packet, now, output)
    };
    // An initiation, for example, or what went another way.
    for datagram in output.datagrams.iter() {
        writer.append(datagram);
    }
    output.datagrams.clear();
    output.ecn.clear();
    error
}

/// `Tunn::decapsulate` into a batch, but for handshakes.
pub fn decapsulate(
    tunn: &mut Tunn,
    datagram: &[u8],
    now: Instant,
    writer: &mut Writer<'_>,
    output: &mut Output,
    otherwise: impl FnOnce(&mut Tunn, &mut Output) -> Option<DropReason>,
) -> Option<DropReason> {
    let error = match writer.open(tunn, datagram, now, output) {
        Some(result) => result.err(),
        None => otherwise(tunn, output),
    };
    for packet in output.packets.iter() {
        writer.append(packet);
    }
    output.packets.clear();
    error
}
