"""What the system does to a tunnel (faults 30 to 34): errors of its sockets, changes of the network, and its end.

The first half is one process with a gateway and a client whose sockets are in two namespaces joined by a cable, so that
everything can be counted; the second half is `connlib up`.
"""

from __future__ import annotations

import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from connlib.driver import Interface, MemoryTun, open_interface
from helpers_driver import CLIENT, GATEWAY, PORT, client_config, gateway_config, in_real_time, packet
from helpers_service import CLIENT as CLIENT_HOST
from helpers_service import Manager, private_file, start_up, two_ends
from interop.machine import missing_rights
from interop.netns import Namespace, Wire, joined_namespaces, wait_for

LARGE = packet(CLIENT, GATEWAY, bytes(1000))
PACKETS = 200
IP_RECVERR = 11  # linux/in.h


@pytest.fixture
def wire() -> Iterator[Wire]:
    if reason := missing_rights():
        pytest.skip(reason)
    with joined_namespaces() as wire:
        yield wire


@dataclass
class Tunnel:
    gateway: Interface
    client: Interface
    gateway_tun: MemoryTun
    client_tun: MemoryTun

    async def exchange(self) -> None:
        """A packet each way, of which none is lost."""
        await self.client_tun.send(LARGE)
        with trio.fail_after(10):
            assert await self.gateway_tun.receive() == LARGE
            await self.gateway_tun.send(packet(GATEWAY, CLIENT))
            assert await self.client_tun.receive() == packet(GATEWAY, CLIENT)

    async def attempts(self) -> int:
        """How many packets of the client it takes until one arrives, 0.1 s apart."""
        for count in range(1, 100):
            await self.client_tun.send(LARGE)
            with trio.move_on_after(0.1):
                await self.gateway_tun.receive()
                return count
        raise AssertionError("none of 100 packets arrived")


@asynccontextmanager
async def tunnel(wire: Wire, endpoint: str = Wire.V4[0]) -> AsyncIterator[Tunnel]:
    """A gateway and a client with a session."""
    gateway_tun, client_tun = MemoryTun(), MemoryTun()
    with (
        wire.hosts[0].make_socket(socket.AF_INET, socket.SOCK_DGRAM) as listening,
        wire.hosts[1].make_socket(socket.AF_INET, socket.SOCK_DGRAM) as calling,
    ):
        listening.bind(("0.0.0.0", PORT))
        calling.bind(("0.0.0.0", 0))
        # Without it, the kernel keeps it to itself that a queue was full.
        calling.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        async with (
            open_interface(gateway_config(), tun=gateway_tun, udp=listening) as gateway,
            open_interface(client_config((endpoint, PORT)), tun=client_tun, udp=calling) as client,
        ):
            made = Tunnel(gateway, client, gateway_tun, client_tun)
            await made.exchange()
            yield made


class Steps(trio.abc.Instrument):
    """Counts how often a task of the event loop had its turn."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


FIREWALL = """
import sys
from pyroute2.nftables.main import NFTables
with NFTables(nfgen_family=2) as tables:
    if sys.argv[1] == "drop":
        tables.table("add", name="closed")
        tables.chain("add", table="closed", name="out", hook="output", type="filter", policy=0)
    else:
        tables.table("del", name="closed")
