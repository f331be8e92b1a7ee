"""The plain types of the sans-IO interface: enums, events, results, statistics and configuration.

Times are seconds as `float`, on the monotonic clock of the caller where they are called `now` or `at`, and durations
elsewhere. The extension module imports this module and builds instances of these classes.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple, TypeAlias

from connlib._flows import Direction
from connlib._native import PresharedKey, PrivateKey, PublicKey
from connlib._policy import Policy, Protocol, Verdict


class Role(enum.Enum):
    """Who may start a session. With one of each, exactly one side can."""

    EITHER = "either"
    """The behaviour of the WireGuard paper: whoever has something to send starts a session."""
    INITIATOR = "initiator"
    """A client: starts sessions and never answers an initiation."""
    RESPONDER = "responder"
    """A gateway: answers initiations and never sends one, whatever is called, received or due."""


class TimeoutReason(enum.Enum):
    """Why `next_timeout()` names its instant."""

    HANDSHAKE_RETRY = "handshake retry"
    """An initiation is unanswered and goes out again (REKEY_TIMEOUT, paper section 6.4)."""
    GIVE_UP = "give up"
    """The attempts to start a session end (REKEY_ATTEMPT_TIME, paper section 6.4)."""
    SESSION_EXPIRY = "session expiry"
    """A session reaches REJECT_AFTER_TIME (paper section 6.2)."""
    DEAD_PEER = "dead peer"
    """Sent data is unanswered for KEEPALIVE_TIMEOUT + REKEY_TIMEOUT (paper section 6.5)."""
    PASSIVE_KEEPALIVE = "passive keepalive"
    """Data was received and nothing sent back for KEEPALIVE_TIMEOUT (paper section 6.5)."""
    PERSISTENT_KEEPALIVE = "persistent keepalive"
    """The configured keepalive interval is over."""
    UNCONFIRMED_SESSION = "unconfirmed session"
    """A session that this side answered was not confirmed by the peer; what is queued needs another way."""
    QUEUE_TIMEOUT = "queue timeout"
    """Packets that wait for a session of the peer are dropped."""
    UNANSWERED = "unanswered"
    """`Node`: a flow about which the hook gave no answer is refused."""
    TICK = "tick"
    """The engine cannot name an instant and wants to be polled: `connlib.upstream.Tunn` only."""


class DropReason(enum.Enum):
    """Why an input was dropped. The values are for people to read; the names are stable."""

    BUFFER_TOO_SMALL = "buffer too small"
    UNEXPECTED = "unexpected message"
    """A response or a cookie reply that nothing asked for."""
    WRONG_INDEX = "wrong index"
    """The receiver index belongs to no session or handshake of this tunnel."""
    WRONG_KEY = "wrong key"
    """An initiation by a peer with another static key."""
    INVALID_KEY = "invalid key"
    """A public key of low order: the shared secret would be zero."""
    REPLAYED_INITIATION = "replayed initiation"
    """The timestamp of an initiation is not greater than the last one (paper section 5.1)."""
    INVALID_MAC = "invalid mac"
    """MAC1 is wrong (paper section 5.3)."""
    INVALID_AEAD_TAG = "invalid aead tag"
    """Not encrypted with the expected key."""
    INVALID_COUNTER = "invalid counter"
    """The counter is older than the replay window, or beyond the last one allowed (paper section 5.4.6)."""
    DUPLICATE_COUNTER = "duplicate counter"
    """The counter was received before."""
    INVALID_PACKET = "invalid packet"
    """Not a WireGuard message, or an authentic one whose content is not an IP packet."""
    NO_SESSION = "no session"
    """There is no session, or it has expired."""
    UNDER_LOAD = "under load"
    """Too many handshakes: more than 20 a second of one source that a cookie proves (an IPv4 address, an IPv6 /64), or
    too many of all, and no source address to send a cookie to (paper section 5.3)."""
    ROLE = "role"
    """The role forbids it: an initiation that reaches an INITIATOR, or `initiate_handshake` on a RESPONDER."""
    INITIATION_TOO_SOON = "initiation too soon"
    """More than one initiation of this peer within 20 ms."""
    CROSSED_INITIATION = "crossed initiation"
    """Both sides initiated at once, and it is the other side that answers."""
    QUEUE_FULL = "queue full"
    """`Limits.queue_packets` packets are waiting for a session already."""
    QUEUE_TIMEOUT = "queue timeout"
    """No session came up in time for a queued packet, and none was sought: by a RESPONDER, or because nobody called."""
    GAVE_UP = "gave up"
    """No session came up within REKEY_ATTEMPT_TIME."""
    COOKIE_REPLY_SENT = "cookie reply sent"
    """Under load: instead of being processed, the handshake message was answered with a cookie (paper section 5.3)."""
    UNKNOWN_PEER = "unknown peer"
    """`Node`: no peer has this static key or receiver index."""
    NO_ROUTE = "no route"
    """`Node`: no peer's allowed IPs contain the destination."""
    NO_ENDPOINT = "no endpoint"
    """`Node`: the address of the peer is not known (yet)."""
    ROUTING_LOOP = "routing loop"
    """`Node`: its own datagram came back as a packet: the routes of the machine lead the endpoint into the tunnel."""
    SOURCE_NOT_ALLOWED = "source not allowed"
    """`Node`: the inner source address does not belong to the peer that sent it (paper section 2)."""
    CONGESTION_MARK = "congestion mark"
    """`Node`: its datagram was marked for congestion on the way, which the sender of the packet in it does not look at
    (RFC 6040, section 4.2)."""
    DENIED = "denied"
    """`Node`: the policy of the peer that sent it, or that it is for, refused it; see `Policy`."""
    UNANSWERED = "unanswered"
    """`Node`: the hook that was asked about its flow gave no answer in time, or the peer was removed before."""
    PENDING_FULL = "pending full"
    """`Node`: as many packets or flows wait for the hook as may."""
    NOT_IP = "not ip"
    """`Node`: what the TUN device delivered is neither IPv4 nor IPv6."""
    TOO_LARGE = "too large"
    """`Node`: a packet of more than 65,472 bytes, which no UDP datagram would carry when it is sealed."""
    PEER_POISONED = "peer poisoned"
    """`Node`: connlib failed in the peer's tunnel; see `Poisoned`."""


