"""The extension module: keys, the engine, the node, and their I/O on file descriptors.

Instances are safe to share between threads. Sans-IO: `now` is a float in seconds on one monotonic clock of the
caller's choice; nothing here but `Worker` reads a clock. A time that goes backwards is treated as standing still. NaN,
infinite and negative times, and those beyond 2**62 nanoseconds, raise `ValueError`. Packets and datagrams are `bytes`;
another buffer is copied first. A datagram of more than 65,535 bytes raises `ValueError`, and so does a packet to seal
of more than 65,472 bytes, which no UDP datagram would carry; a `Node` drops and counts that (`TOO_LARGE`).

An object that was made before `fork()` raises `ForkedError` in the child (keys and policies excepted), and one in
which the engine hit an internal error raises `EngineError` from then on; a `Node` loses only the peer that it happened
to (`Poisoned`).
"""

from collections.abc import Sequence
from typing import Any, Literal, NoReturn, TypeAlias, final

from _typeshed import ReadableBuffer
from typing_extensions import Self, disjoint_base

from connlib._flows import FlowQuestion, FlowRecord
from connlib._policy import Policy
from connlib._types import (
    Batch,
    CapturedPacket,
    ConfigDiff,
    Limits,
    NodeConfig,
    NodeInput,
    NodeOutput,
    NodeStats,
    Output,
    PeerEvent,
    PeerStats,
    Role,
    Timeout,
    Timers,
    TunnStats,
)

__all__ = [
    "BootTimer",
    "CompiledPolicy",
    "Encryption",
    "IndexTable",
    "LabNode",
    "LabTunn",
    "Node",
    "PresharedKey",
    "PrivateKey",
    "PublicKey",
    "Pump",
    "RateLimiter",
    "TunIo",
    "Tunn",
    "Tunnels",
    "UdpIo",
    "UpstreamTunn",
    "Worker",
]

_Address: TypeAlias = tuple[str, int]

@final
class PrivateKey:
    """A Curve25519 private key, clamped when it is used (paper section 5.4).

    Never shown by `repr`, compared in constant time, erased from memory when dropped; cannot be pickled, copied or
    hashed (`TypeError`). What `to_base64` and `to_bytes` return is an ordinary Python object, which Python does not
    erase.
    """

    @staticmethod
    def generate() -> PrivateKey:
        """A new clamped key from the randomness of the operating system, like `wg genkey`."""

    @staticmethod
    def from_base64(text: str) -> PrivateKey:
        """Read the 44 characters that `wg` writes. Raises `KeyFormatError`, which does not show the key."""

    @staticmethod
    def from_bytes(data: ReadableBuffer) -> PrivateKey:
        """Take 32 bytes. Raises `KeyFormatError`, which does not show the key."""

    def to_base64(self) -> str:
        """44 characters, as `wg` writes them."""

    def to_bytes(self) -> bytes:
        """32 bytes."""

    def public_key(self) -> PublicKey:
        """The public key that belongs to this private key, like `wg pubkey`."""

    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]
    def __copy__(self) -> NoReturn: ...
    def __deepcopy__(self, memo: Any, /) -> NoReturn: ...
    def __reduce__(self) -> NoReturn: ...

@final
class PresharedKey:
    """A 32-byte secret that both peers share beside their keys (paper section 5.2).

    Never shown by `repr`, compared in constant time, erased from memory when dropped; cannot be pickled, copied or
    hashed (`TypeError`).
    """

    @staticmethod
    def generate() -> PresharedKey:
        """A new key from the randomness of the operating system, like `wg genpsk`."""

    @staticmethod
    def from_base64(text: str) -> PresharedKey:
        """Read the 44 characters that `wg` writes. Raises `KeyFormatError`, which does not show the key."""

    @staticmethod
    def from_bytes(data: ReadableBuffer) -> PresharedKey:
        """Take 32 bytes. Raises `KeyFormatError`, which does not show the key."""

    def to_base64(self) -> str:
        """44 characters, as `wg` writes them."""

    def to_bytes(self) -> bytes:
        """32 bytes."""

    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]
    def __copy__(self) -> NoReturn: ...
    def __deepcopy__(self, memo: Any, /) -> NoReturn: ...
    def __reduce__(self) -> NoReturn: ...

