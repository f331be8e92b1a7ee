//! `connlib.NodeConfig` and `connlib.PeerConfig` as the node takes them, and what it says about them.

use std::net::Ipv4Addr;

use connlib_core::{ConfigDiff, ConfigError, NodeConfig, PeerConfig, Prefix};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};

use crate::arguments::{self, Address};
use crate::classes::classes;
use crate::errors::{self, type_error, value_error};
use crate::policy::Policies;
use crate::preshared_key::PresharedKey;
use crate::private_key::PrivateKey;
use crate::public_key::PublicKey;
use crate::tunn_options::{expect, limits, timers};

/// The value of a field, or which field has the wrong type.
fn field<'py, T>(
    object: &Bound<'py, PyAny>,
    of: &str,
    name: &Bound<'py, PyString>,
) -> PyResult<Bound<'py, T>>
where
    T: pyo3::PyTypeCheck,
{
    let value = object.getattr(name)?;
    value
        .cast_into::<T>()
        .map_err(|error| type_error(format!("{of}.{name}: {error}")))
}

pub fn node_config(config: &Bound<'_, PyAny>) -> PyResult<NodeConfig> {
    let py = config.py();
    expect(config, &classes(py)?.node_config, "config", "NodeConfig")?;
    let peers = config.getattr(intern!(py, "peers"))?;
    let mut peer_configs = Vec::new();
    let mut policies = Policies::default();
    // All at once, so that no policy is freed, and another one made in its place, before the last peer was read.
    let peers = peers.try_iter()?.collect::<PyResult<Vec<_>>>()?;
    for peer in &peers {
        peer_configs.push(peer_config(peer, &mut policies)?);
    }
    Ok(NodeConfig {
        private_key: field::<PrivateKey>(config, "config", intern!(py, "private_key"))?
            .get()
            .secret
            .to_engine(),
        peers: peer_configs,
        mtu: arguments::mtu(&config.getattr(intern!(py, "mtu"))?)?,
        timers: timers(Some(&config.getattr(intern!(py, "timers"))?), py)?,
        limits: limits(Some(&config.getattr(intern!(py, "limits"))?), py)?,
        handshake_limit: arguments::integer(
            &config.getattr(intern!(py, "handshake_limit"))?,
            "handshake_limit",
            0..=u64::MAX,
        )?,
    })
}

fn peer_config(peer: &Bound<'_, PyAny>, policies: &mut Policies) -> PyResult<PeerConfig> {
    let py = peer.py();
    let classes = classes(py)?;
    expect(peer, &classes.peer_config, "each of peers", "PeerConfig")?;
    let preshared_key = peer.getattr(intern!(py, "preshared_key"))?;
    let preshared_key = if preshared_key.is_none() {
        None
    } else {
        let key = field::<PresharedKey>(peer, "peer", intern!(py, "preshared_key"))?;
        Some(key.get().secret.to_engine())
    };
    let mut allowed_ips = Vec::new();
    for network in peer.getattr(intern!(py, "allowed_ips"))?.try_iter()? {
        allowed_ips.push(prefix(&network?, "allowed_ips")?);
    }
    let endpoint: Option<Address> = peer.getattr(intern!(py, "endpoint"))?.extract()?;
    if endpoint.is_some_and(|endpoint| endpoint.0.port() == 0) {
        return Err(value_error("the port of an endpoint is 1 to 65535"));
    }
    Ok(PeerConfig {
        public_key: field::<PublicKey>(peer, "peer", intern!(py, "public_key"))?
            .get()
            .bytes,
        preshared_key,
        allowed_ips,
        endpoint: endpoint.map(|endpoint| endpoint.0),
        persistent_keepalive: arguments::persistent_keepalive(
            peer.getattr(intern!(py, "persistent_keepalive"))?
                .extract()?,
            "persistent_keepalive",
        )?,
        role: classes.role(&peer.getattr(intern!(py, "role"))?, "role")?,
        policy: policies.get(&peer.getattr(intern!(py, "policy"))?)?,
    })
}

/// From `ipaddress.IPv4Network` or `IPv6Network`.
pub fn prefix(network: &Bound<'_, PyAny>, name: &str) -> PyResult<Prefix> {
    let py = network.py();
    let parts = || -> PyResult<Prefix> {
        let address = network.getattr(intern!(py, "network_address"))?;
        let ipv4 = classes(py)?.ipv4_network.bind(py);
        Ok(Prefix {
            address: if network.get_type().is(ipv4) {
                // A third of what the general way takes, and there may be very many.
                let number: u32 = address.call_method0(intern!(py, "__int__"))?.extract()?;
                Ipv4Addr::from(number).into()
            } else {
                address.extract()?
            },
            length: network.getattr(intern!(py, "prefixlen"))?.extract()?,
        })
    };
    parts().map_err(|_| {
        type_error(format!(
            "each of {name} must be an ipaddress.IPv4Network or IPv6Network"
        ))
    })
}

pub fn config_error(error: ConfigError, py: Python<'_>) -> PyErr {
    let hint = match error {
        ConfigError::DuplicatePeer { .. } => "merge the two peers",
        ConfigError::OwnKey { .. } => "give each side a key pair of its own",
        ConfigError::InvalidKey { .. } => "ask the peer for the output of `wg pubkey`",
        ConfigError::DuplicatePrefix { .. } => "leave it with the peer that it belongs to",
        ConfigError::PrefixLength { .. } => "use at most 32 bits for IPv4 and 128 for IPv6",
        ConfigError::Keepalive { .. } => "use 1 to 65535 seconds",
        ConfigError::Timer { .. } => "use at most a century",
        ConfigError::RejectedTooSoon => {
            "use more than keepalive_timeout, rekey_timeout and 0.333 s together"
        }
    };
    let problem = match error.public_key() {
        Some(key) => format!("{error} (peer {})", PublicKey::new(key).to_base64()),
        None => error.to_string(),
    };
    errors::config(py, &problem, Some(hint))
}

/// `connlib.ConfigDiff`.
pub fn diff_to_python<'py>(diff: &ConfigDiff, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
    let classes = classes(py)?;
    let keys = |keys: &[[u8; 32]]| PyTuple::new(py, keys.iter().map(|key| PublicKey::new(*key)));
    let mut changed = Vec::new();
    for change in &diff.changed {
        let fields = PyTuple::new(py, &change.fields)?;
        let items = (PublicKey::new(change.public_key), fields);
        changed.push(classes.named_tuple(&classes.peer_change, items, py)?);
    }
    let fields = pyo3::types::PyDict::new(py);
    fields.set_item("added", keys(&diff.added)?)?;
    fields.set_item("removed", keys(&diff.removed)?)?;
    fields.set_item("changed", PyTuple::new(py, changed)?)?;
    fields.set_item("node", PyTuple::new(py, &diff.node)?)?;
    classes.config_diff.bind(py).call((), Some(&fields))
}
