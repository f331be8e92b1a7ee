//! A socket that refuses what it is told to refuse.

use super::*;

const A: &str = "192.0.2.1:1000";
const B: &str = "[2001:db8::1]:2000";
const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

/// A socket that answers each call from a list, then takes everything. It records size and segment size.
struct Fake {
    answers: Vec<io::Result<()>>,
    calls: Vec<(usize, Option<usize>)>,
    sources: Vec<Option<IpAddr>>,
    /// Each message, with its content.
    sent: Vec<(Way, Vec<u8>)>,
    system_calls: usize,
    /// Messages that a call takes at most.
    at_once: usize,
}

impl Fake {
    fn answering(errnos: &[i32]) -> Self {
        let answers = errnos
            .iter()
            .rev()
            .map(|&errno| Err(io::Error::from_raw_os_error(errno)))
            .collect();
        Self {
            answers,
            calls: Vec::new(),
            sources: Vec::new(),
            sent: Vec::new(),
            system_calls: 0,
            at_once: 32,
        }
    }

    /// As the kernel does: what is wrong with a message that is not the first is for the next call to say.
    fn call(&mut self) -> impl FnMut(Messages<'_>) -> io::Result<usize> + '_ {
        |messages| {
            self.system_calls += 1;
            let mut taken = 0;
            for message in messages.iter().take(self.at_once) {
                if taken > 0 && matches!(self.answers.last(), Some(Err(_))) {
                    break;
                }
                self.calls.push((message.bytes(), message.segment_size()));
                self.sources.push(message.way.source);
                self.sent.push((
                    message.way,
                    message.datagrams().collect::<Vec<_>>().concat(),
                ));
                self.answers.pop().unwrap_or(Ok(()))?;
                taken += 1;
            }
            Ok(taken)
        }
    }
}

fn send(sender: &mut Sender, fake: &mut Fake, lengths: &[usize]) {
    send_from(sender, fake, lengths, None);
}

fn send_from(sender: &mut Sender, fake: &mut Fake, lengths: &[usize], source: Option<IpAddr>) {
    let bytes = vec![0; lengths.iter().sum()];
    let destinations = vec![A.parse().unwrap(); lengths.len()];
    let batch = Datagrams {
        bytes: &bytes,
        lengths,
        destinations: &destinations,
        sources: &vec![source; lengths.len()],
        ecn: &vec![0; lengths.len()],
    };
    sender.send(batch, |_| true, &mut fake.call());
}

fn calls_for(lengths: &[usize]) -> Vec<(usize, Option<usize>)> {
    let mut fake = Fake::answering(&[]);
    send(&mut Sender::new(true), &mut fake, lengths);
    fake.calls
}

#[test]
fn equal_sizes_share_a_call_and_a_shorter_one_ends_it() {
    assert_eq!(calls_for(&[100]), [(100, None)]);
    assert_eq!(calls_for(&[100, 100, 40]), [(240, Some(100))]);
    assert_eq!(
        calls_for(&[100, 40, 40, 40]),
        [(140, Some(100)), (80, Some(40))]
    );
    assert_eq!(calls_for(&[40, 100, 100]), [(40, None), (200, Some(100))]);
    assert_eq!(calls_for(&[0, 0, 10]), [(0, None), (0, None), (10, None)]);
    assert_eq!(calls_for(&[10, 10, 0]), [(20, Some(10)), (0, None)]);
}

#[test]
fn a_call_stays_within_the_kernels_bounds() {
    let calls = calls_for(&[1452; 100]);
    assert_eq!(
        calls,
        [
            (45 * 1452, Some(1452)),
            (45 * 1452, Some(1452)),
            (10 * 1452, Some(1452))
        ]
    );
    assert_eq!(
        calls_for(&[10; 130]),
        [(640, Some(10)), (640, Some(10)), (20, Some(10))]
    );
    assert_eq!(
        calls_for(&[65_507, 65_507]),
        [(65_507, None), (65_507, None)]
    );
}

/// Batches of five destinations in any order, with what says where each belongs.
fn send_mixed(sender: &mut Sender, fake: &mut Fake, to: &[(u16, usize)]) {
    let lengths: Vec<usize> = to.iter().map(|(_, length)| *length).collect();
    let bytes: Vec<u8> = (0..)
        .zip(to)
        .flat_map(|(n, (_, length))| vec![n; *length])
        .collect();
    let destinations: Vec<SocketAddr> = to
        .iter()
        .map(|(port, _)| SocketAddr::from(([192, 0, 2, 1], *port)))
        .collect();
    let batch = Datagrams {
        bytes: &bytes,
        lengths: &lengths,
        destinations: &destinations,
        sources: &vec![None; to.len()],
        ecn: &vec![0; to.len()],
    };
    sender.send(batch, |_| true, &mut fake.call());
}

#[test]
fn those_of_one_destination_go_together_wherever_they_are_and_in_order() {
    let mut fake = Fake::answering(&[]);
    let to = [(1, 9), (2, 9), (1, 9), (3, 4), (2, 5), (1, 9), (2, 9)];
    send_mixed(&mut Sender::new(true), &mut fake, &to);
    let sent: Vec<_> = fake
        .sent
        .iter()
        .map(|(way, bytes)| (way.destination.port(), bytes.clone()))
        .collect();
    assert_eq!(
        sent,
        [
            (1, [[0; 9], [2; 9], [5; 9]].concat()),
            (2, [&[1; 9][..], &[4; 5]].concat()),
            (3, vec![3; 4]),
            (2, vec![6; 9]),
        ]
    );
    assert_eq!(fake.system_calls, 1);
}

#[test]
fn to_one_destination_the_order_is_kept_also_between_marks_of_congestion() {
    let mut fake = Fake::answering(&[]);
    let batch = Datagrams {
        bytes: &[1, 2, 3, 4],
        lengths: &[1; 4],
        destinations: &[A.parse().unwrap(); 4],
        sources: &[None; 4],
        ecn: &[0, 2, 0, 0],
    };
    Sender::new(true).send(batch, |_| true, &mut fake.call());
    let sent: Vec<_> = fake
        .sent
        .iter()
        .map(|(way, bytes)| (way.ecn, bytes.clone()))
        .collect();
    assert_eq!(sent, [(0, vec![1]), (2, vec![2]), (0, vec![3, 4])]);
}

#[test]
fn what_a_call_does_not_take_any_more_goes_with_the_next_one() {
    let mut sender = Sender::new(true);
    let mut fake = Fake::answering(&[]);
    fake.at_once = 2;
    send_mixed(
        &mut sender,
        &mut fake,
        &[(1, 9), (2, 9), (3, 9), (4, 9), (5, 9)],
    );
    assert_eq!(fake.system_calls, 3);
    assert_eq!(
        (
            sender.counts().calls,
            sender.counts().datagrams,
            sender.counts().bytes
        ),
        (3, 5, 45)
    );
}

#[test]
fn what_one_destination_refuses_is_lost_and_the_others_are_sent() {
    let mut sender = Sender::new(true);
    let mut fake = Fake::answering(&[libc::EPERM]);
    send_mixed(&mut sender, &mut fake, &[(1, 9), (2, 9), (1, 9), (3, 9)]);
    assert_eq!(sender.counts().errors.of(libc::EPERM), 2);
    assert_eq!(sender.counts().datagrams, 2);
    assert_eq!(fake.system_calls, 2);
}

#[test]
fn what_is_not_of_this_socket_is_left_to_the_other() {
    let (a, b): (SocketAddr, SocketAddr) = (A.parse().unwrap(), B.parse().unwrap());
    let batch = Datagrams {
        bytes: &[1, 2, 3, 4, 5, 6, 7],
        lengths: &[1, 1, 2, 2, 1],
        destinations: &[a, a, b, a, a],
        sources: &[None, None, None, None, Some(HERE)],
        ecn: &[0; 5],
    };
    let mut fake = Fake::answering(&[]);
    let mut sender = Sender::new(true);
    sender.send(batch, SocketAddr::is_ipv4, &mut fake.call());
    let sent: Vec<_> = fake
        .sent
        .iter()
        .map(|(way, bytes)| (way.source, bytes.clone()))
        .collect();
    assert_eq!(
        sent,
        [
            (None, vec![1, 2]),
            (None, vec![5, 6]),
            (Some(HERE), vec![7])
        ]
    );
    let mut fake = Fake::answering(&[]);
    sender.send(batch, SocketAddr::is_ipv6, &mut fake.call());
    assert_eq!(
        fake.sent
            .iter()
            .map(|(_, bytes)| bytes.clone())
            .collect::<Vec<_>>(),
        [[3, 4]]
    );
}

#[test]
fn of_more_destinations_than_are_looked_through_the_order_is_kept() {
    let to: Vec<_> = (0..200).map(|n| (1 + n % 100, 9)).collect();
    let mut fake = Fake::answering(&[]);
    send_mixed(&mut Sender::new(true), &mut fake, &to);
    let mut last = [None; 101];
    for (way, bytes) in &fake.sent {
        for number in bytes.chunks(9).map(|datagram| datagram.first()) {
            let last = last.get_mut(usize::from(way.destination.port())).unwrap();
            assert!(*last < number);
            *last = number;
        }
    }
    assert_eq!(
        fake.sent
            .iter()
            .map(|(_, bytes)| bytes.len())
            .sum::<usize>(),
        1800
    );
}

#[test]
fn what_waits_of_many_destinations_keeps_the_order_of_each() {
    let mut sender = Sender::new(true);
    let mut fake = Fake::answering(&[libc::EAGAIN]);
    send_mixed(&mut sender, &mut fake, &[(1, 9), (2, 9), (1, 9)]);
    assert_eq!(sender.backlog().len(), 3);
    let mut fake = Fake::answering(&[]);
    sender.flush(&mut fake.call());
    let sent: Vec<_> = fake
        .sent
        .iter()
        .map(|(way, bytes)| (way.destination.port(), bytes.first().copied()))
        .collect();
    assert_eq!(sent, [(1, Some(0)), (1, Some(2)), (2, Some(1))]);
}

#[test]
fn a_route_that_cannot_segment_gets_single_datagrams() {
    for errno in [libc::EIO, libc::EINVAL, libc::EMSGSIZE] {
        let mut sender = Sender::new(true);
        let mut fake = Fake::answering(&[errno]);
        send(&mut sender, &mut fake, &[100, 100]);
        send(&mut sender, &mut fake, &[100, 100]);
        let calls = [
            (200, Some(100)),
            (100, None),
            (100, None),
            (100, None),
            (100, None),
        ];
        assert_eq!(fake.calls, calls);
        assert_eq!(sender.counts().datagrams, 4);
        assert_eq!(sender.counts().segmentation_refused, 1);
        assert_eq!(sender.counts().errors.total(), 0, "nothing was lost");
    }
}

#[test]
fn a_destination_that_refuses_everything_says_nothing_about_segmentation() {
    for errno in [libc::EIO, libc::EINVAL, libc::EMSGSIZE] {
        let mut sender = Sender::new(true);
        let mut fake = Fake::answering(&[errno, errno, errno]);
        send(&mut sender, &mut fake, &[100, 100]);
        send(&mut sender, &mut fake, &[100, 100]);
        assert_eq!(fake.calls.last(), Some(&(200, Some(100))));
        assert_eq!(sender.counts().segmentation_refused, 0);
        assert_eq!(sender.counts().errors.total(), 2);
        assert_eq!(sender.counts().datagrams, 2);
    }
}

#[test]
fn only_datagrams_too_large_for_the_path_go_one_by_one() {
    let mut sender = Sender::new(true);
    let mut fake = Fake::answering(&[libc::EMSGSIZE]);
    send(&mut sender, &mut fake, &[1452, 1452]);
    send(&mut sender, &mut fake, &[100, 100]);
    assert_eq!(fake.calls.last(), Some(&(200, Some(100))));
}

#[test]
fn segmentation_is_tried_again_later() {
    let mut sender = Sender::new(true);
    let mut fake = Fake::answering(&[libc::EIO]);
    for _ in 0..=RETRY_AFTER / 2 {
        send(&mut sender, &mut fake, &[100, 100]);
    }
    let grouped = fake.calls.iter().filter(|(_, size)| size.is_some()).count();
    assert_eq!(grouped, 1);
    send(&mut sender, &mut fake, &[100, 100]);
    assert_eq!(fake.calls.last(), Some(&(200, Some(100))));
}

#[test]
fn a_full_socket_makes_the_rest_wait_in_order() {
    let mut sender = Sender::new(true);
    let mut fake = Fake::answering(&[libc::EAGAIN]);
    send(&mut sender, &mut fake, &[100, 100, 100]);
    send(&mut sender, &mut fake, &[7]);
    assert_eq!(sender.backlog().len(), 4);
    assert_eq!(fake.calls.len(), 1, "a full socket is asked once");
    sender.flush(&mut fake.call());
    assert_eq!(
        fake.calls
            .iter()
            .skip(1)
            .map(|call| call.0)
            .collect::<Vec<_>>(),
        [100, 100, 100, 7]
    );
    assert!(sender.backlog().is_empty());
    assert_eq!(sender.counts().datagrams, 4);
}

#[test]
fn flushing_into_a_full_socket_loses_nothing() {
    let mut sender = Sender::new(false);
    let mut fake = Fake::answering(&[libc::EAGAIN]);
    send(&mut sender, &mut fake, &[1, 2, 3]);
    let mut fake = Fake::answering(&[libc::EAGAIN]);
    sender.flush(&mut fake.call());
    assert_eq!(sender.backlog().len(), 3);
    sender.flush(&mut fake.call());
    assert_eq!(
        fake.calls.iter().map(|call| call.0).collect::<Vec<_>>(),
        [1, 1, 2, 3]
    );
}

#[test]
fn a_socket_that_stays_full_costs_the_oldest_datagrams() {
    let mut sender = Sender::new(true);
    let mut fake = Fake::answering(&[libc::EAGAIN]);
    for _ in 0..BACKLOG_DATAGRAMS + 10 {
        send(&mut sender, &mut fake, &[100]);
    }
    assert_eq!(sender.backlog().len(), BACKLOG_DATAGRAMS);
    assert_eq!(sender.backlog().dropped(), 10);
}

#[test]
fn every_datagram_lost_is_counted_under_its_errno() {
    let mut sender = Sender::new(true);
    let mut fake = Fake::answering(&[libc::ENOBUFS, libc::ENETUNREACH, libc::EPERM]);
    send(&mut sender, &mut fake, &[100, 100, 100]);
    send(&mut sender, &mut fake, &[10]);
    send(&mut sender, &mut fake, &[10]);
    send(&mut sender, &mut fake, &[10]);
    let errors = &sender.counts().errors;
    assert_eq!(errors.of(libc::ENOBUFS), 3);
    assert_eq!(errors.of(libc::ENETUNREACH), 1);
    assert_eq!(errors.of(libc::EPERM), 1);
    assert_eq!(sender.counts().datagrams, 1);
}

#[test]
fn a_source_address_that_is_refused_is_left_out_and_reported_once() {
    let mut sender = Sender::new(true);
    let mut fake = Fake::answering(&[libc::EINVAL]);
    send_from(&mut sender, &mut fake, &[100, 100, 100, 40, 7], Some(HERE));
    assert_eq!(fake.calls, [(340, Some(100)), (340, Some(100)), (7, None)]);
    assert_eq!(fake.sources, [Some(HERE), None, None]);
    assert_eq!(sender.counts().source_refused, 1);
    assert_eq!(sender.counts().datagrams, 5);
    assert_eq!(sender.counts().segmentation_refused, 0);
    assert_eq!(sender.counts().errors.total(), 0, "nothing was lost");
    assert_eq!(sender.take_refused_sources(), [(A.parse().unwrap(), HERE)]);
    assert_eq!(sender.take_refused_sources(), []);
    let mut fake = Fake::answering(&[]);
    send_from(&mut sender, &mut fake, &[7], Some(HERE));
    assert_eq!(fake.sources, [Some(HERE)]);
}

#[test]
fn a_destination_that_refuses_everything_says_nothing_about_the_source() {
    let mut sender = Sender::new(true);
    let mut fake = Fake::answering(&[libc::ENETUNREACH, libc::ENETUNREACH]);
    send_from(&mut sender, &mut fake, &[7], Some(HERE));
    assert_eq!(fake.sources, [Some(HERE), None]);
    assert_eq!(sender.counts().errors.of(libc::ENETUNREACH), 1);
    assert_eq!(sender.counts().source_refused, 0);
    assert_eq!(sender.take_refused_sources(), []);
}

#[test]
fn what_a_firewall_or_a_full_queue_refuses_is_lost_and_counted_and_the_source_stays() {
    for errno in [libc::EPERM, libc::ENOBUFS, libc::EACCES, libc::ECONNREFUSED] {
        let mut sender = Sender::new(true);
        let mut fake = Fake::answering(&[errno]);
        send_from(&mut sender, &mut fake, &[7], Some(HERE));
        send_from(&mut sender, &mut fake, &[7], Some(HERE));
        assert_eq!(fake.sources, [Some(HERE), Some(HERE)]);
        assert_eq!(sender.counts().errors.of(errno), 1);
        assert_eq!(sender.counts().datagrams, 1);
        assert_eq!(sender.counts().source_refused, 0);
        assert_eq!(sender.take_refused_sources(), []);
    }
}

#[test]
fn segmentation_that_is_refused_says_nothing_about_the_source() {
    for (errnos, asked_without) in [
        (&[libc::EIO][..], &[][..]),
        // The kernel says that of either.
        (&[libc::EINVAL, libc::EINVAL], &[None]),
    ] {
        let mut sender = Sender::new(true);
        let mut fake = Fake::answering(errnos);
        send_from(&mut sender, &mut fake, &[100, 100], Some(HERE));
        assert_eq!(fake.calls.last(), Some(&(100, None)));
        let here = [Some(HERE)];
        assert_eq!(fake.sources, [&here, asked_without, &here, &here].concat());
        assert_eq!(sender.counts().segmentation_refused, 1);
        assert_eq!(sender.take_refused_sources(), []);
    }
}

#[test]
fn a_full_socket_keeps_the_source_of_what_waits() {
    let mut sender = Sender::new(true);
    let mut fake = Fake::answering(&[libc::EAGAIN]);
    send_from(&mut sender, &mut fake, &[7], Some(HERE));
    sender.flush(&mut fake.call());
    assert_eq!(fake.sources, [Some(HERE), Some(HERE)]);
    assert_eq!(sender.counts().source_refused, 0);
}
