//! Packets, and what policies make of them.

mod flows;
mod log;
mod model;
mod packets;
mod refusals;
mod revoked;
mod verdicts;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::Instant;

const PEER: &str = "10.0.0.1";
const FAR: &str = "192.0.2.7";
const PEER6: &str = "fd00::1";
const FAR6: &str = "2001:db8::7";

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

const START: Instant = Instant::from_nanos(1_000_000_000_000);

fn after(seconds: u64) -> Instant {
    START + Duration::from_secs(seconds)
}

/// An IP packet of either family.
fn ip(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (source.parse().unwrap(), destination.parse().unwrap()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut packet = vec![0x45, 0, 0, 0, 0x12, 0x34, 0, 0, 64, protocol, 0, 0];
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet.extend(payload);
            let length = packet.len() as u16;
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            packet
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet.extend(payload);
            packet
        }
        _ => panic!("two families"),
    }
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}

fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut header = ports(source, destination);
    header.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

fn udp(source: u16, destination: u16) -> Vec<u8> {
    let mut header = ports(source, destination);
    header.extend([0, 8, 0, 0]);
    header
}

fn icmp(kind: u8, id: u16) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend([0, 1]);
    message
}

/// An ICMP error that quotes a packet.
fn error(kind: u8, quoted: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0], quoted].concat()
}

/// The same packet as a fragment of IPv4.
fn fragment(mut packet: Vec<u8>, offset: u16, more: bool) -> Vec<u8> {
    let field = (offset / 8) | (u16::from(more) << 13);
    packet[6..8].copy_from_slice(&field.to_be_bytes());
    packet
}

/// A header of IPv6 for a fragment of a packet with that number.
fn fragment_header(next: u8, offset: u16, more: bool, id: u32) -> Vec<u8> {
    let mut header = vec![next, 0];
    header.extend((offset | u16::from(more)).to_be_bytes());
    header.extend(id.to_be_bytes());
    header
}

fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap();
    Prefix {
        address: address.parse().unwrap(),
        length: length.parse().unwrap(),
    }
}

fn allow(protocol: Protocol, ports: &[RangeInclusive<u16>]) -> Rule {
    Rule {
        action: Action::Allow,
        protocol,
        ports: ports.to_vec(),
        ..Rule::default()
    }
}

fn policy(rules: &[Rule], default: Action, outbound: Action) -> Arc<Policy> {
    Arc::new(Policy::new(rules.to_vec(), default, outbound).unwrap())
}

/// One peer's filter with the flows it needs, asked at instants.
struct Gate {
    filter: Filter,
    flows: Flows,
    now: Instant,
}

impl Gate {
    fn new(policy: Arc<Policy>) -> Self {
        Gate {
            filter: Filter::new(policy),
            flows: Flows::default(),
            now: START,
        }
    }

    /// Allows TCP and UDP to port 443 and ICMP, and nothing that starts outside.
    fn usual() -> Self {
        let rules = [
            allow(Protocol::Tcp, &[443..=443]),
            allow(Protocol::Udp, &[443..=443]),
            allow(Protocol::Icmp, &[]),
        ];
        Gate::new(policy(&rules, Action::Deny, Action::Deny))
    }

    /// The peer sends it.
    fn sends(&mut self, packet: &[u8]) -> Verdict {
        let Gate { filter, flows, now } = self;
        filter.check(packet, Direction::FromPeer, 0, flows, *now)
    }

    /// It is for the peer.
    fn gets(&mut self, packet: &[u8]) -> Verdict {
        let Gate { filter, flows, now } = self;
        filter.check(packet, Direction::ToPeer, 0, flows, *now)
    }

    fn flows(&self) -> usize {
        self.flows.count(0, self.now)
    }
}

fn allowed(reason: Reason) -> Verdict {
    Verdict {
        action: Action::Allow,
        reason,
    }
}

fn denied(reason: Reason) -> Verdict {
    Verdict {
        action: Action::Deny,
        reason,
    }
}
