"""What an interface counts, for Prometheus: an HTTP server that is there only if somebody asks for it.

    async with connlib.serve_metrics(interface, port=9586) as server:
        print(f"http://127.0.0.1:{server.port}/metrics")

Names and labels of bytes and handshakes are those of prometheus_wireguard_exporter, so that its dashboards work;
`allowed_ips`, which has no bound, is left out. Whatever else is counted begins with `connlib_`. Labels take their
values from the configuration and from the members of enumerations, never from the network.

Needs the extra `connlib[metrics]`.

The page is written here, and not by the library of Prometheus: that one takes ten times as long, because it works out
the labels anew for each line, and a thousand peers have some fifteen thousand lines.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel

from ._clients import Client, Clients, went_away
from ._errors import ConfigError, DeviceError
from ._interfacestats import InterfaceStats, is_errno
from ._shared import Shared
from ._text import bug
from ._types import PeerStats, PolicyStats, TunnStats
from .driver import Interface
from .resolver import is_literal

try:
    import h11
except ImportError as error:
    raise ImportError(f"{error}; metrics need: pip install 'connlib[metrics]'") from None

DEFAULT_PORT = 9586
"""The port of prometheus_wireguard_exporter."""
MOST_CLIENTS = 256
"""When one more comes, the one that has been silent for longest goes: slow clients hold nobody up."""
PATIENCE = 10.0
"""Seconds for a request to arrive and for its answer to be read."""
MOST_REQUEST_BYTES = 8192
LATE = 1.0
"""Seconds by which a deadline of the engine may have passed while the interface counts as ready."""
_SHORT = 0.02
"""Seconds of the processor that a page may take any time."""
_REST = 10
"""How many times as long as a longer one took nobody has another one made."""

_log = logging.getLogger("connlib.metrics")
_PLAIN = "text/plain; charset=utf-8"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"


class MetricsServer:
    """The server of `serve_metrics`."""

    def __init__(self, interface: Interface, port: int) -> None:
        self._interface = interface
        self.port = port
        """The TCP port."""
        self._goes_down = False
        self._metrics = b""
        self._stale_at = -math.inf
        self._pages = Shared(self._make_page)

    def goes_down(self) -> None:
        """Have `/readyz` say from now on that nothing more is to be sent here, though the interface is still there."""
        self._goes_down = True

    async def _answer(self, head: bytes) -> list[bytes]:
        """The answer to the head of a request, or to what is none."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_REQUEST_BYTES)
        request = None
        try:
            request = _request(connection, head)
            status, kind, body = await self._page(request)
        except h11.RemoteProtocolError as error:
            status, kind, body = error.error_status_hint, _PLAIN, b"this is no HTTP request\n"
        except Exception as error:
            if went_away(error):
                raise
            # Whatever a page does, the tunnel is worth more.
            _log.error("%s: a page has failed: %s", self._interface.name, bug(error))
            status, kind, body = 500, _PLAIN, bug(error).encode() + b"\n"
        headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Connection", "close")]
        if status == 405:
            headers.append(("Allow", "GET, HEAD"))
        events: list[h11.Event] = [h11.Response(status_code=status, headers=headers)]
        if request is None or request.method != b"HEAD":
            events.append(h11.Data(data=body))
        parts: list[bytes] = []
        for event in (*events, h11.EndOfMessage()):
            # The body is not copied: it may be that of many clients.
            parts += connection.send_with_data_passthrough(event) or ()
        return parts

    async def _page(self, request: h11.Request) -> tuple[int, str, bytes]:
        """Status, content type and body."""
        if request.method not in (b"GET", b"HEAD"):
            return 405, _PLAIN, b"only GET and HEAD\n"
        path = request.target.partition(b"?")[0]
        if path == b"/metrics":
            return 200, _METRICS, await self._latest_metrics()
        if path == b"/readyz":
            if not self._interface.is_open:
                return 503, _PLAIN, b"closed\n"
            if self._goes_down:
                return 503, _PLAIN, b"stopping\n"
            if self._interface.lateness() > LATE:
                return 503, _PLAIN, b"late\n"
            return 200, _PLAIN, b"ready\n"
        return 404, _PLAIN, b"there are /metrics and /readyz\n"

    async def _latest_metrics(self) -> bytes:
        """The page. One that took long serves again for a while, so that clients, however many, take a tenth of the
        time at most."""
        if anyio.current_time() < self._stale_at:
            return self._metrics
        return await self._pages.get()

    async def _make_page(self) -> bytes:
        """Others have their turn between two metrics."""
        if anyio.current_time() < self._stale_at:
            return self._metrics  # made while this one was waited for
        took, pieces, parts = 0.0, [], render(self._interface)
        while True:
            start = time.thread_time()
            piece = next(parts, None)
            took += time.thread_time() - start
            if piece is None:
                break
            pieces.append(piece)
            await anyio.lowlevel.checkpoint()
        page = "".join(pieces).encode()
        if took > _SHORT:
            self._metrics, self._stale_at = page, anyio.current_time() + _REST * took
        return page


