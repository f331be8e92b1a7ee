//! A turn: both directions at once, between a TUN descriptor, UDP sockets and a node.

use std::os::fd::BorrowedFd;

use connlib_core::Instant;
use connlib_net::{DeviceState, Interest, MAX_WATCHED, Poller};

use crate::arguments::Now;
use crate::call_error::CallError;
use crate::node::Engine;
use crate::tun_io;
use crate::udp_io::{self, FAMILIES};

/// Packets or datagrams that one round moves each way: few enough that they are still in the processor's caches when they
/// are written. Several threads, which have caches of their own, get as many as they seal or open together.
const ROUND: usize = 64;

/// The device's place in the poller: after those of the sockets.
pub const DEVICE: usize = FAMILIES.len();

/// The first place that is free for something else to wait for.
pub const OTHERS: usize = DEVICE + 1;

/// What there is to wait for, and what the last turn told, so that the next one can say what is new.
pub struct Watch {
    poller: Poller,
    /// Whether the device is watched for packets. If not, it is held back.
    reads_device: bool,
    timestamps: u64,
    was_blocked: bool,
    state: DeviceState,
}

/// What a turn was.
pub struct Turn {
    /// Packets and datagrams that were moved.
    pub moved: usize,
    /// How many of them no peer was found for.
    pub refused: u64,
    /// When the node wants to be called next.
    pub deadline: Option<Instant>,
    /// Whether there is anything else to see to.
    pub is_notable: bool,
}

impl Watch {
    /// Nothing is watched before the first `update`. `timestamps`: the node's version of them.
    pub fn new(timestamps: u64) -> Result<Self, CallError> {
        Ok(Watch {
            poller: Poller::new()?,
            reads_device: true,
            timestamps,
            was_blocked: false,
            state: DeviceState::Up,
        })
    }

    pub fn poller(&self) -> &Poller {
        &self.poller
    }

    /// Has something else watched for being readable; `place` is [`OTHERS`] or more.
    pub fn add(&mut self, place: usize, fd: BorrowedFd<'_>) -> Result<(), CallError> {
        let (reads, writes) = (true, false);
        Ok(self.poller.watch(place, fd, Interest { reads, writes })?)
    }

    /// Waits for what is full to be writable, and for the device only while the network takes what it has.
    pub fn update(&mut self, tun: &mut tun_io::Io, udp: &mut udp_io::Io) -> Result<(), CallError> {
        udp.watch(&mut self.poller)?;
        let reads = !udp.is_full()?;
        if self.reads_device && !reads {
            tun.hold_back()?;
        }
        self.reads_device = reads;
        // Also where it was not a turn that filled them: the next turn looks whether they still are.
        self.was_blocked = !reads || tun.is_blocked()?;
        tun.watch(&mut self.poller, DEVICE, reads)
    }
}

/// Moves what there is, until that is little or about `budget` packets and datagrams were.
///
/// ready: what the poller said last, since whatever happened before.
pub fn turn(
    watch: &mut Watch,
    tun: &mut tun_io::Io,
    udp: &mut udp_io::Io,
    node: &Engine,
    now: Now,
    budget: usize,
    ready: &[bool; MAX_WATCHED],
) -> Result<Turn, CallError> {
    let before = node.call_inside(|node| node.unclaimed())?;
    let moved = move_both_ways(watch.reads_device, tun, udp, node, now, budget, ready)?;
    let is_blocked = tun.is_blocked()? || udp.is_full()?;
    if is_blocked || watch.was_blocked {
        watch.update(tun, udp)?;
    }
    let state = tun.state()?;
    let (refused, deadline, has_news, timestamps) = node.call_inside(|node| {
        let deadline = node.next_timeout();
        (
            node.unclaimed() - before,
            deadline.map(|next| next.at),
            node.has_news(),
            node.timestamps_version(),
        )
    })?;
    // What is told once is not told again: whoever hears of it has the thread take another turn.
    let is_notable = has_news || timestamps != watch.timestamps || state != watch.state;
    watch.timestamps = timestamps;
    watch.state = state;
    Ok(Turn {
        moved,
        refused,
        deadline,
        is_notable,
    })
}

/// Rounds, until one finds little or about `budget` packets and datagrams were moved.
fn move_both_ways(
    reads_device: bool,
    tun: &mut tun_io::Io,
    udp: &mut udp_io::Io,
    node: &Engine,
    now: Now,
    budget: usize,
    ready: &[bool; MAX_WATCHED],
) -> Result<usize, CallError> {
    let round = node.call_inside(|node| node.encryption().engine.most())?;
    let round = round.max(ROUND);
    // What waited for a descriptor to be writable goes first.
    let mut moved = tun.write(node)? + udp.send(node)?;
    // A socket that has nothing, or nothing any more, is not asked again.
    let mut is_quiet: [bool; FAMILIES.len()] =
        std::array::from_fn(|place| !ready.get(place).is_some_and(|ready| *ready));
    let is_ready = ready.get(DEVICE).is_some_and(|ready| *ready);
    // Of what was read already the poller knows nothing.
    let mut has_packets = is_ready || tun.has_rest()?;
    // It was not asked for packets, and yet says something: it may be gone.
    let may_be_gone = is_ready && !reads_device;
    loop {
        let mut count = 0;
        for (family, is_quiet) in FAMILIES.into_iter().zip(&mut is_quiet) {
            if !*is_quiet {
                let received = udp.receive(node, now, round, family)?;
                *is_quiet = received == 0;
                count += received;
            }
        }
        if count > 0 {
            tun.write(node)?;
            udp.send(node)?;
        }
        // What was written may have been answered already.
        if (has_packets || count > 0) && (may_be_gone || !udp.is_full()?) {
            let read = tun.read(node, now, round)?;
            has_packets = read > 0;
            if read > 0 {
                udp.send(node)?;
                // What a policy refuses is answered.
                tun.write(node)?;
                count += read;
            }
        }
        moved += count;
        if count < round || moved >= budget {
            return Ok(moved);
        }
    }
}