class Timeout(NamedTuple):
    """A deadline. Fed back as `now`, `at` always fires."""

    at: float
    """Seconds on the clock of `now`."""
    reason: TimeoutReason


@dataclass(frozen=True, slots=True)
class HandshakeStarted:
    """The first initiation of an attempt to start a session was sent (a retry is not announced)."""


@dataclass(frozen=True, slots=True)
class SessionEstablished:
    """A session can carry data in both directions."""

    initiator: bool
    """True if this side started it."""


@dataclass(frozen=True, slots=True)
class SessionExpired:
    """The last session has reached REJECT_AFTER_TIME and its keys are erased."""


@dataclass(frozen=True, slots=True)
class GaveUp:
    """No session came up within REKEY_ATTEMPT_TIME; the next packet starts another attempt."""

    dropped: int
    """How many packets were waiting and are dropped."""


@dataclass(frozen=True, slots=True)
class PeerSilent:
    """Data went unanswered for 15 s (keepalive and rekey timeout), or the session is used up and the role forbids to
    start another one."""


@dataclass(frozen=True, slots=True)
class Poisoned:
    """connlib failed in this peer's tunnel, which is a bug of its own: the tunnel is gone, and everything of the peer's
    is dropped (`DropReason.PEER_POISONED`) until the peer is removed from the configuration and added again."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Packets were dropped later than in the call that brought them."""

    reason: DropReason
    count: int


Event: TypeAlias = (
    HandshakeStarted | SessionEstablished | SessionExpired | GaveUp | PeerSilent | Poisoned | Dropped
)
"""Everything that a tunnel reports beside its packets."""


@dataclass(frozen=True, slots=True)
class PeerRoamed:
    """An authentic datagram of the peer came from another place than was last told or configured.

    There is one a second of each peer at most: the first at once. Where the peer has moved to since then is told with
    the first call of the node that concerns the peer a second or more after it, unless the peer is back by then.
    """

    old: tuple[str, int] | None
    """None if none was known: neither configured nor learned."""
    new: tuple[str, int]


