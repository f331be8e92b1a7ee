//! Cutting, once more, as slowly and as plainly as RFC 791, 768, 8200 and 9293 have it: to compare with.

/// The checksum of RFC 1071, word by word.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The checksum of TCP or UDP, which counts in both addresses, the protocol and the length.
pub fn transport_checksum(addresses: &[u8], protocol: u8, segment: &[u8]) -> u16 {
    let mut covered = addresses.to_vec();
    covered.extend((segment.len() as u32).to_be_bytes());
    covered.extend([0, 0, 0, protocol]);
    covered.extend(segment);
    checksum(&covered)
}

pub fn addresses(packet: &[u8]) -> &[u8] {
    &packet[if packet[0] >> 4 == 4 { 12..20 } else { 8..40 }]
}

/// The protocol of TCP or UDP, and where it begins, behind options and behind extension headers that are only options.
fn protocol(packet: &[u8]) -> Option<(u8, usize)> {
    if packet[0] >> 4 == 4 {
        return Some((packet[9], usize::from(packet[0] & 15) * 4));
    }
    let (mut next, mut at) = (packet[6], 40);
    while next == 0 || next == 60 {
        next = *packet.get(at)?;
        at += 8 + 8 * usize::from(*packet.get(at + 1)?);
    }
    Some((next, at))
}

/// The packets that a good superpacket stands for.
pub fn segments(packet: &[u8], size: usize) -> Vec<Vec<u8>> {
    let (protocol, transport) = protocol(packet).unwrap();
    let headers = transport
        + match protocol {
            6 => usize::from(packet[transport + 12] >> 4) * 4,
            17 => 8,
            other => panic!("{other}"),
        };
    let payload = &packet[headers..];
    let mut pieces: Vec<&[u8]> = payload.chunks(size).collect();
    if pieces.is_empty() {
        pieces.push(&[]);
    }
    let count = pieces.len();
    let mut segments = Vec::new();
    for (number, piece) in pieces.into_iter().enumerate() {
        let mut segment = packet[..headers].to_vec();
        segment.extend(piece);
        let length = segment.len();
        if packet[0] >> 4 == 4 {
            segment[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            let identification = u16::from_be_bytes([packet[4], packet[5]]);
            segment[4..6]
                .copy_from_slice(&identification.wrapping_add(number as u16).to_be_bytes());
            segment[10..12].fill(0);
            let sum = checksum(&segment[..transport]);
            segment[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            segment[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
        }
        let at = if protocol == 6 {
            let field = transport + 4..transport + 8;
            let sequence = u32::from_be_bytes(packet[field.clone()].try_into().unwrap());
            let sequence = sequence.wrapping_add((number * size) as u32);
            segment[field].copy_from_slice(&sequence.to_be_bytes());
            if number > 0 {
                segment[transport + 13] &= !0x80;
            }
            if number + 1 < count {
                segment[transport + 13] &= !0x09;
            }
            transport + 16
        } else {
            let field = transport + 4..transport + 6;
            segment[field].copy_from_slice(&((length - transport) as u16).to_be_bytes());
            transport + 6
        };
        segment[at..at + 2].fill(0);
        let sum = match transport_checksum(addresses(packet), protocol, &segment[transport..]) {
            0 => 0xffff,
            sum => sum,
        };
        segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        segments.push(segment);
    }
    segments
}

/// Whether the checksums of a packet of TCP or UDP are right.
pub fn is_sound(packet: &[u8]) -> bool {
    let (protocol, transport) = protocol(packet).unwrap();
    let sum = transport_checksum(addresses(packet), protocol, &packet[transport..]);
    let absent = protocol == 17 && packet[transport + 6..transport + 8] == [0, 0];
    (packet[0] >> 4 == 6 || checksum(&packet[..transport]) == 0) && (absent || sum == 0)
}
