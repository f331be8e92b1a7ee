//! Superpackets are read, cut, merged and written without allocating anything, once the buffers have grown; and these grow
//! with what a batch holds, whatever it is.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::UdpSocket;
use std::os::fd::AsFd;

use connlib_net::offload::{Coalescer, GsoKinds, VnetHeader, Write, cut};
use connlib_net::{Datagrams, ReadBatch, UdpPair};

struct Counting;

thread_local! {
    /// How often this thread has allocated, and how many bytes: what the test's harness does beside it is no concern of ours.
    static ALLOCATED: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

fn count(bytes: usize) {
    let _ = ALLOCATED.try_with(|allocated| {
        let (calls, total) = allocated.get();
        allocated.set((calls + 1, total + bytes));
    });
}

// SAFETY: every call is handed to the system's allocator as it came; counting touches nothing of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// TCP over IPv4, with its header.
fn superpacket(payload: u16, segment_size: u16) -> (VnetHeader, Vec<u8>) {
    let mut packet = vec![0x45, 0];
    packet.extend((40 + payload).to_be_bytes());
    packet.extend([0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend([
        0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 4, 0, 0, 0, 0, 0,
    ]);
    packet.extend(vec![7; payload.into()]);
    let header = VnetHeader {
        flags: 1,
        gso_type: 1,
        header_length: 40,
        gso_size: segment_size,
        checksum_start: 20,
        checksum_offset: 16,
    };
    (header, packet)
}

/// Calls to the allocator, and bytes.
fn allocated_by(call: impl FnOnce()) -> (usize, usize) {
    let before = ALLOCATED.get();
    call();
    let after = ALLOCATED.get();
    (after.0 - before.0, after.1 - before.1)
}

#[test]
fn nothing_is_allocated_for_a_datagram_that_is_sent() {
    let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
    let theirs: Vec<_> = (0..3)
        .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
        .collect();
    let mut pair = UdpPair::new(Some(ours.as_fd()), None).unwrap();
    let destinations: Vec<_> = (0..60)
        .map(|n| theirs[n % 3].local_addr().unwrap())
        .collect();
    let mut send = || {
        let sent = pair.send(Datagrams {
            bytes: &[7; 6000],
            lengths: &[100; 60],
            destinations: &destinations,
            sources: &[None; 60],
            ecn: &[0; 60],
        });
        assert_eq!(sent, 60);
    };
    send();
    assert_eq!(allocated_by(send), (0, 0));
}

#[test]
fn nothing_is_allocated_for_a_packet() {
    let (header, mut packet) = superpacket(62_000, 1380);
    let mut batch = ReadBatch::default();
    let mut coalescer = Coalescer::default();
    let mut round = || {
        batch.clear();
        let mut cut = cut(&header, &mut packet).unwrap();
        while cut.next(&packet, &mut batch) {}
        coalescer.plan(batch.packets(), GsoKinds::ALL);
        for write in coalescer.writes(batch.packets()) {
            let Write::Superpacket(superpacket) = write else {
                panic!("{write:?}");
            };
            assert_eq!(superpacket.packets().count(), 45);
        }
    };
    round();
    assert_eq!(allocated_by(|| (0..100).for_each(|_| round())), (0, 0));
}

#[test]
fn what_is_noted_of_very_many_very_small_packets_has_its_bound() {
    let (header, mut packet) = superpacket(60_000, 1);
    let mut cut = cut(&header, &mut packet).unwrap();
    let mut batch = ReadBatch::default();
    while cut.next(&packet, &mut batch) {}
    assert_eq!(batch.len(), 60_000);
    let (_, bytes) = allocated_by(|| Coalescer::default().plan(batch.packets(), GsoKinds::ALL));
    assert!(bytes < 200_000, "{bytes}");
}
