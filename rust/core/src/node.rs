//! `Node`: an interface with many peers.

mod apply;
mod batch;
mod capture;
mod config;
mod deadlines;
mod drive;
mod ecn;
mod filter;
mod output;
mod own;
mod path;
mod peers;
mod pending;
mod receive;
mod record;
mod stats;
#[cfg(test)]
mod tests;
mod timestamps;

pub use apply::Tunnels;
pub use capture::{CaptureConfig, Captured, KeysTaken, Layer, Missed};
pub use config::{
    ConfigDiff, ConfigError, DEFAULT_HANDSHAKE_LIMIT, DEFAULT_MTU, NodeConfig, PeerChange,
    PeerConfig, Prefix,
};
pub use output::{NodeEvent, NodeOutput};
pub use path::Path;
pub use pending::{NodeTimeout, NodeTimeoutReason};
pub use record::{Input, InputKind};
pub use stats::{DropCounts, NodeStats, PeerStats, PolicyStats, Trouble};

use std::mem;
use std::net::SocketAddr;
use std::time::Duration;

use connlib_aead::Chosen;
use connlib_boringtun::noise;
use connlib_boringtun::noise::rate_limiter::RateLimiter;

use crate::allowed_ips::AllowedIps;
use crate::indices::IndexTable;
use crate::policy::{Flows, MAX_FLOWS_PER_PEER};
use crate::{DropReason, Instant, LARGEST_PACKET, Rng};
use apply::Common;
use batch::Opening;
use capture::{Captor, NodeKeyLog};
use deadlines::Deadlines;
use peers::{Peers, Slot};
use record::Recorder;
use timestamps::Timestamps;

/// Packets that wait for sessions at most, of all peers together, beyond the first one of each peer: some 12 MB of full-size
/// packets, whoever sends to however many peers that are not there.
pub const MOST_WAITING: usize = 8192;

