//! Real sockets on the loopback interface.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use connlib_net::{Datagrams, Family, ReceiveBuffers, UdpPair};

struct End {
    pair: UdpPair,
    v4: SocketAddr,
    v6: SocketAddr,
    sockets: (UdpSocket, UdpSocket),
    buffers: ReceiveBuffers,
    /// The address of its own that each datagram was sent to.
    asked: Vec<Option<IpAddr>>,
    /// The ECN field that each had.
    ecn: Vec<u8>,
}

impl End {
    fn new() -> Self {
        let sockets = (
            UdpSocket::bind("127.0.0.1:0").unwrap(),
            UdpSocket::bind("[::1]:0").unwrap(),
        );
        Self::of(sockets)
    }

    fn of(sockets: (UdpSocket, UdpSocket)) -> Self {
        Self {
            pair: UdpPair::new(Some(sockets.0.as_fd()), Some(sockets.1.as_fd())).unwrap(),
            v4: sockets.0.local_addr().unwrap(),
            v6: sockets.1.local_addr().unwrap(),
            sockets,
            buffers: ReceiveBuffers::default(),
            asked: Vec::new(),
            ecn: Vec::new(),
        }
    }

    fn send(&mut self, datagrams: &[(SocketAddr, Vec<u8>)]) -> usize {
        self.send_from(None, datagrams)
    }

    fn send_from(&mut self, source: Option<IpAddr>, datagrams: &[(SocketAddr, Vec<u8>)]) -> usize {
        self.send_marked(source, &vec![0; datagrams.len()], datagrams)
    }

    fn send_marked(
        &mut self,
        source: Option<IpAddr>,
        ecn: &[u8],
        datagrams: &[(SocketAddr, Vec<u8>)],
    ) -> usize {
        let bytes: Vec<u8> = datagrams
            .iter()
            .flat_map(|(_, bytes)| bytes.clone())
            .collect();
        let lengths: Vec<usize> = datagrams.iter().map(|(_, bytes)| bytes.len()).collect();
        let destinations: Vec<SocketAddr> = datagrams.iter().map(|(to, _)| *to).collect();
        self.pair.send(Datagrams {
            bytes: &bytes,
            lengths: &lengths,
            destinations: &destinations,
            sources: &vec![source; datagrams.len()],
            ecn,
        })
    }

    /// Everything that arrives until `count` datagrams are there.
    fn receive(&mut self, count: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut all = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(10);
        while all.len() < count {
            assert!(
                Instant::now() < deadline,
                "only {} of {count} datagrams came",
                all.len()
            );
            for family in [Family::V4, Family::V6] {
                self.pair.receive(family, 64, &mut self.buffers, |batch| {
                    all.extend(batch.iter().map(|one| {
                        self.asked.push(one.local);
                        self.ecn.push(one.ecn);
                        (one.source, one.bytes.to_vec())
                    }));
                });
            }
        }
        all
    }
}

fn datagram(number: u8, length: usize) -> Vec<u8> {
    vec![number; length]
}

#[test]
fn datagrams_arrive_with_their_source_on_both_families() {
    let (mut a, mut b) = (End::new(), End::new());
    for (to, from) in [(b.v4, a.v4), (b.v6, a.v6)] {
        let outcome = a.send(&[(to, datagram(1, 148)), (to, datagram(2, 92))]);
        assert_eq!(outcome, 2);
        assert_eq!(
            b.receive(2),
            [(from, datagram(1, 148)), (from, datagram(2, 92))]
        );
    }
    assert_eq!(b.pair.counts().received_bytes, 2 * (148 + 92));
}

#[test]
fn every_mark_of_congestion_arrives_also_within_a_burst() {
    let (mut a, mut b) = (End::new(), End::new());
    let marks = [0, 1, 1, 1, 2, 2, 3, 3, 0, 0, 2];
    for to in [b.v4, b.v6] {
        let burst: Vec<_> = (0..marks.len())
            .map(|n| (to, datagram(n as u8, 1_000)))
            .collect();
        assert_eq!(a.send_marked(None, &marks, &burst), marks.len());
        b.receive(marks.len());
        assert_eq!(std::mem::take(&mut b.ecn), marks);
    }
    // Runs of one mark each, with one call where the system has one for them.
    let calls = if cfg!(target_os = "linux") { 2 } else { 2 * 6 };
    assert_eq!(a.pair.counts().sent.calls, calls);
}

