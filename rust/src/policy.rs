//! `connlib.Policy` as the core takes it, and `CompiledPolicy`, which is asked without a node.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use connlib_core::policy::{Action, Flow, Policy, PolicyError, Protocol, Rule, Transport, Verdict};
use pyo3::prelude::*;

use crate::arguments::{Data, MAX_PACKET};
use crate::classes::{classes, verdict_reason_name};
use crate::errors::{type_error, value_error};
use crate::node_config::prefix;
use crate::tunn_options::expect;

/// The policies of one configuration: one that many peers share is compiled once.
#[derive(Default)]
pub struct Policies(HashMap<usize, Arc<Policy>>);

impl Policies {
    /// `connlib.Policy` or None. The object must live as long as `self`.
    pub fn get(&mut self, object: &Bound<'_, PyAny>) -> PyResult<Option<Arc<Policy>>> {
        if object.is_none() {
            return Ok(None);
        }
        let identity = object.as_ptr() as usize;
        if let Some(policy) = self.0.get(&identity) {
            return Ok(Some(policy.clone()));
        }
        let policy = Arc::new(policy(object)?);
        self.0.insert(identity, policy.clone());
        Ok(Some(policy))
    }
}

fn policy(object: &Bound<'_, PyAny>) -> PyResult<Policy> {
    expect(object, &classes(object.py())?.policy, "policy", "Policy")?;
    let mut rules = Vec::new();
    for object in object.getattr("rules")?.try_iter()? {
        rules.push(rule(&object?)?);
    }
    let default = action(&object.getattr("default")?)?;
    let outbound = object.getattr("outbound")?;
    let outbound = if outbound.is_none() {
        default
    } else {
        action(&outbound)?
    };
    Policy::new(rules, default, outbound).map_err(policy_error)
}

fn rule(object: &Bound<'_, PyAny>) -> PyResult<Rule> {
    let destinations = object.getattr("destinations")?;
    let destinations = destinations
        .try_iter()?
        .map(|network| prefix(&network?, "rule.destinations"))
        .collect::<PyResult<_>>()?;
    let name: Option<String> = object.getattr("name")?.extract()?;
    Ok(Rule {
        action: action(&object.getattr("action")?)?,
        protocol: protocol(&object.getattr("protocol")?)?,
        destinations,
        ports: ranges(&object.getattr("ports")?)?,
        icmp_types: ranges(&object.getattr("icmp_types")?)?,
        name: name.map(Arc::from),
    })
}

fn action(object: &Bound<'_, PyAny>) -> PyResult<Action> {
    match object.getattr("value")?.extract::<&str>()? {
        "allow" => Ok(Action::Allow),
        "deny" => Ok(Action::Deny),
        "ask" => Ok(Action::Ask),
        _ => Err(type_error("an action must be a member of connlib.Action")),
    }
}

fn protocol(object: &Bound<'_, PyAny>) -> PyResult<Protocol> {
    if let Ok(number) = object.extract::<u8>() {
        return Ok(Protocol::Number(number));
    }
    match object.getattr("value")?.extract::<&str>()? {
        "any" => Ok(Protocol::Any),
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "icmp" => Ok(Protocol::Icmp),
        _ => Err(type_error(
            "a protocol must be a member of connlib.Protocol or a number",
        )),
    }
}

/// Numbers, and tuples of the first and the last one.
fn ranges<'py, T>(object: &Bound<'py, PyAny>) -> PyResult<Vec<RangeInclusive<T>>>
where
    T: Copy + for<'a> FromPyObject<'a, 'py, Error = PyErr>,
{
    let mut ranges = Vec::new();
    for item in object.try_iter()? {
        let item = item?;
        let (first, last) = match item.extract::<T>() {
            Ok(one) => (one, one),
            Err(_) => item.extract::<(T, T)>()?,
        };
        ranges.push(first..=last);
    }
    Ok(ranges)
}

fn policy_error(error: PolicyError) -> PyErr {
    value_error(match error.rule() {
        // People count from one.
        Some(rule) => format!("rule {} of the policy: {error}", rule + 1),
        None => error.to_string(),
    })
}

#[pyclass(module = "connlib._native", frozen)]
pub struct CompiledPolicy(Policy);

/// The value of a `connlib.Action`, the name of a `connlib.VerdictReason`, and which rule decided, counted from 0.
type Decision = (&'static str, &'static str, Option<usize>);

#[pymethods]
impl CompiledPolicy {
    #[new]
    fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        policy(object).map(CompiledPolicy)
    }

    fn decide_packet(&self, packet: Data<'_>) -> PyResult<Decision> {
        Ok(decision(self.0.decide_packet(packet.packet(MAX_PACKET)?)))
    }

    fn decide_flow(&self, destination: Data<'_>, protocol: u8, detail: u16) -> PyResult<Decision> {
        let destination = address(destination.bytes())?;
        let transport = match (protocol, destination) {
            (6, _) => Transport::Tcp(detail),
            (17, _) => Transport::Udp(detail),
            (1, IpAddr::V4(_)) | (58, IpAddr::V6(_)) => {
                let kind = u8::try_from(detail);
                Transport::Icmp(kind.map_err(|_| value_error("a type must be 0 to 255"))?)
            }
            _ => Transport::Other(protocol),
        };
        Ok(decision(self.0.decide(&Flow {
            destination,
            transport,
        })))
    }
}

fn decision(verdict: Verdict) -> Decision {
    let action = match verdict.action {
        Action::Allow => "allow",
        Action::Deny => "deny",
        Action::Ask => "ask",
    };
    let reason = verdict_reason_name(verdict.reason);
    (action, reason, verdict.reason.rule())
}

/// 4 or 16 bytes.
fn address(bytes: &[u8]) -> PyResult<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Ok(octets.into());
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(octets) => Ok(octets.into()),
        Err(_) => Err(value_error("an address has 4 or 16 bytes")),
    }
}