/// A WireGuard interface with many peers, without I/O.
///
/// It has four kinds of methods:
/// - *getters*: [`next_timeout`](Node::next_timeout), [`next_timeout_peer`](Node::next_timeout_peer),
///   [`stats`](Node::stats), [`peer_stats`](Node::peer_stats), [`endpoints`](Node::endpoints),
///   [`unclaimed`](Node::unclaimed), [`has_news`](Node::has_news), [`public_key`](Node::public_key), [`output`](Node::output),
///   [`received_timestamps`](Node::received_timestamps), [`sent_timestamps`](Node::sent_timestamps). They change nothing.
/// - *`handle_*`*: what happened outside. [`handle_packet`](Node::handle_packet) from the TUN device,
///   [`handle_datagram`](Node::handle_datagram) from UDP, [`handle_timeout`](Node::handle_timeout) when the time has come;
///   [`handle_packets`](Node::handle_packets) and [`handle_datagrams`](Node::handle_datagrams) for many, with the same result.
///   Whatever is wrong with a packet is counted; nothing that comes from outside is an error.
/// - *commands* of whoever owns the node: [`apply`](Node::apply), [`initiate_handshake`](Node::initiate_handshake),
///   [`set_endpoint`](Node::set_endpoint), [`forget_sources`](Node::forget_sources),
///   [`source_refused`](Node::source_refused), [`set_unix_time`](Node::set_unix_time), [`record`](Node::record),
///   [`log_flows`](Node::log_flows), [`ask`](Node::ask), [`decide`](Node::decide), [`capture`](Node::capture), [`log_keys`](Node::log_keys),
///   [`restore_timestamps`](Node::restore_timestamps), [`forget_timestamp`](Node::forget_timestamp),
///   [`set_encryption`](Node::set_encryption).
/// - *drain*: [`output`](Node::output), then [`drain_datagrams`](Node::drain_datagrams) and
///   [`drain_packets`](Node::drain_packets) for as many as were delivered, [`take_events`](Node::take_events), or
///   [`clear_output`](Node::clear_output) for everything; [`take_questions`](Node::take_questions) and
///   [`take_withdrawn`](Node::take_withdrawn).
///
/// The order: call one `handle_*` or command, or a batch of them; drain; ask `next_timeout`; wait for a packet, a datagram
/// or that instant; begin again. Calls append to the output, so that it is the caller's draining after each batch that
/// bounds its memory.
///
/// Every call takes the time. A time earlier than that of an earlier call is treated as no time having passed.
///
/// # Endpoints
/// A peer is found at the endpoint that was configured until an authenticated datagram comes from elsewhere: a response
/// that was accepted, or a data message that was opened. Initiations, which can be replayed, and cookie replies, which
/// anybody who sees an initiation can forge, never move it; a response to an initiation goes to where the initiation came
/// from. A peer is answered from the address of ours that it has reached last ([`Path`]), for only that one may lead back
/// through what is between. Without an endpoint nothing is started: a peer to which we may initiate gets no packets (`NO_ENDPOINT`), while a
/// responder's packets wait for the peer to come.
///
/// An event says where a peer has roamed to, within bounds: see [`NodeEvent::Roamed`].
///
/// # Policies
/// A peer's policy is asked about what the peer sent, after its source address was checked, and about what is for it, before it
/// is sealed or queued. What it refuses is counted (`DENIED`); the sender may be told by ICMP, which adds a datagram for the
/// peer to the output, or a packet for the TUN device. An event says what was refused, within bounds: see
/// [`NodeEvent::Denied`]. A policy may leave the first packet of a flow to the node's owner, who gets a question and
/// [`decide`](Node::decide)s; until then the flow's packets are held, within bounds.
///
/// # Panics
/// A panic in a peer's tunnel is a bug of ours, and stops that peer alone: the tunnel is gone, an event says so, and
/// whatever comes from the peer or is for it is counted as `PeerPoisoned`, until the peer is removed and added again.
pub struct Node {
    common: Common,
    rng: Rng,
    /// The latest time that any call gave.
    clock: Instant,
    /// What the wall clock showed, and when.
    unix_time: (Duration, Instant),
    limiter: RateLimiter,
    peers: Peers,
    /// Which peer receives on an index.
    indices: IndexTable<Slot>,
    routes: AllowedIps<Slot>,
    /// The deadlines of all peers but `latest`.
    deadlines: Deadlines,
    /// The peer that was called last. With a burst of packets its deadline moves with every one, so that it is asked for
    /// when somebody wants to know.
    latest: Option<Slot>,
    output: NodeOutput,
    drops: DropCounts,
    recorder: Option<Recorder>,
    timestamps: Timestamps,
    captor: Option<Captor>,
    /// Boxed, because hardly ever anybody wants one.
    key_log: Option<Box<NodeKeyLog>>,
    /// Of all peers that have a policy.
    flows: Flows,
    /// Memory for the answer to a packet that a policy refused.
    refusal: Vec<u8>,
    /// What seals and opens packets that come in batches.
    encryption: Chosen,
    opening: Opening,
    /// Memory for `handle_timeout`.
    due: Vec<Slot>,
    /// Packets that wait for sessions, of all peers.
    waiting: usize,
    /// Peers whose tunnels were called, in order.
    #[cfg(test)]
    touched: Vec<Slot>,
}