#[test]
fn an_answer_comes_from_the_address_that_was_asked() {
    let everywhere = (
        UdpSocket::bind("0.0.0.0:0").unwrap(),
        UdpSocket::bind("[::]:0").unwrap(),
    );
    let (mut a, mut b) = (End::new(), End::of(everywhere));
    for asked in ["127.0.0.5", "127.0.0.1", "::1"] {
        let asked: IpAddr = asked.parse().unwrap();
        let (from, port) = match asked.is_ipv4() {
            true => (a.v4, b.v4.port()),
            false => (a.v6, b.v6.port()),
        };
        assert_eq!(a.send(&[((asked, port).into(), datagram(1, 148))]), 1);
        assert_eq!(b.receive(1), [(from, datagram(1, 148))]);
        assert_eq!(b.asked.pop(), Some(Some(asked)));
        // One of them, and some that the kernel cuts.
        let answer = vec![(from, datagram(2, 92)); 4];
        assert_eq!(b.send_from(Some(asked), &answer), 4);
        for (source, _) in a.receive(4) {
            assert_eq!(source, (asked, port).into());
        }
    }
    assert_eq!(b.pair.counts().sent.source_refused, 0);
}

#[test]
fn a_source_address_that_is_not_ours_does_not_stop_a_datagram() {
    let everywhere = (
        UdpSocket::bind("0.0.0.0:0").unwrap(),
        UdpSocket::bind("[::]:0").unwrap(),
    );
    let (mut a, mut b) = (End::of(everywhere), End::new());
    for (gone, to) in [("192.0.2.1", b.v4), ("2001:db8::1", b.v6)] {
        let gone: IpAddr = gone.parse().unwrap();
        let burst = vec![(to, datagram(1, 148)); 4];
        assert_eq!(a.send_from(Some(gone), &burst), 4);
        assert_eq!(b.receive(4).len(), 4);
        let refused: Vec<_> = a.pair.take_refused_sources().collect();
        assert_eq!(refused, [(to, gone)]);
    }
    let counts = a.pair.counts().sent;
    assert_eq!((counts.source_refused, counts.errors.total()), (2, 0));
    // It is for the sender to forget it. Until then, the kernel says so again.
    a.send_from(Some("192.0.2.1".parse().unwrap()), &[(b.v4, vec![1])]);
    assert_eq!(a.pair.counts().sent.source_refused, 3);
}

#[test]
fn a_burst_is_cut_by_the_kernel_and_put_together_again() {
    let (mut a, mut b) = (End::new(), End::new());
    for to in [b.v4, b.v6] {
        let mut burst: Vec<_> = (0..60).map(|number| (to, datagram(number, 1452))).collect();
        burst.push((to, datagram(60, 100)));
        let before = a.pair.counts().sent;
        assert_eq!(a.send(&burst), 61);
        let calls = if cfg!(target_os = "linux") { 1 } else { 2 };
        assert_eq!(a.pair.counts().sent.calls - before.calls, calls);
        let received: Vec<_> = b.receive(61).into_iter().map(|(_, bytes)| bytes).collect();
        let sent: Vec<_> = burst.into_iter().map(|(_, bytes)| bytes).collect();
        assert_eq!(received, sent);
    }
    let counts = b.pair.counts();
    assert!(
        counts.receive_calls < counts.received / 4,
        "not coalesced: {counts:?}"
    );
}