@final
class PublicKey:
    """A Curve25519 public key. Hashable and picklable; `str()` is its base64."""

    @staticmethod
    def from_base64(text: str) -> PublicKey:
        """Read the 44 characters that `wg` writes. Raises `KeyFormatError`."""

    @staticmethod
    def from_bytes(data: ReadableBuffer) -> PublicKey:
        """Take 32 bytes. Raises `KeyFormatError`."""

    def to_base64(self) -> str:
        """44 characters, as `wg` writes them."""

    def to_bytes(self) -> bytes:
        """32 bytes."""

    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, tuple[bytes]]: ...

@final
class IndexTable:
    """Hands out random 32-bit receiver indices, each unique over all tunnels that share the table."""

    def __new__(cls) -> Self: ...
    def __len__(self) -> int:
        """How many indices are in use."""

@final
class RateLimiter:
    """The handshake limiter of one static key, shared by the tunnels of a node (paper section 5.3).

    own_public_key: the key that the messages are addressed to.
    limit: handshake messages per second above which cookies are demanded; 0 demands them always.
    now: seconds.
    """

    def __new__(cls, own_public_key: PublicKey, limit: int, now: float) -> Self: ...

@disjoint_base
class Tunn:
    """A tunnel between one pair of peers (paper section 5 and 6).

    Each call takes the time and returns everything that it caused. Wrong arguments raise `TypeError` or `ValueError`;
    bad input from the network does not raise: it is named in `error` and counted in `stats().drops`.

    private_key: our static key.
    peer_public_key: the peer's. One of low order raises `ValueError`.
    now: seconds on the caller's monotonic clock.
    preshared_key: None is the paper's key of 32 zero bytes.
    role: who may start sessions.
    persistent_keepalive: seconds, 1 to 65,535; None or 0 for none. It acts at once: the first `next_timeout()` is now.
    indices: shared receiver indices; None for a table of its own.
    rate_limiter: a shared limiter; None for one of its own, 10 handshake messages per second.
    unix_time: seconds since 1970, for the timestamp of initiations (paper section 5.4.2); it advances with `now`.
    mtu: caps the padding, 576 to 65,535 bytes.
    timers, limits: the constants of the paper.
    """

    def __new__(
        cls,
        private_key: PrivateKey,
        peer_public_key: PublicKey,
        *,
        now: float,
        preshared_key: PresharedKey | None = None,
        role: Role = ...,
        persistent_keepalive: float | None = None,
        indices: IndexTable | None = None,
        rate_limiter: RateLimiter | None = None,
        unix_time: float,
        mtu: int = 1420,
        timers: Timers = ...,
        limits: Limits = ...,
    ) -> Self: ...
    def encapsulate(self, packet: ReadableBuffer, now: float) -> Output:
        """Send an IP packet: sealed at once, or queued while a session is started. Empty bytes are a keepalive."""

    def decapsulate(self, datagram: ReadableBuffer, now: float, source: _Address | None = None) -> Output:
        """Take the payload of a UDP datagram that came from the peer.

        source: literal address and port, which a cookie reply is bound to. Without it there are no cookie replies.
        """

    def handle_timeout(self, now: float) -> Output:
        """Do what is due. Early and superfluous calls do no harm."""

    def initiate_handshake(self, now: float) -> Output:
        """Start a session now. Nothing happens while an initiation is pending; `error` is ROLE for a RESPONDER."""

    def next_timeout(self) -> Timeout | None:
        """When `handle_timeout` is to be called next, if nothing else is called before; None for never."""

    def stats(self, now: float) -> TunnStats:
        """Counters since the tunnel was made; ages relative to `now`."""

    def set_persistent_keepalive(self, seconds: float | None, now: float) -> Output:
        """Switch the keepalive on, which acts at once, or off (None or 0)."""

    def set_preshared_key(self, key: PresharedKey | None, now: float) -> None:
        """Use another preshared key for every handshake that is not complete, a pending one included. Sessions stay."""

    def set_unix_time(self, unix_time: float, now: float) -> None:
        """Tell that the wall clock stepped. Timestamps of initiations still strictly rise."""

    def encapsulate_batch(self, packets: ReadableBuffer, lengths: Sequence[int], now: float) -> Batch:
        """Send many packets that lie back to back; `lengths` must add up (else `ValueError`). Other threads run."""

    def decapsulate_batch(
        self, datagrams: ReadableBuffer, lengths: Sequence[int], now: float, source: _Address | None = None
    ) -> Batch:
        """Take many datagrams of the peer that lie back to back; see `encapsulate_batch` and `decapsulate`."""