impl Node {
    /// A node that has sent nothing yet. A persistent keepalive of a peer whose endpoint is known is due at once.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(
        config: NodeConfig,
        now: Instant,
        unix_time: Duration,
        mut rng: Rng,
    ) -> Result<Self, ConfigError> {
        let common = Common::check(&config)?;
        let limiter = RateLimiter::new(&common.public, common.handshake_limit, now, &mut *rng);
        let mut node = Node {
            common,
            rng,
            clock: now,
            unix_time: (unix_time, now),
            limiter,
            peers: Peers::default(),
            indices: IndexTable::default(),
            routes: AllowedIps::default(),
            deadlines: Deadlines::default(),
            latest: None,
            output: NodeOutput::default(),
            drops: DropCounts::default(),
            recorder: None,
            timestamps: Timestamps::default(),
            captor: None,
            key_log: None,
            flows: Flows::default(),
            refusal: Vec::new(),
            encryption: Chosen::default(),
            opening: Opening::default(),
            due: Vec::new(),
            waiting: 0,
            #[cfg(test)]
            touched: Vec::new(),
        };
        node.transition(config, None, now)?;
        Ok(node)
    }

    // Getters.

    pub fn public_key(&self) -> [u8; 32] {
        *self.common.public.as_bytes()
    }

    /// The earliest deadline of any peer, in O(1); `None` if nothing is due, ever, unless something else happens first.
    /// Never before the time of the last call.
    pub fn next_timeout(&self) -> Option<NodeTimeout> {
        let (first, _) = self.next_due()?;
        Some(NodeTimeout {
            at: first.at.max(self.clock),
            ..first
        })
    }

    /// The public key of the peer whose deadline `next_timeout` is.
    pub fn next_timeout_peer(&self) -> Option<[u8; 32]> {
        let (_, slot) = self.next_due()?;
        Some(self.peers.get(slot)?.settings.public_key)
    }

    fn next_due(&self) -> Option<(NodeTimeout, Slot)> {
        let tunnel = self.next_deadline();
        let tunnel = tunnel.map(|deadline| (deadline.timeout.into(), deadline.slot));
        tunnel.into_iter().chain(self.next_question()).min()
    }

    /// What the wall clock shows or showed, since 1970, as far as it was told.
    pub fn unix_time_at(&self, at: Instant) -> Duration {
        let (unix_time, known_at) = self.unix_time;
        unix_time
            .saturating_add(at.duration_since(known_at))
            .saturating_sub(known_at.duration_since(at))
    }

    /// How many packets and datagrams were dropped before any peer was found for them.
    pub fn unclaimed(&self) -> u64 {
        self.drops.total()
    }

    // Drain.

    /// What the calls so far brought about and nobody took yet.
    pub fn output(&self) -> &NodeOutput {
        &self.output
    }

    pub fn clear_output(&mut self) {
        self.output.clear();
    }

    /// A call that puts its datagrams and packets out here: they are the caller's at once, in order, and whoever else calls the
    /// node meanwhile does not wait until they are sent. What others have put out goes first, as it may be of the same flows.
    /// Events stay in [`output`](Node::output).
    pub fn putting_out<R>(
        &mut self,
        here: &mut NodeOutput,
        call: impl FnOnce(&mut Self) -> R,
    ) -> R {
        self.move_output(here);
        mem::swap(&mut self.output, here);
        let result = call(self);
        mem::swap(&mut self.output, here);
        self.output.events.append(&mut here.events);
        result
    }

    /// Appends the datagrams and packets that nobody took yet. Events stay.
    pub fn move_output(&mut self, to: &mut NodeOutput) {
        to.append(&mut self.output);
    }

    /// Takes the first `count` datagrams out, or as many as there are.
    pub fn drain_datagrams(&mut self, count: usize) {
        self.output.drain_datagrams(count);
    }

    /// Takes the first `count` packets out, or as many as there are.
    pub fn drain_packets(&mut self, count: usize) {
        self.output.drain_packets(count);
    }

    pub fn take_events(&mut self) -> Vec<([u8; 32], NodeEvent)> {
        mem::take(&mut self.output.events)
    }

    // What happened outside.

    /// An IP packet from the TUN device: to the peer that owns its destination.
    pub fn handle_packet(&mut self, packet: &[u8], now: Instant) {
        let now = self.advance(now);
        self.refuse_overdue(now);
        self.capture_read(packet);
        let Some(destination) = noise::Tunn::dst_address(packet) else {
            return self.drops.add(DropReason::NotIp);
        };
        let Some(slot) = self.routes.longest_match(destination) else {
            return self.drops.add(DropReason::NoRoute);
        };
        if let Some(reason) = self.obstacle(slot, packet.len()) {
            return self.drop_from(slot, reason);
        }
        if self.is_own(slot, destination, packet) {
            return self.drop_from(slot, DropReason::RoutingLoop);
        }
        if self.may_send(slot, packet, now) {
            self.encapsulate(slot, packet, now);
            self.settle(slot, None);
        }
    }

    /// Does what is due: calls each peer whose deadline has come once, in the order of their deadlines, and no other.
    pub fn handle_timeout(&mut self, now: Instant) {
        let now = self.advance(now);
        self.flows.reap(now, MAX_FLOWS_PER_PEER);
        self.refuse_unanswered(now);
        self.note_latest();
        let mut due = mem::take(&mut self.due);
        while let Some(slot) = self.deadlines.pop_due(now) {
            due.push(slot);
        }
        for slot in due.drain(..) {
            self.doubt_source(slot);
            self.record_input(slot, InputKind::Timeout, 0, true);
            self.drive(slot, now, |tunn, env, out| tunn.handle_timeout(env, out));
            self.settle(slot, None);
        }
        self.due = due;
    }

    // Commands.

    /// Goes over to another configuration, all or nothing, and says what changed.
    ///
    /// Peers are known by their public keys. Sessions go on, whatever else changed (a preshared key is for the next
    /// handshake), unless the node's private key did: then every tunnel is made anew, and counts on. Another private key or handshake limit
    /// makes a new rate limiter, and cookies that were given out are worth nothing then. Timestamps are remembered.
    ///
    /// An endpoint that is the same as in the last configuration, or absent, leaves the peer where it was last heard.
    ///
    /// # Errors
    /// What is wrong with the configuration; nothing was changed then.
    pub fn apply(&mut self, config: NodeConfig, now: Instant) -> Result<ConfigDiff, ConfigError> {
        let now = self.advance(now);
        self.transition(config, None, now)
    }

    /// The same with tunnels that were made ahead, which saves their computations. Those that do not fit are made anew.
    ///
    /// # Errors
    /// As [`apply`](Node::apply).
    pub fn apply_with(
        &mut self,
        config: NodeConfig,
        tunnels: Tunnels,
        now: Instant,
    ) -> Result<ConfigDiff, ConfigError> {
        let now = self.advance(now);
        self.transition(config, Some(tunnels), now)
    }

    /// Starts a handshake with a peer now; nothing happens while one is under way.
    ///
    /// # Errors
    /// `UnknownPeer`; `Role`: a responder never initiates; `NoEndpoint`; `PeerPoisoned`.
    pub fn initiate_handshake(
        &mut self,
        public_key: &[u8; 32],
        now: Instant,
    ) -> Result<(), DropReason> {
        let now = self.advance(now);
        let slot = self.peers.find(public_key).ok_or(DropReason::UnknownPeer)?;
        if self
            .peers
            .get(slot)
            .is_some_and(|peer| !peer.is_reachable())
        {
            return Err(DropReason::NoEndpoint);
        }
        let result = self.drive(slot, now, |tunn, env, out| {
            tunn.initiate_handshake(env, out).map_err(DropReason::from)
        });
        let result = result.unwrap_or(Err(DropReason::PeerPoisoned));
        self.record_input(slot, InputKind::Handshake, 0, result.is_ok());
        self.settle(slot, None);
        result
    }

    /// Says where a peer is, until an authenticated datagram says otherwise: its host name was looked up again. Unless it
    /// `replace`s what is known, that is left. Returns whether the peer is elsewhere now.
    ///
    /// # Errors
    /// `UnknownPeer`.
    pub fn set_endpoint(
        &mut self,
        public_key: &[u8; 32],
        endpoint: SocketAddr,
        replace: bool,
        now: Instant,
    ) -> Result<bool, DropReason> {
        let now = self.advance(now);
        let slot = self.peers.find(public_key).ok_or(DropReason::UnknownPeer)?;
        let Some(peer) = self.peers.get_mut(slot) else {
            return Ok(false);
        };
        let known = peer.endpoint;
        if known.is_some() && !replace {
            return Ok(false);
        }
        peer.place(endpoint);
        self.adjust_keepalive(slot, now);
        Ok(known != Some(endpoint))
    }

    /// The wall clock was set: it shows `unix_time`, since 1970, at `now`.
    pub fn set_unix_time(&mut self, unix_time: Duration, now: Instant) {
        let now = self.advance(now);
        self.unix_time = (unix_time, now);
        for slot in self.peers.slots().collect::<Vec<_>>() {
            if let Some(tunn) = self.peers.get_mut(slot).and_then(|peer| peer.tunn.as_mut()) {
                tunn.set_unix_time(unix_time, now);
            }
        }
    }

    /// Writes down from now on what comes into the tunnels, until `capacity` inputs wait to be taken out; 0 ends it.
    pub fn record(&mut self, capacity: usize) {
        self.recorder = (capacity > 0).then(|| Recorder::new(capacity));
    }

    /// What was written down since the last call, and how many inputs had no room.
    pub fn take_recorded(&mut self) -> (Vec<Input>, u64) {
        self.recorder
            .as_mut()
            .map(Recorder::take)
            .unwrap_or_default()
    }

    // Inside.

    /// Why a packet of this size cannot be sent to a peer, if it cannot.
    #[inline]
    fn obstacle(&self, slot: Slot, size: usize) -> Option<DropReason> {
        let peer = self.peers.get(slot)?;
        if !peer.is_reachable() {
            return Some(DropReason::NoEndpoint);
        }
        if size > LARGEST_PACKET {
            return Some(DropReason::TooLarge);
        }
        (self.waiting >= MOST_WAITING && peer.waiting() > 0).then_some(DropReason::QueueFull)
    }

    /// Gives a peer's tunnel a packet to send; `settle` has to follow.
    fn encapsulate(&mut self, slot: Slot, packet: &[u8], now: Instant) {
        let result = self.drive(slot, now, |tunn, env, out| {
            tunn.encapsulate(packet, env, out).map_err(DropReason::from)
        });
        let result = result.unwrap_or(Err(DropReason::PeerPoisoned));
        self.record_input(slot, InputKind::Packet, packet.len(), result.is_ok());
        if let Err(reason) = result {
            self.drop_from(slot, reason);
        }
    }

    fn advance(&mut self, now: Instant) -> Instant {
        self.clock = self.clock.max(now);
        self.clock
    }

    #[inline]
    fn record_input(&mut self, slot: Slot, kind: InputKind, size: usize, taken: bool) {
        let Some(recorder) = &mut self.recorder else {
            return;
        };
        if let Some(peer) = self.peers.get(slot) {
            recorder.push(Input {
                at: self.clock,
                peer: peer.settings.public_key,
                kind,
                size,
                taken,
            });
        }
    }

    fn drop_from(&mut self, slot: Slot, reason: DropReason) {
        match self.peers.get_mut(slot) {
            Some(peer) => {
                peer.drops.add(reason);
                peer.trouble.note(reason);
            }
            None => self.drops.add(reason),
        }
    }

    /// Switches a tunnel's keepalive to what it should be by now.
    fn adjust_keepalive(&mut self, slot: Slot, now: Instant) {
        let Some(peer) = self.peers.get(slot) else {
            return;
        };
        let keepalive = peer.keepalive();
        let current = peer.tunn.as_ref().map(noise::Tunn::persistent_keepalive);
        if current.is_some_and(|current| current != keepalive) {
            self.drive(slot, now, |tunn, env, out| {
                tunn.set_persistent_keepalive(keepalive, env, out)
            });
        }
        self.settle(slot, None);
    }
}
