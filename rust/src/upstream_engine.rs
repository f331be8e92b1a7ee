//! Pristine boringtun behind the calls of our engine: virtual time, and no "call again with an empty datagram".

use std::net::SocketAddr;
use std::time::Duration;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use connlib_core::{DropReason, Instant, Output, Stats, TunnConfig};
use mock_instant::MockClock;

use crate::arguments::MAX_PACKET;

/// How often its own device calls `update_timers`.
pub const TICK: Duration = Duration::from_millis(250);

/// Room for the largest packet and the overhead of a data message: upstream panics where it writes past the end.
const BUFFER_LEN: usize = MAX_PACKET + 32;

/// Its queue holds 256 packets; a call that flushes more often than that would not end.
const MAX_FLUSHES: usize = 512;

pub struct UpstreamEngine {
    tunn: Tunn,
    buffer: Vec<u8>,
    start: Instant,
    /// The latest time that any call was given.
    latest: Instant,
    polled: Instant,
    seen: Seen,
}

/// What passed, for statistics that upstream does not keep.
#[derive(Default)]
struct Seen {
    tx_packets: u64,
    rx_packets: u64,
    initiations: u64,
    responses: u64,
    keepalives: u64,
    handshake_pending: bool,
}

impl UpstreamEngine {
    /// `index` has 24 bits. What upstream cannot serve was refused before.
    pub fn new(config: &TunnConfig, now: Instant, index: u32) -> Self {
        set_clock(now);
        let keepalive = config
            .persistent_keepalive
            .and_then(|interval| u16::try_from(interval.as_secs()).ok());
        UpstreamEngine {
            tunn: Tunn::new(
                StaticSecret::from(*config.private_key),
                PublicKey::from(config.peer_public_key),
                config.preshared_key.as_deref().copied(),
                keepalive,
                index,
                None,
            ),
            buffer: vec![0; BUFFER_LEN],
            start: now,
            latest: now,
            polled: now,
            seen: Seen::default(),
        }
    }

    /// Time does not go backwards.
    fn advance(&mut self, now: Instant) {
        self.latest = self.latest.max(now);
        set_clock(self.latest);
    }

    pub fn encapsulate(
        &mut self,
        packet: &[u8],
        now: Instant,
        output: &mut Output,
    ) -> Option<DropReason> {
        self.advance(now);
        let result = self.tunn.encapsulate(packet, &mut self.buffer);
        self.seen.absorb(result, output).err()
    }

    pub fn decapsulate(
        &mut self,
        datagram: &[u8],
        source: Option<SocketAddr>,
        now: Instant,
        output: &mut Output,
    ) -> Option<DropReason> {
        self.advance(now);
        let source = source.map(|source| source.ip());
        let result = self.tunn.decapsulate(source, datagram, &mut self.buffer);
        let mut flush = match self.seen.absorb(result, output) {
            Ok(wrote) => wrote,
            Err(reason) => return Some(reason),
        };
        if datagram.first() == Some(&2) {
            self.seen.handshake_pending = false;
        }
        for _ in 0..MAX_FLUSHES {
            if !flush {
                break;
            }
            let result = self.tunn.decapsulate(None, &[], &mut self.buffer);
            flush = self.seen.absorb(result, output).unwrap_or(false);
        }
        None
    }

    pub fn handle_timeout(&mut self, now: Instant, output: &mut Output) -> Option<DropReason> {
        self.advance(now);
        self.polled = self.latest;
        let result = self.tunn.update_timers(&mut self.buffer);
        let error = self.seen.absorb(result, output).err();
        if error.is_some() {
            self.seen.handshake_pending = false;
        }
        error
    }

    pub fn initiate_handshake(&mut self, now: Instant, output: &mut Output) -> Option<DropReason> {
        self.advance(now);
        let result = self
            .tunn
            .format_handshake_initiation(&mut self.buffer, false);
        self.seen.absorb(result, output).err()
    }

    /// The next tick after the last poll; never a time that has passed.
    pub fn next_tick(&self) -> Instant {
        let tick = TICK.as_nanos() as u64;
        let since = self.polled.as_nanos() - self.start.as_nanos();
        let next = self.start.as_nanos() + (since / tick + 1) * tick;
        Instant::from_nanos(next).max(self.latest)
    }

    pub fn stats(&self, now: Instant) -> Stats {
        set_clock(self.latest.max(now));
        let (last_handshake, tx_bytes, rx_bytes, loss, rtt) = self.tunn.stats();
        Stats {
            last_handshake,
            session_age: last_handshake,
            tx_bytes: tx_bytes as u64,
            rx_bytes: rx_bytes as u64,
            tx_packets: self.seen.tx_packets,
            rx_packets: self.seen.rx_packets,
            queued: 0,
            sessions: usize::from(last_handshake.is_some()),
            initiations_sent: self.seen.initiations,
            responses_sent: self.seen.responses,
            keepalives_sent: self.seen.keepalives,
            loss,
            rtt: rtt.map(|millis| Duration::from_millis(millis.into())),
            handshake_pending: self.seen.handshake_pending,
        }
    }
}

impl Seen {
    /// Whether there may be more to fetch, or why the input was dropped.
    fn absorb(&mut self, result: TunnResult<'_>, output: &mut Output) -> Result<bool, DropReason> {
        match result {
            TunnResult::Done => Ok(false),
            TunnResult::Err(error) => Err(drop_reason(&error)),
            TunnResult::WriteToNetwork(datagram) => {
                self.note(datagram);
                output.datagrams.push(datagram);
                Ok(true)
            }
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                self.rx_packets += 1;
                output.packets.push(packet);
                Ok(false)
            }
        }
    }

    fn note(&mut self, datagram: &[u8]) {
        match (datagram.first(), datagram.len()) {
            (Some(1), _) => {
                self.initiations += 1;
                self.handshake_pending = true;
            }
            (Some(2), _) => self.responses += 1,
            (Some(4), 32) => self.keepalives += 1,
            (Some(4), _) => self.tx_packets += 1,
            _ => {}
        }
    }
}

/// The clock is a thread's own, so that every call sets it.
fn set_clock(now: Instant) {
    MockClock::set_time(Duration::from_nanos(now.as_nanos()));
}

fn drop_reason(error: &WireGuardError) -> DropReason {
    use WireGuardError as E;
    match error {
        E::DestinationBufferTooSmall => DropReason::BufferTooSmall,
        E::UnexpectedPacket | E::WrongPacketType | E::LockFailed => DropReason::Unexpected,
        E::WrongIndex => DropReason::WrongIndex,
        E::WrongKey => DropReason::WrongKey,
        E::InvalidTai64nTimestamp | E::WrongTai64nTimestamp => DropReason::ReplayedInitiation,
        E::InvalidMac => DropReason::InvalidMac,
        E::InvalidAeadTag => DropReason::InvalidAeadTag,
        E::InvalidCounter => DropReason::InvalidCounter,
        E::DuplicateCounter => DropReason::DuplicateCounter,
        E::InvalidPacket | E::IncorrectPacketLength => DropReason::InvalidPacket,
        E::NoCurrentSession => DropReason::NoSession,
        E::ConnectionExpired => DropReason::GaveUp,
        E::UnderLoad => DropReason::UnderLoad,
    }
}
