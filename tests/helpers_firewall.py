"""A gateway between a client and a host behind it, for tests of what its firewall does; and which tables there are."""

from __future__ import annotations

import json
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from interop.netns import Namespace, Wire, joined_namespaces, unique_name

BEHIND_DEVICE = "lan"
GATEWAY_BEHIND = {4: "192.168.66.1", 6: "fd66::1"}
HOST_BEHIND = {4: "192.168.66.2", 6: "fd66::2"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
PATIENCE = 30.0

TABLES = """
import json
from collections import Counter
from pyroute2.nftables.main import NFTables
with NFTables(nfgen_family=0) as tables:
    rules = Counter(rule.get_attr("NFTA_RULE_TABLE") for rule in tables.get_rules())
    names = [table.get_attr("NFTA_TABLE_NAME") for table in tables.get_tables()]
    print(json.dumps({name: rules[name] for name in names}))
"""
"""Prints the tables of nftables, each with the number of its rules."""


class Site(Wire):
    """The two hosts of a wire, a gateway and a client, and a third one that is behind the gateway."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self.hosts = wire.hosts
        self.gateway, self.client = wire.hosts
        self.behind = Namespace(unique_name("clC"))

    def join(self) -> None:
        command = ("ip", "link", "add", BEHIND_DEVICE, "type", "veth", "peer", "name", BEHIND_DEVICE)
        self.gateway.run(*command, "netns", self.behind.name)
        for host, addresses in ((self.gateway, GATEWAY_BEHIND), (self.behind, HOST_BEHIND)):
            host.run("ip", "address", "add", f"{addresses[4]}/24", "dev", BEHIND_DEVICE)
            host.run("ip", "address", "add", f"{addresses[6]}/64", "dev", BEHIND_DEVICE, "nodad")
            host.run("ip", "link", "set", BEHIND_DEVICE, "up")
        self.behind.run("ping", "-c", "1", "-w", "20", GATEWAY_BEHIND[4])
        for setting in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            write_setting(self.gateway, setting, "1")


def write_setting(host: Namespace, setting: str, value: str) -> None:
    """Change a setting of the kernel for one namespace."""
    host.run("tee", "/proc/sys/" + setting.replace(".", "/"), stdin=value)


@contextmanager
def site() -> Iterator[Site]:
    """A `Site` that forwards, and that is taken down whatever happens."""
    with joined_namespaces() as wire:
        made = Site(wire)
        try:
            made.join()
            yield made
        finally:
            made.behind.delete()


def tables(host: Namespace) -> dict[str, int]:
    """The tables of nftables that a namespace has, each with the number of its rules."""
    found: dict[str, int] = json.loads(host.run(sys.executable, "-c", TABLES, timeout=PATIENCE))
    return found


def ask(host: Namespace, source: str, server: socket.socket) -> str:
    """Send from an address of a host to a server, which answers: the address that it sees."""
    with host.make_socket(server.family, socket.SOCK_DGRAM) as asking:
        asking.bind((source, 0))
        return exchange(asking, server)[0]


def exchange(asking: socket.socket, server: socket.socket, question: bytes = b"?") -> tuple[str, int]:
    """Ask a server, which answers: the address and the port that it sees. Fails if either waits for long."""
    asking.settimeout(PATIENCE)
    server.settimeout(PATIENCE)
    asking.sendto(question, server.getsockname()[:2])
    said, seen = server.recvfrom(100)
    assert said == question
    server.sendto(b"!", seen)
    assert asking.recv(100) == b"!"
    return seen[0], seen[1]


def count_replies(prober: Namespace, address: str, port: int, count: int, *, then: str) -> int:
    """How many of so many TCP connections are accepted or refused, before a ping to `then` is answered."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    probes = [prober.make_socket(family, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for probe in probes:
            probe.setblocking(False)
            probe.connect_ex((address, port))
        prober.run("ping", "-c", "1", "-w", "20", then)
        poll = select.poll()
        for probe in probes:
            poll.register(probe, select.POLLOUT)
        return len(poll.poll(0))
    finally:
        for probe in probes:
            probe.close()
