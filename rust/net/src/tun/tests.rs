use super::*;
use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

fn pair() -> (Tun, UnixDatagram) {
    let (device, application) = UnixDatagram::pair().unwrap();
    application.set_nonblocking(true).unwrap();
    (Tun::new(device.as_fd()).unwrap(), application)
}

/// Writes packets.
fn write(tun: &mut Tun, packets: &[&[u8]]) -> usize {
    let bytes = packets.concat();
    let lengths: Vec<usize> = packets.iter().map(|packet| packet.len()).collect();
    tun.write(Packets {
        bytes: &bytes,
        lengths: &lengths,
    })
}

fn read(tun: &mut Tun, budget: usize) -> Vec<Vec<u8>> {
    let mut batch = ReadBatch::default();
    tun.read(budget, &mut batch);
    batch.iter().map(<[u8]>::to_vec).collect()
}

#[test]
fn packets_keep_their_boundaries() {
    let (mut tun, application) = pair();
    for length in [20, 1, 1420, 65_535] {
        application.send(&vec![7; length]).unwrap();
    }
    let lengths: Vec<usize> = read(&mut tun, 64).iter().map(Vec::len).collect();
    assert_eq!(lengths, [20, 1, 1420, 65_535]);
    assert_eq!(tun.counts().packets_read, 4);
    assert_eq!(tun.counts().bytes_read, 20 + 1 + 1420 + 65_535);
}

#[test]
fn a_budget_ends_a_batch_and_the_rest_stays() {
    let (mut tun, application) = pair();
    for number in 0..5u8 {
        application.send(&[number]).unwrap();
    }
    let mut batch = ReadBatch::default();
    assert_eq!(tun.read(3, &mut batch), 3);
    assert_eq!(tun.read(3, &mut batch), 2);
    assert_eq!(batch.iter().collect::<Vec<_>>(), [[3], [4]]);
    assert_eq!(tun.read(3, &mut batch), 0);
    assert!(batch.is_empty());
    assert_eq!(tun.state(), DeviceState::Up);
    assert_eq!(tun.counts().errors.total(), 0);
}

#[test]
fn packets_are_written_in_order() {
    let (mut tun, application) = pair();
    let packets: [&[u8]; 3] = [b"one", b"two", b"three"];
    assert_eq!(write(&mut tun, &packets), 3);
    let mut buffer = [0; 100];
    for packet in packets {
        let length = application.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], packet);
    }
    assert_eq!(tun.counts().bytes_written, 11);
}

#[test]
fn what_the_device_does_not_take_waits_for_it() {
    let (mut tun, application) = pair();
    let packet = [5; 1000];
    let mut written = 0;
    while tun.backlog() == 0 {
        written += write(&mut tun, &[&packet]);
        assert!(written < 100_000, "the pair never filled up");
    }
    assert_eq!(write(&mut tun, &[b"last"]), 0);
    assert_eq!(tun.backlog(), 2);
    let mut buffer = [0; 2000];
    while application.recv(&mut buffer).is_ok() {}
    assert_eq!(write(&mut tun, &[]), 2);
    assert_eq!(application.recv(&mut buffer).unwrap(), 1000);
    assert_eq!(application.recv(&mut buffer).unwrap(), 4);
}

#[test]
fn a_closed_other_end_is_a_device_that_is_gone() {
    let (mut tun, application) = pair();
    drop(application);
    write(&mut tun, &[b"x"]);
    assert_eq!(tun.state(), DeviceState::Gone);
    assert_eq!(tun.counts().errors.total(), 1);
    assert_eq!(write(&mut tun, &[b"x"]), 0);
    assert_eq!(
        tun.counts().errors.total(),
        1,
        "a device that is gone is left alone"
    );
}

#[test]
fn what_one_queue_learns_of_the_device_the_others_know() {
    let ((mut first, _application), (mut second, other)) = (pair(), pair());
    second.is_beside(&first);
    drop(other);
    write(&mut second, &[b"x"]);
    assert_eq!(first.state(), DeviceState::Gone);
    assert_eq!(write(&mut first, &[b"x"]), 0);
    assert_eq!(first.counts().errors.total(), 0, "it is left alone");
}

#[test]
fn other_errors_are_counted_by_name_and_the_packet_is_dropped() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut tun = Tun::new(full.as_fd()).unwrap();
    assert_eq!(write(&mut tun, &[b"x", b"y"]), 0);
    assert_eq!(tun.counts().errors.of(libc::ENOSPC), 2);
    assert_eq!(tun.state(), DeviceState::Up);
    assert_eq!(tun.backlog(), 0);
}

#[test]
fn errno_of_a_deleted_device_means_gone() {
    for errno in [libc::EBADFD, libc::ENODEV] {
        assert!(is_gone(&io::Error::from_raw_os_error(errno)));
    }
    assert!(!is_gone(&io::Error::from_raw_os_error(libc::EIO)));
}

