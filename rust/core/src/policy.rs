//! What a peer may reach: rules, and the state that return traffic needs.
//!
//! # Theory of operation
//! A [`Policy`] belongs to one peer. Its rules are for what comes *from* the peer, out of the tunnel, towards the network
//! behind this node: the first rule that matches decides, and else the policy's default. Rules look at the first packet of
//! a flow only. Once it may pass, the flow is known (`flows.rs`), and its packets pass in both directions until nothing was
//! seen of it for its time to live. So replies need no rule, and the peer gets nothing that it did not ask for: what
//! *starts* on our side, towards the peer, is decided by the policy's `outbound` action alone. A flow that was revoked is not
//! started again by what answers it, from whichever side that comes.
//!
//! - `packet.rs` reads an IP packet as far as this needs, and refuses what could be read in two ways.
//! - `compiled.rs` finds the first of many rules in a few steps.
//! - `flows.rs` holds the flows of all peers, and those that were revoked, within bounds, each in a `table.rs`, by what `key.rs`
//!   takes from a packet, and `fragments.rs` what fragments have in common.
//! - `pending.rs` holds the first packets of flows that somebody else decides about ([`Action::Ask`]), until there is an answer,
//!   and `refused.rs` has the answers that were no, for a while.
//! - `filter.rs` puts them together for one peer and gives a [`Verdict`]. A dry run ([`Policy::decide`]) and the first packet
//!   of a flow go through the same function.
//! - `log.rs` is the flow log, for whoever asks for one, and `refusals.rs` what is told of refused packets: who talked to
//!   whom is a `header.rs`.
//! - `refusal.rs` writes the ICMP message that tells a sender of the refusal.

mod compiled;
mod filter;
mod flows;
mod fragments;
mod header;
mod key;
mod log;
mod packet;
mod pending;
mod refusal;
mod refusals;
mod refused;
mod table;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::{DropReason, Prefix};
use compiled::Compiled;
pub(crate) use filter::Filter;
pub(crate) use flows::Flows;
pub use header::{Direction, Header, Ports};
pub use log::{EndReason, FlowChange, FlowEnd, FlowRecord, Traffic};
use packet::{Packet, parse};
pub use pending::{
    ANSWER_TIME, MAX_HELD, MAX_HELD_BYTES, MAX_HELD_BYTES_PER_PEER, MAX_PENDING,
    MAX_PENDING_PER_PEER, Question,
};
pub(crate) use pending::{Asked, Held};
pub(crate) use refusal::write as write_refusal;
pub use refusals::Refusal;
pub use refused::{MAX_REFUSED, MAX_REFUSED_PER_PEER, REFUSAL_TIME};
pub use table::{MAX_FLOWS, MAX_FLOWS_PER_PEER};

/// Rules that one policy may have.
pub const MAX_RULES: usize = 1024;

/// Prefixes, port ranges and type ranges that the rules of one policy may have together.
pub const MAX_RANGES: usize = 8192;

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    Allow,
    #[default]
    Deny,
    /// Somebody else is asked: the *hook* of whoever owns the node.
    Ask,
}

/// The protocols that a rule is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    #[default]
    Any,
    Tcp,
    Udp,
    /// ICMP over IPv4 and ICMPv6 over IPv6.
    Icmp,
    /// By its number (IANA, Protocol Numbers).
    Number(u8),
}

/// What it matches, and what becomes of it then. A list that is empty restricts nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub action: Action,
    pub protocol: Protocol,
    pub destinations: Vec<Prefix>,
    /// Destination ports; only with TCP or UDP.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Types of ICMP or ICMPv6 messages; only with ICMP.
    pub icmp_types: Vec<RangeInclusive<u8>>,
    /// For people: told where it decides.
    pub name: Option<Arc<str>>,
}

/// The rules of one peer, checked and compiled.
#[derive(Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    default: Action,
    outbound: Action,
    compiled: Compiled,
}