@final
class LabTunn(Tunn):
    """A `Tunn` whose randomness comes from `seed`, for simulations: equal seeds give equal traces.

    Whoever knows the seed knows the keys of every session, so it hands them out as well.
    """

    def __new__(
        cls,
        private_key: PrivateKey,
        peer_public_key: PublicKey,
        *,
        now: float,
        seed: int,
        preshared_key: PresharedKey | None = None,
        role: Role = ...,
        persistent_keepalive: float | None = None,
        indices: IndexTable | None = None,
        rate_limiter: RateLimiter | None = None,
        unix_time: float,
        mtu: int = 1420,
        timers: Timers = ...,
        limits: Limits = ...,
    ) -> Self: ...
    def key_log(self) -> list[str]:
        """Its secrets, as lines of a key log that Wireshark decrypts the tunnel with: `NAME = base64`.

        The names are LOCAL_STATIC_PRIVATE_KEY, REMOTE_STATIC_PUBLIC_KEY and, for each handshake that it began or
        answered, LOCAL_EPHEMERAL_PRIVATE_KEY, with a PRESHARED_KEY after it if there was one. The log of one end is
        enough. It goes back to the last 65,536 handshakes.
        """

@final
class UpstreamTunn:
    """Pristine boringtun in virtual time, with the interface of `Tunn`.

    Where upstream cannot serve it: `role` other than EITHER, `indices`, `rate_limiter`, and `timers` and `limits` other
    than the defaults raise `ValueError`; `persistent_keepalive` takes whole seconds; `unix_time` is checked and
    ignored, because upstream reads the system's clock, and its randomness is its own; `mtu` is ignored, it does not
    pad; `events` is always empty. A panic raises `EngineError`.
    """

    def __new__(
        cls,
        private_key: PrivateKey,
        peer_public_key: PublicKey,
        *,
        now: float,
        preshared_key: PresharedKey | None = None,
        role: Role = ...,
        persistent_keepalive: float | None = None,
        indices: IndexTable | None = None,
        rate_limiter: RateLimiter | None = None,
        unix_time: float,
        mtu: int = 1420,
        timers: Timers = ...,
        limits: Limits = ...,
    ) -> Self: ...
    def encapsulate(self, packet: ReadableBuffer, now: float) -> Output:
        """As `Tunn.encapsulate`. A packet beyond the queue's 256 is dropped without a word."""

    def decapsulate(self, datagram: ReadableBuffer, now: float, source: _Address | None = None) -> Output:
        """As `Tunn.decapsulate`, with everything that upstream's repeated calls flush. The port is not used."""

    def handle_timeout(self, now: float) -> Output:
        """One poll. `error` is GAVE_UP while upstream calls the connection expired."""

    def initiate_handshake(self, now: float) -> Output:
        """As `Tunn.initiate_handshake`."""

    def next_timeout(self) -> Timeout | None:
        """The next multiple of 250 ms (reason TICK): upstream cannot name an instant, it is polled."""

    def stats(self, now: float) -> TunnStats:
        """Upstream's own `last_handshake`, `tx_bytes` and `rx_bytes` (inner bytes), `loss` and `rtt`. The other
        counters are taken from what passed; `queued` is 0, `sessions` 0 or 1."""

    def set_persistent_keepalive(self, seconds: float | None, now: float) -> Output:
        """Raises `NotImplementedError`: upstream cannot change it."""

    def set_preshared_key(self, key: PresharedKey | None, now: float) -> None:
        """Raises `NotImplementedError`: upstream cannot change it."""

    def set_unix_time(self, unix_time: float, now: float) -> None:
        """Raises `NotImplementedError`: upstream reads the system's clock."""

    def encapsulate_batch(self, packets: ReadableBuffer, lengths: Sequence[int], now: float) -> Batch:
        """As `Tunn.encapsulate_batch`."""

    def decapsulate_batch(
        self, datagrams: ReadableBuffer, lengths: Sequence[int], now: float, source: _Address | None = None
    ) -> Batch:
        """As `Tunn.decapsulate_batch`."""

