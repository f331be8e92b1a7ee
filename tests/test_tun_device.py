"""Real TUN devices. Each test runs as root, in a network namespace of its own."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from typing import Any

import anyio
import trio

from connlib import ConfigError, ConnlibError, DeviceError, InterfaceConfig
from connlib.driver import MemoryTun, open_interface
from connlib.tun import make_device
from helpers_driver import CLIENT, GATEWAY, client_config, gateway_config, loopback_socket, packet
from helpers_netns import in_namespace, ip, run_body

NAME = "wgtest0"


def device_config(**changes: Any) -> InterfaceConfig:
    peer = replace(
        client_config(("127.0.0.1", 9)).peers[0],
        allowed_ips=tuple(map(ip_network, ("10.0.0.1/32", "10.50.0.0/16", "fd00:1::/64", "fd00:2::/64"))),
    )
    config = replace(
        client_config(),
        peers=(peer,),
        name=NAME,
        mtu=1380,
        addresses=(ip_interface("10.0.0.2/24"), ip_interface("fd00:1::2/64")),
    )
    return replace(config, **changes)


def links() -> set[str]:
    return {link["ifname"] for link in json.loads(ip("-j", "link"))}


def addresses(name: str = NAME) -> set[str]:
    found = json.loads(ip("-j", "address", "show", "dev", name))[0]["addr_info"]
    return {f"{one['local']}/{one['prefixlen']}" for one in found if one["scope"] == "global"}


def routes(name: str = NAME) -> set[str]:
    """What we added: not what the kernel makes of addresses."""
    both = json.loads(ip("-j", "route", "show", "dev", name)) + json.loads(
        ip("-j", "-6", "route", "show", "dev", name)
    )
    return {route["dst"] for route in both if route.get("protocol") != "kernel"}


def link(name: str = NAME) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ip("-j", "link", "show", "dev", name))[0]
    return found


def error_of(function: Callable[[], Any]) -> ConnlibError:
    try:
        function()
    except ConnlibError as error:
        assert "\n" not in str(error) and "; " in str(error), str(error)
        return error
    raise AssertionError("nothing was raised")


def briefly(config: InterfaceConfig) -> None:
    async def main() -> None:
        async with open_interface(config):
            pass

    trio.run(main)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        logging.getLogger("connlib").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@in_namespace
def test_a_device_is_set_up_and_leaves_nothing() -> None:
    async def main() -> None:
        async with open_interface(device_config()) as interface:
            assert interface.name == NAME
            assert link()["mtu"] == 1380
            assert "UP" in link()["flags"]
            assert addresses() == {"10.0.0.2/24", "fd00:1::2/64"}
            # 10.0.0.1/32 and fd00:1::/64 came with the addresses.
            assert routes() == {"10.50.0.0/16", "fd00:2::/64"}
            assert (
                f":{interface.listen_port} "
                in subprocess.run(["ss", "-uln"], capture_output=True, text=True).stdout
            )

    for backend in ("trio", "asyncio"):
        before = descriptors()
        anyio.run(main, backend=backend)
        assert links() == {"lo"}
        assert descriptors() == before


@in_namespace
def test_a_device_without_a_name_gets_one() -> None:
    async def main() -> None:
        async with (
            open_interface(replace(gateway_config(), listen_port=0, routes=False)) as one,
            open_interface(replace(gateway_config(), listen_port=0, routes=False)) as two,
        ):
            assert {one.name, two.name} <= links()
            assert one.name.startswith("connlib") and one.name != two.name

    trio.run(main)


@in_namespace
def test_a_device_has_room_for_a_burst() -> None:
    fd, name = make_device(None)
    try:
        assert json.loads(ip("-j", "link", "show", "dev", name))[0]["txqlen"] == 1000
    finally:
        os.close(fd)


@in_namespace
def test_packets_cross_the_device_both_ways() -> None:
    tun = MemoryTun()

    async def echo() -> None:
        """Answers pings, as the machine behind the gateway."""
        while True:
            request = await tun.receive()
            if request[9] == 1 and request[20] == 8:
                # An echo reply is the request with the addresses swapped, type 0, and a checksum that is 0x800 more.
                checksum = int.from_bytes(request[22:24], "big") + 0x800
                checksum = (checksum & 0xFFFF) + (checksum >> 16)
                header = request[:12] + request[16:20] + request[12:16]
                await tun.send(header + b"\0\0" + checksum.to_bytes(2, "big") + request[24:])

    async def main() -> None:
        with loopback_socket() as udp:
            async with (
                open_interface(gateway_config(), tun=tun, udp=udp) as gateway,
                open_interface(
                    device_config(peers=(replace(device_config().peers[0], endpoint=udp.getsockname()),))
                ) as client,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(echo)
                for size in (0, 56, 1352):
                    command = ["ping", "-c", "3", "-i", "0.01", "-W", "5", "-s", str(size), GATEWAY]
                    await trio.run_process(command, capture_stdout=True)
                assert gateway.stats().peers[0].tunnel.rx_packets == 9
                assert client.stats().tun["packets_written"] == 9
                nursery.cancel_scope.cancel()

    trio.run(main)


@in_namespace
def test_cancellation_at_any_await_leaves_no_device() -> None:
    class CancelAt(trio.abc.Instrument):
        def __init__(self, step: int) -> None:
            self.steps_left = step
            self.scope = trio.CancelScope()

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.steps_left -= 1
            if self.steps_left == 0:
                self.scope.cancel()

    async def everything() -> None:
        async with open_interface(device_config()) as interface:
            await trio.sleep(0)
            await interface.apply(device_config(addresses=(ip_interface("10.0.0.3/24"),), mtu=1400))
            await trio.sleep(0)

    trio.run(everything)
    before = descriptors()
    step = completed = 0
    while completed < 5:
        step += 1
        instrument = CancelAt(step)

        async def main(instrument: CancelAt = instrument) -> None:
            with trio.fail_after(30), instrument.scope:
                await everything()

        trio.run(main, instruments=[instrument])
        completed = 0 if instrument.scope.cancelled_caught else completed + 1
        assert links() == {"lo"}, step
        assert descriptors() == before, step
    assert step > 10


@in_namespace
def test_a_name_that_is_taken_is_one_clear_error_and_the_device_is_left_alone() -> None:
    ip("link", "add", "dummy7", "type", "veth")
    ip("tuntap", "add", "dev", "tun7", "mode", "tun")
    before = links()
    for name in ("dummy7", "tun7", "lo"):
        error = error_of(lambda name=name: briefly(device_config(name=name)))  # type: ignore[misc]
        assert str(error).startswith(f"there is a network device '{name}' already; ")
        assert links() == before

    async def twice() -> None:
        async with open_interface(device_config()), open_interface(device_config()):
            pass

    assert "already" in str(error_of(lambda: trio.run(twice)))
    assert links() == before


@in_namespace
def test_no_permission_is_one_clear_error() -> None:
    before = descriptors()
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    error = error_of(lambda: briefly(device_config()))
    assert isinstance(error, DeviceError)
    assert str(error) in (
        f"no permission to make the TUN device '{NAME}'; run as root or with CAP_NET_ADMIN",
        "no permission to open /dev/net/tun; run as root or with CAP_NET_ADMIN",
    )
    assert descriptors() == before
    privileged = error_of(lambda: briefly(device_config(listen_port=53)))
    assert "no permission to bind UDP port 53; " in str(privileged)


@in_namespace
def test_a_port_that_is_taken_leaves_no_device() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        error = error_of(lambda: briefly(device_config(listen_port=port)))
    assert f"UDP port {port} is in use; " in str(error)
    assert links() == {"lo"}


@in_namespace
def test_a_deleted_device_ends_the_interface_at_once() -> None:
    async def main() -> None:
        async with open_interface(device_config()) as interface:
            await trio.run_process(["ip", "link", "del", interface.name])
            await trio.sleep(1)
            raise AssertionError("nobody noticed")

    before = descriptors()
    error = error_of(lambda: trio.run(main))
    assert str(error).startswith(f"the TUN device {NAME} was deleted; ")
    assert descriptors() == before


@in_namespace
def test_a_device_that_is_down_loses_packets_until_it_is_up_again() -> None:
    async def main() -> None:
        gateway_tun = MemoryTun()
        warnings = Warnings()
        with loopback_socket() as udp:
            config = device_config(peers=(replace(device_config().peers[0], endpoint=udp.getsockname()),))
            async with (
                open_interface(gateway_config(), tun=gateway_tun, udp=udp),
                open_interface(config) as client,
            ):
                client.initiate_handshake(config.peers[0].public_key)
                while not client.stats().peers[0].tunnel.sessions:
                    await trio.sleep(0.01)
                ip("link", "set", NAME, "down")
                await gateway_tun.send(packet(GATEWAY, CLIENT))
                while "EIO" not in client.stats().tun:
                    await trio.sleep(0.01)
                ip("link", "set", NAME, "up")
                await gateway_tun.send(packet(GATEWAY, CLIENT))
                while client.stats().tun["packets_written"] == 0:
                    await trio.sleep(0.01)
                assert client.stats().tun["EIO"] == 1
        assert len(warnings.lines) == 1 and warnings.lines[0].startswith(f"{NAME} is down")

    trio.run(main)


@in_namespace
def test_apply_changes_addresses_routes_and_mtu() -> None:
    async def main() -> None:
        async with open_interface(device_config()) as interface:
            peer = device_config().peers[0]
            await interface.apply(
                device_config(
                    mtu=1300,
                    addresses=(ip_interface("10.0.0.2/24"), ip_interface("10.8.0.2/24")),
                    peers=(
                        replace(peer, allowed_ips=(ip_network("10.60.0.0/16"), ip_network("10.8.0.0/24"))),
                    ),
                )
            )
            assert addresses() == {"10.0.0.2/24", "10.8.0.2/24"}
            assert routes() == {"10.60.0.0/16"}
            assert link()["mtu"] == 1300
            # The kernel removes more than it is told to: the second address of a prefix, and, without any, all routes.
            await interface.apply(
                device_config(addresses=(ip_interface("10.0.0.7/24"), ip_interface("10.0.0.8/24")))
            )
            assert addresses() == {"10.0.0.7/24", "10.0.0.8/24"}
            await interface.apply(device_config(addresses=(ip_interface("10.0.0.8/24"),)))
            assert addresses() == {"10.0.0.8/24"}
            assert routes() == {"10.50.0.0/16", "fd00:1::/64", "fd00:2::/64"}
            await interface.apply(device_config(addresses=()))
            assert routes() == {"10.0.0.1", "10.50.0.0/16", "fd00:1::/64", "fd00:2::/64"}
            await interface.apply(device_config(routes=False, addresses=()))
            assert routes() == set()

    trio.run(main)


@in_namespace
def test_an_apply_that_asyncio_cancels_is_done_or_undone() -> None:
    other = device_config(mtu=1300, addresses=(ip_interface("10.9.0.2/24"),))

    def state() -> tuple[Any, ...]:
        return addresses(), routes(), link()["mtu"]

    async def main() -> None:
        async with open_interface(device_config()) as interface:
            old = state()
            await interface.apply(other)
            new = state()
            assert old[0] != new[0] and old[2] != new[2]
            outcomes = set()
            for tenth_of_ms in range(0, 300, 10):
                await interface.apply(device_config())
                try:
                    await asyncio.wait_for(interface.apply(other), tenth_of_ms / 10_000)
                except asyncio.TimeoutError:
                    assert interface.config.mtu == 1380
                    assert state() == old
                else:
                    assert interface.config.mtu == 1300
                    assert state() == new
                outcomes.add(interface.config.mtu)
            assert 1380 in outcomes, "none was cancelled"

    asyncio.run(main())


@in_namespace
def test_an_apply_that_fails_changes_nothing() -> None:
    ip("link", "add", "dummy7", "type", "veth")
    ip("link", "set", "dummy7", "up")
    ip("route", "add", "10.70.0.0/16", "dev", "dummy7")

    async def main() -> None:
        peer = device_config().peers[0]
        clash = device_config(
            mtu=1300,
            addresses=(ip_interface("10.9.0.2/24"),),
            peers=(replace(peer, allowed_ips=(ip_network("10.60.0.0/16"), ip_network("10.70.0.0/16"))),),
        )
        async with open_interface(device_config()) as interface:
            before = addresses(), routes(), link()["mtu"]
            for bad, kind in ((clash, DeviceError), (device_config(name="other"), ConfigError)):
                try:
                    await interface.apply(bad)
                except kind as error:
                    text = str(error)
                else:
                    raise AssertionError("nothing was raised")
                if bad is clash:
                    assert text.startswith(
                        f"{NAME}: cannot add the route to 10.70.0.0/16: there is one already; "
                    )
                assert (addresses(), routes(), link()["mtu"]) == before
                assert interface.config == device_config()

    trio.run(main)


@in_namespace
def test_a_route_that_is_taken_leaves_no_device() -> None:
    ip("link", "add", "dummy7", "type", "veth")
    ip("link", "set", "dummy7", "up")
    ip("route", "add", "10.50.0.0/16", "dev", "dummy7")
    before = links()
    error = error_of(lambda: briefly(device_config()))
    assert str(error).startswith(f"{NAME}: cannot add the route to 10.50.0.0/16: there is one already; ")
    assert links() == before


@in_namespace
def test_default_routes_are_not_made_and_that_is_said() -> None:
    async def main() -> None:
        warnings = Warnings()
        both = (ip_network("0.0.0.0/0"), ip_network("::/0"))
        config = device_config(peers=(replace(device_config().peers[0], allowed_ips=both),))
        async with open_interface(config) as interface:
            assert routes() == set()
            assert len(warnings.lines) == 2 and "no route is made for 0.0.0.0/0" in warnings.lines[0]
            await interface.apply(config)
            assert len(warnings.lines) == 2

    trio.run(main)


@in_namespace
def test_a_system_without_ipv6_says_what_is_wrong() -> None:
    for which in ("all", "default"):
        with open(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6", "w") as knob:
            knob.write("1")
    error = error_of(lambda: briefly(device_config()))
    assert str(error).startswith(f"{NAME}: cannot add the address fd00:1::2/64: ")
    assert "IPv6 switched off" in str(error)
    assert links() == {"lo"}
    peer = replace(device_config().peers[0], allowed_ips=(ip_network("10.50.0.0/16"),))
    briefly(device_config(addresses=(ip_interface("10.0.0.2/24"),), peers=(peer,)))


@in_namespace
def test_a_device_of_the_callers_is_used_as_it_is() -> None:
    fd, name = make_device("mine")
    ip("address", "add", "10.0.0.2/24", "dev", name)
    ip("link", "set", name, "up")

    async def main() -> None:
        tun = MemoryTun()
        with loopback_socket() as udp:
            config = client_config(udp.getsockname())
            async with (
                open_interface(gateway_config(), tun=tun, udp=udp),
                open_interface(config, tun=fd) as client,
                await anyio.create_udp_socket(socket.AF_INET) as sender,
            ):
                assert client.name == "mine"
                await sender.sendto(b"hello", GATEWAY, 9)
                assert (await tun.receive()).endswith(b"hello")
        assert addresses("mine") == {"10.0.0.2/24"}

    trio.run(main)
    os.write(fd, packet(GATEWAY, CLIENT))
    os.close(fd)
    assert links() == {"lo"}


@in_namespace
def test_a_descriptor_that_is_set_up_otherwise_is_refused() -> None:
    import fcntl

    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, 0x4004_54CA, b"odd".ljust(16, b"\0") + (0x1002).to_bytes(2, "little") + bytes(22))  # TAP

    async def main() -> None:
        async with open_interface(device_config(), tun=fd):
            pass

    assert "IFF_TUN | IFF_NO_PI" in str(error_of(lambda: trio.run(main)))
    os.close(fd)


@in_namespace
def test_a_path_with_a_small_mtu_gets_every_packet_across() -> None:
    # Too small for a full datagram: the kernel cannot cut a buffer into such, and must fragment what goes one by one.
    ip("link", "set", "lo", "mtu", "1280")

    async def main() -> None:
        tun, client_tun = MemoryTun(4096), MemoryTun(4096)
        packets = [packet(CLIENT, GATEWAY, number.to_bytes(2, "big") * 690) for number in range(500)]
        with loopback_socket() as udp, loopback_socket() as client_udp:
            async with (
                open_interface(gateway_config(), tun=tun, udp=udp),
                open_interface(client_config(udp.getsockname()), tun=client_tun, udp=client_udp) as client,
            ):
                await client_tun.send(packets[0])
                await tun.receive()
                for one in packets:
                    client_tun.send_nowait(one)
                with trio.fail_after(20):
                    assert [await tun.receive() for _ in packets] == packets
                stats = client.stats().udp
                assert stats["segmentation_refused"] >= 1
                assert f"send_{errno.errorcode[errno.EMSGSIZE]}" not in stats

    trio.run(main)


@in_namespace
def test_the_device_is_made_in_the_namespace_of_the_calling_thread() -> None:
    import ctypes

    async def main() -> None:
        # A worker thread that stays in the namespace which this thread leaves now.
        await anyio.to_thread.run_sync(lambda: None)
        assert ctypes.CDLL(None).unshare(0x4000_0000) == 0
        async with open_interface(device_config()):
            assert addresses() == {"10.0.0.2/24", "fd00:1::2/64"}

    trio.run(main)


run_body(globals())
