//! What passes, and why: first packets, return traffic, ICMP errors, fragments.

use super::*;

#[test]
fn what_starts_no_flow_is_not_asked_about_and_the_dry_run_says_so() {
    let asking = policy(
        &[Rule {
            action: Action::Ask,
            ..allow(Protocol::Icmp, &[])
        }],
        Action::Ask,
        Action::Ask,
    );
    let by_rule = Reason::NoFlow { rule: Some(0) };
    let by_default = Reason::NoFlow { rule: None };
    for (number, payload, expected) in [
        (6, tcp(5000, 443, RST), by_default),
        (6, tcp(5000, 443, SYN | ACK), by_default),
        (1, icmp(0, 1), by_rule),
        (1, icmp(5, 1), by_rule),
        (1, error(3, &ip(FAR, PEER, 17, &udp(1, 2))), by_rule),
    ] {
        let packet = ip(PEER, FAR, number, &payload);
        assert_eq!(asking.decide_packet(&packet), denied(expected));
        let mut gate = Gate::new(asking.clone());
        assert_eq!(gate.sends(&packet), denied(expected), "without a hook");
        gate.flows.pending.switch(true);
        assert_eq!(gate.sends(&packet), denied(expected));
        let packet = ip(FAR, PEER, number, &payload);
        assert_eq!(gate.gets(&packet), denied(by_default), "by outbound");
    }
    let decide = |destination: &str, transport| {
        asking.decide(&Flow {
            destination: destination.parse().unwrap(),
            transport,
        })
    };
    let asks = |reason| Verdict {
        action: Action::Ask,
        reason,
    };
    for kind in [0, 3, 5, 14, 128] {
        assert_eq!(decide(FAR, Transport::Icmp(kind)), denied(by_rule));
    }
    for kind in [1, 8, 129, 137] {
        assert_eq!(decide(FAR6, Transport::Icmp(kind)), denied(by_rule));
    }
    for (destination, kind) in [(FAR, 8), (FAR, 13), (FAR6, 128)] {
        let verdict = decide(destination, Transport::Icmp(kind));
        assert_eq!(verdict, asks(Reason::Rule(0)));
    }
    let syn = ip(PEER, FAR, 6, &tcp(5000, 443, SYN));
    assert_eq!(asking.decide_packet(&syn), asks(Reason::Default));
    let no_hook = Reason::NoHook { rule: None };
    assert_eq!(Gate::new(asking).sends(&syn), denied(no_hook));
}

#[test]
fn the_dry_run_and_the_first_packet_get_the_same_verdict() {
    let policy = policy(
        &[
            Rule {
                destinations: vec![prefix("192.0.2.0/24")],
                ..allow(Protocol::Tcp, &[80..=80, 443..=443])
            },
            Rule {
                action: Action::Deny,
                destinations: vec![prefix("192.0.2.7/32"), prefix("2001:db8::/32")],
                ..Rule::default()
            },
        ],
        Action::Allow,
        Action::Deny,
    );
    let cases = [
        (FAR, Transport::Tcp(443), allowed(Reason::Rule(0))),
        (FAR, Transport::Tcp(444), denied(Reason::Rule(1))),
        (FAR, Transport::Udp(443), denied(Reason::Rule(1))),
        (FAR, Transport::Icmp(8), denied(Reason::Rule(1))),
        (FAR, Transport::Other(47), denied(Reason::Rule(1))),
        (FAR6, Transport::Tcp(443), denied(Reason::Rule(1))),
        ("192.0.2.8", Transport::Udp(443), allowed(Reason::Default)),
        (
            "2001:db9::1",
            Transport::Icmp(128),
            allowed(Reason::Default),
        ),
    ];
    for (destination, transport, expected) in cases {
        let (source, icmp_number) = match destination.contains(':') {
            true => (PEER6, 58),
            false => (PEER, 1),
        };
        let packet = match transport {
            Transport::Tcp(port) => ip(source, destination, 6, &tcp(5000, port, SYN)),
            Transport::Udp(port) => ip(source, destination, 17, &udp(5000, port)),
            Transport::Icmp(kind) => ip(source, destination, icmp_number, &icmp(kind, 1)),
            Transport::Other(number) => ip(source, destination, number, b"anything"),
        };
        let flow = Flow {
            destination: destination.parse().unwrap(),
            transport,
        };
        assert_eq!(policy.decide(&flow), expected, "{flow:?}");
        assert_eq!(policy.decide_packet(&packet), expected, "{flow:?}");
        assert_eq!(
            Gate::new(policy.clone()).sends(&packet),
            expected,
            "{flow:?}"
        );
    }
}

