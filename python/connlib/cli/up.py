"""`connlib up FILE`: one tunnel in the foreground, with a log that a person can read."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping

import trio

from connlib._errors import ConfigError
from connlib._native import PublicKey
from connlib._types import (
    Dropped,
    Event,
    GaveUp,
    HandshakeStarted,
    NodeStats,
    PeerSilent,
    SessionEstablished,
    SessionExpired,
)
from connlib.config import InterfaceConfig, check_interface_name, describe_peer
from connlib.driver import open_interface
from connlib.wgquick import load_config

log = logging.getLogger("connlib.up")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(file: str, *, name: str | None, level: str, allow_world_readable: bool) -> None:
    """Run the tunnel of `file` until a signal stops it.

    Raises `ConfigError` for a bad file or name, and `DeviceError` if the device or the sockets cannot be had.
    """
    set_up_log(level)
    config = load_config(file, allow_world_readable=allow_world_readable)
    device = check_interface_name(name) if name is not None else config.name or _name_after(file)
    trio.run(_serve, dataclasses.replace(config, name=device))


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


def _name_after(file: str) -> str:
    """The device's name after the file's, as wg-quick does: /etc/wireguard/wg0.conf is wg0."""
    stem = os.path.basename(file).removesuffix(".conf")
    try:
        return check_interface_name(stem)
    except ConfigError:
        raise ConfigError(
            "no network device can be called like this file", path=file, hint="choose a name with --name"
        ) from None


async def _serve(config: InterfaceConfig) -> None:
    with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, signals, nursery.cancel_scope)
            async with open_interface(config) as interface:
                names = {peer.public_key: describe_peer(peer) for peer in config.peers}
                width = max((len(name) for name in names.values()), default=0)
                log.info(
                    "%s is up: UDP port %d, public key %s, %d peer%s; stop with Ctrl-C",
                    interface.name,
                    interface.listen_port,
                    interface.public_key.to_base64(),
                    len(config.peers),
                    "" if len(config.peers) == 1 else "s",
                )
                try:
                    async for peer, event in interface.events():
                        level, text = describe_event(event)
                        log.log(level, "%-*s  %s", width, names[peer], text)
                finally:
                    for line in summarize(interface.stats(), names, width):
                        log.info("%s", line)
            nursery.cancel_scope.cancel()
    log.info("%s is down", config.name)


async def _stop_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for number in signals:
        log.info("stopping: %s", signal.Signals(number).name)
        scope.cancel()


def describe_event(event: Event) -> tuple[int, str]:
    """The level at which an event is logged, and what is said."""
    match event:
        case HandshakeStarted():
            return logging.INFO, "handshake started"
        case SessionEstablished(initiator=initiator):
            return logging.INFO, f"session established, started by {'us' if initiator else 'the peer'}"
        case SessionExpired():
            return logging.INFO, "session expired"
        case GaveUp(dropped=dropped):
            return logging.WARNING, f"gave up: the peer does not answer; {dropped} packets dropped"
        case PeerSilent():
            return logging.WARNING, "the peer is silent, and it is not for us to start a session"
        case Dropped(reason=reason, count=count):
            return logging.DEBUG, f"dropped {count}: {reason.value}"


def summarize(stats: NodeStats, names: Mapping[PublicKey, str], width: int = 0) -> Iterator[str]:
    """A line for each peer that was heard of, and one for what was dropped, if anything was."""
    drops = Counter(stats.drops)
    for peer in stats.peers:
        tunnel = peer.tunnel
        drops.update(tunnel.drops)
        if tunnel.last_handshake is not None or tunnel.initiations_sent:
            yield (
                f"{names[peer.public_key]:{width}}  in all: {tunnel.tx_packets:,} packets sent, "
                f"{tunnel.tx_bytes:,} bytes sent, {tunnel.rx_packets:,} packets received, "
                f"{tunnel.rx_bytes:,} bytes received, {tunnel.initiations_sent:,} initiations sent"
            )
    if drops:
        yield "dropped: " + ", ".join(f"{reason.value} {count:,}" for reason, count in drops.items())
