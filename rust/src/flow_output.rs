//! What a node says of flows and of refused packets.

use std::sync::Arc;
use std::time::Duration;

use connlib_core::Node;
use connlib_core::policy::{
    Action, FlowChange, FlowEnd, FlowRecord, Header, Question, Refusal, Verdict,
};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use crate::classes::{Classes, classes};
use crate::public_key::PublicKey;

/// A record with what the wall clock showed then, and when the flow began, if it is over.
pub struct Dated {
    record: FlowRecord,
    at: Duration,
    began: Option<Duration>,
}

pub fn dated(records: Vec<FlowRecord>, node: &Node) -> Vec<Dated> {
    let date = |record: FlowRecord| Dated {
        at: node.unix_time_at(record.at),
        began: match &record.change {
            FlowChange::Ended(end) => Some(node.unix_time_at(end.began)),
            _ => None,
        },
        record,
    };
    records.into_iter().map(date).collect()
}

/// A list of `connlib.FlowRecord`.
pub fn records_to_python<'py>(records: &[Dated], py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
    let classes = classes(py)?;
    let list = PyList::empty(py);
    for Dated { record, at, began } in records {
        let (id, refused, end) = match &record.change {
            FlowChange::Began { id } => (Some(*id), 0, None),
            FlowChange::Denied { count } => (None, *count, None),
            FlowChange::Ended(end) => (Some(end.id), 0, Some(end)),
        };
        let end = match (end, began) {
            (Some(end), Some(began)) => Some(end_to_python(end, *began, classes, py)?),
            _ => None,
        };
        let header = HeaderObjects::new(&record.header, classes, py)?;
        let items = [
            at.as_secs_f64().into_pyobject(py)?.into_any(),
            PublicKey::new(record.peer).into_pyobject(py)?.into_any(),
            header.direction,
            header.protocol,
            header.source,
            header.source_port,
            header.destination,
            header.destination_port,
            header.icmp_type,
            verdict_to_python(record.verdict, &record.rule_name, classes, py)?,
            id.into_pyobject(py)?.into_any(),
            refused.into_pyobject(py)?.into_any(),
            end.into_pyobject(py)?.into_any(),
        ];
        let items = PyTuple::new(py, items)?;
        list.append(classes.named_tuple(&classes.flow_record, items, py)?)?;
    }
    Ok(list)
}

/// `connlib.Denied`.
pub fn refusal_to_python<'py>(
    refusal: &Refusal,
    classes: &Classes,
    py: Python<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let header = HeaderObjects::new(&refusal.header, classes, py)?;
    classes.denied.bind(py).call1((
        header.direction,
        header.protocol,
        header.source,
        header.destination,
        header.destination_port,
        header.icmp_type,
        verdict_to_python(refusal.verdict, &refusal.rule_name, classes, py)?,
        refusal.count,
    ))
}

struct HeaderObjects<'py> {
    direction: Bound<'py, PyAny>,
    protocol: Bound<'py, PyAny>,
    source: Bound<'py, PyAny>,
    source_port: Bound<'py, PyAny>,
    destination: Bound<'py, PyAny>,
    destination_port: Bound<'py, PyAny>,
    icmp_type: Bound<'py, PyAny>,
}

impl<'py> HeaderObjects<'py> {
    fn new(header: &Header, classes: &Classes, py: Python<'py>) -> PyResult<Self> {
        let protocol = match header.protocol {
            Some(number) => classes.protocol(number, header.source.is_ipv4(), py)?,
            None => py.None().into_bound(py),
        };
        let ports = header.ports;
        Ok(HeaderObjects {
            direction: classes.direction(header.direction, py)?,
            protocol,
            source: header.source.into_pyobject(py)?.into_any(),
            source_port: ports.map(|ports| ports.source).into_pyobject(py)?,
            destination: header.destination.into_pyobject(py)?.into_any(),
            destination_port: ports.map(|ports| ports.destination).into_pyobject(py)?,
            icmp_type: header.icmp_type.into_pyobject(py)?,
        })
    }
}

/// `connlib.FlowEnd`.
fn end_to_python<'py>(
    end: &FlowEnd,
    began: Duration,
    classes: &Classes,
    py: Python<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let items = (
        classes.end_reason(end.why, py)?,
        began.as_secs_f64(),
        end.lasted.as_secs_f64(),
        end.from_peer.packets,
        end.from_peer.bytes,
        end.to_peer.packets,
        end.to_peer.bytes,
    );
    classes.named_tuple(&classes.flow_end, items, py)
}

/// People count from one.
fn rule_number(rule: Option<usize>) -> Option<usize> {
    rule.map(|rule| rule + 1)
}

/// A list of `connlib.FlowQuestion`.
pub fn questions_to_python<'py>(
    questions: &[Question],
    py: Python<'py>,
) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    if questions.is_empty() {
        return Ok(list);
    }
    let classes = classes(py)?;
    for question in questions {
        let header = HeaderObjects::new(&question.header, classes, py)?;
        let fields = PyDict::new(py);
        fields.set_item("id", question.id)?;
        fields.set_item("peer", PublicKey::new(question.peer))?;
        fields.set_item("direction", header.direction)?;
        fields.set_item("protocol", header.protocol)?;
        fields.set_item("source", header.source)?;
        fields.set_item("source_port", header.source_port)?;
        fields.set_item("destination", header.destination)?;
        fields.set_item("destination_port", header.destination_port)?;
        fields.set_item("icmp_type", header.icmp_type)?;
        fields.set_item("rule", rule_number(question.rule))?;
        fields.set_item("rule_name", question.rule_name.as_deref())?;
        list.append(classes.flow_question.bind(py).call((), Some(&fields))?)?;
    }
    Ok(list)
}

/// `connlib.Verdict`.
fn verdict_to_python<'py>(
    verdict: Verdict,
    name: &Option<Arc<str>>,
    classes: &Classes,
    py: Python<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let rule = rule_number(verdict.reason.rule());
    let reason = classes.verdict_reason(verdict.reason, py)?;
    let asks = verdict.action == Action::Ask;
    let items = (verdict.is_allowed(), reason, rule, name.as_deref(), asks);
    classes.named_tuple(&classes.verdict, items, py)
}
