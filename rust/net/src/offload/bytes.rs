//! Numbers in network byte order within a packet. `None`: the packet ends before.

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let (field, _) = bytes.get(at..)?.split_first_chunk()?;
    Some(u16::from_be_bytes(*field))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let (field, _) = bytes.get(at..)?.split_first_chunk()?;
    Some(u32::from_be_bytes(*field))
}

pub(super) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) -> Option<()> {
    let (field, _) = bytes.get_mut(at..)?.split_first_chunk_mut()?;
    *field = value;
    Some(())
}

/// The length of something that is known to be no longer than a packet.
pub(super) fn short(length: usize) -> Option<u16> {
    u16::try_from(length).ok()
}
