"""Fault 36: an interface is killed while it changes from one configuration to another; what it leaves behind.

`python -m reliability.kills COUNT` runs in a namespace. It loads everything once and forks for each kill, because a
thousand starts of Python would take the time.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyroute2
import trio
from pyroute2.nftables.main import NFTables

from connlib import InterfaceConfig, open_interface
from reliability import parties
from reliability.faults import Check, Run, at_least, count
from reliability.places import yard

NAME = "wg0"
TABLE = "connlib_wg0"
IDLE, APPLYING = 0, 1


def killed(run: Run) -> list[Check]:
    """Fault 36."""
    points = run.count(1000, 5)
    with yard(0) as hosts:
        command = [sys.executable, "-m", "reliability.kills", str(points)]
        with TemporaryDirectory() as folder:
            # Where a program writes that was not told where to.
            environment = dict.fromkeys(("HOME", "TMPDIR", "XDG_STATE_HOME", "XDG_CACHE_HOME"), folder)
            environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
            said = hosts.middle.run(
                "env",
                "-C",
                folder,
                *(f"{name}={value}" for name, value in environment.items()),
                *command,
                timeout=3600,
            )
            files = list(Path(folder).rglob("*"))
        found = json.loads(said.splitlines()[-1])
    return [
        count(f"of {points:,} kills left something on the system", found["left"], 0),
        count("starts that failed after one", found["failed"], 0),
        count("of them of an interface whose device and nftables table were there", found["there"], points),
        at_least("kills in the middle of an apply", found["applying"], points / 2, timed=False),
        count("files written", len(files), 0),
    ]


def configurations() -> tuple[InterfaceConfig, InterfaceConfig]:
    """Two that differ in all that an apply changes: addresses, routes, firewall, MTU, mark, port, peers."""
    numbers = range(2, 22)
    one = parties.gateway_config(
        numbers,
        name=NAME,
        addresses=(IPv4Interface("10.200.0.1/24"), IPv6Interface("fd00:200::1/64")),
        masquerade=(IPv4Network("10.200.0.0/24"), IPv6Network("fd00:200::/64")),
    )
    other = parties.gateway_config(
        range(12, 32),
        name=NAME,
        addresses=(IPv4Interface("10.201.0.1/24"), IPv6Interface("fd00:201::1/64")),
        mtu=1300,
        fwmark=77,
        listen_port=parties.PORT + 1,
    )
    extra = dataclasses.replace(
        other.peers[0], allowed_ips=(IPv4Network("10.202.0.0/16"), IPv6Network("fd00:202::/48"))
    )
    return one, dataclasses.replace(other, peers=(extra, *other.peers[1:]))


def on_the_system() -> dict[str, Any]:
    """Devices, addresses, routes, rules, and what nftables has, of this namespace."""
    with pyroute2.IPRoute() as netlink:
        return {
            "addresses": sorted(str(each.get_attr("IFA_ADDRESS")) for each in netlink.get_addr()),
            "routes": sorted(
                (str(each.get_attr("RTA_DST")), each["dst_len"], str(each.get_attr("RTA_OIF")))
                for family in (socket.AF_INET, socket.AF_INET6)
                for each in netlink.get_routes(family=family)
            ),
            "rules": sorted(
                (each["family"], each["table"], str(each.get_attr("FRA_PRIORITY")))
                for family in (socket.AF_INET, socket.AF_INET6)
                for each in netlink.get_rules(family=family)
            ),
            "tables": tables(),
            "seen at a glance": at_a_glance(),
        }


def tables() -> dict[str, int]:
    """The tables of nftables, each with the number of its rules."""
    with NFTables(nfgen_family=0) as netlink:
        rules = Counter(str(rule.get_attr("NFTA_RULE_TABLE")) for rule in netlink.get_rules())
        names = [str(table.get_attr("NFTA_TABLE_NAME")) for table in netlink.get_tables()]
    return {name: rules[name] for name in names}


def has_table() -> bool:
    """Whether the interface's table is there. A list that the kernel gives while the table is replaced may lack it."""
    return any(TABLE in tables() for _ in range(5))


def at_a_glance() -> list[object]:
    """Devices, addresses and routes, as far as files tell them: as they are in one moment."""
    net = Path("/proc/thread-self/net")
    routes = (line.split() for line in (net / "ipv6_route").read_text().splitlines())
    return [
        sorted(name for _, name in socket.if_nameindex()),
        (net / "if_inet6").read_text(),
        (net / "fib_trie").read_text(),
        # Without the counters.
        [(*fields[:5], fields[-1]) for fields in routes],
    ]


def main(points: int) -> None:
    one, other = configurations()
    rng = random.Random(36)
    before = on_the_system()
    shared = mmap.mmap(-1, 1)
    found = {"left": 0, "failed": 0, "there": 0, "applying": 0}
    for point in range(points):
        first, second = (one, other) if point % 2 else (other, one)
        reader, writer = os.pipe()
        shared[0] = IDLE
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _child(first, second, writer, shared)
        os.close(writer)
        if os.read(reader, 1) != b"+":
            found["failed"] += 1
        else:
            found["there"] += at_a_glance() != before["seen at a glance"] and has_table()
            # An apply takes some milliseconds; every moment of one is as likely.
            time.sleep(rng.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        found["applying"] += shared[0] == APPLYING
        os.waitpid(pid, 0)
        os.close(reader)
        found["left"] += on_the_system() != before
    print(json.dumps(found))


def _child(first: InterfaceConfig, second: InterfaceConfig, writer: int, shared: mmap.mmap) -> None:
    async def run() -> None:
        async with open_interface(first) as interface:
            os.write(writer, b"+")
            while True:
                for config in (second, first):
                    shared[0] = APPLYING
                    await interface.apply(config)
                    shared[0] = IDLE

    try:
        trio.run(run)
    except BaseException as error:
        os.write(2, f"{error}\n".encode())
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