"""


def link_down(host: Namespace) -> Callable[[], None]:
    host.run("ip", "link", "set", Wire.DEVICE, "down")
    return lambda: void(host.run("ip", "link", "set", Wire.DEVICE, "up"))


def firewall(host: Namespace) -> Callable[[], None]:
    host.run(sys.executable, "-c", FIREWALL, "drop")
    return lambda: void(host.run(sys.executable, "-c", FIREWALL, "accept"))


def full_queue(host: Namespace) -> Callable[[], None]:
    # Nothing of that size fits into it.
    limits = ("rate", "8kbit", "burst", "200", "limit", "200")
    host.run("tc", "qdisc", "add", "dev", Wire.DEVICE, "root", "tbf", *limits)
    return lambda: void(host.run("tc", "qdisc", "del", "dev", Wire.DEVICE, "root"))


def no_way(host: Namespace) -> Callable[[], None]:
    host.run("ip", "route", "add", "prohibit", f"{Wire.V4[0]}/32")
    return lambda: void(host.run("ip", "route", "del", "prohibit", f"{Wire.V4[0]}/32"))


def void(_: object) -> None:
    pass


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (link_down, "send_ENETUNREACH"),
        (firewall, "send_EPERM"),
        (full_queue, "send_ENOBUFS"),
        (no_way, "send_EACCES"),
    ],
    ids=["link down", "firewall", "full queue", "prohibited"],
)
def test_what_the_kernel_refuses_is_counted_and_costs_no_turns_and_then_the_session_goes_on(
    wire: Wire, fault: Callable[[Namespace], Callable[[], None]], name: str
) -> None:
    """Fault 31."""

    @in_real_time
    async def test() -> None:
        async with tunnel(wire) as ends:
            undo = fault(wire.hosts[1])
            before = ends.client.stats()
            for _ in range(PACKETS):
                await ends.client_tun.send(LARGE)
            while ends.client.stats().udp.get(name, 0) < PACKETS:
                await trio.sleep(0.01)
            steps = Steps()
            trio.lowlevel.add_instrument(steps)
            # Nothing has to be done for seconds to come, so that whatever happens is an attempt that fails again.
            await trio.sleep(0.5)
            trio.lowlevel.remove_instrument(steps)
            assert steps.count <= 10
            during = ends.client.stats()
            assert during.udp[name] == PACKETS, "each datagram was tried once"
            assert during.timer_wakes - before.timer_wakes <= 2
            undo()
            assert await ends.attempts() <= 10, "within 1 s"
            await ends.exchange()
            peer = ends.client.stats().peers[0].tunnel
            assert peer.initiations_sent == 1 and peer.sessions == 1
            assert ends.gateway.stats().udp["received"] < 20, "what was refused is lost, not kept"

    test()


def test_a_client_whose_address_changes_is_found_again_by_its_next_packet(wire: Wire) -> None:
    """Fault 32."""

    @in_real_time
    async def test() -> None:
        async with tunnel(wire) as ends:
            assert ends.gateway.stats().peers[0].endpoint == (Wire.V4[1], ends.client.listen_port)
            host = wire.hosts[1]
            host.run("ip", "address", "del", f"{Wire.V4[1]}/24", "dev", Wire.DEVICE)
            await ends.client_tun.send(LARGE)
            while "send_ENETUNREACH" not in ends.client.stats().udp:
                await trio.sleep(0.01)
            host.run("ip", "address", "add", "192.0.2.77/24", "dev", Wire.DEVICE)
            await ends.exchange()
            assert ends.gateway.stats().peers[0].endpoint == ("192.0.2.77", ends.client.listen_port)
            assert ends.client.stats().peers[0].tunnel.initiations_sent == 1

    test()


def test_another_default_route_takes_the_very_next_packet(wire: Wire) -> None:
    """Fault 32: the gateway is behind both cables, and the client's way to it changes from one to the other.

    The client may go on from the address that the gateway has reached, as it still has it: this process watches the
    routes of its own network namespace (tests/interop/test_namespace_addresses.py has the rest).
    """
    gateway, client = wire.hosts
    ends = ("second", "type", "veth", "peer", "name", "second", "netns", client.name)
    gateway.run("ip", "link", "add", *ends)
    for host, address in ((gateway, "198.51.100.1/24"), (client, "198.51.100.2/24")):
        host.run("ip", "address", "add", address, "dev", "second")
        host.run("ip", "link", "set", "second", "up")
        for name in ("all", Wire.DEVICE, "second"):
            host.run("sysctl", "-qw", f"net.ipv4.conf.{name}.rp_filter=0")
    gateway.run("ip", "address", "add", "203.0.113.1/32", "dev", "lo")
    # The kernel chooses the source of the answers, by the route that they take.
    for address, device in ((Wire.V4[1], Wire.DEVICE), ("198.51.100.2", "second")):
        gateway.run("ip", "route", "add", f"{address}/32", "dev", device, "src", "203.0.113.1")
    client.run("ip", "route", "add", "default", "via", Wire.V4[0])

    @in_real_time
    async def test() -> None:
        async with tunnel(wire, "203.0.113.1") as ends:
            port = ends.client.listen_port
            assert ends.gateway.stats().peers[0].endpoint == (Wire.V4[1], port)
            for way, address in (("198.51.100.1", "198.51.100.2"), (Wire.V4[0], Wire.V4[1])) * 5:
                client.run("ip", "route", "replace", "default", "via", way)
                await ends.exchange()
                assert ends.gateway.stats().peers[0].endpoint in ((address, port), (Wire.V4[1], port))
            assert ends.client.stats().peers[0].tunnel.initiations_sent == 1
            assert not {name for name in ends.client.stats().udp if name != name.lower()}

    test()


# The command


def test_a_deleted_device_ends_the_service_with_a_failure_and_the_manager_hears_of_it(tmp_path: Path) -> None:
    """Fault 30, between a manager that would start it again and a peer that goes on."""
    with (
        Manager(tmp_path / "notify") as manager,
        two_ends(tmp_path, environment=manager.environment, keepalive=1) as ends,
    ):
        assert ends.ping() == 1
        host = ends.wire.hosts[CLIENT_HOST]
        host.run("ip", "link", "delete", "dev", "cl0")
        wait_for(lambda: ends.client.returncode is not None, "connlib up to end")
        assert ends.client.returncode == 1
        assert ends.client.output().splitlines()[-1].startswith("connlib: the TUN device cl0 was deleted; ")
        manager.hear_until(STOPPING="1")
        again = start_up(host, tmp_path / "cl0.toml")
        try:
            assert ends.ping() == 1
            assert again.stop() == 0
        finally:
            if again.returncode is None:
                again.stop()


def received(host: Namespace) -> int:
    """How many datagrams came to sockets of the namespace."""
    names, values = re.findall(r"^Udp: (.*)$", host.run("cat", "/proc/net/snmp"), re.MULTILINE)
    return int(dict(zip(names.split(), values.split(), strict=True))["InDatagrams"])


def network(host: Namespace) -> list[str]:
    """Links, addresses, routes and rules of a namespace, as `ip` shows them."""
    shown = [host.run("ip", "-o", "address"), host.run("ip", "rule"), host.run("ip", "-6", "rule")]
    shown += [host.run("ip", family, "route", "show", "table", "all") for family in ("-4", "-6")]
    return [line for text in shown for line in text.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_sends_nothing_and_leaves_no_route_address_or_rule(
    tmp_path: Path, number: signal.Signals
) -> None:
    with two_ends(tmp_path) as ends:
        gateway, client = ends.wire.hosts
        assert ends.ping() == 1
        assert [line for line in network(client) if "cl0" in line]
        before = received(gateway)
        assert ends.client.stop(number) == 0
        assert received(gateway) == before
        assert not [line for line in network(client) if "cl0" in line or "10.9." in line]
        # Those that every system has.
        assert len(client.run("ip", "rule").splitlines()) == 3


def test_without_a_descriptor_left_the_tunnel_goes_on_and_a_reload_waits_for_better_times(
    tmp_path: Path,
) -> None:
    """Fault 34."""
    with two_ends(tmp_path, options=("--metrics", "0")) as ends:
        host = ends.wire.hosts[CLIENT_HOST]
        assert ends.ping() == 1
        port = re.search(r"metrics at http://127\.0\.0\.1:(\d+)/", ends.client.output())
        assert port is not None
        pid = str(ends.client.pid)
        (before,) = host.run(
            "prlimit", "--pid", pid, "--nofile", "--noheadings", "--raw", "--output", "SOFT"
        ).split()
        # Standard streams are all that could be opened now, and they are open.
        host.run("prlimit", "--pid", pid, "--nofile=3:")
        assert ends.ping(50) == 50
        file = tmp_path / "cl0.toml"
        changed = file.read_text().replace('"10.9.0.2/24"', '"10.9.0.2/24", "10.9.1.2/32"')
        private_file(file, changed)
        ends.client.send(signal.SIGHUP)
        wait_for(lambda: "cl0: not reloaded; nothing has changed" in ends.client.output(), "the refusal")
        assert (
            "cannot read it: too many open files; raise the limit of open files: ulimit -n"
            in ends.client.output()
        )
        with host.make_socket(socket.AF_INET, socket.SOCK_STREAM) as scrape:
            scrape.settimeout(10)
            scrape.connect(("127.0.0.1", int(port[1])))
            scrape.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            wait_for(lambda: "cannot be accepted: Too many open files" in ends.client.output(), "a warning")
            assert ends.ping(20) == 20
            # One attempt a pause, and not one a turn of the loop.
            assert ends.client.output().count("cannot be accepted") < 100
            host.run("prlimit", "--pid", pid, f"--nofile={before}:")
            assert scrape.recv(100).startswith(b"HTTP/1.1 200 ")
        ends.client.send(signal.SIGHUP)
        wait_for(lambda: "cl0: reloaded: 1 change" in ends.client.output(), "the reload")
        assert ends.ping() == 1
        assert ends.client.output().count("session established") == 1