@dataclass(frozen=True, slots=True)
class Denied:
    """The policy of a peer refused a packet: the first one of a flow, or one that belongs to none.

    There is one a second of each peer at most: the first at once. What is refused after it is told together, by its
    latest packet, with the first call of the node that concerns the peer a second or more after it.
    """

    direction: Direction
    protocol: Protocol | int | None
    """None for a packet that does not say, or could not be read."""
    source: IPv4Address | IPv6Address
    """The unspecified address if it could not be read, and so with `destination`."""
    destination: IPv4Address | IPv6Address
    destination_port: int | None
    """Of TCP and UDP."""
    icmp_type: int | None
    verdict: Verdict
    """What decided about it."""
    count: int
    """How many packets were refused since the last such event of this peer, this one included."""


NodeEvent: TypeAlias = Event | PeerRoamed | Denied
"""Everything that a `Node` reports of a peer."""


class Output(NamedTuple):
    """Everything that one call caused."""

    datagrams: list[bytes]
    """To the peer, in order."""
    packets: list[bytes]
    """Decrypted IP packets, in order."""
    events: list[Event]
    error: DropReason | None
    """Why the input was dropped; None if it was not."""


class Batch(NamedTuple):
    """Everything that one batch call caused. `data` holds the main result back to back, without gaps."""

    data: bytes
    """`encapsulate_batch`: datagrams to the peer; `decapsulate_batch`: decrypted IP packets; in order."""
    lengths: list[int]
    """The length of each item of `data`, in bytes."""
    datagrams: list[bytes]
    """What else goes to the peer: responses, keepalives, queued packets. Empty for `encapsulate_batch`."""
    events: list[Event]
    errors: list[tuple[int, DropReason]]
    """The inputs that were dropped: their index in the call's `lengths`, and why."""

    def items(self) -> list[bytes]:
        """`data` cut into its items (a copy)."""
        items = []
        start = 0
        for length in self.lengths:
            items.append(self.data[start : start + length])
            start += length
        return items