@disjoint_base
class Node:
    """A WireGuard interface with many peers. Its methods, and their order: mutate, then drain, then mutate.

    - commands change what it is: `apply`, `initiate_handshake`, `set_unix_time`, `set_endpoint`, `restore_timestamps`,
      `forget_timestamp`; `ask`, `decide` and `ask_again` (see `take_questions`);
    - `handle_*` tell it what happened: packets, datagrams, time;
    - `drain` takes out everything that these caused (a `TunIo` and a `UdpIo` do it without Python objects);
    - getters change nothing: `next_timeout`, `unclaimed`, `pending`, `*stats`, `endpoints`, `timestamps`,
      `timestamps_version`;
    - `record` and `take_recorded` tell what came in and when, for a replay, and `log_flows` and `take_flows` what
      policies allowed and denied;
    - `capture` and `take_captured` hand out the packets themselves, `log_keys` and `take_key_log` the keys to them.

    Each peer's policy is asked about every packet from it and for it; a refusal may put an ICMP message out.

    config: the private key and the peers. Raises `ConfigError` for what cannot be: a prefix that two peers have.
    now: seconds on the caller's monotonic clock.
    unix_time: seconds since 1970; it advances with `now`.
    """

    def __new__(cls, config: NodeConfig, *, now: float, unix_time: float) -> Self: ...
    def apply(
        self,
        config: NodeConfig,
        now: float,
        tunnels: Tunnels | None = None,
        *,
        through: NodeConfig | None = None,
        relocate: Sequence[tuple[PublicKey, _Address]] | None = None,
    ) -> ConfigDiff:
        """Change to another configuration, all of it or, if it raises `ConfigError`, nothing. Sessions survive.

        tunnels: what was made ahead for it, which is used up.
        through: a configuration to go through, so that peers which it lacks are removed and added again. No packet
        comes between. `config` has to be right by itself. The result is what changed first, and what was added after.
        relocate: peers that are moved to these places, as `set_endpoint` does.
        """

    def initiate_handshake(self, peer: PublicKey, now: float) -> None:
        """Start a session with a peer. Raises `KeyError` for an unknown one, `ValueError` where the role forbids it or
        no endpoint is known, and `EngineError` for a `Poisoned` one."""

    def set_unix_time(self, unix_time: float, now: float) -> None:
        """Tell that the wall clock stepped. Timestamps of initiations still strictly rise."""

    def set_endpoint(self, peer: PublicKey, endpoint: _Address, now: float, *, replace: bool = True) -> bool:
        """Move a peer to another address, unless it has one and it is not to `replace` that. Returns whether it has
        moved. Raises `KeyError` for an unknown peer."""

    def forget_sources(self) -> None:
        """Let the system choose again from where peers are sent to: sockets, mark, addresses or routes have changed."""

    def handle_packets(self, packets: ReadableBuffer, lengths: Sequence[int], now: float) -> None:
        """Take IP packets of the TUN device that lie back to back; `lengths` must add up (else `ValueError`)."""

    def handle_datagrams(
        self, datagrams: ReadableBuffer, lengths: Sequence[int], sources: Sequence[_Address], now: float
    ) -> None:
        """Take UDP payloads that lie back to back; `sources[i]` is the literal address and port that sent the i-th."""

    def handle_timeout(self, now: float) -> None:
        """Do what is due. Early and superfluous calls do no harm."""

    def drain(self) -> NodeOutput:
        """Everything that was caused since the last call, taken out."""

    def take_events(self) -> list[PeerEvent]:
        """The events of `drain` alone, taken out: packets and datagrams are left to whoever moves them."""

    def next_timeout(self) -> Timeout | None:
        """When `handle_timeout` is to be called next, if nothing else is called before; None for never."""

    @property
    def encryption(self) -> tuple[str, str]:
        """What seals and opens packets that come in batches, "ring" or "ipsec-mb", and why it is that."""

    def give_up_rights(self) -> None:
        """Have the threads of `NodeConfig.threads` give up all their capabilities: see `Worker.give_up`."""

    @property
    def unclaimed(self) -> int:
        """How many packets and datagrams were dropped before any peer was found for them."""

    def stats(self, now: float) -> NodeStats:
        """Counters per peer and per drop reason; ages relative to `now`."""

    def peer_stats(self, peer: PublicKey, now: float) -> PeerStats:
        """Those of one peer. Raises `KeyError` for an unknown one."""

    def endpoints(self) -> dict[PublicKey, tuple[str, int]]:
        """Where peers are, as far as that is known: the literal address and the port."""

    def timestamps(self) -> tuple[dict[PublicKey, bytes], dict[PublicKey, bytes]]:
        """The greatest TAI64N timestamp (12 bytes) in a valid initiation of each peer, and in ours with each own key,
        by public key. Those of 4,096 removed peers are among them, the oldest first, and of 8 former keys of ours."""

    def timestamps_version(self) -> int:
        """Rises when `timestamps()` has something to write down; for what is sent, at most once in a minute of it."""

    def restore_timestamps(
        self, received: dict[PublicKey, bytes], sent: dict[PublicKey, bytes], now: float
    ) -> None:
        """Go on from what `timestamps()` of another node gave; what this one knows to be greater stays.
        Initiations that are not later than `received` are refused, those of peers that are added later, too. Ours are
        later than `sent`; where the wall clock is behind that, by two minutes more, for what was not written down.
        Raises `ValueError` for a timestamp that is none, and has changed nothing then."""

    def forget_timestamp(self, peer: PublicKey) -> bool:
        """Take the next initiation of a peer whatever its timestamp. False if there was nothing to forget."""

    def record(self, capacity: int) -> None:
        """Write down from now on what comes into the tunnels, until `capacity` (0 to 2^24) inputs wait; 0 ends it.
        Times, kinds and sizes, for `connlib crosscheck --record`: no payload, no address and no secret."""

    def take_recorded(self) -> tuple[list[NodeInput], int]:
        """What was written down since the last call, in order, and how many more inputs found no room."""

    def log_flows(self, capacity: int) -> None:
        """Log from now on what policies allow and deny, until `capacity` (0 to 2^24) records wait; 0 ends it.
        Flows that are known already are not logged, and peers without a policy have none."""

    def take_flows(self, now: float) -> tuple[list[FlowRecord], int]:
        """What was logged since the last call, and how many more records found no room. Flows that are over by `now`
        have ended. The order is that of finding out: of flows of which nothing was seen, the end was before that."""

    def ask(self, on: bool, now: float) -> None:
        """Hold from now on the first packets of flows about which a policy asks (`Action.ASK`), for 5 s at most, until
        `decide`; off, which is how a node begins, they are refused at once, and so is what waits."""

    def take_questions(self) -> list[FlowQuestion]:
        """The questions since the last call that are open, oldest first; at most 64 of a peer and 1,024 in all."""

    def take_withdrawn(self) -> list[int]:
        """Of the questions that `take_questions` has handed out, those (by `id`) that were withdrawn since its last
        call, because another policy or a packet that needs no answer has decided, or the peer is gone or asked about
        again. Those that were over in time are not among them."""

    def decide(self, question: int, allow: bool, now: float) -> bool:
        """Answer a question by its `id`: what is held of the flow goes on, in order, or is refused. False, and nothing
        happens, if it is not open: the time is over, another policy has decided, or the peer is gone."""

    def ask_again(self, peer: PublicKey, now: float) -> None:
        """End a peer's flows that `decide` let begin, unless its policy lets them pass by itself now; forget refusals;
        put open questions once more, by another `id`. What answers such a flow then is judged as that flow, and does
        not begin it. Raises `KeyError` for an unknown peer."""

    def capture(
        self, capacity: int, *, outer: bool = True, inner: bool = False, snaplen: int | None = None
    ) -> None:
        """Keep what goes through the node from now on, until it is taken; neither layer adds nothing to what waits.
        capacity: bytes of memory, 0 to 2^30; what is around a packet counts too. 0 ends it.
        outer: datagrams that came, whatever becomes of them, and those for UDP.
        inner: IP packets of the TUN device, whatever becomes of them, and those for it. They are not encrypted.
        snaplen: how many bytes of each are kept, 1 to 65,535; None for all."""

    @property
    def is_captured(self) -> bool:
        """Whether `capture` is on."""

    def take_captured(self, limit: int) -> tuple[list[CapturedPacket], int, int]:
        """The first packets that wait, at most `limit`, and how many datagrams and IP packets had no room since."""

    def log_keys(self, on: bool) -> None:
        """Keep from now on the keys of every handshake that begins or is answered; off, they are erased.
        Of more than 65,536 that wait to be taken, the oldest are forgotten."""

    def take_key_log(self) -> tuple[list[str], list[PublicKey]]:
        """What was kept since the last call, as lines of a key log (see `LabTunn.key_log`), and whom one can read now.

        Those are the peers with a session that a handshake since `log_keys` has made, each said once. The keys are of
        single handshakes and this end's own private key: whoever has the latter can be this end. The strings are
        ordinary Python objects, which Python does not erase.
        """

    def pending(self) -> tuple[int, int, int]:
        """How many datagrams, packets and events wait to be drained."""

