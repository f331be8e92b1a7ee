//! What is fuzzed of superpackets: the input is what was read from a device, and packets that are to be written to it.
//!
//! No input may make it panic, and it asserts what must hold besides.

use connlib_net::offload::{Coalescer, GsoKinds, VNET_HEADER, VnetHeader, Write, cut};
use connlib_net::{Packets, ReadBatch};

/// Cuts the next `count` bytes off the input, or those that there are.
fn take<'a>(data: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = data.split_at(count.min(data.len()));
    *data = rest;
    taken
}

/// The packets that something that was read stands for.
fn pieces(header: &VnetHeader, packet: &[u8]) -> Option<ReadBatch> {
    let mut packet = packet.to_vec();
    let mut cut = cut(header, &mut packet).ok()?;
    let expected = cut.remaining();
    let mut batch = ReadBatch::default();
    while cut.next(&packet, &mut batch) {}
    assert_eq!(batch.len(), expected);
    Some(batch)
}

/// Of each two bytes, the lower seven bits of the first and the second are a length; with the highest bit, a header and a
/// packet of this length were read, and without it, a packet is to be written.
pub fn offload(mut data: &[u8]) {
    let (mut bytes, mut lengths) = (Vec::new(), Vec::new());
    while let [first, second] = *take(&mut data, 2) {
        let length = usize::from(first & 0x7f) << 8 | usize::from(second);
        if first & 0x80 == 0 {
            let packet = take(&mut data, length);
            bytes.extend(packet);
            lengths.push(packet.len());
            continue;
        }
        let Some(header) = take(&mut data, VNET_HEADER).first_chunk() else {
            break;
        };
        let header = VnetHeader::from_bytes(header);
        let packet = take(&mut data, length);
        if let Some(batch) = pieces(&header, packet) {
            assert!(batch.iter().all(|piece| piece.len() <= packet.len()));
            assert!(batch.len() <= packet.len().max(1));
        }
    }
    let packets = Packets {
        bytes: &bytes,
        lengths: &lengths,
    };
    let mut coalescer = Coalescer::default();
    coalescer.plan(packets, GsoKinds::ALL);
    let mut written = 0;
    for write in coalescer.writes(packets) {
        let Write::Superpacket(superpacket) = write else {
            written += 1;
            continue;
        };
        let mut whole = superpacket.headers().to_vec();
        superpacket.payloads().for_each(|part| whole.extend(part));
        let batch = pieces(&superpacket.header, &whole).expect("a good superpacket");
        assert!(batch.iter().eq(superpacket.packets()));
        written += batch.len();
    }
    assert_eq!(written, lengths.len().min(connlib_net::offload::WINDOW));
}
