//! A turn: both directions at once, between a TUN descriptor, UDP sockets and a node.

use std::mem;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use connlib_core::Instant;
use connlib_net::{DeviceState, Family, Interest, MAX_WATCHED, Poller};

use crate::arguments::Now;
use crate::call_error::CallError;
use crate::node::{Engine, Outbox};
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
    /// What the node has put out in a turn: nobody who wants to call the node waits until the kernel has taken it.
    out: Outbox,
    /// Whether the device is watched for packets. If not, it is held back.
    reads_device: bool,
    timestamps: u64,
    was_blocked: bool,
    state: DeviceState,
    /// Whether it keeps the node's time.
    is_first: bool,
    /// The deadline that the first one knows, in nanoseconds. Read and written with the node's lock only.
    known: Arc<AtomicU64>,
}

/// What a turn was.
pub struct Turn {
    /// Packets and datagrams that were moved.
    pub moved: usize,
    /// How many of them no peer was found for.
    pub refused: u64,
    /// When the node wants to be called next.
    pub deadline: Option<Instant>,
    /// Whether that is sooner than whoever keeps the time knows, who is another one.
    pub is_sooner: bool,
    /// Whether there is anything else to see to.
    pub is_notable: bool,
}

impl Watch {
    /// Nothing is watched before the first `update`. `timestamps`: the node's version of them.
    pub fn new(timestamps: u64) -> Result<Self, CallError> {
        Ok(Watch {
            poller: Poller::new()?,
            out: Outbox::default(),
            reads_device: true,
            timestamps,
            was_blocked: false,
            state: DeviceState::Up,
            is_first: true,
            known: Arc::new(AtomicU64::new(u64::MAX)),
        })
    }

    /// For other ends of the same node, which are served at the same time.
    pub fn beside(first: &Watch) -> Result<Self, CallError> {
        let mut other = Watch::new(first.timestamps)?;
        other.is_first = false;
        other.known = first.known.clone();
        Ok(other)
    }

    /// Whether it keeps the node's time.
    pub fn is_first(&self) -> bool {
        self.is_first
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
    let most = node.call_inside(|node| {
        // What others than turns have put out is sent by whoever comes first.
        node.move_output(&mut watch.out.output);
        node.encryption().engine.most()
    })?;
    let mut ends = Ends {
        tun,
        udp,
        node,
        out: &mut watch.out,
        now,
        round: most.max(ROUND),
    };
    let moved = ends.move_both_ways(watch.reads_device, budget, ready)?;
    let is_blocked = tun.is_blocked()? || udp.is_full()?;
    if is_blocked || watch.was_blocked {
        watch.update(tun, udp)?;
    }
    let state = tun.state()?;
    let (deadline, is_sooner, has_news, timestamps) = node.call_inside(|node| {
        let deadline = node.next_timeout().map(|next| next.at);
        let at = deadline.map_or(u64::MAX, Instant::as_nanos);
        if watch.is_first {
            watch.known.store(at, Ordering::Relaxed);
        }
        (
            deadline,
            at < watch.known.load(Ordering::Relaxed),
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
        refused: mem::take(&mut watch.out.refused),
        deadline,
        is_sooner,
        is_notable,
    })
}

/// Between what a turn moves packets.
struct Ends<'a> {
    tun: &'a mut tun_io::Io,
    udp: &'a mut udp_io::Io,
    node: &'a Engine,
    out: &'a mut Outbox,
    now: Now,
    /// Packets or datagrams that one round moves each way.
    round: usize,
}

impl Ends<'_> {
    /// Rounds, until one finds little or about `budget` packets and datagrams were moved.
    fn move_both_ways(
        &mut self,
        reads_device: bool,
        budget: usize,
        ready: &[bool; MAX_WATCHED],
    ) -> Result<usize, CallError> {
        // What waited for a descriptor to be writable goes first.
        let mut moved = self.write()? + self.send()?;
        // A socket that has nothing, or nothing any more, is not asked again.
        let mut is_quiet: [bool; FAMILIES.len()] =
            std::array::from_fn(|place| !ready.get(place).is_some_and(|ready| *ready));
        let is_ready = ready.get(DEVICE).is_some_and(|ready| *ready);
        // Of what was read already the poller knows nothing.
        let mut has_packets = is_ready || self.tun.has_rest()?;
        // It was not asked for packets, and yet says something: it may be gone.
        let may_be_gone = is_ready && !reads_device;
        loop {
            let mut count = 0;
            for (family, is_quiet) in FAMILIES.into_iter().zip(&mut is_quiet) {
                if !*is_quiet {
                    let received = self.receive(family)?;
                    *is_quiet = received == 0;
                    count += received;
                }
            }
            if count > 0 {
                self.write()?;
                self.send()?;
            }
            // What was written may have been answered already.
            if (has_packets || count > 0) && (may_be_gone || !self.udp.is_full()?) {
                let read = self.read()?;
                has_packets = read > 0;
                if read > 0 {
                    self.send()?;
                    // What a policy refuses is answered.
                    self.write()?;
                    count += read;
                }
            }
            moved += count;
            if count < self.round || moved >= budget {
                return Ok(moved);
            }
        }
    }

    fn read(&mut self) -> Result<usize, CallError> {
        self.tun
            .read(self.node, self.now, self.round, Some(&mut *self.out))
    }

    fn receive(&mut self, family: Family) -> Result<usize, CallError> {
        self.udp.receive(
            self.node,
            self.now,
            self.round,
            family,
            Some(&mut *self.out),
        )
    }

    fn write(&mut self) -> Result<usize, CallError> {
        let written = self.tun.write(&self.out.output)?;
        self.out.output.drain_packets(usize::MAX);
        Ok(written)
    }

    fn send(&mut self) -> Result<usize, CallError> {
        let sent = self.udp.send(&self.out.output)?;
        self.out.output.drain_datagrams(usize::MAX);
        let refused = self.udp.refused_sources()?;
        if !refused.is_empty() {
            self.node.call_inside(|node| {
                for (remote, source) in refused {
                    node.source_refused(remote, source);
                }
            })?;
        }
        Ok(sent)
    }
}