@final
class Tunnels:
    """The tunnels of the peers of a configuration, made ahead of `Node.apply`: each takes a computation with its peer's
    key, some 50 us. Other threads run meanwhile. Raises what `Node` raises."""

    def __new__(cls, config: NodeConfig, *, now: float, unix_time: float) -> Self: ...

@final
class LabNode(Node):
    """A `Node` whose randomness comes from `seed`, for simulations. `TunIo` and `UdpIo` refuse it."""

    def __new__(cls, config: NodeConfig, *, now: float, unix_time: float, seed: int) -> Self: ...
    def panic(self, peer: PublicKey, now: float) -> None:
        """Fail in the peer's tunnel as a bug in the engine would, to test what follows. Raises `KeyError`."""

@final
class CompiledPolicy:
    """A `Policy` to ask without a node, about what a peer would send first. Raises `ValueError` for one that cannot be.

    Decisions are: the value of an `Action`, the name of a `VerdictReason`, and which rule decided, counted from 0.
    """

    def __new__(cls, policy: Policy) -> Self: ...
    def decide_packet(self, packet: ReadableBuffer) -> tuple[str, str, int | None]:
        """An IP packet."""

    def decide_flow(
        self, destination: ReadableBuffer, protocol: int, detail: int
    ) -> tuple[str, str, int | None]:
        """The 4 or 16 bytes of an address, the number of a protocol, and the destination port or the ICMP type."""

