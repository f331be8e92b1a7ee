//! From one configuration to the next, all or nothing: everything that can fail is done before anything is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::time::Duration;

use connlib_boringtun::noise::rate_limiter::RateLimiter;
use connlib_boringtun::noise::{self, Limits, Role, Settings, TimerConfig, TunnParams};
use connlib_boringtun::x25519::{PublicKey, StaticSecret};

use super::config::{
    ConfigDiff, ConfigError, NodeConfig, PeerChange, PeerSettings, check_timers, named,
};
use super::peers::{Peer, Slot};
use super::{Node, Prefix};
use crate::allowed_ips::AllowedIps;
use crate::indices::Owned;
use crate::{DropReason, Instant, Rng};

/// What all tunnels of a node have in common.
pub(super) struct Common {
    pub private: StaticSecret,
    pub public: PublicKey,
    mtu: usize,
    timers: TimerConfig,
    limits: Limits,
    pub handshake_limit: u64,
}

impl Common {
    pub fn check(config: &NodeConfig) -> Result<Self, ConfigError> {
        check_timers(&config.timers)?;
        let private = StaticSecret::from(*config.private_key);
        Ok(Common {
            public: PublicKey::from(&private),
            private,
            mtu: config.mtu,
            timers: config.timers,
            limits: config.limits,
            handshake_limit: config.handshake_limit,
        })
    }

    /// What a tunnel of this node works by.
    fn settings(&self, role: Role) -> Settings {
        Settings {
            role,
            timers: self.timers,
            limits: self.limits,
            mtu: self.mtu,
        }
    }

    fn changes(&self, new: &Common) -> Vec<&'static str> {
        named([
            // Equal public keys are equal private keys, up to bits that the curve ignores.
            ("private_key", self.public != new.public),
            ("mtu", self.mtu != new.mtu),
            ("timers", self.timers != new.timers),
            ("limits", self.limits != new.limits),
            (
                "handshake_limit",
                self.handshake_limit != new.handshake_limit,
            ),
        ])
    }
}

/// The tunnels of a configuration's peers, made ahead of the change that needs them: each takes a computation with its
/// peer's key, so that those of many peers are better made where nobody waits for them.
pub struct Tunnels {
    common: Common,
    /// Boxed, because a tree moves what it holds.
    made: BTreeMap<[u8; 32], Box<(PeerSettings, noise::Tunn)>>,
}

impl Tunnels {
    /// # Errors
    /// What is wrong with the configuration, as [`Node::new`].
    pub fn make(
        mut config: NodeConfig,
        now: Instant,
        unix_time: Duration,
        rng: Rng,
    ) -> Result<Self, ConfigError> {
        let peers = mem::take(&mut config.peers);
        let node = Node::new(config.clone(), now, unix_time, rng)?;
        config.peers = peers;
        let plan = node.plan(config, None, now)?;
        let made = plan.peers.into_iter().filter_map(|step| {
            let key = step.settings.public_key;
            Some((key, Box::new((step.settings, step.tunn?))))
        });
        Ok(Tunnels {
            made: made.collect(),
            common: plan.common,
        })
    }

    /// The one of a peer, if it is what would be made now.
    fn take(&mut self, common: &Common, settings: &PeerSettings) -> Option<noise::Tunn> {
        let (made_for, tunn) = *self.made.remove(&settings.public_key)?;
        let changes = made_for.changes(settings);
        let fits = self.common.changes(common).is_empty()
            && !changes.contains(&"preshared_key")
            && !changes.contains(&"role");
        fits.then_some(tunn)
    }
}

/// A checked configuration, and how to get there.
struct Plan {
    common: Common,
    routes: AllowedIps<Slot>,
    peers: Vec<Step>,
    removed: Vec<Slot>,
    diff: ConfigDiff,
}

/// A peer of the new configuration. A peer that stays has a new tunnel only if our private key changed.
struct Step {
    slot: Slot,
    settings: PeerSettings,
    tunn: Option<noise::Tunn>,
}

