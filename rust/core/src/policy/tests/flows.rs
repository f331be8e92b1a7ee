//! How long flows last, and what happens when there are too many.

use super::*;

const UDP_TIME: u64 = 120;
const TCP_TIME: u64 = 2 * 3600 + 4 * 60;
const CLOSED_TIME: u64 = 240;

fn question() -> Vec<u8> {
    ip(PEER, FAR, 6, &tcp(5000, 443, SYN))
}

fn from_far(flags: u8) -> Vec<u8> {
    ip(FAR, PEER, 6, &tcp(443, 5000, flags))
}

fn from_peer(flags: u8) -> Vec<u8> {
    ip(PEER, FAR, 6, &tcp(5000, 443, flags))
}

/// Whether the flow is still there so many seconds later, to the nanosecond.
fn lasts(make: impl Fn() -> Gate, packet: &[u8], seconds: u64) -> bool {
    let at = |time: Duration| {
        let mut gate = make();
        gate.now += time;
        let known = gate.flows() == 1;
        assert_eq!(gate.gets(packet).is_allowed(), known);
        known
    };
    let end = Duration::from_secs(seconds);
    at(end - Duration::from_nanos(1)) && !at(end)
}

#[test]
fn a_flow_ends_when_nothing_was_seen_of_it_for_its_time() {
    let with = |packet: Vec<u8>| {
        move || {
            let mut gate = Gate::usual();
            assert!(gate.sends(&packet).is_allowed());
            gate
        }
    };
    assert!(lasts(with(question()), &from_far(ACK), TCP_TIME));
    let (there, back) = (
        ip(PEER, FAR, 17, &udp(5000, 443)),
        ip(FAR, PEER, 17, &udp(443, 5000)),
    );
    assert!(lasts(with(there), &back, UDP_TIME));
    let (ping, pong) = (ip(PEER, FAR, 1, &icmp(8, 1)), ip(FAR, PEER, 1, &icmp(0, 1)));
    assert!(lasts(with(ping), &pong, UDP_TIME));
}

#[test]
fn packets_of_either_side_keep_a_flow_alive() {
    let (there, back) = (
        ip(PEER, FAR, 17, &udp(5000, 443)),
        ip(FAR, PEER, 17, &udp(443, 5000)),
    );
    let mut gate = Gate::usual();
    gate.sends(&there);
    for round in 1..10 {
        gate.now = after(round * 119);
        let verdict = match round % 2 {
            0 => gate.sends(&there),
            _ => gate.gets(&back),
        };
        assert_eq!(verdict, allowed(Reason::Flow));
    }
}

#[test]
fn a_connection_that_is_reset_or_finished_by_both_sides_lasts_four_minutes() {
    let closed = |packets: &[(bool, u8)]| {
        let packets = packets.to_vec();
        move || {
            let mut gate = Gate::usual();
            gate.sends(&question());
            for (peer, flags) in &packets {
                let verdict = match peer {
                    true => gate.sends(&from_peer(*flags)),
                    false => gate.gets(&from_far(*flags)),
                };
                assert_eq!(verdict, allowed(Reason::Flow));
            }
            gate
        }
    };
    let ack = from_far(ACK);
    assert!(lasts(closed(&[(true, FIN)]), &ack, TCP_TIME));
    assert!(lasts(closed(&[(true, FIN), (true, FIN)]), &ack, TCP_TIME));
    assert!(lasts(
        closed(&[(true, FIN), (false, FIN)]),
        &ack,
        CLOSED_TIME
    ));
    assert!(lasts(closed(&[(false, RST)]), &ack, CLOSED_TIME));
    assert!(lasts(
        closed(&[(true, RST), (false, ACK)]),
        &ack,
        CLOSED_TIME
    ));
}

#[test]
fn a_connection_that_begins_where_one_was_closed_is_judged_anew() {
    let mut gate = Gate::new(policy(&[], Action::Deny, Action::Allow));
    assert!(gate.gets(&from_far(SYN)).is_allowed());
    // While it is open, a SYN of the other side is part of it: both may open at once (RFC 9293, section 3.5).
    assert_eq!(gate.sends(&from_peer(SYN)), allowed(Reason::Flow));
    assert_eq!(gate.sends(&from_peer(RST)), allowed(Reason::Flow));
    assert_eq!(gate.sends(&from_peer(SYN)), denied(Reason::Default));
    assert_eq!(gate.flows(), 0);
    assert_eq!(gate.gets(&from_far(SYN)), allowed(Reason::Outbound));
    assert_eq!(gate.sends(&from_peer(SYN | ACK)), allowed(Reason::Flow));
}

