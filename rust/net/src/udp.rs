//! Datagrams from and to an IPv4 and an IPv6 socket.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};

use crate::send::{self, Call, SendCounts, Sender};
use crate::socket::{self, BufferSizes};
use crate::{Datagrams, ErrorCounts};

/// How many buffers one system call may fill.
const BUFFERS: usize = 8;
/// The largest datagram, and the largest chain of datagrams that the kernel coalesces.
const BUFFER_BYTES: usize = 65_536;

/// A datagram that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received<'a> {
    pub source: SocketAddr,
    /// The address of ours that it was sent to, from which an answer should come. `None` where the kernel does not say, or
    /// it was sent to many.
    pub local: Option<IpAddr>,
    /// The ECN field of its IP header, in the two low bits.
    pub ecn: u8,
    pub bytes: &'a [u8],
}

/// Reusable room for what one system call receives.
#[derive(Debug)]
pub struct ReceiveBuffers {
    bytes: Vec<u8>,
    filled: [RecvMeta; BUFFERS],
    used: usize,
}

impl Default for ReceiveBuffers {
    fn default() -> Self {
        Self {
            bytes: vec![0; BUFFERS * BUFFER_BYTES],
            filled: [RecvMeta::default(); BUFFERS],
            used: 0,
        }
    }
}

impl ReceiveBuffers {
    /// The datagrams received last, in order; coalesced ones are cut apart again.
    pub fn iter(&self) -> impl Iterator<Item = Received<'_>> {
        self.filled
            .iter()
            .take(self.used)
            .zip(self.bytes.chunks(BUFFER_BYTES))
            .flat_map(|(meta, buffer)| {
                let bytes = buffer.get(..meta.len).unwrap_or_default();
                // An empty datagram is one datagram, which cutting by size would not show.
                let empty = (meta.len == 0).then_some(bytes);
                let local = meta.dst_ip.filter(is_of_one);
                let ecn = meta.ecn.map_or(0, |ecn| ecn as u8);
                empty
                    .into_iter()
                    .chain(bytes.chunks(meta.stride.max(1)))
                    .map(move |bytes| Received {
                        source: meta.addr,
                        local,
                        ecn,
                        bytes,
                    })
            })
    }
}

/// Not an address that several have, and that nothing can come from.
fn is_of_one(address: &IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(broadcast || address.is_multicast() || address.is_unspecified())
}

#[derive(Debug, Clone, Default)]
pub struct UdpCounts {
    pub received: u64,
    pub received_bytes: u64,
    /// System calls that received datagrams.
    pub receive_calls: u64,
    pub receive_errors: ErrorCounts,
    pub sent: SendCounts,
    /// Datagrams that waited for too long for a socket to take them.
    pub backlog_dropped: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// One socket with its quirks.
#[derive(Debug)]
struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
    sender: Sender,
    buffers: BufferSizes,
    received: u64,
    received_bytes: u64,
    receive_calls: u64,
    receive_errors: ErrorCounts,
}

impl Udp {
    fn new(fd: BorrowedFd<'_>, ipv4: bool) -> io::Result<Self> {
        let socket = UdpSocket::from(fd.try_clone_to_owned()?);
        if socket.local_addr()?.is_ipv4() != ipv4 {
            return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        }
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        socket::allow_fragments(socket.as_fd(), ipv4)?;
        socket::without_timestamps(socket.as_fd())?;
        Ok(Self {
            buffers: socket::enlarge_buffers(socket.as_fd()),
            sender: Sender::new(state.max_gso_segments() > 1),
            state,
            socket,
            received: 0,
            received_bytes: 0,
            receive_calls: 0,
            receive_errors: ErrorCounts::default(),
        })
    }

