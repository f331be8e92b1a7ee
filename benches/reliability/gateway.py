"""The interface under attack: `python -m reliability.gateway OPTIONS`, told what to do over its standard input.

Options: client (its number) and gateway (where that is), for an interface of a peer's own; else peers (how many), and
where wanted first (the number of the first), config (fields of the interface) and routed (true: each peer needs a route
of its own). Besides: udp ("recverr": sockets that hear of every error), metrics (serve them on a port of the loopback),
control (a folder for the control socket).
"""

from __future__ import annotations

import dataclasses
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import trio

from connlib import Interface, InterfaceConfig, Limits, PeerConfig, Role, open_interface, serve_control
from connlib.cli.up import freeze_what_stays
from connlib.udp import Sockets
from reliability import parties

_IP_RECVERR = 11


async def main(options: dict[str, Any]) -> None:
    first = options.get("first", parties.GATEWAY + 1)
    if "client" in options:
        config = parties.interface_of(options["client"], tuple(options["gateway"]))
    else:
        config = parties.gateway_config(range(first, first + options["peers"]), **_fields(options))
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(open_interface(config, udp=_sockets(options)))
        port = None
        if "metrics" in options:
            from connlib.metrics import serve_metrics

            server = await stack.enter_async_context(serve_metrics(interface, host="127.0.0.1", port=0))
            port = server.port
        if "control" in options:
            await stack.enter_async_context(serve_control(interface, directory=options["control"]))
        # As `connlib up` does.
        freeze_what_stays()
        say("ready")
        async for line in lines():
            asked = json.loads(line)
            match asked.pop("command"):
                case "stats":
                    say(_stats(interface))
                case "port":
                    say(port)
                case "churn":
                    say(await _churn(interface, **asked))
                case other:
                    raise ValueError(other)


def _fields(options: dict[str, Any]) -> dict[str, Any]:
    fields = dict(options.get("config", {}))
    if options.get("routed"):
        fields["addresses"] = (parties.alone(parties.GATEWAY),)
    if "queue_packets" in fields:
        fields["limits"] = Limits(queue_packets=fields.pop("queue_packets"))
    if "role" in fields:
        fields["role"] = Role(fields["role"])
    if "endpoint" in fields:
        # Every peer is to be there, whoever may be.
        endpoint = tuple(fields.pop("endpoint"))
        first = options.get("first", parties.GATEWAY + 1)
        fields["peers"] = tuple(
            parties.peer(number, endpoint=endpoint) for number in range(first, first + options["peers"])
        )
    return fields


def _sockets(options: dict[str, Any]) -> Sockets | None:
    if options.get("udp") != "recverr":
        return None
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    made.bind(("0.0.0.0", parties.PORT))
    return made


def _stats(interface: Interface) -> dict[str, Any]:
    stats = interface.stats()
    drops = Counter({reason.name: count for reason, count in stats.drops.items()})
    for peer in stats.peers:
        drops.update({reason.name: count for reason, count in peer.tunnel.drops.items()})
    return {
        "drops": dict(drops),
        "tun": dict(stats.tun),
        "udp": dict(stats.udp),
        "sessions": sum(peer.tunnel.sessions for peer in stats.peers),
        "initiations": sum(peer.tunnel.initiations_sent for peer in stats.peers),
        "responses": sum(peer.tunnel.responses_sent for peer in stats.peers),
        "queued": max((peer.tunnel.queued for peer in stats.peers), default=0),
        "waited for": sum(peer.tunnel.queued > 0 for peer in stats.peers),
        "endpoints": [peer.endpoint for peer in stats.peers[:10]],
        "timer_wakes": stats.timer_wakes,
    }


async def _churn(interface: Interface, seconds: float, rate: float, first: int) -> dict[str, Any]:
    """Add and remove peers in turn; what each change took, in seconds, and in seconds of the processor.

    Where they take longer than the rate allows, there are fewer of them.
    """
    begin = trio.current_time()
    took, used, built = [], [], []
    extra: list[PeerConfig] = []
    number = first
    for change in range(int(seconds * rate)):
        if change % 2 == 0 and trio.current_time() > begin + seconds:
            break
        await trio.sleep_until(begin + change / rate)
        start = time.perf_counter()
        if change % 2:
            gone = extra.pop(0)
            peers = tuple(peer for peer in interface.config.peers if peer is not gone)
        else:
            extra.append(_as_configured(parties.peer(number), interface.config))
            number += 1
            peers = (*interface.config.peers, extra[-1])
        config = dataclasses.replace(interface.config, peers=peers)
        between, processor = time.perf_counter(), time.thread_time()
        diff = await interface.apply(config)
        took.append(time.perf_counter() - between)
        used.append(time.thread_time() - processor)
        built.append(between - start)
        assert len(diff.added) + len(diff.removed) == 1
    return {"took": took, "used": used, "built": built, "peers": len(interface.config.peers)}


def _as_configured(peer: PeerConfig, config: InterfaceConfig) -> PeerConfig:
    return dataclasses.replace(peer, role=config.role)


async def lines() -> AsyncIterator[str]:
    """The lines of standard input."""
    held = b""
    stream = trio.lowlevel.FdStream(0)
    async for data in stream:
        held += data
        *lines, held = held.split(b"\n")
        for line in lines:
            yield line.decode()


def say(what: Any) -> None:
    """Tell the parent."""
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    trio.run(main, json.loads(sys.argv[1]))