#[test]
fn what_answers_or_ends_a_connection_starts_none() {
    let mut gate = Gate::usual();
    for flags in [RST, RST | ACK, SYN | ACK] {
        assert!(gate.sends(&from_peer(flags)).is_allowed());
        assert_eq!(gate.flows(), 0);
    }
    // In the middle of one, which began before the policy did.
    assert_eq!(gate.sends(&from_peer(ACK)), allowed(Reason::Rule(0)));
    assert_eq!(gate.gets(&from_far(ACK)), allowed(Reason::Flow));
}

/// A first packet from one of 65,536 ports of one of many hosts.
fn numbered(number: u32) -> Vec<u8> {
    let host = number >> 16;
    ip(&format!("10.0.1.{host}"), FAR, 17, &udp(number as u16, 443))
}

#[test]
fn a_peer_with_too_many_flows_loses_its_least_recently_used_one() {
    let mut gate = Gate::usual();
    for number in 0..8192 {
        assert!(gate.sends(&numbered(number)).is_allowed());
    }
    assert_eq!((gate.flows(), gate.flows.evicted(0)), (8192, 0));
    gate.now = after(1);
    assert_eq!(gate.sends(&numbered(0)), allowed(Reason::Flow));
    assert_eq!(gate.sends(&numbered(8192)), allowed(Reason::Rule(1)));
    assert_eq!((gate.flows(), gate.flows.evicted(0)), (8192, 1));
    assert_eq!(gate.sends(&numbered(0)), allowed(Reason::Flow));
    assert_eq!(gate.sends(&numbered(1)), allowed(Reason::Rule(1)));
    // What has expired makes room without being counted.
    gate.now = after(121);
    assert_eq!(gate.flows(), 0);
    for number in 10_000..20_000 {
        gate.sends(&numbered(number));
    }
    assert_eq!(
        (gate.flows(), gate.flows.evicted(0)),
        (8192, 2 + 10_000 - 8192)
    );
}

#[test]
fn with_too_many_flows_in_all_the_least_recently_used_one_goes_whoever_has_it() {
    let mut flows = Flows::default();
    let policy = policy(&[], Action::Allow, Action::Deny);
    let mut filters: Vec<_> = (0..=32).map(|_| Filter::new(policy.clone())).collect();
    let mut send = |flows: &mut Flows, slot: usize, packet: &[u8], now| {
        filters[slot].check(packet, Direction::FromPeer, slot, flows, now)
    };
    // Peer 0 has one connection, which is the oldest of all; 1 to 31 have all that they may, and 32 all but one.
    send(&mut flows, 0, &question(), START);
    for slot in 1..=32 {
        for number in 0..8192 - u32::from(slot == 32) {
            send(&mut flows, slot, &numbered(number), after(1));
        }
    }
    let count = |flows: &Flows, slot| (flows.count(slot, after(1)), flows.evicted(slot));
    assert_eq!(
        (0..=32).map(|slot| count(&flows, slot).0).sum::<usize>(),
        262_144
    );
    assert_eq!(count(&flows, 0), (1, 0));
    // Peer 0 is active again, so that peer 1's flows are the oldest.
    send(&mut flows, 0, &question(), after(2));
    send(&mut flows, 32, &numbered(60_000), after(2));
    assert_eq!((count(&flows, 0), count(&flows, 1)), ((1, 0), (8191, 1)));
    send(&mut flows, 32, &numbered(60_001), after(2));
    assert_eq!(
        (count(&flows, 1), count(&flows, 32)),
        ((8191, 1), (8192, 1))
    );
    flows.forget(1, after(2));
    assert_eq!((count(&flows, 1), count(&flows, 2)), ((0, 0), (8192, 0)));
}

#[test]
fn flows_of_two_peers_are_apart_even_with_equal_addresses() {
    let mut flows = Flows::default();
    let mut one = Filter::new(policy(&[], Action::Allow, Action::Deny));
    let mut two = Filter::new(policy(&[], Action::Deny, Action::Deny));
    assert!(
        one.check(&question(), Direction::FromPeer, 1, &mut flows, START)
            .is_allowed()
    );
    assert!(
        !two.check(&question(), Direction::FromPeer, 2, &mut flows, START)
            .is_allowed()
    );
    assert!(
        !two.check(&from_far(ACK), Direction::ToPeer, 2, &mut flows, START)
            .is_allowed()
    );
    assert!(
        one.check(&from_far(ACK), Direction::ToPeer, 1, &mut flows, START)
            .is_allowed()
    );
}