    /// The number of datagrams that one system call brought; 0: none for now, or an error that is counted.
    fn receive(&mut self, room: usize, buffers: &mut ReceiveBuffers) -> usize {
        let mut slices = buffers.bytes.chunks_mut(BUFFER_BYTES).map(IoSliceMut::new);
        let mut slices: [IoSliceMut<'_>; BUFFERS] =
            std::array::from_fn(|_| slices.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
        let slices = slices.get_mut(..room).unwrap_or_default();
        match self
            .state
            .recv(UdpSockRef::from(&self.socket), slices, &mut buffers.filled)
        {
            Ok(used) => buffers.used = used,
            Err(error) => {
                buffers.used = 0;
                if error.kind() != io::ErrorKind::WouldBlock {
                    self.receive_errors.add(&error, 1);
                }
                return 0;
            }
        }
        self.receive_calls += 1;
        let (mut datagrams, mut bytes) = (0, 0);
        for datagram in buffers.iter() {
            datagrams += 1;
            bytes += datagram.bytes.len();
        }
        self.received += datagrams as u64;
        self.received_bytes += bytes as u64;
        datagrams
    }

    fn with_sender(&mut self, act: impl FnOnce(&mut Sender, &mut Call<'_>)) {
        let Self {
            socket,
            sender,
            #[cfg(not(target_os = "linux"))]
            state,
            ..
        } = self;
        #[cfg(target_os = "linux")]
        act(sender, &mut |messages| {
            send::linux::send(socket.as_fd(), messages.iter())
        });
        #[cfg(not(target_os = "linux"))]
        act(sender, &mut |messages| {
            send::portable::send(state, UdpSockRef::from(&*socket), messages)
        });
    }
}

/// The sockets of one interface: IPv4, IPv6 or both.
#[derive(Debug)]
pub struct UdpPair {
    v4: Option<Udp>,
    v6: Option<Udp>,
    /// Datagrams to a family for which there is no socket.
    unroutable: ErrorCounts,
}

impl UdpPair {
    /// Duplicates the descriptors, so that nothing here depends on how long the caller keeps its own, and sets the
    /// sockets up: non-blocking, coalescing on receive, large buffers, fragments allowed. These are properties of the
    /// open sockets, so they hold for the caller's descriptors too.
    ///
    /// # Errors
    /// EAFNOSUPPORT for a socket of the other family; whatever the kernel says where an option is essential.
    pub fn new(v4: Option<BorrowedFd<'_>>, v6: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        Ok(Self {
            v4: v4.map(|fd| Udp::new(fd, true)).transpose()?,
            v6: v6.map(|fd| Udp::new(fd, false)).transpose()?,
            unroutable: ErrorCounts::default(),
        })
    }

    /// Receives from one socket until about `budget` datagrams came (a chain that the kernel coalesced is never cut) or
    /// there are no more, hands each batch to `sink`, and returns how many came.
    pub fn receive(
        &mut self,
        family: Family,
        budget: usize,
        buffers: &mut ReceiveBuffers,
        mut sink: impl FnMut(&ReceiveBuffers),
    ) -> usize {
        let socket = match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        };
        let Some(socket) = socket else { return 0 };
        let mut received = 0;
        while received < budget {
            let room = (budget - received).min(BUFFERS);
            let datagrams = socket.receive(room, buffers);
            if datagrams == 0 {
                break;
            }
            received += datagrams;
            sink(buffers);
            // Buffers were left over, so the socket is empty: asking again would only cost a system call.
            if buffers.used < room {
                break;
            }
        }
        received
    }

    /// Sends what waits and then `datagrams`, and returns how many the kernel took. What a socket does not take yet waits
    /// ([`Self::backlog`]); what the kernel refuses is lost and counted.
    pub fn send(&mut self, datagrams: Datagrams<'_>) -> usize {
        let before = self.datagrams_sent();
        for (socket, is_ours) in [
            (&mut self.v4, SocketAddr::is_ipv4 as fn(&SocketAddr) -> bool),
            (&mut self.v6, SocketAddr::is_ipv6),
        ] {
            let Some(socket) = socket else {
                let count = datagrams
                    .destinations
                    .iter()
                    .filter(|to| is_ours(to))
                    .count();
                if count > 0 {
                    let error = io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
                    self.unroutable.add(&error, count as u64);
                }
                continue;
            };
            socket.with_sender(|sender, call| {
                sender.flush(call);
                sender.send(datagrams, is_ours, call);
            });
        }
        usize::try_from(self.datagrams_sent() - before).unwrap_or(usize::MAX)
    }

    /// Destinations with the source address that the kernel has refused for them, since this was last asked: their datagrams
    /// went from another one.
    pub fn take_refused_sources(&mut self) -> impl Iterator<Item = (SocketAddr, IpAddr)> + '_ {
        [&mut self.v4, &mut self.v6]
            .into_iter()
            .flatten()
            .flat_map(|udp| udp.sender.take_refused_sources())
    }

    /// Datagrams that wait until the socket is writable.
    pub fn backlog(&self, family: Family) -> usize {
        self.socket(family)
            .map_or(0, |udp| udp.sender.backlog().len())
    }

    /// What the kernel granted; None without a socket.
    pub fn buffer_sizes(&self, family: Family) -> Option<BufferSizes> {
        self.socket(family).map(|udp| udp.buffers)
    }

    pub fn as_fd(&self, family: Family) -> Option<BorrowedFd<'_>> {
        self.socket(family).map(|udp| udp.socket.as_fd())
    }

    fn socket(&self, family: Family) -> Option<&Udp> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// The counters of both sockets together.
    pub fn counts(&self) -> UdpCounts {
        let mut all = UdpCounts::default();
        all.sent.errors.merge(&self.unroutable);
        for socket in [&self.v4, &self.v6].into_iter().flatten() {
            all.received += socket.received;
            all.received_bytes += socket.received_bytes;
            all.receive_calls += socket.receive_calls;
            all.receive_errors.merge(&socket.receive_errors);
            all.backlog_dropped += socket.sender.backlog().dropped();
            let sent = socket.sender.counts();
            all.sent.datagrams += sent.datagrams;
            all.sent.bytes += sent.bytes;
            all.sent.calls += sent.calls;
            all.sent.segmentation_refused += sent.segmentation_refused;
            all.sent.source_refused += sent.source_refused;
            all.sent.errors.merge(&sent.errors);
        }
        all
    }

    fn datagrams_sent(&self) -> u64 {
        [&self.v4, &self.v6]
            .into_iter()
            .flatten()
            .map(|udp| udp.sender.counts().datagrams)
            .sum()
    }
}
