"""`connlib up FILE`: one tunnel in the foreground, with a log that a person can read.

SIGHUP makes it read FILE again and apply it while it runs.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import trio

from connlib._configfile import display_path
from connlib._describe import describe_event
from connlib._errors import ConfigError, ConnlibError, DeviceError
from connlib._interfacestats import EndCounters, InterfaceStats, is_errno
from connlib._native import PublicKey
from connlib._text import counted, counts, host_and_port
from connlib._types import DropReason, PeerEvent, PeerStats
from connlib.config import InterfaceConfig, check_interface_name, describe_peer
from connlib.control import serve_control
from connlib.diff import Applier, count_changes
from connlib.driver import Interface, open_interface
from connlib.resolver import is_literal
from connlib.timestamps import TimestampStore

from ._dumps import forbid_dumps
from ._files import load, name_after
from ._flowlog import FlowLog
from ._recorder import Recorder
from ._service import Service
from ._state import timestamp_store
from ._stop import StopSignals

if TYPE_CHECKING:
    from connlib.metrics import MetricsServer

log = logging.getLogger("connlib.up")

LOOK_AFTER = 2.0
"""Seconds between two looks at the errors of the network."""


def run(
    file: str,
    stop: StopSignals,
    *,
    name: str | None,
    level: str,
    allow_world_readable: bool,
    run_dir: str | None = None,
    metrics: str | None = None,
    user: str | None = None,
    record: str | None = None,
    flow_log: str | None = None,
    state: str | None = None,
    keeps_state: bool = True,
) -> None:
    """Run the tunnel of `file`, of either kind, until a signal stops it.

    run_dir: where the control socket is made; None for none. metrics: where Prometheus may ask, as `[ADDRESS:]PORT`.
    user: the name of whom to become when everything is there. record: a new file for what comes into the tunnels
    (`connlib crosscheck --record`). flow_log: a file for what policies allow and deny, or `-` for standard output.
    state: the directory for timestamps of handshakes, in place of the usual one; without `keeps_state` there is none.

    Raises `ConfigError` for a bad file, name or place, and `DeviceError` if the device or the sockets cannot be had.
    """
    set_up_log(level)
    serves = None if metrics is None else _place(metrics)
    # Before there is a key to be seen.
    forbid_dumps(log)

    def load_file() -> InterfaceConfig:
        config = load(file, allow_world_readable=allow_world_readable)
        device = check_interface_name(name) if name is not None else config.name or name_after(file)
        return dataclasses.replace(config, name=device)

    config = load_file()
    store = timestamp_store(str(config.name), state) if keeps_state else None
    stop.tell(None)
    with (
        Recorder(record, config) as recorder,
        FlowLog(flow_log) as flows,
        Service(user) as service,
    ):
        service.narrow(config, serves[1] if serves else 0)
        if store is not None:
            service.open_state(store)
        try:
            trio.run(
                _serve,
                config,
                file,
                load_file,
                stop,
                _Parts(recorder, flows, service, store, run_dir, serves),
            )
        finally:
            stop.tell(None)


def _place(text: str) -> tuple[str, int]:
    """Address and port; the address is this machine's own if there is none."""
    host, _, port = text.rpartition(":")
    host = (host[1:-1] if host.startswith("[") and host.endswith("]") else host) or "127.0.0.1"
    if not is_literal(host) or not (port.isascii() and port.isdigit() and int(port[:6]) <= 65_535):
        raise ConfigError(
            f"metrics cannot be served at {text!r}", hint="write a port, or 192.0.2.1:9586 or [::1]:9586"
        )
    return host, int(port)


def set_up_log(level: str) -> None:
    """Send what connlib logs to standard error, one line an event, with the local time."""
    # A log that nobody reads any more must not end the tunnel, nor fill standard error with tracebacks.
    logging.raiseExceptions = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    root = logging.getLogger("connlib")
    root.handlers = [handler]
    root.propagate = False
    root.setLevel(level.upper())


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        now = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        # A name that somebody else chose (a host name in an error, say) must not forge a line of this log.
        message = "".join(c if c.isprintable() else " " for c in record.getMessage())
        return f"{now}.{record.msecs:03.0f}  {level}{message}"


class _Parts(NamedTuple):
    """What else belongs to a run, beside the tunnel."""

    recorder: Recorder
    flows: FlowLog
    service: Service
    store: TimestampStore | None
    run_dir: str | None
    metrics: tuple[str, int] | None