mod superpackets {
    //! On a pair of sockets that carries headers as a device would.

    use std::io::IoSlice;

    use super::*;
    use crate::offload::Offloads;
    use crate::tun::write::{Framing, Writer};
    use crate::tun::{Status, TunCounts};

    fn pair() -> (Tun, UnixDatagram) {
        let (mut tun, application) = super::pair();
        tun.header_length = 10;
        tun.active = Offloads::ALL;
        (tun, application)
    }

    /// TCP over IPv4, in which one packet follows the other; the checksums are right.
    fn stream(count: u32, payload: usize) -> Vec<Vec<u8>> {
        let whole = superpacket(u32::try_from(payload).unwrap() * count, payload as u16);
        let (mut tun, application) = pair();
        application.send(&whole).unwrap();
        read(&mut tun, 1)
    }

    /// A superpacket behind its header.
    fn superpacket(payload: u32, segment_size: u16) -> Vec<u8> {
        let mut bytes = vec![1, 1, 40, 0];
        for field in [segment_size, 20, 16] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend([0x45, 0]);
        bytes.extend((40 + payload as u16).to_be_bytes());
        bytes.extend([0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend([
            0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 4, 0, 0, 0, 0, 0,
        ]);
        bytes.extend((0..payload).map(|at| at as u8));
        bytes
    }

    fn slices(packets: &[Vec<u8>]) -> Vec<&[u8]> {
        packets.iter().map(Vec::as_slice).collect()
    }

    /// Writes, with a device that answers so to what is one packet and to what is more.
    struct Fake {
        writer: Writer,
        status: Status,
        taken: Vec<Vec<u8>>,
    }

    impl Fake {
        fn new() -> Self {
            Self {
                writer: Writer::default(),
                status: Status {
                    state: State::default(),
                    counts: TunCounts::default(),
                },
                taken: Vec::new(),
            }
        }

        fn write(&mut self, packets: &[Vec<u8>], one: i32, more: i32) -> usize {
            let bytes = packets.concat();
            let lengths: Vec<_> = packets.iter().map(Vec::len).collect();
            let framing = Framing {
                header_length: 12,
                offloads: Offloads::ALL,
            };
            let packets = Packets {
                bytes: &bytes,
                lengths: &lengths,
            };
            let taken = &mut self.taken;
            let mut call = |parts: &[IoSlice<'_>]| {
                let whole: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
                assert_eq!(parts[0].len(), 12);
                match if whole[1] == 0 { one } else { more } {
                    0 => {
                        taken.push(whole[12..].to_vec());
                        Ok(whole.len())
                    }
                    errno => Err(io::Error::from_raw_os_error(errno)),
                }
            };
            self.writer
                .write(packets, framing, &mut self.status, &mut call)
        }
    }

    #[test]
    fn a_superpacket_is_read_as_its_packets_and_they_are_written_as_one() {
        let (mut tun, application) = pair();
        let whole = superpacket(10_000, 1400);
        application.send(&whole).unwrap();
        let packets = read(&mut tun, 1);
        let lengths: Vec<_> = packets.iter().map(Vec::len).collect();
        assert_eq!(lengths, [1440, 1440, 1440, 1440, 1440, 1440, 1440, 240]);
        assert_eq!(tun.counts().superpackets_read, 1);
        assert_eq!(tun.counts().packets_cut, 8);
        assert_eq!(tun.counts().packets_read, 8);
        assert_eq!(tun.counts().bytes_read, 10_000 + 8 * 40);

        assert_eq!(write(&mut tun, &slices(&packets)), 8);
        let mut buffer = [0; 20_000];
        let length = application.recv(&mut buffer).unwrap();
        assert_eq!(length, whole.len());
        assert_eq!(buffer[..10], whole[..10]);
        assert_eq!(buffer[10 + 40..length], whole[10 + 40..]);
        let counts = tun.counts();
        assert_eq!(counts.superpackets_written, 1);
        assert_eq!((counts.packets_merged, counts.packets_written), (8, 8));
        assert_eq!(counts.bytes_written, 10_000 + 8 * 40);
    }

    #[test]
    fn without_offloads_nothing_is_merged() {
        let (mut tun, application) = pair();
        tun.active = Offloads::NONE;
        let packets = stream(3, 100);
        assert_eq!(write(&mut tun, &slices(&packets)), 3);
        let mut buffer = [0; 2000];
        for packet in &packets {
            let length = application.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..10], [0; 10]);
            assert_eq!(buffer[10..length], packet[..]);
        }
        assert_eq!(tun.counts().superpackets_written, 0);
    }

