//! What a node is made of, what can be wrong with it, and how two configurations differ.

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use connlib_boringtun::noise::{Limits, MAX_JITTER, Role, TimerConfig};
use ipnet::IpNet;
use subtle::ConstantTimeEq;

use crate::Secret;
use crate::policy::Policy;

/// Initiations and responses per second that a node takes without asking for a cookie.
pub const DEFAULT_HANDSHAKE_LIMIT: u64 = 100;

/// The MTU of an interface for which nothing else is said.
pub const DEFAULT_MTU: usize = 1420;

/// The longest time that a timer or a keepalive may be set to: a century, far from where sums of times could overflow.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// An address and how many of its first bits count. Host bits are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    pub address: IpAddr,
    pub length: u8,
}

impl From<IpNet> for Prefix {
    fn from(net: IpNet) -> Self {
        Prefix {
            address: net.addr(),
            length: net.prefix_len(),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A peer as it is configured.
#[derive(Clone)]
pub struct PeerConfig {
    pub public_key: [u8; 32],
    pub preshared_key: Option<Secret>,
    /// Whose addresses it may use: packets to them go to this peer, and only packets from them are taken from it.
    pub allowed_ips: Vec<Prefix>,
    /// Where it is to be found at first; `None` says nothing about it.
    pub endpoint: Option<SocketAddr>,
    /// `None` or zero: none.
    pub persistent_keepalive: Option<Duration>,
    pub role: Role,
    /// What it may reach, and what may reach it; `None`: everything.
    pub policy: Option<Arc<Policy>>,
}

impl PeerConfig {
    /// A peer with nothing but its key: no allowed IPs, no endpoint, no keepalive, no policy, and the paper's role.
    pub fn new(public_key: [u8; 32]) -> Self {
        PeerConfig {
            public_key,
            preshared_key: None,
            allowed_ips: Vec::new(),
            endpoint: None,
            persistent_keepalive: None,
            role: Role::Either,
            policy: None,
        }
    }
}

/// A node as it is configured.
#[derive(Clone)]
pub struct NodeConfig {
    pub private_key: Secret,
    pub peers: Vec<PeerConfig>,
    /// The longest IP packet that the interface takes: padding does not make one longer.
    pub mtu: usize,
    pub timers: TimerConfig,
    pub limits: Limits,
    /// Initiations and responses per second, from everybody together, before cookies are asked for.
    pub handshake_limit: u64,
}

impl NodeConfig {
    /// A node without peers, with the paper's constants.
    pub fn new(private_key: Secret) -> Self {
        NodeConfig {
            private_key,
            peers: Vec::new(),
            mtu: DEFAULT_MTU,
            timers: TimerConfig::default(),
            limits: Limits::default(),
            handshake_limit: DEFAULT_HANDSHAKE_LIMIT,
        }
    }
}

/// Why a configuration was refused. Nothing was changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// Two peers with one public key.
    DuplicatePeer { public_key: [u8; 32] },
    /// A peer with the node's own public key.
    OwnKey { public_key: [u8; 32] },
    /// A peer's public key of low order: everybody would know the sessions' keys.
    InvalidKey { public_key: [u8; 32] },
    /// Two peers with exactly the same prefix. Prefixes inside one another are fine: the longer one wins.
    DuplicatePrefix {
        prefix: Prefix,
        first: [u8; 32],
        second: [u8; 32],
    },
    /// More bits than the address has.
    PrefixLength {
        prefix: Prefix,
        public_key: [u8; 32],
    },
    /// A persistent keepalive of more than a century.
    Keepalive { public_key: [u8; 32] },
    /// A timer of more than a century; which one.
    Timer { name: &'static str },
    /// A reject-after time that leaves no time between renewals.
    RejectedTooSoon,
}

impl ConfigError {
    /// The peer that is wrong; of two, the later one.
    pub fn public_key(&self) -> Option<[u8; 32]> {
        match *self {
            ConfigError::DuplicatePeer { public_key }
            | ConfigError::OwnKey { public_key }
            | ConfigError::InvalidKey { public_key }
            | ConfigError::PrefixLength { public_key, .. }
            | ConfigError::Keepalive { public_key } => Some(public_key),
            ConfigError::DuplicatePrefix { second, .. } => Some(second),
            ConfigError::Timer { .. } | ConfigError::RejectedTooSoon => None,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::DuplicatePeer { .. } => f.write_str("two peers have the same public key"),
            ConfigError::OwnKey { .. } => f.write_str("a peer has the node's own public key"),
            ConfigError::InvalidKey { .. } => f.write_str("a peer's public key is of low order"),
            ConfigError::DuplicatePrefix { prefix, .. } => {
                write!(f, "{prefix} is in the allowed IPs of two peers")
            }
            ConfigError::PrefixLength { prefix, .. } => {
                write!(f, "{prefix} has more bits than its address")
            }
            ConfigError::Keepalive { .. } => f.write_str("a persistent keepalive is out of range"),
            ConfigError::Timer { name } => write!(f, "the timer {name} is out of range"),
            ConfigError::RejectedTooSoon => {
                f.write_str("reject_after_time leaves no time between renewals")
            }
        }
    }
}

impl Error for ConfigError {}

/// How a configuration differs from the one before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigDiff {
    /// Public keys, in the order of the new configuration.
    pub added: Vec<[u8; 32]>,
    /// Public keys, in their own order.
    pub removed: Vec<[u8; 32]>,
    /// In the order of the new configuration.
    pub changed: Vec<PeerChange>,
    /// Fields of `NodeConfig` that changed, peers not counted.
    pub node: Vec<&'static str>,
}

impl ConfigDiff {
    pub fn is_empty(&self) -> bool {
        *self == ConfigDiff::default()
    }
}

/// A peer that stays, and which fields of its `PeerConfig` changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerChange {
    pub public_key: [u8; 32],
    pub fields: Vec<&'static str>,
}

/// A `PeerConfig` that was checked: prefixes are in order, without host bits and without repetitions.
pub(crate) struct PeerSettings {
    pub public_key: [u8; 32],
    pub preshared_key: Option<Secret>,
    pub allowed_ips: Vec<IpNet>,
    pub endpoint: Option<SocketAddr>,
    pub persistent_keepalive: Option<Duration>,
    pub role: Role,
    pub policy: Option<Arc<Policy>>,
}

impl PeerSettings {
    pub fn check(config: PeerConfig) -> Result<Self, ConfigError> {
        let PeerConfig {
            public_key,
            preshared_key,
            allowed_ips,
            endpoint,
            role,
            policy,
            ..
        } = config;
        let net = |prefix: Prefix| match IpNet::new(prefix.address, prefix.length) {
            Ok(net) => Ok(net.trunc()),
            Err(_) => Err(ConfigError::PrefixLength { prefix, public_key }),
        };
        let mut allowed_ips = allowed_ips
            .into_iter()
            .map(net)
            .collect::<Result<Vec<_>, _>>()?;
        allowed_ips.sort_unstable();
        allowed_ips.dedup();
        let persistent_keepalive = config
            .persistent_keepalive
            .filter(|keepalive| !keepalive.is_zero());
        if persistent_keepalive.is_some_and(|keepalive| keepalive > LONGEST) {
            return Err(ConfigError::Keepalive { public_key });
        }
        Ok(PeerSettings {
            public_key,
            preshared_key,
            allowed_ips,
            endpoint,
            persistent_keepalive,
            role,
            policy,
        })
    }