SHORTEST_TIMER = 0.1
"""Below this an engine would do little but handshakes."""
LONGEST_TIMER = 1e9
MOST_JITTER = 0.333
"""Seconds that a retry comes later than `rekey_timeout` at most (paper section 6.1)."""
LIMIT_RANGES = {
    # The first message confirms a session: renewing it at once would never end.
    "rekey_after_messages": (2, 2**64 - 2**13 - 1),
    "reject_after_messages": (1, 2**64 - 2**13 - 1),
    "queue_packets": (0, 65_536),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timers:
    """The timer constants of the paper (section 6.1), in seconds. Both sides of a tunnel should agree on them.

    Raises `ValueError` if one is below 0.1 s, or if two contradict each other: a session has to be renewed before it
    is rejected, and `keepalive_timeout` and `rekey_timeout`, with its jitter of up to 0.333 s, have to leave time
    between two renewals.
    """

    rekey_after_time: float = 120.0
    """A session of this age is renewed by its initiator when it sends."""
    reject_after_time: float = 180.0
    """A session of this age is not used any more."""
    rekey_attempt_time: float = 90.0
    """For how long an unanswered initiation is repeated."""
    rekey_timeout: float = 5.0
    """After how long an unanswered initiation is repeated (plus up to 333 ms of jitter)."""
    keepalive_timeout: float = 10.0
    """After how long received data is acknowledged by a keepalive if nothing else was sent."""

    def __post_init__(self) -> None:
        for name in (
            "rekey_after_time",
            "reject_after_time",
            "rekey_attempt_time",
            "rekey_timeout",
            "keepalive_timeout",
        ):
            seconds = getattr(self, name)
            if not SHORTEST_TIMER <= seconds <= LONGEST_TIMER:
                raise ValueError(f"timers.{name} must be {SHORTEST_TIMER} to {LONGEST_TIMER:.0f} seconds")
        if self.rekey_after_time >= self.reject_after_time:
            raise ValueError("timers.rekey_after_time must be less than timers.reject_after_time")
        if self.reject_after_time <= self.keepalive_timeout + self.rekey_timeout + MOST_JITTER:
            raise ValueError(
                "timers.reject_after_time must be more than timers.keepalive_timeout, timers.rekey_timeout and "
                f"{MOST_JITTER} s together"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The count limits of the paper (section 6.1) and of this implementation.

    Raises `ValueError` if one is out of range: 2 to 2^64 - 2^13 - 1 messages before a session is renewed, 1 to as many
    before it is rejected, 0 to 65,536 packets in the queue.
    """

    rekey_after_messages: int = 2**60
    """After how many messages a session is renewed."""
    reject_after_messages: int = 2**64 - 2**13 - 1
    """How many messages a session carries at most."""
    queue_packets: int = 256
    """How many packets wait for a session at most; later ones are dropped. In a `Node`, 8,192 wait for all its peers
    together, beyond the first one of each."""

    def __post_init__(self) -> None:
        for name, (least, most) in LIMIT_RANGES.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"limits.{name} must be {least} to {most}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnStats:
    """The counters of one tunnel since it was made, or its peer was: those of a `Node` outlive another private key."""

    last_handshake: float | None
    """Seconds since the last session was established; None if there was none."""
    session_age: float | None
    """Age in seconds of the session that sends; None if there is none."""
    tx_bytes: int
    """Bytes sent to the peer as UDP payload, handshakes included."""
    rx_bytes: int
    """Bytes received from the peer as authentic UDP payload, handshakes included."""
    tx_packets: int
    """IP packets sent."""
    rx_packets: int
    """IP packets received."""
    queued: int
    """IP packets that wait for a session now."""
    sessions: int
    """Sessions that exist now: previous, current, next."""
    initiations_sent: int
    responses_sent: int
    keepalives_sent: int
    loss: float
    """Share of the peer's datagrams of the current session that did not arrive, 0 to 1."""
    rtt: float | None
    """Seconds between the last answered initiation and its response; None if there was none."""
    handshake_pending: bool
    """True while an initiation is unanswered."""
    drops: Mapping[DropReason, int] = field(default_factory=dict)
    """How many inputs were dropped, by reason; reasons that did not occur are missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConfig:
    """One peer of a `Node`."""

    public_key: PublicKey
    preshared_key: PresharedKey | None = None
    allowed_ips: tuple[IPv4Network | IPv6Network, ...] = ()
    """The inner addresses that belong to this peer: routed to it, and accepted from it (paper section 2)."""
    endpoint: tuple[str, int] | None = None
    """Literal IPv4 or IPv6 address and UDP port; None until the peer is heard of."""
    persistent_keepalive: float | None = None
    """Seconds, 1 to 65,535; None for none."""
    role: Role = Role.EITHER
    name: str | None = None
    """For people: shown in logs and tables, not sent anywhere."""
    policy: Policy | None = None
    """What it may reach, and what may reach it; None for everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """What a `Node` is made from, and what `Node.apply` changes it to."""

    private_key: PrivateKey
    peers: tuple[PeerConfig, ...] = ()
    mtu: int = 1420
    """Caps the padding of data messages, 576 to 65,535 bytes (paper section 5.4.6)."""
    timers: Timers = Timers()
    limits: Limits = Limits()
    handshake_limit: int = 100
    """Handshake messages per second, all peers together, above which cookies are demanded (paper section 5.3)."""
    encryption: str = "auto"
    """What seals and opens packets that come in batches: one of `connlib.config.ENCRYPTIONS`."""
    threads: int = 1
    """How many threads share that, 1 to 64, the one that calls included, where a batch is large enough to pay."""


class PeerChange(NamedTuple):
    """A peer that `Node.apply` changed."""

    public_key: PublicKey
    fields: tuple[str, ...]
    """The names of the `PeerConfig` fields that changed. Only `Interface.apply` sees `name` and host names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigDiff:
    """What `Node.apply` or `Interface.apply` changed. False if nothing did."""

    added: tuple[PublicKey, ...] = ()
    removed: tuple[PublicKey, ...] = ()
    changed: tuple[PeerChange, ...] = ()
    node: tuple[str, ...] = ()
    """The names of the `NodeConfig` or `InterfaceConfig` fields that changed, `peers` not counted."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.node)


class PeerEvent(NamedTuple):
    """An event of one peer of a `Node`."""

    peer: PublicKey
    event: NodeEvent


@dataclass(frozen=True, slots=True)
class ConfigApplied:
    """`Interface.apply` changed something, whoever called it."""

    diff: ConfigDiff


class InterfaceEvent(NamedTuple):
    """An event of a whole `Interface`, of no peer."""

    peer: None
    event: ConfigApplied


class InputKind(enum.Enum):
    """What came into a tunnel of a `Node`."""

    PACKET = "packet"
    """An IP packet to send."""
    HANDSHAKE = "handshake"
    """A call of `initiate_handshake`."""
    TIMEOUT = "timeout"
    """The peer's deadline was reached."""
    INITIATION = "initiation"
    RESPONSE = "response"
    COOKIE_REPLY = "cookie reply"
    DATA = "data"
    """A data message or, at 32 bytes, a keepalive."""


class NodeInput(NamedTuple):
    """One thing that came into a tunnel of a `Node`, as `Node.record` writes it down."""

    at: float
    """Seconds, on the clock of the node."""
    peer: PublicKey
    kind: InputKind
    size: int
    """Bytes of the packet or the datagram; 0 where there is none."""
    taken: bool
    """Whether the tunnel took it; if not, the reason is counted."""


class CapturedPacket(NamedTuple):
    """A datagram or an IP packet that went through a `Node`, as `Node.capture` keeps it."""

    at: int
    """Nanoseconds, on the clock of the node."""
    outbound: bool
    """Whether it goes to a peer: from the TUN device, or out over UDP."""
    peer: PublicKey | None
    """Whose it is. Of a datagram that came, only what it says, which may be forged; None if it names nobody."""
    remote: tuple[str, int] | None
    """The literal address and the UDP port of the other end of a datagram; None for an IP packet."""
    data: bytes
    """Its first bytes."""
    size: int
    """How many bytes it had."""


class Transmit(NamedTuple):
    """A datagram to send."""

    destination: tuple[str, int]
    """Literal address and UDP port."""
    datagram: bytes


class NodeOutput(NamedTuple):
    """Everything that the calls since the last `Node.drain()` caused."""

    transmits: list[Transmit]
    """Datagrams for the network, in order."""
    packets: list[bytes]
    """IP packets for the TUN device, in order."""
    events: list[PeerEvent]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyStats:
    """The counters of a peer's policy. What it refused is counted as `DropReason.DENIED`, `UNANSWERED` and
    `PENDING_FULL`."""

    flows: int
    """Flows that are known now."""
    flows_evicted: int
    """Flows that gave way to newer ones before their time."""
    answers: int
    """ICMP messages that told a sender of a refusal."""
    flows_pending: int = 0
    """Flows that wait for an answer of the hook now."""
    questions: int = 0
    """Questions about its flows that were handed out for the hook. An interface skips some: `InterfaceStats.hook`."""


class PeerTrouble(NamedTuple):
    """What went wrong with a peer since its last session was established; `connlib.explain` puts it in words."""

    unreadable: int
    """Datagrams for us that could not be decrypted: as a rule, the preshared keys of the two sides differ."""
    source_not_allowed: int
    """Packets whose inner source address is not one of the peer's allowed IPs."""
    cookie_replies: int
    """Cookie replies: the peer was under load (paper section 5.3), or somebody else saw an initiation of ours."""
    gave_up: int
    """Attempts that ended without a session."""
    congestion_marks: int = 0
    """Packets that came with a mark of congestion which their sender does not understand (RFC 6040, section 4.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStats:
    """The counters of one peer of a `Node`."""

    public_key: PublicKey
    endpoint: tuple[str, int] | None
    """Where its datagrams are sent: the configured address, or the last one that an authentic packet came from."""
    tunnel: TunnStats
    """Its `drops` include those of routing and policy: SOURCE_NOT_ALLOWED, NO_ENDPOINT, DENIED."""
    last_heard: float | None
    """Seconds since anything came that only the peer can have sent; None if nothing did."""
    trouble: PeerTrouble
    next_timeout: Timeout | None
    """What its tunnel does next by itself; None: nothing, unless something comes first."""
    poisoned: bool
    """True once connlib has failed in the peer's tunnel; see `Poisoned`."""
    policy: PolicyStats | None = None
    """None for a peer without a policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStats:
    """The counters of a `Node`."""

    peers: tuple[PeerStats, ...]
    """In the order of their public keys."""
    drops: Mapping[DropReason, int] = field(default_factory=dict)
    """Drops that belong to no peer, by reason; reasons that did not occur are missing."""
