"""One end of the tunnel: `python -m gigabyte.end OPTIONS`, told what to do over its standard input.

Options: me (1 or 2), endpoint (the other's outer address), mtu, offload (whether the device has any).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from ipaddress import ip_interface, ip_network
from typing import Any

import trio

from connlib import Interface, InterfaceConfig, PeerConfig, open_interface
from reliability import parties
from reliability.gateway import lines, say

DEVICE = "wg0"


def inner(number: int, version: int) -> str:
    """The address of an end in the tunnel."""
    return f"10.66.0.{number}" if version == 4 else f"fd66::{number}"


def config(options: dict[str, Any]) -> InterfaceConfig:
    me = options["me"]
    other = 3 - me
    peer = PeerConfig(
        public_key=parties.key(other).public_key(),
        allowed_ips=tuple(ip_network(inner(other, version)) for version in (4, 6)),
        endpoint=(options["endpoint"], parties.PORT),
    )
    return InterfaceConfig(
        private_key=parties.key(me),
        listen_port=parties.PORT,
        addresses=(ip_interface(f"{inner(me, 4)}/24"), ip_interface(f"{inner(me, 6)}/64")),
        mtu=options["mtu"],
        offload=options["offload"],
        name=DEVICE,
        peers=(peer,),
    )


def stats(interface: Interface) -> dict[str, Any]:
    """What was counted, and how many datagrams went out that carry no packet."""
    told = interface.stats()
    (peer,) = told.peers
    drops = Counter({reason.name: count for reason, count in told.drops.items()})
    drops.update({reason.name: count for reason, count in peer.tunnel.drops.items()})
    tunnel = peer.tunnel
    return {
        "tun": dict(told.tun),
        "udp": dict(told.udp),
        "drops": dict(drops),
        "others": tunnel.initiations_sent + tunnel.responses_sent + tunnel.keepalives_sent,
    }


async def main(options: dict[str, Any]) -> None:
    async with open_interface(config(options)) as interface:
        say("ready")
        async for line in lines():
            asked = json.loads(line)
            match asked.pop("command"):
                case "stats":
                    say(stats(interface))
                case "apply":
                    await interface.apply(dataclasses.replace(interface.config, mtu=asked["mtu"]))
                    say(asked["mtu"])
                case other:
                    raise ValueError(f"there is no command {other}")


if __name__ == "__main__":
    trio.run(main, json.loads(sys.argv[1]))