    /// Names of the fields that differ.
    pub fn changes(&self, new: &PeerSettings) -> Vec<&'static str> {
        named([
            (
                "preshared_key",
                !same_secret(&self.preshared_key, &new.preshared_key),
            ),
            ("allowed_ips", self.allowed_ips != new.allowed_ips),
            ("endpoint", self.endpoint != new.endpoint),
            (
                "persistent_keepalive",
                self.persistent_keepalive != new.persistent_keepalive,
            ),
            ("role", self.role != new.role),
            ("policy", !same_policy(&self.policy, &new.policy)),
        ])
    }
}

/// The names whose condition holds.
pub(crate) fn named<const N: usize>(fields: [(&'static str, bool); N]) -> Vec<&'static str> {
    fields
        .into_iter()
        .filter(|(_, holds)| *holds)
        .map(|(name, _)| name)
        .collect()
}

pub(crate) fn check_timers(timers: &TimerConfig) -> Result<(), ConfigError> {
    let too_long = named([
        ("rekey_after_time", timers.rekey_after_time > LONGEST),
        ("reject_after_time", timers.reject_after_time > LONGEST),
        ("rekey_attempt_time", timers.rekey_attempt_time > LONGEST),
        ("rekey_timeout", timers.rekey_timeout > LONGEST),
        ("keepalive_timeout", timers.keepalive_timeout > LONGEST),
    ]);
    if let Some(name) = too_long.first() {
        return Err(ConfigError::Timer { name });
    }
    // A session would be renewed with every packet from its first moment on, or end while its peer is waited for.
    let renewal = timers.keepalive_timeout + timers.rekey_timeout + MAX_JITTER;
    if timers.reject_after_time <= renewal {
        return Err(ConfigError::RejectedTooSoon);
    }
    Ok(())
}

/// In constant time. An absent preshared key and one of zeros are the same to the protocol, yet not the same setting.
fn same_secret(a: &Option<Secret>, b: &Option<Secret>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.as_slice().ct_eq(b.as_slice()).into(),
        (None, None) => true,
        _ => false,
    }
}

/// Peers share policies: those that are one need no look.
fn same_policy(a: &Option<Arc<Policy>>, b: &Option<Arc<Policy>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
        (None, None) => true,
        _ => false,
    }
}
