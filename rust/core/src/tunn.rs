//! `Tunn`: one pair of peers, with its rate limiter, its randomness and its receiver indices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use connlib_boringtun::noise::rate_limiter::{RateLimiter, Verdict};
use connlib_boringtun::noise::{self, Env, Received, TunnParams};
use connlib_boringtun::x25519::{PublicKey, StaticSecret};
use parking_lot::Mutex;
use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use crate::indices::{Shared, SharedIndices};
use crate::{DropReason, Instant, Output, Settings, Stats, Timeout};

/// The source of randomness of a tunnel or a node: the operating system's, or a seeded one in the laboratory.
pub type Rng = Box<dyn CryptoRngCore + Send>;

/// A key of 32 bytes that is wiped when it is dropped.
pub type Secret = Zeroizing<[u8; 32]>;

/// One handshake rate limiter for many tunnels.
pub type SharedLimiter = Arc<Mutex<RateLimiter>>;

/// Handshakes per second that a tunnel with a rate limiter of its own answers without a cookie.
const OWN_HANDSHAKE_LIMIT: u64 = 10;

/// What a tunnel is made of.
pub struct TunnConfig {
    pub private_key: Secret,
    pub peer_public_key: [u8; 32],
    pub preshared_key: Option<Secret>,
    pub persistent_keepalive: Option<Duration>,
    /// The wall clock at construction, since 1970.
    pub unix_time: Duration,
    pub settings: Settings,
    /// `None`: a table of its own.
    pub indices: Option<SharedIndices>,
    /// `None`: a limiter of its own.
    pub rate_limiter: Option<SharedLimiter>,
}

/// One pair of peers.
///
/// Methods that change it take the time and append everything that they bring about to an `Output`: datagrams for the peer,
/// IP packets from the peer, and events. What they return is why the input was dropped, if it was. Between calls, ask
/// `next_timeout` when to call `handle_timeout`.
pub struct Tunn {
    inner: noise::Tunn,
    rng: Rng,
    indices: SharedIndices,
    limiter: SharedLimiter,
}

impl Tunn {
    /// A tunnel without a session. A persistent keepalive is due at once.
    ///
    /// # Errors
    /// `InvalidKey` if the peer's public key is of low order.
    pub fn new(config: TunnConfig, now: Instant, mut rng: Rng) -> Result<Self, DropReason> {
        let private = StaticSecret::from(*config.private_key);
        let public = PublicKey::from(&private);
        let limiter = config.rate_limiter.unwrap_or_else(|| {
            let limiter = RateLimiter::new(&public, OWN_HANDSHAKE_LIMIT, now, &mut *rng);
            Arc::new(Mutex::new(limiter))
        });
        let inner = noise::Tunn::new(
            TunnParams {
                static_private: private,
                peer_static_public: PublicKey::from(config.peer_public_key),
                preshared_key: config.preshared_key.as_deref().copied(),
                settings: config.settings,
                unix_time: config.unix_time,
            },
            now,
        )?
        .with_persistent_keepalive(config.persistent_keepalive);
        Ok(Tunn {
            inner,
            rng,
            indices: config.indices.unwrap_or_default(),
            limiter,
        })
    }