    #[test]
    fn the_budget_counts_packets_and_a_bomb_is_cut_bit_by_bit() {
        let (mut tun, application) = pair();
        for _ in 0..2 {
            application.send(&superpacket(64_000, 1000)).unwrap();
        }
        application.send(&superpacket(65_000, 1)).unwrap();
        let mut batch = ReadBatch::default();
        assert_eq!(tun.read(64, &mut batch), 64);
        assert_eq!(tun.read(65, &mut batch), 64 + 65 + 128 - 64);
        let mut total = 65 + 128 - 64;
        while tun.read(64, &mut batch) > 0 {
            assert!(batch.len() <= 64 + 128);
            // Each piece of one byte has 40 of headers.
            assert!(batch.bytes.len() < 2 * 65_535);
            total += batch.len();
        }
        assert_eq!(total, 65_000);
    }

    #[test]
    fn what_makes_no_sense_is_counted_by_name_and_costs_budget() {
        let (mut tun, application) = pair();
        application.send(&[0; 5]).unwrap();
        let mut kind = superpacket(100, 10);
        kind[1] = 3;
        application.send(&kind).unwrap();
        let mut length = superpacket(100, 10);
        length[13] += 1;
        application.send(&length).unwrap();
        application.send(&superpacket(100, 50)).unwrap();
        assert!(read(&mut tun, 3).is_empty());
        assert_eq!(read(&mut tun, 3).len(), 2);
        let counted: Vec<_> = tun
            .counts()
            .faults
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(fault, count)| format!("{} {count}", fault.name()))
            .collect();
        assert_eq!(counted, ["short 1", "length 1", "kind 1"]);
        assert_eq!(tun.state(), DeviceState::Up);
    }

    #[test]
    fn a_superpacket_that_is_refused_goes_packet_by_packet_and_so_do_others_for_a_while() {
        let mut fake = Fake::new();
        let packets = stream(10, 100);
        assert_eq!(fake.write(&packets, 0, libc::EINVAL), 10);
        assert_eq!(fake.taken, packets);
        assert_eq!(fake.status.counts.superpackets_refused, 1);
        assert_eq!(fake.status.counts.errors.total(), 0);
        // Not even asked again,
        assert_eq!(fake.write(&packets, 0, 0), 10);
        assert_eq!(fake.taken.len(), 20);
        // until so many have gone by.
        for _ in 0..998 {
            fake.write(&packets, 0, 0);
        }
        assert_eq!(fake.status.counts.superpackets_written, 0);
        fake.write(&packets, 0, 0);
        assert_eq!(fake.status.counts.superpackets_written, 1);
    }

    #[test]
    fn a_device_that_refuses_everything_has_not_refused_superpackets() {
        let mut fake = Fake::new();
        assert_eq!(fake.write(&stream(5, 10), libc::EINVAL, libc::EINVAL), 0);
        assert_eq!(fake.status.counts.superpackets_refused, 0);
        assert_eq!(fake.status.counts.errors.of(libc::EINVAL), 5);
        assert_eq!(fake.write(&stream(5, 10), libc::EIO, libc::EIO), 0);
        assert_eq!(fake.status.counts.errors.of(libc::EIO), 5);
        assert_eq!(fake.status.state.get(), DeviceState::Down);
        assert_eq!(fake.write(&stream(5, 10), 0, 0), 5);
        assert_eq!(fake.status.state.get(), DeviceState::Up);
        assert_eq!(fake.write(&stream(5, 10), libc::EBADFD, libc::EBADFD), 0);
        assert_eq!(fake.status.state.get(), DeviceState::Gone);
        assert_eq!(fake.write(&stream(5, 10), 0, 0), 0);
    }

    #[test]
    fn packets_of_a_superpacket_that_finds_no_room_wait_in_order() {
        let mut fake = Fake::new();
        let packets = stream(5, 10);
        assert_eq!(fake.write(&packets, libc::EAGAIN, libc::EAGAIN), 0);
        assert_eq!(fake.write(&packets, libc::EAGAIN, 0), 0);
        assert_eq!(fake.writer.backlog().len(), 10);
        assert_eq!(fake.write(&[], 0, 0), 10);
        assert_eq!(fake.taken, [packets.clone(), packets].concat());
    }

    #[test]
    fn a_superpacket_of_which_a_part_is_taken_is_counted() {
        let mut status = Status {
            state: State::default(),
            counts: TunCounts::default(),
        };
        let packets = stream(3, 100);
        let (bytes, lengths) = (packets.concat(), [140; 3]);
        let framing = Framing {
            header_length: 10,
            offloads: Offloads::ALL,
        };
        let packets = Packets {
            bytes: &bytes,
            lengths: &lengths,
        };
        Writer::default().write(packets, framing, &mut status, &mut |_| Ok(100));
        assert_eq!(status.counts.short_writes, 1);
        assert!(status.counts.bytes_written < 420);
    }
}