@final
class TunIo:
    """Moves packets between a TUN file descriptor and a `Node`, without a Python object per packet.

    fd: a TUN device of IFF_TUN | IFF_NO_PI (with IFF_VNET_HDR it has offloads, which are off), or a socket that keeps
    packets apart. It is duplicated and made non-blocking. Raises `OSError`; its calls, `TypeError` for a `LabNode`.
    beside: another queue of the same device; the `state` of both is one. Raises `ClosedError`.
    """

    def __new__(cls, fd: int, beside: TunIo | None = None) -> Self: ...
    def read(self, node: Node, now: float, budget: int) -> int:
        """Hand about `budget` packets to the node and return how many; fewer than `budget`: no more for now. A
        superpacket counts as its packets. Errors are counted in `stats()`, not raised; see `state`."""

    def write(self, node: Node) -> int:
        """Take the packets that wait in the node, and return how many the device took. What it does not take yet is
        kept, within bounds (`blocked`): call again when it is writable."""

    def set_offloads(self, names: Sequence[str]) -> list[str]:
        """Switch these of `connlib.config.OFFLOADS` on, if the device can, and the others off; what is on now."""

    @property
    def blocked(self) -> bool:
        """Whether packets wait for the device to be writable."""

    @property
    def state(self) -> Literal["up", "down", "gone"]:
        """What the device said last: it works, is down and may come up (EIO), or was deleted for good."""

    def stats(self) -> dict[str, int]:
        """Counters: packets and bytes read and written, short_writes, backlog_dropped, held_back (for a full network);
        superpackets read, written and refused, packets_cut and packets_merged; bad_..., what was read and made no
        sense; errors, by errno name."""

    def close(self) -> None:
        """Give the descriptor back. Later calls raise `ClosedError`; the counters and `close` still work."""