impl Node {
    pub(super) fn transition(
        &mut self,
        config: NodeConfig,
        ahead: Option<Tunnels>,
        now: Instant,
    ) -> Result<ConfigDiff, ConfigError> {
        let plan = self.plan(config, ahead, now)?;
        Ok(self.carry_out(plan, now))
    }

    fn plan(
        &self,
        config: NodeConfig,
        mut ahead: Option<Tunnels>,
        now: Instant,
    ) -> Result<Plan, ConfigError> {
        let common = Common::check(&config)?;
        let mut diff = ConfigDiff {
            node: self.common.changes(&common),
            ..ConfigDiff::default()
        };
        let remake_all = diff.node.contains(&"private_key");

        let mut keys = BTreeSet::new();
        let mut vacant = self.peers.vacant();
        let mut routes = AllowedIps::default();
        let mut owners = Vec::new();
        let mut peers = Vec::with_capacity(config.peers.len());
        for peer in config.peers {
            let public_key = peer.public_key;
            let settings = PeerSettings::check(peer)?;
            if public_key == *common.public.as_bytes() {
                return Err(ConfigError::OwnKey { public_key });
            }
            if !keys.insert(public_key) {
                return Err(ConfigError::DuplicatePeer { public_key });
            }
            let known = self.peers.find(&public_key);
            let old = known.and_then(|slot| self.peers.get(slot));
            let slot = match known {
                Some(slot) => slot,
                None => vacant.next().unwrap_or(usize::MAX),
            };
            for net in &settings.allowed_ips {
                let before = routes.insert(*net, slot);
                if let Some(first) = before.and_then(|slot| first_owner(&owners, slot)) {
                    let prefix = Prefix::from(*net);
                    return Err(ConfigError::DuplicatePrefix {
                        prefix,
                        first,
                        second: public_key,
                    });
                }
            }
            owners.push((slot, public_key));

            let fields = old
                .map(|old| old.settings.changes(&settings))
                .unwrap_or_default();
            let tunn = match old.is_none() || remake_all {
                true => Some(self.tunnel(&common, &settings, ahead.as_mut(), now)?),
                false => None,
            };
            match old {
                None => diff.added.push(public_key),
                Some(_) if fields.is_empty() => {}
                Some(_) => diff.changed.push(PeerChange { public_key, fields }),
            }
            peers.push(Step {
                slot,
                settings,
                tunn,
            });
        }

        let gone = self.peers.iter().map(|peer| peer.settings.public_key);
        diff.removed = gone.filter(|key| !keys.contains(key)).collect();
        let removed = diff
            .removed
            .iter()
            .filter_map(|key| self.peers.find(key))
            .collect();
        Ok(Plan {
            common,
            routes,
            peers,
            removed,
            diff,
        })
    }

    fn tunnel(
        &self,
        common: &Common,
        settings: &PeerSettings,
        ahead: Option<&mut Tunnels>,
        now: Instant,
    ) -> Result<noise::Tunn, ConfigError> {
        let unix_time = self.unix_time_at(now);
        if let Some(mut tunn) = ahead.and_then(|ahead| ahead.take(common, settings)) {
            // The wall clock may have been set since.
            tunn.set_unix_time(unix_time, now);
            return Ok(tunn);
        }
        let params = TunnParams {
            static_private: common.private.clone(),
            peer_static_public: PublicKey::from(settings.public_key),
            preshared_key: settings.preshared_key.as_deref().copied(),
            settings: common.settings(settings.role),
            unix_time,
        };
        let error = |_| ConfigError::InvalidKey {
            public_key: settings.public_key,
        };
        noise::Tunn::new(params, now).map_err(error)
    }