#[test]
fn a_reply_passes_only_after_what_it_answers_and_only_the_same_ports() {
    for (peer, far) in [(PEER, FAR), (PEER6, FAR6)] {
        for (number, question, answer) in [
            (6, tcp(5000, 443, SYN), tcp(443, 5000, SYN | ACK)),
            (17, udp(5000, 443), udp(443, 5000)),
        ] {
            let mut gate = Gate::usual();
            let (question, answer) = (
                ip(peer, far, number, &question),
                ip(far, peer, number, &answer),
            );
            assert_eq!(gate.gets(&answer), denied(Reason::Outbound));
            let rule = Reason::Rule(usize::from(number == 17));
            assert_eq!(gate.sends(&question), allowed(rule));
            assert_eq!(gate.gets(&answer), allowed(Reason::Flow));
            assert_eq!(gate.sends(&question), allowed(Reason::Flow));
            for (source, destination) in [(443, 5001), (444, 5000)] {
                let other = match number {
                    6 => tcp(source, destination, ACK),
                    _ => udp(source, destination),
                };
                let other = ip(far, peer, number, &other);
                assert_eq!(gate.gets(&other), denied(Reason::Outbound));
            }
            assert_eq!(gate.flows(), 1);
        }
    }
}

#[test]
fn an_echo_reply_passes_and_an_echo_request_with_the_same_number_does_not() {
    for (peer, far, number, request, reply) in [(PEER, FAR, 1, 8, 0), (PEER6, FAR6, 58, 128, 129)] {
        let mut gate = Gate::usual();
        let to_far = |kind, id| ip(peer, far, number, &icmp(kind, id));
        let to_peer = |kind, id| ip(far, peer, number, &icmp(kind, id));
        assert_eq!(gate.gets(&to_peer(reply, 7)), denied(Reason::Outbound));
        assert_eq!(gate.sends(&to_far(request, 7)), allowed(Reason::Rule(2)));
        assert_eq!(gate.gets(&to_peer(reply, 7)), allowed(Reason::Flow));
        assert_eq!(gate.gets(&to_peer(reply, 8)), denied(Reason::Outbound));
        assert_eq!(gate.gets(&to_peer(request, 7)), denied(Reason::Outbound));
        assert_eq!(gate.flows(), 1);
        // An answer that nobody waits for is judged by the rules, and starts nothing.
        assert_eq!(gate.sends(&to_far(reply, 9)), allowed(Reason::Rule(2)));
        assert_eq!(gate.gets(&to_peer(request, 9)), denied(Reason::Outbound));
        assert_eq!(gate.flows(), 1);
    }
}

#[test]
fn what_starts_on_our_side_is_for_the_outbound_action_and_its_replies_need_no_rule() {
    let mut gate = Gate::new(policy(&[], Action::Deny, Action::Allow));
    let (to, from) = (ip(FAR, PEER, 17, &udp(1, 2)), ip(PEER, FAR, 17, &udp(2, 1)));
    assert_eq!(gate.sends(&from), denied(Reason::Default));
    assert_eq!(gate.gets(&to), allowed(Reason::Outbound));
    assert_eq!(gate.sends(&from), allowed(Reason::Flow));
    let ping = ip(FAR, PEER, 1, &icmp(8, 3));
    assert_eq!(gate.gets(&ping), allowed(Reason::Outbound));
    let pong = ip(PEER, FAR, 1, &icmp(0, 3));
    assert_eq!(gate.sends(&pong), allowed(Reason::Flow));
    assert_eq!(
        gate.sends(&ip(PEER, FAR, 1, &icmp(8, 3))),
        denied(Reason::Default)
    );
}

