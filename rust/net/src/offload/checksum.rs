//! The Internet checksum (RFC 1071).
//!
//! Sums are kept in the byte order of the machine: swapping the bytes of each word swaps those of the sum, so that nothing
//! has to be swapped on the way (section 2B). They are unfolded, so that carries cost nothing on the way either.

/// The sum of the 16-bit words of `bytes`; of an odd number of bytes, the last is followed by a zero.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    // Eight lanes of 32 bits each, which the compiler makes vectors of. 64 KiB are far from what overflows them.
    let (chunks, rest) = bytes.as_chunks::<32>();
    let mut lanes = [0u64; 8];
    for chunk in chunks {
        let (words, _) = chunk.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let (words, rest) = rest.as_chunks::<2>();
    let mut sum: u64 = lanes.iter().sum();
    for word in words {
        sum += u64::from(u16::from_ne_bytes(*word));
    }
    if let Some(last) = rest.first() {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    sum
}

/// What TCP and UDP add to the sum of their own bytes (RFC 9293, section 3.1; RFC 8200, section 8.1): both addresses, which
/// stand one behind the other, the protocol and the length.
pub(super) fn pseudo_header(addresses: &[u8], protocol: u8, length: u16) -> u64 {
    let length = u16::from_ne_bytes(length.to_be_bytes());
    sum(addresses) + u64::from(u16::from_ne_bytes([0, protocol])) + u64::from(length)
}

/// The sum in 16 bits, as it stands in a packet. Of what carries its own right checksum, it is [`RIGHT`].
pub(super) fn fold(mut sum: u64) -> [u8; 2] {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    let [low, high, ..] = sum.to_le_bytes();
    u16::from_le_bytes([low, high]).to_ne_bytes()
}

pub(super) const RIGHT: [u8; 2] = [0xff, 0xff];

/// The checksum that belongs to a sum.
pub(super) fn complement(sum: u64) -> [u8; 2] {
    fold(sum).map(|byte| !byte)
}

/// The same where a checksum of zero means that there is none (RFC 768), or may be taken for that.
pub(super) fn complement_not_zero(sum: u64) -> [u8; 2] {
    match complement(sum) {
        [0, 0] => [0xff, 0xff],
        checksum => checksum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Word by word, in network byte order, with the carry at once.
    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_the_rfc_has_the_rfcs_sum() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)), [0xdd, 0xf2]);
        assert_eq!(complement(sum(&bytes)), [0x22, 0x0d]);
    }

    #[test]
    fn every_length_has_the_sum_of_its_words() {
        let bytes: Vec<u8> = (0..200u32)
            .map(|number| (number * 151 + 97) as u8)
            .collect();
        for length in 0..=bytes.len() {
            let expected = slow(&bytes[..length]).to_be_bytes();
            assert_eq!(fold(sum(&bytes[..length])), expected, "{length}");
        }
        let large = vec![0xff; 65_575];
        assert_eq!(fold(sum(&large)), slow(&large).to_be_bytes());
    }

    #[test]
    fn a_checksum_of_zero_is_written_as_the_other_zero() {
        assert_eq!(complement(sum(&[0xff, 0xff])), [0, 0]);
        assert_eq!(complement_not_zero(sum(&[0xff, 0xff])), [0xff, 0xff]);
        assert_eq!(complement_not_zero(sum(&[1, 2])), [0xfe, 0xfd]);
    }

    #[test]
    fn a_datagram_with_its_checksum_sums_up_to_ones() {
        // Port 1 to 2, eight bytes of header, "ab": computed by hand.
        let addresses = [10, 0, 0, 1, 10, 0, 0, 2];
        let mut datagram = [0, 1, 0, 2, 0, 10, 0, 0, b'a', b'b'];
        let pseudo = pseudo_header(&addresses, 17, 10);
        let checksum = complement_not_zero(pseudo + sum(&datagram));
        assert_eq!(
            checksum,
            (!(0x1400u16 + 3 + 17 + 10 + 13 + 0x6162)).to_be_bytes()
        );
        datagram[6..8].copy_from_slice(&checksum);
        assert_eq!(fold(pseudo + sum(&datagram)), RIGHT);
    }
}