@final
class Pump:
    """Moves packets both ways, between a `TunIo`, a `UdpIo` and a `Node`. Linux only.

    Its descriptor is readable while there is something to do: something came, or what was full takes more. Raises
    `TypeError` for a `LabNode`, `OSError` where the kernel cannot wait for the ends, `ClosedError` once one is closed.
    """

    def __new__(cls, tun: TunIo, udp: UdpIo, node: Node) -> Self: ...
    def fileno(self) -> int: ...
    def turn(self, now: float, budget: int) -> tuple[int, int, float | None, bool]:
        """Send what waits, then move what there is, until that is little or about `budget` packets and datagrams are.

        Returns how many that were, how many of them no peer was found for, when the node's next timeout is, and whether
        there is anything else to see to: `Node.drain` or `take_questions` have something, `timestamps_version` changed,
        or the device's state did. While a socket is full the device is not read ("held_back" in its
        `stats()`). Errors are counted, not raised.
        """

    def watch(self) -> None:
        """After calls of the ends themselves: wait for those that are full now to be writable. `turn` does so too."""

    def close(self) -> None:
        """Give the descriptor back. Nobody may be waiting for it."""

@final
class Worker:
    """A thread that moves packets both ways, between a `TunIo`, a `UdpIo` and a `Node`, and calls the node when its
    timeout has come, by the system's clocks (CLOCK_BOOTTIME). It never takes the interpreter's lock, nor any
    signal. Linux only.

    beside: more ends, each pair of which has a thread of its own: other queues of the device, with other sockets of the
    same port. What is said here of the thread is true of all; the first keeps the time, and is the one to `wake`.

    unix_epoch: what the wall clock shows less the time since the machine started, in seconds, as the node knows it;
    when it is off by more than a second, the node is told.

    Its descriptor is readable while there is something to see to: `Node.take_events` or `take_questions` have
    something, `timestamps_version` changed, the device's state did, the wall clock was set, or the thread has
    ended. Calls of the ends and of the node may be made meanwhile. Raises `TypeError` for a `LabNode`,
    `OSError` where the kernel cannot wait for the ends or makes no thread, `ClosedError` once it, or an end, is closed.
    """

    def __new__(
        cls,
        tun: TunIo,
        udp: UdpIo,
        node: Node,
        unix_epoch: float,
        beside: Sequence[tuple[TunIo, UdpIo]] = ...,
    ) -> Self: ...
    def fileno(self) -> int: ...
    def wake(self) -> None:
        """Have it take a turn: what the node put out is sent, and its next timeout heeded. The first call starts it."""

    def give_up(self) -> None:
        """Have the thread give up all its capabilities, and wait until it has, because the process did: each thread has
        its own. Not before the process has become another user: the C library ends it if not all threads may."""

    def take(self) -> None:
        """Make the descriptor unreadable until there is something again. Raises what ended the thread, once."""

    @property
    def turns(self) -> int:
        """How often it has looked for something to move; also after `close`."""

    @property
    def timer_wakes(self) -> int:
        """How often a timeout of the node had come; also after `close`."""

    def stop(self) -> None:
        """End the thread, after its turn. Its descriptor is still there."""

    def close(self) -> None:
        """`stop`, and give its descriptors back. Nobody may be waiting for them."""