/// What the first packet of a flow is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub destination: IpAddr,
    pub transport: Transport,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// To a port.
    Tcp(u16),
    /// To a port.
    Udp(u16),
    /// ICMP or ICMPv6, as the destination is; the type of the message.
    Icmp(u8),
    /// Another protocol, by its number.
    Other(u8),
}

/// What becomes of a packet, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub action: Action,
    pub reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The first rule that matches, counted from 0.
    Rule(usize),
    /// No rule matches.
    Default,
    /// It starts on our side of the tunnel.
    Outbound,
    /// It belongs to a flow that may pass, in either direction.
    Flow,
    /// An ICMP error about a packet of such a flow.
    Related,
    /// A fragment without ports: it shares the fate of its first one, which passed or was not seen.
    Fragment,
    /// Not to be read, or in more than one way.
    Unparseable,
    /// The hook said so. Here and below: it was asked by a rule, counted from 0, or by `default` or `outbound`.
    Hook { rule: Option<usize> },
    /// It was to be asked, and there is none.
    NoHook { rule: Option<usize> },
    /// It would be asked, but no flow begins with this packet.
    NoFlow { rule: Option<usize> },
    /// It did not answer in time.
    Unanswered { rule: Option<usize> },
    /// As much waits for its answers as may.
    Crowded { rule: Option<usize> },
}

impl Reason {
    /// Which rule decided or asked, counted from 0.
    pub fn rule(self) -> Option<usize> {
        match self {
            Reason::Rule(rule) => Some(rule),
            Reason::Hook { rule }
            | Reason::NoHook { rule }
            | Reason::NoFlow { rule }
            | Reason::Unanswered { rule }
            | Reason::Crowded { rule } => rule,
            _ => None,
        }
    }
}

/// Why rules make no policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyError {
    TooManyRules,
    TooManyRanges,
    /// More bits than the address has. Rules are counted from 0.
    PrefixLength {
        rule: usize,
        prefix: Prefix,
    },
    /// A range that ends before it begins.
    EmptyRange {
        rule: usize,
    },
    /// Ports, and not TCP or UDP.
    Ports {
        rule: usize,
    },
    /// Types, and not ICMP.
    IcmpTypes {
        rule: usize,
    },
}

impl Policy {
    /// `default` is for what comes from the peer and matches no rule; `outbound` for flows that start on our side.
    ///
    /// # Errors
    /// What is wrong with the rules.
    pub fn new(rules: Vec<Rule>, default: Action, outbound: Action) -> Result<Self, PolicyError> {
        let compiled = Compiled::new(&rules)?;
        Ok(Policy {
            rules,
            default,
            outbound,
            compiled,
        })
    }

    /// Whether a flow that the peer starts may pass, and by which rule.
    pub fn decide(&self, flow: &Flow) -> Verdict {
        let verdict = match self.compiled.first_match(flow) {
            Some((rule, action)) => Verdict {
                action,
                reason: Reason::Rule(rule),
            },
            None => Verdict {
                action: self.default,
                reason: Reason::Default,
            },
        };
        verdict.asks_only_if(flow.starts())
    }

    /// Whether a packet from the peer may pass, if it belongs to no flow that is known.
    pub fn decide_packet(&self, packet: &[u8]) -> Verdict {
        match parse(packet) {
            Ok(packet) => self.decide_first(&packet, Direction::FromPeer),
            Err(_) => Verdict::deny(Reason::Unparseable),
        }
    }

    /// Whether a packet that belongs to no flow that is known may pass.
    fn decide_first(&self, packet: &Packet<'_>, direction: Direction) -> Verdict {
        match packet.flow() {
            Some(flow) => self
                .decide_from(direction, &flow)
                .asks_only_if(packet.starts()),
            None => Verdict::deny(Reason::Fragment),
        }
    }

    /// Whether a flow may pass that this side starts.
    fn decide_from(&self, direction: Direction, flow: &Flow) -> Verdict {
        match direction {
            Direction::FromPeer => self.decide(flow),
            Direction::ToPeer => self.decide_outbound(),
        }
    }