#[test]
fn protocols_without_ports_have_one_flow_for_two_addresses() {
    let mut gate = Gate::new(policy(
        &[allow(Protocol::Number(47), &[])],
        Action::Deny,
        Action::Deny,
    ));
    assert_eq!(
        gate.sends(&ip(PEER, FAR, 47, b"")),
        allowed(Reason::Rule(0))
    );
    assert_eq!(gate.gets(&ip(FAR, PEER, 47, b"")), allowed(Reason::Flow));
    assert_eq!(gate.gets(&ip(FAR, PEER, 50, b"")), denied(Reason::Outbound));
}

#[test]
fn an_icmp_error_passes_with_the_flow_that_it_is_about_and_does_not_keep_it_alive() {
    for (peer, far, router, number, unreachable) in [
        (PEER, FAR, "198.51.100.1", 1, 3),
        (PEER6, FAR6, "2001:db8::ffff", 58, 1),
    ] {
        let mut gate = Gate::usual();
        let sent = ip(peer, far, 17, &udp(5000, 443));
        // A quotation may be cut off after 8 bytes of UDP.
        let about = |packet: &[u8]| ip(router, peer, number, &error(unreachable, packet));
        assert_eq!(gate.gets(&about(&sent)), denied(Reason::Outbound));
        gate.sends(&sent);
        assert_eq!(gate.gets(&about(&sent)), allowed(Reason::Related));
        let other = ip(peer, far, 17, &udp(5001, 443));
        assert_eq!(gate.gets(&about(&other)), denied(Reason::Outbound));
        // Not what went the other way, and not to somebody else.
        let reply = ip(far, peer, 17, &udp(443, 5000));
        assert_eq!(gate.gets(&about(&reply)), denied(Reason::Outbound));
        let astray = ip(router, far, number, &error(unreachable, &sent));
        assert_eq!(gate.gets(&astray), denied(Reason::Outbound));
        // The peer may answer in kind.
        let to_far = ip(peer, far, number, &error(unreachable, &reply));
        assert_eq!(gate.sends(&to_far), allowed(Reason::Related));
        gate.now = after(119);
        assert_eq!(gate.gets(&about(&sent)), allowed(Reason::Related));
        gate.now = after(120);
        assert_eq!(gate.gets(&about(&sent)), denied(Reason::Outbound));
    }
}

#[test]
fn an_error_of_a_long_tcp_packet_is_known_by_its_first_eight_bytes() {
    let mut gate = Gate::usual();
    let sent = ip(PEER, FAR, 6, &[tcp(5000, 443, SYN), vec![0; 500]].concat());
    gate.sends(&sent);
    let about = ip("198.51.100.1", PEER, 1, &error(11, &sent[..28]));
    assert_eq!(gate.gets(&about), allowed(Reason::Related));
    let cut = ip("198.51.100.1", PEER, 1, &error(11, &sent[..27]));
    assert_eq!(gate.gets(&cut), denied(Reason::Outbound));
}

#[test]
fn later_fragments_share_the_fate_of_the_first() {
    let mut gate = Gate::usual();
    let payload = [udp(5000, 443), vec![0; 8]].concat();
    let first = fragment(ip(PEER, FAR, 17, &payload), 0, true);
    let later = fragment(ip(PEER, FAR, 17, b"the rest"), 16, false);
    assert_eq!(gate.sends(&later), denied(Reason::Fragment));
    assert_eq!(gate.sends(&first), allowed(Reason::Rule(1)));
    assert_eq!(gate.sends(&later), allowed(Reason::Fragment));
    let mut other = later.clone();
    other[5] ^= 1;
    assert_eq!(gate.sends(&other), denied(Reason::Fragment));
    gate.now = after(59);
    assert_eq!(gate.sends(&later), allowed(Reason::Fragment));
    gate.now = after(60);
    assert_eq!(gate.sends(&later), denied(Reason::Fragment));

    // A first fragment with the same number that is refused takes the others with it.
    assert_eq!(gate.sends(&first), allowed(Reason::Flow));
    let refused = [udp(5000, 22), vec![0; 8]].concat();
    let refused = fragment(ip(PEER, FAR, 17, &refused), 0, true);
    assert_eq!(gate.sends(&refused), denied(Reason::Default));
    assert_eq!(gate.sends(&later), denied(Reason::Fragment));
}