@final
class UdpIo:
    """Moves datagrams between UDP sockets and a `Node`, in batches, without a Python object per datagram.

    fd4, fd6: sockets of AF_INET and AF_INET6; at least one, or `ValueError`. They are duplicated, made non-blocking,
    and given large buffers; `close` gives the duplicates back. Raises `OSError`; its calls raise `TypeError` for a
    `LabNode`.
    """

    def __new__(cls, fd4: int | None, fd6: int | None) -> Self: ...
    def receive(self, node: Node, now: float, budget: int, family: int | None = None) -> int:
        """Hand about `budget` datagrams of each socket to the node and return how many; 0: none there.

        family: only the socket of `socket.AF_INET` or `AF_INET6`. What the kernel coalesced is not cut off at the
        budget. Errors of the network are counted in `stats()`, not raised.
        """

    def send(self, node: Node) -> int:
        """Take the datagrams that wait in the node, and return how many the kernel took. What a socket does not take
        yet is kept, within bounds (`blocked`): call again when it is writable."""

    def blocked(self, family: int) -> bool:
        """Whether datagrams wait for the socket of a family, `socket.AF_INET` or `AF_INET6`, to be writable."""

    def stats(self) -> dict[str, int]:
        """Counters: received, received_bytes, receive_calls, sent, sent_bytes, send_calls, segmentation_refused,
        source_refused, backlog_dropped; errors as receive_ERRNO and send_ERRNO beside these, such as send_ENOBUFS."""

    def buffer_sizes(self, family: int) -> tuple[int, int] | None:
        """The bytes that the kernel granted for receiving and sending; None without such a socket."""

    def close(self) -> None:
        """Give the descriptors back. Later calls raise `ClosedError`; the counters and `close` still work."""

@final
class BootTimer:
    """A descriptor that becomes readable at an instant of CLOCK_BOOTTIME, which also runs during suspend.

    Linux only; elsewhere making one raises `OSError`.
    """

    def __new__(cls) -> Self: ...
    def fileno(self) -> int:
        """The descriptor, for an event loop to wait on; it stays this object's. Raises `ClosedError` after `close`."""

    def set(self, at: float | None) -> None:
        """Become readable once CLOCK_BOOTTIME reads `at` seconds, at once if it already does; None: never."""

    def fired(self) -> bool:
        """Whether it fired since it was last set or asked; makes it unreadable again."""

    def close(self) -> None:
        """Close the descriptor."""

@final
class Encryption:
    """A backend that seals and opens messages in batches, to be measured.

    name: one of `connlib.config.ENCRYPTIONS`. Raises `ConfigError` for another one, and for one that cannot be had.
    threads: how many share a batch, 1 to 64, the one that calls included.
    """

    def __new__(cls, name: str = "auto", threads: int = 1) -> Self: ...
    @property
    def name(self) -> str:
        """ "ring" or "ipsec-mb"."""

    @property
    def why(self) -> str:
        """Why it is this one, for people to read."""

    @property
    def threads(self) -> int:
        """How many threads share a batch: as many as were asked for, or one if the system had no more."""

    def measure(self, size: int, seconds: float) -> tuple[float, float]:
        """Nanoseconds that sealing and opening a message of `size` bytes takes: medians of batches of 64 messages, of
        256 with several threads, as many as fit into `seconds`, one at least. Other threads run meanwhile. Raises
        `ValueError` for a size beyond 0 to 65,535 bytes, and for more than a minute."""