    /// What the rule that decided is called.
    pub(crate) fn rule_name(&self, reason: Reason) -> Option<Arc<str>> {
        self.rules.get(reason.rule()?)?.name.clone()
    }

    /// Whether a flow that starts on our side may pass.
    pub fn decide_outbound(&self) -> Verdict {
        Verdict {
            action: self.outbound,
            reason: Reason::Outbound,
        }
    }
}

impl PartialEq for Policy {
    /// What was compiled follows from the rest.
    fn eq(&self, other: &Self) -> bool {
        self.rules == other.rules
            && self.default == other.default
            && self.outbound == other.outbound
    }
}

impl Verdict {
    pub fn is_allowed(&self) -> bool {
        self.action == Action::Allow
    }

    /// Whether the sender of a refused packet is told so: what found no room may pass a moment later.
    pub(crate) fn is_answered(&self) -> bool {
        self.action == Action::Deny && !matches!(self.reason, Reason::Crowded { .. })
    }

    /// What it counts as that a packet was refused.
    pub(crate) fn drop_reason(&self) -> DropReason {
        match self.reason {
            Reason::Unanswered { .. } => DropReason::Unanswered,
            Reason::Crowded { .. } => DropReason::PendingFull,
            _ => DropReason::Denied,
        }
    }

    /// What becomes of a flow that the hook was asked about.
    pub(crate) fn decided(self, allow: bool) -> Self {
        let rule = self.reason.rule();
        match allow {
            true => Verdict::allow(Reason::Hook { rule }),
            false => Verdict::deny(Reason::Hook { rule }),
        }
    }

    /// What becomes of a packet that would have to wait for the hook, and finds no room.
    fn crowded(self) -> Self {
        let rule = self.reason.rule();
        Verdict::deny(Reason::Crowded { rule })
    }

    /// What becomes of a packet where there is no hook.
    pub(crate) fn unhooked(self) -> Self {
        let rule = self.reason.rule();
        Verdict::deny(Reason::NoHook { rule })
    }

    /// Where no flow starts, there is nothing to ask about.
    fn asks_only_if(self, starts: bool) -> Self {
        let rule = self.reason.rule();
        match self.action {
            Action::Ask if !starts => Verdict::deny(Reason::NoFlow { rule }),
            _ => self,
        }
    }

    /// What becomes of a flow whose question is over.
    pub(crate) fn unanswered(self) -> Self {
        let rule = self.reason.rule();
        Verdict::deny(Reason::Unanswered { rule })
    }

    pub(crate) fn allow(reason: Reason) -> Self {
        Verdict {
            action: Action::Allow,
            reason,
        }
    }

    fn deny(reason: Reason) -> Self {
        Verdict {
            action: Action::Deny,
            reason,
        }
    }
}

impl PolicyError {
    /// Which rule is wrong, counted from 0.
    pub fn rule(&self) -> Option<usize> {
        match *self {
            PolicyError::TooManyRules | PolicyError::TooManyRanges => None,
            PolicyError::PrefixLength { rule, .. }
            | PolicyError::EmptyRange { rule }
            | PolicyError::Ports { rule }
            | PolicyError::IcmpTypes { rule } => Some(rule),
        }
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PolicyError::TooManyRules => write!(f, "a policy has at most {MAX_RULES} rules"),
            PolicyError::TooManyRanges => write!(
                f,
                "the rules of a policy have at most {MAX_RANGES} prefixes, ports and types together"
            ),
            PolicyError::PrefixLength { prefix, .. } => {
                write!(f, "{prefix} has more bits than its address")
            }
            PolicyError::EmptyRange { .. } => f.write_str("a range ends before it begins"),
            PolicyError::Ports { .. } => f.write_str("ports need TCP or UDP as the protocol"),
            PolicyError::IcmpTypes { .. } => f.write_str("ICMP types need ICMP as the protocol"),
        }
    }
}

impl Error for PolicyError {}
