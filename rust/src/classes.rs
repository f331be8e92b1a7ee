//! The classes of `connlib._types`, `_policy` and `_flows`, imported once, when the first instance is needed.

use connlib_core::policy::{Direction, EndReason, Reason};
use connlib_core::{DropReason, InputKind, NodeTimeoutReason, Role, TimeoutReason};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyTuple, PyType};

use crate::errors::type_error;

pub struct Classes {
    tuple_new: Py<PyAny>,
    object_new: Py<PyAny>,
    drop_reasons: Vec<Py<PyAny>>,
    roles: [(Role, Py<PyAny>); 3],
    timeout_reason: Py<PyAny>,
    input_kind: Py<PyAny>,
    direction: Py<PyAny>,
    protocol: Py<PyAny>,
    verdict_reason: Py<PyAny>,
    end_reason: Py<PyAny>,
    pub timeout: Py<PyType>,
    pub output: Py<PyType>,
    pub batch: Py<PyType>,
    pub node_output: Py<PyType>,
    pub transmit: Py<PyType>,
    pub node_input: Py<PyType>,
    pub captured_packet: Py<PyType>,
    pub peer_event: Py<PyType>,
    pub handshake_started: Py<PyType>,
    pub session_established: Py<PyType>,
    pub session_expired: Py<PyType>,
    pub gave_up: Py<PyType>,
    pub peer_silent: Py<PyType>,
    pub poisoned: Py<PyType>,
    pub dropped: Py<PyType>,
    pub peer_roamed: Py<PyType>,
    pub denied: Py<PyType>,
    pub verdict: Py<PyType>,
    pub flow_record: Py<PyType>,
    pub flow_end: Py<PyType>,
    pub flow_question: Py<PyType>,
    pub tunn_stats: Py<PyType>,
    pub node_stats: Py<PyType>,
    pub peer_stats: Py<PyType>,
    pub config_diff: Py<PyType>,
    pub peer_change: Py<PyType>,
    pub timers: Py<PyType>,
    pub limits: Py<PyType>,
    pub node_config: Py<PyType>,
    pub peer_config: Py<PyType>,
    pub ipv4_network: Py<PyType>,
    pub policy: Py<PyType>,
    pub policy_stats: Py<PyType>,
    pub peer_trouble: Py<PyType>,
}

pub fn classes(py: Python<'_>) -> PyResult<&'static Classes> {
    static CLASSES: PyOnceLock<Classes> = PyOnceLock::new();
    CLASSES.get_or_try_init(py, || {
        let module = py.import("connlib._types")?;
        let policy = py.import("connlib._policy")?;
        let flows = py.import("connlib._flows")?;
        let class_of = |module: &Bound<'_, PyModule>, name: &str| -> PyResult<Py<PyType>> {
            Ok(module.getattr(name)?.cast_into::<PyType>()?.unbind())
        };
        let class = |name: &str| class_of(&module, name);
        let reason = module.getattr("DropReason")?;
        let role = module.getattr("Role")?;
        let role = |name: &str| role.getattr(name).map(Bound::unbind);
        Ok(Classes {
            tuple_new: py.get_type::<PyTuple>().getattr("__new__")?.unbind(),
            object_new: py.get_type::<PyAny>().getattr("__new__")?.unbind(),
            drop_reasons: DropReason::ALL
                .iter()
                .map(|drop| Ok(reason.getattr(drop.name())?.unbind()))
                .collect::<PyResult<_>>()?,
            roles: [
                (Role::Either, role("EITHER")?),
                (Role::Initiator, role("INITIATOR")?),
                (Role::Responder, role("RESPONDER")?),
            ],
            timeout_reason: module.getattr("TimeoutReason")?.unbind(),
            timeout: class("Timeout")?,
            output: class("Output")?,
            batch: class("Batch")?,
            node_output: class("NodeOutput")?,
            transmit: class("Transmit")?,
            node_input: class("NodeInput")?,
            captured_packet: class("CapturedPacket")?,
            input_kind: module.getattr("InputKind")?.unbind(),
            direction: flows.getattr("Direction")?.unbind(),
            protocol: policy.getattr("Protocol")?.unbind(),
            verdict_reason: policy.getattr("VerdictReason")?.unbind(),
            end_reason: flows.getattr("EndReason")?.unbind(),
            peer_event: class("PeerEvent")?,
            handshake_started: class("HandshakeStarted")?,
            session_established: class("SessionEstablished")?,
            session_expired: class("SessionExpired")?,
            gave_up: class("GaveUp")?,
            peer_silent: class("PeerSilent")?,
            poisoned: class("Poisoned")?,
            dropped: class("Dropped")?,
            peer_roamed: class("PeerRoamed")?,
            denied: class("Denied")?,
            verdict: class_of(&policy, "Verdict")?,
            flow_record: class_of(&flows, "FlowRecord")?,
            flow_end: class_of(&flows, "FlowEnd")?,
            flow_question: class_of(&flows, "FlowQuestion")?,
            tunn_stats: class("TunnStats")?,
            node_stats: class("NodeStats")?,
            peer_stats: class("PeerStats")?,
            config_diff: class("ConfigDiff")?,
            peer_change: class("PeerChange")?,
            timers: class("Timers")?,
            limits: class("Limits")?,
            node_config: class("NodeConfig")?,
            peer_config: class("PeerConfig")?,
            ipv4_network: class_of(&py.import("ipaddress")?, "IPv4Network")?,
            policy: class_of(&policy, "Policy")?,
            policy_stats: class("PolicyStats")?,
            peer_trouble: class("PeerTrouble")?,
        })
    })
}