async def _serve(
    config: InterfaceConfig,
    file: str,
    load_file: Callable[[], InterfaceConfig],
    stop: StopSignals,
    parts: _Parts,
) -> None:
    # What answers for as long as the interface is there, also while it goes down.
    async with trio.open_nursery() as lasting:
        with trio.CancelScope() as scope:
            stop_by_signal(stop, scope)
            await _serve_until_stopped(config, file, load_file, stop, parts, lasting)
        lasting.cancel_scope.cancel()
    stop.tell(None)
    log.info("%s is down", config.name)


async def _serve_until_stopped(
    config: InterfaceConfig,
    file: str,
    load_file: Callable[[], InterfaceConfig],
    stop: StopSignals,
    parts: _Parts,
    lasting: trio.Nursery,
) -> None:
    recorder, flows, service = parts.recorder, parts.flows, parts.service
    async with _opened(config, file, parts) as interface, trio.open_nursery() as nursery:
        recorder.start(interface)
        # Before anything else runs: a keepalive may start a handshake at once.
        events = interface.events()
        names = _Names(config)
        applier = Applier(interface, names.learn)
        if parts.run_dir is not None:
            await nursery.start(_serve_control, interface, parts.run_dir, applier)
        metrics: MetricsServer | None = None
        if parts.metrics is not None:
            metrics = await lasting.start(_serve_metrics, interface, *parts.metrics)
        # Whoever reads this may ask at once.
        log.info(
            "%s is up: UDP port %d, public key %s, %d peer%s; stop with Ctrl-C",
            interface.name,
            interface.listen_port,
            interface.public_key.to_base64(),
            len(config.peers),
            "" if len(config.peers) == 1 else "s",
        )
        service.is_up(interface)
        try:
            nursery.start_soon(service.follow, interface, file, load_file)
            nursery.start_soon(_watch_network, interface)
            nursery.start_soon(recorder.follow, interface)
            flows.start(interface)
            nursery.start_soon(flows.follow, interface)
            nursery.start_soon(_reload, interface, load_file, stop, applier, parts)
            async for happened in events:
                # Of a changed configuration, who changed it tells.
                if isinstance(happened, PeerEvent):
                    level, text = describe_event(happened.event)
                    log.log(level, "%-*s  %s", names.width, names[happened.peer], text)
        finally:
            service.is_stopping()
            if metrics is not None:
                metrics.goes_down()
            recorder.write(interface)
            await flows.finish(interface)
            for line in summarize(interface.stats(), names, names.width):
                log.info("%s", line)
        nursery.cancel_scope.cancel()