#[test]
fn later_fragments_of_ipv6_share_the_fate_of_the_first() {
    let mut gate = Gate::usual();
    let with = |offset, more, id, rest: &[u8]| {
        let header = fragment_header(17, offset, more, id);
        ip(PEER6, FAR6, 44, &[&header, rest].concat())
    };
    assert_eq!(
        gate.sends(&with(16, false, 9, b"the rest")),
        denied(Reason::Fragment)
    );
    let first = with(0, true, 9, &[udp(5000, 443), vec![0; 8]].concat());
    assert_eq!(gate.sends(&first), allowed(Reason::Rule(1)));
    for (id, expected) in [
        (9, allowed(Reason::Fragment)),
        (8, denied(Reason::Fragment)),
    ] {
        assert_eq!(gate.sends(&with(16, false, id, b"the rest")), expected);
    }
}

#[test]
fn no_fragment_writes_over_what_the_rules_have_decided_about() {
    let options = [6, 0, 1, 4, 0, 0, 0, 0];
    let with = |next, offset, more, rest: &[u8]| {
        let header = fragment_header(next, offset, more, 9);
        ip(PEER6, FAR6, 44, &[&header, rest].concat())
    };
    let pad = [0; 4];
    let cases = [
        // TCP behind options that are cut along with it: its ports are at 8 bytes.
        (
            with(
                60,
                0,
                true,
                &[&options[..], &tcp(5000, 443, SYN), &pad].concat(),
            ),
            Reason::Rule(0),
            32,
        ),
        (
            with(17, 0, true, &[udp(5000, 443), vec![0; 24]].concat()),
            Reason::Rule(1),
            32,
        ),
        (
            fragment(
                ip(PEER, FAR, 17, &[udp(5000, 443), vec![0; 24]].concat()),
                0,
                true,
            ),
            Reason::Rule(1),
            32,
        ),
    ];
    for (first, reason, end) in cases {
        let mut gate = Gate::usual();
        assert_eq!(gate.sends(&first), allowed(reason));
        let next = if reason == Reason::Rule(0) { 60 } else { 17 };
        let later = |offset| match first[0] >> 4 {
            4 => fragment(ip(PEER, FAR, 17, &[0; 24]), offset, false),
            _ => with(next, offset, false, &[0; 24]),
        };
        for offset in (8..end).step_by(8) {
            assert_eq!(
                gate.sends(&later(offset)),
                denied(Reason::Fragment),
                "{offset}"
            );
        }
        assert_eq!(gate.sends(&later(end)), allowed(Reason::Fragment));
    }
}

#[test]
fn two_first_fragments_of_a_packet_that_differ_in_their_headers_make_none() {
    let options = [6, 0, 1, 4, 0, 0, 0, 0];
    let with = |next, offset, more, rest: &[u8]| {
        let header = fragment_header(next, offset, more, 9);
        ip(PEER6, FAR6, 44, &[&header, rest].concat())
    };
    let mut gate = Gate::usual();
    let shifted = with(
        60,
        0,
        true,
        &[&options[..], &tcp(5000, 443, SYN), &[0; 4]].concat(),
    );
    let plain = with(6, 0, true, &[tcp(5000, 443, SYN), vec![0; 12]].concat());
    assert_eq!(plain.len(), shifted.len());
    assert_eq!(gate.sends(&shifted), allowed(Reason::Rule(0)));
    // Twice the same is what a network may do.
    assert_eq!(gate.sends(&shifted), allowed(Reason::Flow));
    assert_eq!(
        gate.sends(&with(60, 32, false, b"the rest")),
        allowed(Reason::Fragment)
    );
    assert_eq!(gate.sends(&plain), denied(Reason::Fragment));
    // And neither of them goes on.
    assert_eq!(
        gate.sends(&with(60, 32, false, b"the rest")),
        denied(Reason::Fragment)
    );
}