    /// Nothing here can fail.
    fn carry_out(&mut self, plan: Plan, now: Instant) -> ConfigDiff {
        let Plan {
            common,
            routes,
            peers,
            removed,
            diff,
        } = plan;
        self.note_latest();
        for slot in removed {
            if let Some(mut peer) = self.peers.remove(slot) {
                peer.release_indices(&mut Owned {
                    table: &mut self.indices,
                    owner: slot,
                });
                // What was counted for it, and what waited for it, is counted for the node from here on: no total falls.
                self.drops.add_all(&peer.drops.counts());
                self.drops.add_many(DropReason::NoSession, peer.queued(now));
                self.waiting = self.waiting.saturating_sub(peer.waiting());
                self.timestamps
                    .keep(peer.settings.public_key, peer.timestamp);
            }
            self.deadlines.set(slot, None);
            for asked in self.flows.pending.forget(slot) {
                self.drops
                    .add_many(DropReason::Unanswered, asked.held.len());
            }
            self.flows.forget(slot, now);
        }
        if self.common.public != common.public
            || self.common.handshake_limit != common.handshake_limit
        {
            self.limiter =
                RateLimiter::new(&common.public, common.handshake_limit, now, &mut *self.rng);
        }
        self.timestamps
            .change_key(self.common.public.to_bytes(), common.public.to_bytes());
        self.common = common;
        self.routes = routes;
        for step in peers {
            self.carry_out_peer(step, now);
        }
        diff
    }

    fn carry_out_peer(&mut self, step: Step, now: Instant) {
        let Step {
            slot,
            settings,
            mut tunn,
        } = step;
        let timestamp = match self.peers.get(slot) {
            Some(peer) => peer.timestamp,
            None => self.timestamps.take(&settings.public_key),
        };
        if let Some(tunn) = &mut tunn {
            tunn.set_received_timestamp(&timestamp);
            tunn.send_after(self.timestamps.sent());
        }
        match (self.peers.get_mut(slot), tunn) {
            (Some(peer), tunn) => {
                if let Some(tunn) = &mut peer.tunn
                    && peer.settings.changes(&settings).contains(&"preshared_key")
                {
                    tunn.set_preshared_key(settings.preshared_key.as_deref().copied());
                }
                // An endpoint that was not changed does not undo what the peer's roaming taught; none says nothing.
                if let Some(endpoint) = settings.endpoint
                    && settings.endpoint != peer.settings.endpoint
                {
                    peer.place(endpoint);
                }
                if let Some(log) = &mut self.key_log
                    && peer.settings.changes(&settings).contains(&"preshared_key")
                {
                    log.add_preshared(&settings);
                }
                let settings_of_tunnel = self.common.settings(settings.role);
                peer.settings = settings;
                if let Some(mut tunn) = tunn {
                    if let Some(before) = &peer.tunn {
                        tunn.count_on_from(before);
                    }
                    peer.release_indices(&mut Owned {
                        table: &mut self.indices,
                        owner: slot,
                    });
                    peer.drops.add_many(DropReason::NoSession, peer.queued(now));
                    self.waiting = self.waiting.saturating_sub(peer.waiting());
                    peer.tunn = Some(tunn.with_persistent_keepalive(peer.keepalive()));
                } else {
                    if !peer.is_reachable() {
                        // They waited for the peer to come; from now on it is for us to start, and we know not where to.
                        let dropped = peer.tunn.as_mut().map_or(0, noise::Tunn::discard_queue);
                        peer.drops.add_many(DropReason::NoEndpoint, dropped);
                        self.waiting = self.waiting.saturating_sub(dropped);
                    }
                    self.drive(slot, now, |tunn, env, out| {
                        tunn.reconfigure(settings_of_tunnel, env, out);
                    });
                    self.settle(slot, None);
                }
            }
            (None, Some(tunn)) => {
                let mut peer = Peer::new(tunn, settings);
                peer.timestamp = timestamp;
                self.peers.insert(slot, peer);
            }
            (None, None) => {}
        }
        let settled = self.adjust_policy(slot);
        self.adjust_keepalive(slot, now);
        for (asked, verdict) in settled {
            self.settle_flow(asked, verdict, now);
        }
    }
}

/// The key of the peer that had the slot, if it was another one.
fn first_owner(owners: &[(Slot, [u8; 32])], slot: Slot) -> Option<[u8; 32]> {
    owners
        .iter()
        .find(|(owner, _)| *owner == slot)
        .map(|(_, key)| *key)
}