async def _serve_metrics(
    interface: Interface,
    host: str,
    port: int,
    task_status: trio.TaskStatus[MetricsServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    # Not above: what it needs is an extra.
    try:
        from connlib.metrics import serve_metrics
    except ImportError as error:
        raise ConnlibError(str(error)) from None

    async with serve_metrics(interface, host=host, port=port) as server:
        log.info("%s: metrics at http://%s/metrics", interface.name, host_and_port(host, server.port))
        task_status.started(server)
        await trio.sleep_forever()


async def _serve_control(
    interface: Interface,
    run_dir: str,
    applier: Applier,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    try:
        async with serve_control(interface, directory=run_dir, applier=applier):
            task_status.started()
            await trio.sleep_forever()
    except DeviceError as error:
        # The tunnel is worth more than what can be asked about it.
        log.warning(
            "%s: no control socket, so that `connlib show` does not find it: %s", interface.name, error
        )
        task_status.started()


class _Names(dict[PublicKey, str]):
    """What the log calls each peer, those included that are gone: events of theirs may still be waiting."""

    def __init__(self, config: InterfaceConfig) -> None:
        self.width = 0
        self.learn(config)

    def learn(self, config: InterfaceConfig) -> None:
        """Use the names of another configuration."""
        self.update({peer.public_key: describe_peer(peer) for peer in config.peers})
        self.width = max((len(self[peer.public_key]) for peer in config.peers), default=0)


async def _reload(
    interface: Interface,
    load_file: Callable[[], InterfaceConfig],
    stop: StopSignals,
    applier: Applier,
    parts: _Parts,
) -> None:
    """Whenever SIGHUP asks for it, change to what the file says now: to all of it, or to nothing."""
    token = trio.lowlevel.current_trio_token()
    wish = trio.Event()

    def ask() -> None:
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(wish_now)

    def wish_now() -> None:
        wish.set()

    stop.tell_reload(ask)
    while True:
        await wish.wait()
        wish = trio.Event()
        parts.flows.reopen()
        parts.service.is_reloading()
        try:
            # In a thread, because the packets of the tunnel do not wait. A file may be a pipe that nobody writes to.
            config = await trio.to_thread.run_sync(load_file, abandon_on_cancel=True)
            changes = await applier.apply(config)
        except ConnlibError as error:
            for problem in getattr(error, "problems", (error,)):
                log.error("%s", problem)
            log.error("%s: not reloaded; nothing has changed", interface.name)
            continue
        finally:
            parts.service.has_reloaded(interface)
        log.info("%s: reloaded: %s", interface.name, count_changes(changes))
        for change in changes:
            log.info("  %s", change)


def stop_by_signal(stop: StopSignals, scope: trio.CancelScope) -> None:
    """Have the first stop signal, which may have come already, cancel a scope of the running event loop."""
    token = trio.lowlevel.current_trio_token()
    # A handler may run between any two instructions of the event loop, so that it only leaves a message there.
    stop.tell(lambda: _tell(token, stop, scope))


def _tell(token: trio.lowlevel.TrioToken, stop: StopSignals, scope: trio.CancelScope) -> None:
    with suppress(trio.RunFinishedError):
        token.run_sync_soon(_stop, stop, scope)


def _stop(stop: StopSignals, scope: trio.CancelScope) -> None:
    if stop.first is not None and not scope.cancel_called:
        log.info("stopping: %s", stop.first.name)
        scope.cancel()


@asynccontextmanager
async def _opened(config: InterfaceConfig, file: str, parts: _Parts) -> AsyncIterator[Interface]:
    """The interface; what is wrong with its configuration comes from this file."""
    given = parts.service.given
    async with AsyncExitStack() as stack:
        try:
            interface = await stack.enter_async_context(
                open_interface(config, tun=given.tun, udp=given.udp, timestamps=parts.store)
            )
        except ConfigError as error:
            error.path = error.path or display_path(file)
            raise
        freeze_what_stays()
        yield interface


def freeze_what_stays() -> None:
    """Leave what there is out of the search for garbage, which would hold the event loop up for a twentieth of a second
    each time that it comes to all modules. What nobody refers to any more is freed as before."""
    gc.collect()
    gc.freeze()


async def _watch_network(interface: Interface) -> None:
    """Warn of every kind of error once; how often they occurred, the closing line says."""
    known: set[str] = set()
    while True:
        new = {
            name: count
            for name, count in network_errors(interface.end_counters()).items()
            if name not in known
        }
        known.update(new)
        if new:
            log.warning("%s: network errors: %s (each kind is reported once)", interface.name, counts(new))
        await trio.sleep(LOOK_AFTER)


def network_errors(stats: InterfaceStats | EndCounters) -> dict[str, int]:
    """How often what went wrong at the ends of the interface; what did not occur is missing."""
    return {
        f"{end} {name.replace('_', ' ')}": count
        for end, counters in (("tun", stats.tun), ("udp", stats.udp))
        for name, count in counters.items()
        if count
        and (is_errno(name) or name.startswith("bad_") or name in ("backlog_dropped", "short_writes"))
    }


def summarize(stats: InterfaceStats, names: Mapping[PublicKey, str], width: int = 0) -> Iterator[str]:
    """A line for each peer that was heard of, and one each for what was dropped and for errors, if there are any."""
    drops = Counter(stats.drops)
    for peer in stats.peers:
        tunnel = peer.tunnel
        drops.update(tunnel.drops)
        if tunnel.last_handshake is not None or tunnel.initiations_sent:
            yield (
                f"{names[peer.public_key]:{width}}  in all: {tunnel.tx_packets:,} packets sent, "
                f"{tunnel.tx_bytes:,} bytes sent, {tunnel.rx_packets:,} packets received, "
                f"{tunnel.rx_bytes:,} bytes received, {tunnel.initiations_sent:,} initiations sent"
                + _describe_policy(peer)
            )
    if drops:
        yield "dropped: " + counts({_describe_drop(reason): count for reason, count in drops.items()})
    if errors := network_errors(stats):
        yield "network errors: " + counts(errors)


def _describe_policy(peer: PeerStats) -> str:
    if peer.policy is None:
        return ""
    denied = peer.tunnel.drops.get(DropReason.DENIED, 0)
    said = f", {denied:,} denied, {counted(peer.policy.flows, 'flow')} at the end"
    return said + (f", {peer.policy.flows_evicted:,} evicted" if peer.policy.flows_evicted else "")


def _describe_drop(reason: DropReason) -> str:
    # The system itself sends multicast into every device, such as router solicitations.
    known = {
        DropReason.NO_ROUTE: "no route (multicast and the like)",
        DropReason.DENIED: "denied by a policy",
    }
    return known.get(reason, reason.value)