#[test]
fn the_memory_of_fragments_has_an_end() {
    let mut gate = Gate::usual();
    let numbered = |number: u16, offset| {
        let mut packet = ip(PEER, FAR, 17, &[udp(5000, 443), vec![0; 8]].concat());
        packet[4..6].copy_from_slice(&number.to_be_bytes());
        fragment(packet, offset, offset == 0)
    };
    for number in 0..100 {
        assert!(gate.sends(&numbered(number, 0)).is_allowed());
    }
    for number in 0..100 {
        let verdict = gate.sends(&numbered(number, 16));
        assert_eq!(verdict.is_allowed(), number >= 100 - 64, "{number}");
    }
}

#[test]
fn a_policy_that_changes_ends_the_flows_that_it_forbids_and_no_others() {
    let mut gate = Gate::new(policy(&[], Action::Allow, Action::Allow));
    let web = ip(PEER, FAR, 6, &tcp(5000, 443, SYN));
    let name = ip(PEER, FAR, 17, &udp(5000, 53));
    let from_outside = ip(FAR, PEER, 17, &udp(1, 2));
    let ping = ip(PEER6, FAR6, 58, &icmp(128, 1));
    gate.sends(&web);
    gate.sends(&name);
    gate.sends(&ping);
    gate.gets(&from_outside);
    let payload = [udp(5000, 53), vec![0; 8]].concat();
    let later = fragment(ip(PEER, FAR, 17, b"the rest"), 16, false);
    gate.sends(&fragment(ip(PEER, FAR, 17, &payload), 0, true));
    assert_eq!(gate.sends(&later), allowed(Reason::Fragment));
    assert_eq!(gate.flows(), 4);
    let rules = [
        allow(Protocol::Tcp, &[443..=443]),
        Rule {
            icmp_types: vec![128..=128],
            ..allow(Protocol::Icmp, &[])
        },
    ];
    let stricter = policy(&rules, Action::Deny, Action::Deny);
    gate.filter.change(stricter, 0, &mut gate.flows, gate.now);
    assert_eq!(gate.flows(), 2);
    assert_eq!(gate.sends(&later), denied(Reason::Fragment));
    let reply = ip(FAR, PEER, 6, &tcp(443, 5000, ACK));
    assert_eq!(gate.gets(&reply), allowed(Reason::Flow));
    assert_eq!(gate.sends(&ping), allowed(Reason::Flow));
    assert_eq!(gate.sends(&name), denied(Reason::Default));
    assert_eq!(gate.gets(&from_outside), denied(Reason::Outbound));
    // What answers it is judged as that flow.
    assert_eq!(
        gate.sends(&ip(PEER, FAR, 17, &udp(2, 1))),
        denied(Reason::Outbound)
    );
}

#[test]
fn a_refusal_is_told_with_the_name_of_the_rule_that_refused_it_whatever_the_rules_are_now() {
    let named = |name: &str, action| Rule {
        action,
        name: Some(name.into()),
        ..allow(Protocol::Udp, &[22..=22])
    };
    let mut gate = Gate::new(policy(
        &[named("no ssh", Action::Deny)],
        Action::Allow,
        Action::Allow,
    ));
    let refused = ip(PEER, FAR, 17, &udp(5000, 22));
    assert_eq!(gate.sends(&refused), denied(Reason::Rule(0)));
    for name in ["other", "another"] {
        let rules = [named(name, Action::Deny)];
        let Gate { filter, flows, now } = &mut gate;
        filter.change(policy(&rules, Action::Allow, Action::Allow), 0, flows, *now);
    }
    let name = |gate: &mut Gate| {
        gate.filter
            .take_refusal(gate.now)
            .unwrap()
            .rule_name
            .unwrap()
    };
    assert_eq!(&*name(&mut gate), "no ssh");
    gate.now = after(2);
    assert_eq!(gate.sends(&refused), denied(Reason::Rule(0)));
    assert_eq!(&*name(&mut gate), "another");
}