impl Classes {
    /// An instance of a `NamedTuple` class, past its `__new__` in Python, which only packs its arguments.
    #[inline]
    pub fn named_tuple<'py>(
        &self,
        class: &Py<PyType>,
        items: impl IntoPyObject<
            'py,
            Target = PyTuple,
            Output = Bound<'py, PyTuple>,
            Error: Into<PyErr>,
        >,
        py: Python<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let items = items.into_pyobject(py).map_err(Into::into)?;
        self.tuple_new.bind(py).call1((class.bind(py), items))
    }

    /// An instance of a dataclass, past its `__init__` in Python, which only sets its fields: all of them are to be given.
    #[inline]
    pub fn dataclass<'py>(
        &self,
        class: &Py<PyType>,
        fields: &[(&Bound<'py, PyString>, Bound<'py, PyAny>)],
        py: Python<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let object = self.object_new.bind(py).call1((class.bind(py),))?;
        for (name, value) in fields {
            // SAFETY: these are objects that we hold, and the name is a string. What this is past is only the
            // `__setattr__` of the class, which refuses.
            let failed = unsafe {
                ffi::PyObject_GenericSetAttr(object.as_ptr(), name.as_ptr(), value.as_ptr()) != 0
            };
            if failed {
                return Err(PyErr::fetch(py));
            }
        }
        Ok(object)
    }

    pub fn drop_reason<'py>(
        &self,
        reason: DropReason,
        py: Python<'py>,
    ) -> Option<Bound<'py, PyAny>> {
        // Every reason stands at its own place in `ALL`.
        self.drop_reasons
            .get(reason as usize)
            .map(|member| member.bind(py).clone())
    }

    pub fn role(&self, object: &Bound<'_, PyAny>, name: &str) -> PyResult<Role> {
        self.roles
            .iter()
            .find(|(_, member)| member.is(object))
            .map(|(role, _)| *role)
            .ok_or_else(|| type_error(format!("{name} must be a member of connlib.Role")))
    }

    pub fn timeout_reason<'py>(
        &self,
        reason: NodeTimeoutReason,
        py: Python<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let NodeTimeoutReason::Tunnel(reason) = reason else {
            return self.timeout_reason.bind(py).getattr("UNANSWERED");
        };
        let name = match reason {
            TimeoutReason::HandshakeRetry => "HANDSHAKE_RETRY",
            TimeoutReason::GiveUp => "GIVE_UP",
            TimeoutReason::SessionExpiry => "SESSION_EXPIRY",
            TimeoutReason::DeadPeer => "DEAD_PEER",
            TimeoutReason::PassiveKeepalive => "PASSIVE_KEEPALIVE",
            TimeoutReason::PersistentKeepalive => "PERSISTENT_KEEPALIVE",
            TimeoutReason::UnconfirmedSession => "UNCONFIRMED_SESSION",
            TimeoutReason::QueueTimeout => "QUEUE_TIMEOUT",
        };
        self.timeout_reason
            .bind(py)
            .getattr(PyString::intern(py, name))
    }

    pub fn input_kind<'py>(&self, kind: InputKind, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let name = match kind {
            InputKind::Packet => "PACKET",
            InputKind::Handshake => "HANDSHAKE",
            InputKind::Timeout => "TIMEOUT",
            InputKind::Initiation => "INITIATION",
            InputKind::Response => "RESPONSE",
            InputKind::CookieReply => "COOKIE_REPLY",
            InputKind::Data => "DATA",
        };
        self.input_kind.bind(py).getattr(name)
    }

    pub fn direction<'py>(
        &self,
        direction: Direction,
        py: Python<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.direction.bind(py).getattr(match direction {
            Direction::FromPeer => "FROM_PEER",
            Direction::ToPeer => "TO_PEER",
        })
    }

    /// A member of `connlib.Protocol`, or the number of one that has no name there.
    pub fn protocol<'py>(
        &self,
        number: u8,
        is_ipv4: bool,
        py: Python<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let name = match (number, is_ipv4) {
            (6, _) => "TCP",
            (17, _) => "UDP",
            (1, true) | (58, false) => "ICMP",
            _ => return Ok(number.into_pyobject(py)?.into_any()),
        };
        self.protocol.bind(py).getattr(name)
    }

    pub fn verdict_reason<'py>(
        &self,
        reason: Reason,
        py: Python<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.verdict_reason
            .bind(py)
            .getattr(verdict_reason_name(reason))
    }

    pub fn end_reason<'py>(
        &self,
        reason: EndReason,
        py: Python<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.end_reason.bind(py).getattr(match reason {
            EndReason::Closed => "CLOSED",
            EndReason::Expired => "EXPIRED",
            EndReason::Evicted => "EVICTED",
            EndReason::Revoked => "REVOKED",
        })
    }

    /// The reason of an engine that is polled.
    pub fn tick<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.timeout_reason.bind(py).getattr("TICK")
    }
}

/// Of a `connlib.VerdictReason`.
pub fn verdict_reason_name(reason: Reason) -> &'static str {
    match reason {
        Reason::Rule(_) => "RULE",
        Reason::Outbound => "OUTBOUND",
        Reason::Fragment => "FRAGMENT",
        Reason::Unparseable => "UNPARSEABLE",
        Reason::Hook { .. } => "HOOK",
        Reason::NoHook { .. } => "NO_HOOK",
        Reason::NoFlow { .. } => "NO_FLOW",
        Reason::Unanswered { .. } => "UNANSWERED",
        Reason::Crowded { .. } => "CROWDED",
        // What goes on begins nothing: of packets of known flows there is nothing to say.
        Reason::Default | Reason::Flow | Reason::Related => "DEFAULT",
    }
}