class _Conversation:
    """One request and its answer."""

    __slots__ = ("_client", "_head", "_server")

    def __init__(self, server: MetricsServer, client: Client) -> None:
        self._server = server
        self._client = client
        self._head = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._head += data
        if not data or _is_whole(self._head):
            yield self._head

    async def answer(self, request: bytes) -> bool:
        # Nothing keeps the page once it is sent, however long the client takes to go.
        await self._client.send(await self._server._answer(request))
        return False


_END = re.compile(rb"\n\r?\n")


def _is_whole(head: bytes) -> bool:
    """Whether nothing that may still come of a head, or of what is none, would change its answer."""
    # No method begins like that: TLS does.
    return _END.search(head) is not None or len(head) > MOST_REQUEST_BYTES or head[0] < 0x21


def _request(connection: h11.Connection, head: bytes) -> h11.Request:
    """The request with that head; a body is not read. Raises `RemoteProtocolError` for what is none."""
    connection.receive_data(head)
    event = connection.next_event()
    if event is h11.NEED_DATA:
        # There was no end of it, and there will be none.
        connection.receive_data(b"")
        event = connection.next_event()
    if not isinstance(event, h11.Request):
        raise h11.RemoteProtocolError("no request")
    return event


@asynccontextmanager
async def serve_metrics(
    interface: Interface, *, host: str = "127.0.0.1", port: int = DEFAULT_PORT
) -> AsyncIterator[MetricsServer]:
    """Serve `/metrics` for Prometheus and `/readyz` for as long as the block runs.

    `/readyz` has the status 200, or 503: once the interface is closed, once it is going down
    (`MetricsServer.goes_down`, which `connlib up` calls when it is told to stop), and while it is more than a second
    late with what it has to do.

    host: a literal address of this machine; it takes no password, so that any other than 127.0.0.1 and ::1 is for
    networks that may know who talks with whom. port: 0 for any.

    Raises `ConfigError` for what is no address or port, and `DeviceError` if they cannot be had.
    """
    if not is_literal(host) or not 0 <= port <= 65_535:
        raise ConfigError(
            f"metrics cannot be served on {host!r} port {port}",
            hint="give an address of this machine and a port from 0 to 65535",
        )
    try:
        # By the literal address: a resolver would find none of a family in which only the loopback device has one.
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128
        )
    except OSError as error:
        # Its own text repeats the address.
        plain = OSError(error.errno, os.strerror(error.errno or 0))
        raise DeviceError.from_os(
            f"cannot serve metrics on {host} port {port}", plain, hint="choose another address or port"
        ) from None
    with listener:
        listener.setblocking(False)
        server = MetricsServer(interface, listener.getsockname()[1])
        begin = functools.partial(_Conversation, server)
        clients = Clients("the metrics", _log, begin, most=MOST_CLIENTS, patience=PATIENCE)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(clients.serve, listener)
            try:
                yield server
            finally:
                tasks.cancel_scope.cancel()


