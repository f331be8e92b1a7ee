//! The flow log, and what is told of refusals: complete where there is room, and bounded.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::model::{Step, rules, step};
use super::*;

const KEY: [u8; 32] = [7; 32];

/// A gate whose flows are logged, with room for so many records.
fn logged(policy: Arc<Policy>, capacity: usize) -> Gate {
    let mut gate = Gate::new(policy.clone());
    gate.flows.log(capacity);
    gate.flows.introduce(0, KEY, &policy);
    gate
}

fn question() -> Vec<u8> {
    ip(PEER, FAR, 6, &tcp(5000, 443, SYN))
}

fn reply(flags: u8) -> Vec<u8> {
    ip(FAR, PEER, 6, &tcp(443, 5000, flags))
}

fn named(rule: Rule, name: &str) -> Rule {
    Rule {
        name: Some(name.into()),
        ..rule
    }
}

fn change_to(gate: &mut Gate, policy: &Arc<Policy>) {
    gate.filter
        .change(policy.clone(), 0, &mut gate.flows, gate.now);
    gate.flows.introduce(0, KEY, policy);
}

fn take(gate: &mut Gate) -> Vec<FlowRecord> {
    let (records, missed) = gate.flows.take_log();
    assert_eq!(missed, 0);
    records
}

fn ends(records: &[FlowRecord]) -> Vec<(Instant, FlowEnd)> {
    records
        .iter()
        .filter_map(|record| match record.change {
            FlowChange::Ended(end) => Some((record.at, end)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_flow_is_logged_when_it_begins_and_with_what_it_carried_when_it_is_over() {
    let web = named(allow(Protocol::Tcp, &[443..=443]), "web");
    let mut gate = logged(policy(&[web], Action::Deny, Action::Deny), 10);
    gate.sends(&question());
    gate.now = after(3);
    gate.gets(&reply(SYN | ACK));
    gate.now = after(5);
    gate.gets(&reply(RST));
    let began = take(&mut gate).pop().unwrap();
    let expected = FlowRecord {
        at: START,
        peer: KEY,
        header: Header {
            direction: Direction::FromPeer,
            protocol: Some(6),
            source: PEER.parse().unwrap(),
            destination: FAR.parse().unwrap(),
            ports: Some(Ports {
                source: 5000,
                destination: 443,
            }),
            icmp_type: None,
        },
        verdict: allowed(Reason::Rule(0)),
        rule_name: Some("web".into()),
        change: FlowChange::Began { id: 1 },
    };
    assert_eq!(began, expected);
    // Reset, it is kept for four minutes, for what is still under way.
    gate.flows.reap(after(5 + 239), 10);
    assert_eq!(take(&mut gate), []);
    gate.flows.reap(after(10_000), 10);
    let ended = take(&mut gate).pop().unwrap();
    let end = FlowEnd {
        id: 1,
        why: EndReason::Closed,
        began: START,
        lasted: Duration::from_secs(5),
        from_peer: Traffic {
            packets: 1,
            bytes: 40,
        },
        to_peer: Traffic {
            packets: 2,
            bytes: 80,
        },
    };
    assert_eq!(
        ended,
        FlowRecord {
            at: after(5 + 240),
            change: FlowChange::Ended(end),
            ..expected
        }
    );
}

#[test]
fn why_a_flow_ended_is_said() {
    let open = policy(&[], Action::Allow, Action::Allow);
    let why = |gate: &mut Gate| {
        let records = take(gate);
        let ends = ends(&records);
        ends.iter()
            .map(|(at, end)| (*at, end.why))
            .collect::<Vec<_>>()
    };
    let ping = ip(PEER, FAR, 1, &icmp(8, 1));
    let mut gate = logged(open.clone(), 100_000);
    gate.sends(&ping);
    gate.flows.reap(after(500), 10);
    assert_eq!(why(&mut gate), [(after(120), EndReason::Expired)]);

    gate.sends(&question());
    gate.sends(&ip(PEER, FAR, 6, &tcp(5000, 443, RST)));
    gate.now = after(1);
    gate.sends(&question());
    assert_eq!(why(&mut gate), [(after(1), EndReason::Closed)]);

    change_to(&mut gate, &policy(&[], Action::Deny, Action::Deny));
    assert_eq!(why(&mut gate), [(after(1), EndReason::Revoked)]);

    change_to(&mut gate, &open);
    gate.sends(&question());
    gate.flows.forget(0, after(1));
    assert_eq!(why(&mut gate), [(after(1), EndReason::Revoked)]);

    let mut gate = logged(open, 100_000);
    for port in 0..=8192 {
        gate.sends(&ip(PEER, FAR, 17, &udp(port, 443)));
    }
    assert_eq!(why(&mut gate), [(START, EndReason::Evicted)]);
}

#[test]
fn a_flow_that_another_policy_lets_go_on_is_logged_with_the_rule_that_does() {
    let rule = |name| named(allow(Protocol::Any, &[]), name);
    let mut gate = logged(policy(&[rule("old")], Action::Deny, Action::Deny), 10);
    gate.sends(&question());
    let deny = Rule {
        ports: vec![1..=1],
        protocol: Protocol::Tcp,
        ..Rule::default()
    };
    change_to(
        &mut gate,
        &policy(&[deny, rule("new")], Action::Deny, Action::Deny),
    );
    gate.flows.reap(after(100_000), 10);
    let records = take(&mut gate);
    let said: Vec<_> = records
        .iter()
        .map(|record| (record.verdict.reason, record.rule_name.as_deref()))
        .collect();
    assert_eq!(
        said,
        [
            (Reason::Rule(0), Some("old")),
            (Reason::Rule(1), Some("new"))
        ]
    );
}

#[test]
fn what_is_older_than_the_log_is_not_in_it_and_nothing_is_without_one() {
    let mut gate = Gate::usual();
    gate.sends(&question());
    assert_eq!(take(&mut gate), []);
    gate.flows.log(10);
    gate.flows
        .introduce(0, KEY, &Gate::usual().filter.policy().clone());
    gate.sends(&question());
    gate.flows.reap(after(100_000), 10);
    assert_eq!(take(&mut gate), []);
    gate.flows.log(0);
    gate.sends(&question());
    assert_eq!(take(&mut gate), []);
}

#[test]
fn what_starts_no_flow_is_logged_only_when_it_is_denied() {
    let mut gate = logged(policy(&[], Action::Allow, Action::Deny), 10);
    assert!(gate.sends(&ip(PEER, FAR, 6, &tcp(1, 2, RST))).is_allowed());
    assert_eq!(take(&mut gate), []);
    let mut cut_off = ip(FAR, PEER, 6, &tcp(443, 5000, ACK));
    cut_off[3] = 30;
    assert!(!gate.gets(&cut_off).is_allowed());
    let record = take(&mut gate).pop().unwrap();
    assert_eq!(record.verdict, denied(Reason::Unparseable));
    let (header, change) = (record.header, record.change);
    assert_eq!((header.protocol, header.ports), (None, None));
    assert_eq!(header.source, FAR.parse::<IpAddr>().unwrap());
    assert_eq!(header.destination, PEER.parse::<IpAddr>().unwrap());
    assert_eq!(change, FlowChange::Denied { count: 1 });
}

#[test]
fn a_flood_of_refusals_has_a_hundred_lines_at_once_and_then_ten_a_second() {
    let mut gate = logged(policy(&[], Action::Deny, Action::Deny), 100_000);
    let mut lines = 0;
    let mut stand_for = 0;
    for millisecond in 0..10_000 {
        gate.now = START + Duration::from_millis(millisecond);
        gate.sends(&question());
        for record in take(&mut gate) {
            let FlowChange::Denied { count } = record.change else {
                panic!("{record:?}");
            };
            lines += 1;
            stand_for += count;
        }
    }
    assert_eq!(lines, 100 + 99);
    assert!((9_900..=10_000).contains(&stand_for), "{stand_for}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_log_with_room_has_one_end_for_each_beginning_and_every_packet_in_between(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let policies = [0, 1, 2].map(|which| {
            let (rules, default, outbound) = rules(which);
            policy(&rules, default, outbound)
        });
        let mut gate = logged(policies[0].clone(), 100_000);
        let mut open = BTreeMap::new();
        let (mut passed, mut ended) = (Traffic::default(), Traffic::default());
        let (mut refused, mut told) = (0, 0);
        for step in steps.into_iter().chain([Step::Wait(100_000)]) {
            let mut packet = None;
            match step {
                Step::Wait(seconds) => gate.now += Duration::from_secs(seconds),
                Step::Change(which) => change_to(&mut gate, &policies[which]),
                Step::Packet(..) => {
                    let (by_peer, bytes) = step.packet().unwrap();
                    let verdict = if by_peer { gate.sends(&bytes) } else { gate.gets(&bytes) };
                    refused += u64::from(!verdict.is_allowed());
                    packet = Some((verdict, bytes.len()));
                }
            }
            let now = gate.now;
            gate.flows.reap(now, usize::MAX);
            let mut counts = packet.is_some_and(|(verdict, _)| verdict.reason == Reason::Flow);
            for record in take(&mut gate) {
                prop_assert!(record.at <= now);
                match record.change {
                    FlowChange::Began { id } => {
                        prop_assert!(record.verdict.is_allowed());
                        prop_assert_eq!(open.insert(id, record.header), None);
                        counts = true;
                    }
                    FlowChange::Denied { count } => told += count,
                    FlowChange::Ended(end) => {
                        prop_assert_eq!(open.remove(&end.id), Some(record.header));
                        prop_assert!(end.began + end.lasted <= record.at);
                        for traffic in [end.from_peer, end.to_peer] {
                            ended.packets += traffic.packets;
                            ended.bytes += traffic.bytes;
                        }
                    }
                }
            }
            if counts && let Some((_, bytes)) = packet {
                passed.packets += 1;
                passed.bytes += bytes as u64;
            }
            prop_assert_eq!(open.len(), gate.flows());
        }
        prop_assert!(open.is_empty());
        prop_assert_eq!(passed, ended);
        // Each has a line of its own, up to the hundred that there may be at once.
        prop_assert!(refused == told || refused > 100, "{refused} {told}");
    }

    #[test]
    fn a_log_never_holds_more_than_it_may_and_counts_the_rest(
        steps in prop::collection::vec((step(), any::<bool>()), 1..120),
        capacity in 1..8usize,
    ) {
        let open = policy(&[], Action::Allow, Action::Deny);
        let mut whole = logged(open.clone(), 100_000);
        let mut small = logged(open, capacity);
        let (mut all, mut seen) = (0, 0);
        for (step, takes) in steps {
            for gate in [&mut whole, &mut small] {
                match (step, step.packet()) {
                    (Step::Wait(seconds), _) => gate.now += Duration::from_secs(seconds),
                    (_, Some((true, packet))) => drop(gate.sends(&packet)),
                    (_, Some((false, packet))) => drop(gate.gets(&packet)),
                    _ => {}
                }
            }
            if takes {
                let (records, missed) = small.flows.take_log();
                prop_assert!(records.len() <= capacity);
                prop_assert!(missed == 0 || records.len() == capacity);
                seen += records.len() as u64 + missed;
                all += take(&mut whole).len() as u64;
                prop_assert_eq!(seen, all);
            }
        }
    }

    #[test]
    fn of_refusals_one_a_second_is_told_and_none_is_forgotten(
        steps in prop::collection::vec((0..700u64, any::<bool>()), 1..100),
    ) {
        let mut gate = Gate::new(policy(&[], Action::Deny, Action::Deny));
        let (mut refused, mut told) = (0, 0);
        let mut last: Option<Instant> = None;
        for (wait, refuses) in steps {
            gate.now += Duration::from_millis(wait);
            if refuses {
                gate.sends(&question());
                refused += 1;
            }
            let may = last.is_none_or(|last| gate.now >= last + Duration::from_secs(1));
            let refusal = gate.filter.take_refusal(gate.now);
            prop_assert_eq!(refusal.is_some(), may && told < refused);
            if let Some(refusal) = refusal {
                told += refusal.count;
                prop_assert_eq!(told, refused);
                last = Some(gate.now);
            }
        }
    }
}