#[test]
#[cfg(target_os = "linux")]
fn datagrams_for_many_go_with_one_call_for_each_family_and_to_each_in_order() {
    let mut a = End::new();
    let mut others: Vec<End> = (0..20).map(|_| End::new()).collect();
    let burst: Vec<_> = (0..200u8)
        .map(|number| {
            let to = &others[usize::from(number) % 20];
            let to = if number % 40 < 20 { to.v4 } else { to.v6 };
            (to, datagram(number, 100 + usize::from(number % 3 == 0)))
        })
        .collect();
    assert_eq!(a.send(&burst), 200);
    let counts = a.pair.counts().sent;
    // Those that are shorter or longer than the one before make some more than 20 messages of a family.
    assert!(counts.calls <= 2 * 4, "{} calls", counts.calls);
    assert_eq!(counts.errors.total(), 0);
    for (place, other) in others.iter_mut().enumerate() {
        let mut received = other.receive(10);
        received.sort_by_key(|(from, _)| from.is_ipv6());
        let numbers: Vec<_> = received.iter().map(|(_, bytes)| bytes[0]).collect();
        let all = (0..10).map(|turn| (turn * 20 + place) as u8);
        let (v4, v6): (Vec<_>, Vec<_>) = all.partition(|number| number % 40 < 20);
        assert_eq!(numbers, [v4, v6].concat());
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_socket_that_cannot_segment_falls_back_and_loses_nothing() {
    let (mut a, mut b) = (End::new(), End::new());
    // Without checksums the kernel refuses to segment, as it does where a device cannot compute them.
    let one: libc::c_int = 1;
    // SAFETY: the pointer and the length describe `one`, which lives until the call returns and is only read.
    let result = unsafe {
        libc::setsockopt(
            a.sockets.0.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NO_CHECK,
            (&raw const one).cast(),
            size_of_val(&one) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0);
    let burst: Vec<_> = (0..20)
        .map(|number| (b.v4, datagram(number, 1000)))
        .collect();
    assert_eq!(a.send(&burst), 20);
    let received: Vec<_> = b.receive(20).into_iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(
        received,
        burst
            .into_iter()
            .map(|(_, bytes)| bytes)
            .collect::<Vec<_>>()
    );
    let counts = a.pair.counts().sent;
    assert_eq!((counts.segmentation_refused, counts.calls), (1, 20));
    assert_eq!(counts.errors.total(), 0);
}

#[test]
fn every_size_of_datagram_survives() {
    let (mut a, mut b) = (End::new(), End::new());
    for length in (0..2049).chain([9000, 65_506, 65_507]) {
        for to in [b.v4, b.v6] {
            assert_eq!(
                a.send(&[(to, datagram(9, length))]),
                1,
                "{length} bytes to {to}"
            );
            assert_eq!(b.receive(1).pop().unwrap().1, datagram(9, length));
        }
    }
}

#[test]
fn failures_are_counted_and_the_rest_goes_on() {
    let (mut a, mut b) = (End::new(), End::new());
    let to = b.v4;
    let outcome = a.send(&[
        (to, datagram(1, 10)),
        (to, vec![0; 65_536]),
        (to, datagram(2, 10)),
    ]);
    assert_eq!(outcome, 2);
    assert_eq!(b.receive(2).len(), 2);
    let errors: BTreeMap<String, u64> = a
        .pair
        .counts()
        .sent
        .errors
        .iter()
        .map(|(name, count)| (name.into_owned(), count))
        .collect();
    assert_eq!(errors, BTreeMap::from([("EMSGSIZE".to_owned(), 1)]));
}

#[test]
fn a_family_without_a_socket_is_a_counted_loss() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut pair = UdpPair::new(Some(socket.as_fd()), None).unwrap();
    let destinations = ["[::1]:9".parse().unwrap(); 2];
    let outcome = pair.send(Datagrams {
        bytes: &[0; 20],
        lengths: &[10, 10],
        destinations: &destinations,
        sources: &[None; 2],
        ecn: &[0; 2],
    });
    assert_eq!(outcome, 0);
    let errors = pair.counts().sent.errors;
    assert_eq!(errors.iter().next(), Some(("EAFNOSUPPORT".into(), 2)));
}

#[test]
fn a_socket_of_the_wrong_kind_is_refused() {
    let v6 = UdpSocket::bind("[::1]:0").unwrap();
    let error = UdpPair::new(Some(v6.as_fd()), None).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EAFNOSUPPORT));
    let file = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(
        UdpPair::new(Some(file.as_fd()), None)
            .unwrap_err()
            .raw_os_error(),
        Some(libc::ENOTSOCK)
    );
}

#[test]
fn the_granted_buffers_are_reported() {
    let end = End::new();
    let (v4, v6) = (
        end.pair.buffer_sizes(Family::V4),
        end.pair.buffer_sizes(Family::V6),
    );
    assert!(v4.unwrap().receive >= 200_000, "{v4:?}");
    assert!(v6.unwrap().send >= 200_000, "{v6:?}");
}

#[test]
fn the_budget_is_spread_over_calls() {
    let (mut a, mut b) = (End::new(), End::new());
    let to = b.v4;
    // Sizes that grow cannot be coalesced.
    for length in 1..=40 {
        a.send(&[(to, datagram(1, length))]);
    }
    let mut batches = Vec::new();
    let taken = b.pair.receive(Family::V4, 10, &mut b.buffers, |batch| {
        batches.push(batch.iter().count())
    });
    assert_eq!(taken, 10);
    assert_eq!(batches, [8, 2]);
}