def render(interface: Interface) -> Iterator[str]:
    """The metrics of an interface, each with all of its lines, as they were at the first of them: Prometheus's text
    format, version 0.0.4."""
    stats = interface.stats()
    names = {peer.public_key: peer.name or "" for peer in interface.config.peers}
    yield ""
    of_all = f'interface="{_escaped(interface.name)}"'
    peers = [
        (
            f'friendly_name="{_escaped(names.get(peer.public_key, ""))}",{of_all},'
            f'public_key="{peer.public_key.to_base64()}"',
            peer,
        )
        for peer in stats.peers
    ]
    yield ""
    yield from _of_peers(peers, stats.unix_time)
    yield from _of_interface(of_all, stats)


_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def _escaped(value: str) -> str:
    return value.translate(_ESCAPES)


def _metric(kind: str, name: str, text: str, samples: Iterable[tuple[str, float]]) -> str:
    """samples: the labels, as they are written, and the value of each line."""
    lines = [f"# HELP {name} {text}\n# TYPE {name} {kind}\n"]
    lines += [f"{name}{{{labels}}} {value}\n" for labels, value in samples]
    return "".join(lines)


_Peers = list[tuple[str, PeerStats]]
"""Labels, and what they are of."""

_PEER_COUNTERS: dict[str, tuple[str, Callable[[TunnStats], int]]] = {
    "wireguard_sent_bytes_total": ("Bytes sent to the peer, as UDP payload", lambda t: t.tx_bytes),
    "wireguard_received_bytes_total": ("Authentic bytes from the peer, as UDP payload", lambda t: t.rx_bytes),
    "connlib_peer_sent_packets_total": ("IP packets sent to the peer", lambda t: t.tx_packets),
    "connlib_peer_received_packets_total": ("IP packets from the peer", lambda t: t.rx_packets),
    "connlib_peer_initiations_total": ("Handshake initiations sent", lambda t: t.initiations_sent),
    "connlib_peer_responses_total": ("Handshake responses sent", lambda t: t.responses_sent),
    "connlib_peer_keepalives_total": ("Keepalives sent", lambda t: t.keepalives_sent),
}
_PEER_GAUGES: dict[str, tuple[str, Callable[[TunnStats], float | None]]] = {
    "connlib_peer_session_age_seconds": ("Age of the session that sends", lambda t: t.session_age),
    "connlib_peer_sessions": ("Sessions that exist: previous, current, next", lambda t: t.sessions),
    "connlib_peer_queued_packets": ("IP packets that wait for a session", lambda t: t.queued),
    "connlib_peer_loss_ratio": ("Share of the session's datagrams that did not arrive", lambda t: t.loss),
    "connlib_peer_rtt_seconds": ("Time that the last handshake took", lambda t: t.rtt),
}
_POLICY_COUNTERS: dict[str, tuple[str, Callable[[PolicyStats], int]]] = {
    "connlib_peer_flows_evicted_total": (
        "Flows that gave way to newer ones before their time",
        lambda p: p.flows_evicted,
    ),
    "connlib_peer_policy_answers_total": (
        "ICMP messages that told a sender of a refusal; the refusals are drops for the reason denied",
        lambda p: p.answers,
    ),
    "connlib_peer_questions_total": (
        "Questions about flows for the hook, also those that were skipped as it had too many calls",
        lambda p: p.questions,
    ),
}


def _of_peers(peers: _Peers, unix_time: float) -> Iterator[str]:
    ages = ((labels, peer.tunnel.last_handshake) for labels, peer in peers)
    yield _metric(
        "gauge",
        "wireguard_latest_handshake_seconds",
        "When the last session was made, in seconds since 1970; 0 if none was",
        ((labels, 0 if age is None else unix_time - age) for labels, age in ages),
    )
    for name, (text, count) in _PEER_COUNTERS.items():
        yield _metric("counter", name, text, ((labels, count(peer.tunnel)) for labels, peer in peers))
    for name, (text, measure) in _PEER_GAUGES.items():
        measured = ((labels, measure(peer.tunnel)) for labels, peer in peers)
        # What there is not has no value, rather than one that could be taken for a measurement.
        yield _metric(
            "gauge", name, text, ((labels, value) for labels, value in measured if value is not None)
        )
    yield _metric(
        "counter",
        "connlib_peer_drops_total",
        "Packets and datagrams dropped",
        (
            (f'{labels},reason="{reason.value}"', count_)
            for labels, peer in peers
            for reason, count_ in peer.tunnel.drops.items()
        ),
    )
    yield from _of_policies([(labels, peer.policy) for labels, peer in peers if peer.policy is not None])


