//! Flows that were revoked: what comes the other way is judged as what it was, and does not take them up again.

use super::*;

const UDP_TIME: u64 = 120;
const TCP_TIME: u64 = 2 * 3600 + 4 * 60;

fn tcp_there(flags: u8) -> Vec<u8> {
    ip(PEER, FAR, 6, &tcp(5000, 443, flags))
}

fn tcp_back(flags: u8) -> Vec<u8> {
    ip(FAR, PEER, 6, &tcp(443, 5000, flags))
}

fn udp_there() -> Vec<u8> {
    ip(PEER, FAR, 17, &udp(5000, 443))
}

fn udp_back() -> Vec<u8> {
    ip(FAR, PEER, 17, &udp(443, 5000))
}

fn change(gate: &mut Gate, default: Action, outbound: Action) {
    let Gate { filter, flows, now } = gate;
    filter.change(policy(&[], default, outbound), 0, flows, *now);
}

/// A connection and a UDP flow that the peer began, under a policy that lets only the network behind us begin any.
fn revoked_of_peer() -> Gate {
    let mut gate = Gate::new(policy(&[], Action::Allow, Action::Allow));
    for packet in [tcp_there(SYN), udp_there()] {
        assert!(gate.sends(&packet).is_allowed());
    }
    for packet in [tcp_back(SYN | ACK), udp_back()] {
        assert!(gate.gets(&packet).is_allowed());
    }
    change(&mut gate, Action::Deny, Action::Allow);
    gate
}

/// The same the other way round.
fn revoked_of_far() -> Gate {
    let mut gate = Gate::new(policy(&[], Action::Allow, Action::Allow));
    for packet in [tcp_back(SYN), udp_back()] {
        assert!(gate.gets(&packet).is_allowed());
    }
    for packet in [tcp_there(SYN | ACK), udp_there()] {
        assert!(gate.sends(&packet).is_allowed());
    }
    change(&mut gate, Action::Allow, Action::Deny);
    gate
}

#[test]
fn what_answers_a_flow_that_was_revoked_is_denied_as_it_is_and_takes_nothing_up() {
    let mut gate = revoked_of_peer();
    assert_eq!(gate.flows(), 0);
    for _ in 0..2 {
        for flags in [ACK, FIN | ACK, 0, RST, SYN | ACK] {
            assert_eq!(gate.gets(&tcp_back(flags)), denied(Reason::Default));
        }
        assert_eq!(gate.gets(&udp_back()), denied(Reason::Default));
        for packet in [tcp_there(ACK), tcp_there(SYN), udp_there()] {
            assert_eq!(gate.sends(&packet), denied(Reason::Default));
        }
    }
    // What never was one may be picked up in the middle.
    let other = ip(FAR, PEER, 6, &tcp(443, 5001, ACK));
    assert_eq!(gate.gets(&other), allowed(Reason::Outbound));

    let mut gate = revoked_of_far();
    for _ in 0..2 {
        for flags in [ACK, FIN | ACK, 0, RST, SYN | ACK] {
            assert_eq!(gate.sends(&tcp_there(flags)), denied(Reason::Outbound));
        }
        assert_eq!(gate.sends(&udp_there()), denied(Reason::Outbound));
        for packet in [tcp_back(ACK), tcp_back(SYN), udp_back()] {
            assert_eq!(gate.gets(&packet), denied(Reason::Outbound));
        }
    }
    assert_eq!(gate.flows(), 0);
}

#[test]
fn an_echo_reply_to_a_question_that_was_revoked_does_not_pass() {
    let (ping, pong) = (ip(PEER, FAR, 1, &icmp(8, 7)), ip(FAR, PEER, 1, &icmp(0, 7)));
    let mut gate = Gate::new(policy(&[], Action::Allow, Action::Allow));
    assert!(gate.sends(&ping).is_allowed());
    change(&mut gate, Action::Deny, Action::Allow);
    assert_eq!(gate.gets(&pong), denied(Reason::Default));
    // A question of this side is another flow, though its number is the same.
    let own = ip(FAR, PEER, 1, &icmp(8, 7));
    assert_eq!(gate.gets(&own), allowed(Reason::Outbound));
}

#[test]
fn a_connection_that_the_other_side_really_begins_is_one_of_its_own() {
    let mut gate = revoked_of_peer();
    assert_eq!(gate.gets(&tcp_back(SYN)), allowed(Reason::Outbound));
    assert_eq!(gate.sends(&tcp_there(SYN | ACK)), allowed(Reason::Flow));
    // It is remembered as what it is by now, which this policy revokes.
    change(&mut gate, Action::Allow, Action::Deny);
    assert_eq!(gate.sends(&tcp_there(ACK)), denied(Reason::Outbound));

    let mut gate = revoked_of_far();
    assert_eq!(gate.sends(&tcp_there(SYN)), allowed(Reason::Default));
    assert_eq!(gate.gets(&tcp_back(SYN | ACK)), allowed(Reason::Flow));

    // Where its side does not let it begin, it changes nothing.
    let mut gate = revoked_of_peer();
    change(&mut gate, Action::Deny, Action::Deny);
    assert_eq!(gate.gets(&tcp_back(SYN)), denied(Reason::Outbound));
    change(&mut gate, Action::Deny, Action::Allow);
    assert_eq!(gate.gets(&tcp_back(ACK)), denied(Reason::Default));
}

