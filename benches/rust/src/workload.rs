//! What every engine does here: a batch of equal packets out of one peer and into the other.

use crate::Failure;

/// Packets in a batch.
pub const BATCH: usize = 64;

/// Addresses inside the tunnel, of the peer that seals and the peer that opens.
pub const INNER: [[u8; 4]; 2] = [[10, 0, 0, 1], [10, 0, 0, 2]];

/// Two peers with a session between them.
pub trait Engine {
    /// Seal a batch.
    fn seal(&mut self) -> Result<(), Failure>;

    /// Open what was sealed last, and check that every packet came out.
    fn open(&mut self) -> Result<(), Failure>;
}

/// An IPv4 packet of `size` bytes from the peer that seals to the peer that opens.
pub fn packet(size: usize) -> Vec<u8> {
    let mut packet: Vec<u8> = (0..size).map(|n| n as u8).collect();
    let length = (size as u16).to_be_bytes();
    packet[..20].copy_from_slice(&[
        0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ]);
    packet[12..16].copy_from_slice(&INNER[0]);
    packet[16..20].copy_from_slice(&INNER[1]);
    packet
}

/// The number of packets that came through must be the batch's.
pub fn complete(count: usize) -> Result<(), Failure> {
    if count == BATCH {
        return Ok(());
    }
    Err(format!("{count} packets of {BATCH} came through").into())
}