    /// Call the engine with its surroundings.
    #[inline]
    fn with_env<T>(
        &mut self,
        now: Instant,
        call: impl FnOnce(&mut noise::Tunn, &mut Env<'_>) -> T,
    ) -> T {
        let mut env = Env {
            now,
            rng: &mut *self.rng,
            indices: &mut Shared(&self.indices),
        };
        call(&mut self.inner, &mut env)
    }

    /// Send an IP packet: sealed at once, or queued until there is a session.
    #[inline]
    pub fn encapsulate(
        &mut self,
        packet: &[u8],
        now: Instant,
        out: &mut Output,
    ) -> Option<DropReason> {
        let result = self.with_env(now, |tunn, env| tunn.encapsulate(packet, env, out));
        result.err().map(DropReason::from)
    }

    /// Take a datagram from the peer, or from anybody. `source` is where a cookie reply would go.
    #[inline]
    pub fn decapsulate(
        &mut self,
        datagram: &[u8],
        source: Option<SocketAddr>,
        now: Instant,
        out: &mut Output,
    ) -> Option<DropReason> {
        // What is refused before it gets to the engine takes its time too.
        self.inner.advance(now);
        let packet = match noise::Tunn::parse_incoming_packet(datagram) {
            Ok(packet @ noise::Packet::PacketData(_)) => packet,
            Ok(_) => {
                let limiter = self.limiter.lock();
                match limiter.verify_packet(source, datagram, now, &mut *self.rng) {
                    Ok(packet) => packet,
                    Err(Verdict::CookieReply(reply)) => {
                        out.datagrams.push(&reply);
                        return Some(DropReason::CookieReplySent);
                    }
                    Err(Verdict::Error(error)) => return Some(error.into()),
                }
            }
            Err(error) => return Some(error.into()),
        };
        let result = self.with_env(now, |tunn, env| {
            tunn.handle_verified_packet(packet, env, out)
        });
        match result {
            Ok(Received::Transport {
                invalid: Some(error),
            }) => Some(error.into()),
            Ok(_) => None,
            Err(error) => Some(error.into()),
        }
    }

    /// Seal an IP packet where it stands, 16 bytes into `buffer`, with 32 bytes of space behind it. Returns the datagram's
    /// length.
    ///
    /// # Errors
    /// `NoSession`: nothing was done; `encapsulate` would queue the packet. `BufferTooSmall`.
    #[inline]
    pub fn seal_in_place(
        &mut self,
        buffer: &mut [u8],
        packet_len: usize,
        now: Instant,
        out: &mut Output,
    ) -> Result<usize, DropReason> {
        let result = self.with_env(now, |tunn, env| {
            tunn.seal_in_place(buffer, packet_len, env, out)
        });
        result.map_err(DropReason::from)
    }

    /// Open a data message where it stands. Returns the IP packet; empty for a keepalive.
    ///
    /// # Errors
    /// `Unexpected` for another message, or why it was dropped.
    #[inline]
    pub fn open_in_place<'a>(
        &mut self,
        datagram: &'a mut [u8],
        now: Instant,
        out: &mut Output,
    ) -> Result<&'a [u8], DropReason> {
        let result = self.with_env(now, |tunn, env| tunn.open_in_place(datagram, env, out));
        result.map_err(DropReason::from)
    }

    /// Do what is due.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Output) {
        self.with_env(now, |tunn, env| tunn.handle_timeout(env, out));
    }

    /// Start a handshake now. Nothing happens while an initiation is pending; a responder says `Role`.
    pub fn initiate_handshake(&mut self, now: Instant, out: &mut Output) -> Option<DropReason> {
        let result = self.with_env(now, |tunn, env| tunn.initiate_handshake(env, out));
        result.err().map(DropReason::from)
    }

    /// When to call `handle_timeout`, and why; `None`: never, unless something else happens first. Never before the time of
    /// the last call.
    pub fn next_timeout(&self) -> Option<Timeout> {
        self.inner.next_timeout()
    }

    pub fn stats(&self, now: Instant) -> Stats {
        self.inner.stats(now)
    }

    /// Switch the persistent keepalive on, off (`None`), or to another interval; on acts at once.
    pub fn set_persistent_keepalive(
        &mut self,
        interval: Option<Duration>,
        now: Instant,
        out: &mut Output,
    ) {
        self.with_env(now, |tunn, env| {
            tunn.set_persistent_keepalive(interval, env, out);
        });
    }

    /// Change the preshared key of the handshakes to come.
    pub fn set_preshared_key(&mut self, preshared_key: Option<Secret>, now: Instant) {
        self.inner.advance(now);
        self.inner
            .set_preshared_key(preshared_key.as_deref().copied());
    }

    /// The wall clock was set: it shows `unix_time` at `now`.
    pub fn set_unix_time(&mut self, unix_time: Duration, now: Instant) {
        self.inner.set_unix_time(unix_time, now);
    }
}

impl Drop for Tunn {
    fn drop(&mut self) {
        self.inner.release_indices(&mut Shared(&self.indices));
    }
}