def _of_policies(policies: list[tuple[str, PolicyStats]]) -> Iterator[str]:
    """Of the peers that have one: others have no flows to be counted."""
    flows = ((labels, policy.flows) for labels, policy in policies)
    yield _metric("gauge", "connlib_peer_flows", "Flows that are known", flows)
    pending = ((labels, policy.flows_pending) for labels, policy in policies)
    yield _metric("gauge", "connlib_peer_flows_pending", "Flows that wait for an answer of the hook", pending)
    for name, (text, count) in _POLICY_COUNTERS.items():
        yield _metric("counter", name, text, ((labels, count(policy)) for labels, policy in policies))


_TUN_COUNTERS = {
    "packets_read": ("connlib_tun_read_packets_total", "Packets read from the TUN device"),
    "bytes_read": ("connlib_tun_read_bytes_total", "Bytes read from the TUN device"),
    "packets_written": ("connlib_tun_written_packets_total", "Packets written to the TUN device"),
    "bytes_written": ("connlib_tun_written_bytes_total", "Bytes written to the TUN device"),
    "superpackets_read": ("connlib_tun_read_superpackets_total", "Reads of many packets as one"),
    "superpackets_written": ("connlib_tun_written_superpackets_total", "Writes of many packets as one"),
    "backlog_dropped": ("connlib_tun_backlog_dropped_total", "Packets that the TUN device had no room for"),
}
_UDP_COUNTERS = {
    "received": ("connlib_udp_received_datagrams_total", "Datagrams received"),
    "received_bytes": ("connlib_udp_received_bytes_total", "Bytes received"),
    "sent": ("connlib_udp_sent_datagrams_total", "Datagrams sent"),
    "sent_bytes": ("connlib_udp_sent_bytes_total", "Bytes sent"),
    "backlog_dropped": ("connlib_udp_backlog_dropped_total", "Datagrams that the sockets had no room for"),
}


def _of_interface(labels: str, stats: InterfaceStats) -> Iterator[str]:
    yield _metric(
        "counter",
        "connlib_drops_total",
        "Dropped, and of no known peer",
        ((f'{labels},reason="{reason.value}"', count) for reason, count in stats.drops.items()),
    )
    wakes = [(labels, stats.timer_wakes)]
    yield _metric("counter", "connlib_timer_wakes_total", "How often a deadline was reached", wakes)
    yield _metric(
        "counter",
        "connlib_lookups_total",
        "Look-ups of peers' host names that were asked for, that failed, and that moved a silent peer",
        ((f'{labels},result="{result}"', count) for result, count in stats.lookups.items()),
    )
    yield _metric(
        "counter",
        "connlib_hook_total",
        "How often the hook was asked about a flow, failed, answered too late, and was skipped for too many calls",
        ((f'{labels},what="{what}"', count) for what, count in stats.hook.items()),
    )
    errors = []
    for end, counts, known in (("tun", stats.tun, _TUN_COUNTERS), ("udp", stats.udp, _UDP_COUNTERS)):
        for key, (metric, text) in known.items():
            if key in counts:
                yield _metric("counter", metric, text, [(labels, counts[key])])
        errors += [
            (f'end="{end}",error="{_escaped(key)}",{labels}', count)
            for key, count in counts.items()
            if is_errno(key)
        ]
    text = "Errors of the device and of the sockets, by what was done and the name of their errno"
    yield _metric("counter", "connlib_errors_total", text, errors)