#[test]
fn it_holds_until_nothing_was_seen_of_it_for_its_time() {
    for (packet, seconds) in [(tcp_back(ACK), TCP_TIME), (udp_back(), UDP_TIME)] {
        let passes_after = |time: Duration| {
            let mut gate = revoked_of_peer();
            gate.now += time;
            gate.gets(&packet).is_allowed()
        };
        let end = Duration::from_secs(seconds);
        assert!(!passes_after(end - Duration::from_nanos(1)));
        assert!(passes_after(end));
        // Whoever goes on trying keeps it.
        let mut gate = revoked_of_peer();
        for round in 1..4 {
            gate.now = after(round * (seconds - 1));
            assert!(!gate.gets(&packet).is_allowed());
        }
        // What the peer sends is seen, too, and does not shorten it, whatever it says.
        for there in [udp_there(), tcp_there(RST)] {
            assert!(!gate.sends(&there).is_allowed());
        }
        gate.now = after(4 * (seconds - 1));
        assert!(!gate.gets(&packet).is_allowed());
        gate.now = after(5 * seconds);
        assert!(gate.gets(&packet).is_allowed());
    }
}

#[test]
fn a_policy_that_lets_it_begin_again_ends_it() {
    let mut gate = revoked_of_peer();
    change(&mut gate, Action::Allow, Action::Deny);
    // It is not known any more, but it may begin.
    assert_eq!(gate.gets(&udp_back()), denied(Reason::Outbound));
    assert_eq!(gate.sends(&udp_there()), allowed(Reason::Default));
    let mut gate = revoked_of_peer();
    change(&mut gate, Action::Allow, Action::Allow);
    change(&mut gate, Action::Deny, Action::Allow);
    assert_eq!(gate.gets(&udp_back()), allowed(Reason::Outbound));
    // Nor is anything of it left with another peer in its place.
    let mut gate = revoked_of_peer();
    gate.flows.forget(0, gate.now);
    assert_eq!(gate.gets(&udp_back()), allowed(Reason::Outbound));
}

/// Flows from one of 65,536 ports of one of many hosts, and back.
fn numbered(number: u32) -> (Vec<u8>, Vec<u8>) {
    let (host, port) = (format!("10.0.1.{}", number >> 16), number as u16);
    (
        ip(&host, FAR, 17, &udp(port, 443)),
        ip(FAR, &host, 17, &udp(443, port)),
    )
}

#[test]
fn of_each_peer_as_many_are_remembered_as_it_can_have_and_then_the_oldest_is_forgotten() {
    let mut gate = Gate::new(policy(&[], Action::Allow, Action::Allow));
    for number in 0..8192 {
        assert!(gate.sends(&numbered(number).0).is_allowed());
    }
    change(&mut gate, Action::Deny, Action::Allow);
    for number in 0..8192 {
        assert!(!gate.gets(&numbered(number).1).is_allowed());
    }
    // Flows that it has beside them push out none.
    for number in 10_000..20_000 {
        assert!(gate.gets(&numbered(number).1).is_allowed());
    }
    assert!(!gate.gets(&numbered(0).1).is_allowed());
    // 1 is the oldest by now.
    let rules = [allow(Protocol::Udp, &[444..=444])];
    let other = policy(&rules, Action::Deny, Action::Allow);
    let Gate { filter, flows, now } = &mut gate;
    filter.change(other, 0, flows, *now);
    let there = ip(PEER, FAR, 17, &udp(5000, 444));
    assert!(gate.sends(&there).is_allowed());
    let evicted = gate.flows.evicted(0);
    change(&mut gate, Action::Deny, Action::Allow);
    assert!(!gate.gets(&ip(FAR, PEER, 17, &udp(444, 5000))).is_allowed());
    assert!(!gate.gets(&numbered(0).1).is_allowed());
    assert!(!gate.gets(&numbered(2).1).is_allowed());
    assert_eq!(gate.flows.evicted(0), evicted, "no flow gave way");
    assert!(gate.gets(&numbered(1).1).is_allowed());
}

#[test]
fn of_all_peers_as_many_are_remembered_as_a_node_can_have_and_then_the_oldest_is_forgotten() {
    let mut flows = Flows::default();
    let open = policy(&[], Action::Allow, Action::Allow);
    let closed = policy(&[], Action::Deny, Action::Allow);
    let mut revoke = |slot: usize, count: u32| {
        let mut filter = Filter::new(open.clone());
        for number in 0..count {
            let (there, _) = numbered(number);
            filter.check(&there, Direction::FromPeer, slot, &mut flows, START);
        }
        filter.change(closed.clone(), slot, &mut flows, START);
        filter
    };
    let mut first = revoke(0, 2);
    let mut full: Vec<_> = (1..=32)
        .map(|slot| revoke(slot, 8192 - 2 * u32::from(slot == 1)))
        .collect();
    let passes = |filter: &mut Filter, slot: usize, number: u32, flows: &mut Flows| {
        let (_, back) = numbered(number);
        let verdict = filter.check(&back, Direction::ToPeer, slot, flows, START);
        verdict.is_allowed()
    };
    let mut last = {
        let mut filter = Filter::new(open.clone());
        let (there, _) = numbered(0);
        filter.check(&there, Direction::FromPeer, 33, &mut flows, START);
        filter
    };
    assert!(!passes(&mut first, 0, 1, &mut flows));
    last.change(closed, 33, &mut flows, START);
    assert!(!passes(&mut last, 33, 0, &mut flows));
    for (index, filter) in full.iter_mut().enumerate() {
        assert!(!passes(filter, index + 1, 0, &mut flows));
    }
    assert!(!passes(&mut first, 0, 1, &mut flows));
    assert!(passes(&mut first, 0, 0, &mut flows));
}
