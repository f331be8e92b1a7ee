//! A filter beside a model of it that is a list and a few sentences of docs/policy.md.

use proptest::prelude::*;

use super::*;

const PEERS: [&str; 2] = ["10.0.0.1", "10.0.0.2"];
const FARS: [&str; 2] = ["192.0.2.7", "192.0.2.8"];
const PORTS: [u16; 3] = [53, 443, 5000];

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Tcp(u8),
    Udp,
    /// An echo request, or a reply.
    Echo(bool),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Whether the peer sends it, which hosts and ports, and what.
    Packet(bool, usize, usize, usize, usize, Kind),
    Wait(u64),
    /// Another of three policies.
    Change(usize),
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let flags = prop::sample::select(vec![SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST, FIN, 0]);
    let kind = prop_oneof![
        flags.prop_map(Kind::Tcp),
        Just(Kind::Udp),
        any::<bool>().prop_map(Kind::Echo),
    ];
    let packet = (
        any::<bool>(),
        0..2usize,
        0..2usize,
        0..3usize,
        0..3usize,
        kind,
    );
    let wait = prop::sample::select(vec![0, 1, 59, 60, 119, 120, 239, 240, 7199, 7439, 7440]);
    prop_oneof![
        12 => packet.prop_map(|(peer, a, b, c, d, kind)| Step::Packet(peer, a, b, c, d, kind)),
        3 => wait.prop_map(Step::Wait),
        1 => (0..3usize).prop_map(Step::Change),
    ]
}

impl Step {
    /// The packet, and whether the peer sends it.
    pub(super) fn packet(self) -> Option<(bool, Vec<u8>)> {
        let Step::Packet(by_peer, peer, far, a, b, kind) = self else {
            return None;
        };
        let (peer_port, far_port) = (PORTS[a], PORTS[b]);
        let (source, destination) = match by_peer {
            true => ((PEERS[peer], peer_port), (FARS[far], far_port)),
            false => ((FARS[far], far_port), (PEERS[peer], peer_port)),
        };
        let (number, payload) = match kind {
            Kind::Tcp(flags) => (6, tcp(source.1, destination.1, flags)),
            Kind::Udp => (17, udp(source.1, destination.1)),
            Kind::Echo(request) => (1, icmp(if request { 8 } else { 0 }, peer_port)),
        };
        Some((by_peer, ip(source.0, destination.0, number, &payload)))
    }
}

/// Three policies, and what each says about (is it TCP, is it ICMP, far host, far port).
pub(super) fn rules(which: usize) -> (Vec<Rule>, Action, Action) {
    let to_first = |rule: Rule| Rule {
        destinations: vec![prefix("192.0.2.7/32")],
        ..rule
    };
    match which {
        0 => (vec![], Action::Allow, Action::Deny),
        1 => (
            vec![
                to_first(allow(Protocol::Tcp, &[443..=443])),
                allow(Protocol::Icmp, &[]),
            ],
            Action::Deny,
            Action::Allow,
        ),
        _ => (
            vec![to_first(allow(Protocol::Any, &[]))],
            Action::Deny,
            Action::Deny,
        ),
    }
}

fn peer_may_start(which: usize, kind: Kind, far: usize, far_port: u16) -> bool {
    match which {
        0 => true,
        1 => match kind {
            Kind::Tcp(_) => far == 0 && far_port == 443,
            Kind::Udp => false,
            Kind::Echo(_) => true,
        },
        _ => far == 0,
    }
}

/// Who, which protocol, and by whom the question was, for echo.
type Name = (usize, usize, u16, u16, u8, bool);

struct Known {
    name: Name,
    by_peer: bool,
    kind: Kind,
    until: u64,
    finished: (bool, bool),
    closed: bool,
}

impl Known {
    fn time(&self) -> u64 {
        match (self.kind, self.closed) {
            (Kind::Tcp(_), false) => 7440,
            (Kind::Tcp(_), true) => 240,
            _ => 120,
        }
    }
}

#[derive(Default)]
struct Model {
    which: usize,
    now: u64,
    known: Vec<Known>,
    revoked: Vec<Known>,
}

impl Model {
    fn may_start(&self, by_peer: bool, kind: Kind, far: usize, far_port: u16) -> bool {
        match by_peer {
            true => peer_may_start(self.which, kind, far, far_port),
            false => self.which == 1,
        }
    }

    fn passes(
        &mut self,
        by_peer: bool,
        peer: usize,
        far: usize,
        peer_port: u16,
        far_port: u16,
        kind: Kind,
    ) -> bool {
        self.known.retain(|known| known.until > self.now);
        self.revoked.retain(|flow| flow.until > self.now);
        let name = match kind {
            Kind::Tcp(_) => (peer, far, peer_port, far_port, 6, false),
            Kind::Udp => (peer, far, peer_port, far_port, 17, false),
            Kind::Echo(request) => (peer, far, peer_port, 0, 1, by_peer == request),
        };
        let flags = match kind {
            Kind::Tcp(flags) => flags,
            _ => 0,
        };
        let reopens = flags == SYN;
        self.known
            .retain(|known| !(known.name == name && known.closed && reopens));
        let position = self.known.iter().position(|known| known.name == name);
        if position.is_none() {
            // What answers a flow that was revoked is judged as that flow.
            let mut began = by_peer;
            if let Some(flow) = self.revoked.iter_mut().find(|flow| flow.name == name) {
                flow.until = self.now + flow.time();
                if flags & (SYN | ACK | RST) != SYN {
                    began = flow.by_peer;
                }
            }
            if !self.may_start(began, kind, far, far_port) {
                return false;
            }
            if matches!(kind, Kind::Echo(false))
                || flags & RST != 0
                || flags & (SYN | ACK) == SYN | ACK
            {
                return true;
            }
            self.revoked.retain(|flow| flow.name != name);
            self.known.push(Known {
                name,
                by_peer: began,
                kind,
                until: 0,
                finished: (false, false),
                closed: false,
            });
        }
        let position = position.unwrap_or(self.known.len() - 1);
        let known = &mut self.known[position];
        if flags & FIN != 0 {
            match by_peer {
                true => known.finished.0 = true,
                false => known.finished.1 = true,
            }
        }
        known.closed |= flags & RST != 0 || known.finished == (true, true);
        known.until = self.now + known.time();
        true
    }

    fn change(&mut self, which: usize) {
        self.which = which;
        let known = std::mem::take(&mut self.known);
        let revoked = std::mem::take(&mut self.revoked);
        let may_start = |flow: &Known| {
            let (_, far, _, far_port, ..) = flow.name;
            self.may_start(flow.by_peer, flow.kind, far, far_port)
        };
        let revoked = revoked.into_iter().filter(|flow| !may_start(flow));
        let (known, ended): (Vec<_>, Vec<_>) = known.into_iter().partition(may_start);
        let now = self.now;
        let ended = ended.into_iter().filter(|flow| flow.until > now);
        let ended = ended.map(|flow| Known {
            until: now + flow.time(),
            ..flow
        });
        let revoked = revoked.chain(ended).collect();
        (self.known, self.revoked) = (known, revoked);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_filter_does_what_the_model_says(steps in prop::collection::vec(step(), 1..120)) {
        let compiled: Vec<_> = (0..3).map(|which| {
            let (rules, default, outbound) = rules(which);
            policy(&rules, default, outbound)
        }).collect();
        let mut gate = Gate::new(compiled[0].clone());
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Wait(seconds) => {
                    model.now += seconds;
                    gate.now = after(model.now);
                }
                Step::Change(which) => {
                    model.change(which);
                    gate.filter.change(compiled[which].clone(), 0, &mut gate.flows, gate.now);
                }
                Step::Packet(by_peer, peer, far, a, b, kind) => {
                    let (_, packet) = step.packet().unwrap();
                    let (peer_port, far_port) = (PORTS[a], PORTS[b]);
                    let verdict = match by_peer {
                        true => gate.sends(&packet),
                        false => gate.gets(&packet),
                    };
                    let expected = model.passes(by_peer, peer, far, peer_port, far_port, kind);
                    prop_assert_eq!(verdict.is_allowed(), expected, "{:?}: {:?}", step, verdict);
                }
            }
            let known = model.known.iter().filter(|known| known.until > model.now).count();
            prop_assert_eq!(gate.flows(), known);
        }
    }
}
