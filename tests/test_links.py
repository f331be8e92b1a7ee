"""Changes of a device: all or nothing whoever is cancelled, and no more than what changes."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_interface, ip_network
from typing import Any, cast

import anyio
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from connlib import DeviceError, InterfaceConfig, PeerConfig, PrivateKey
from connlib._rtnetlink import RouteSocket, _message
from connlib._threads import ThreadCall
from connlib.links import LinkState, _Link, _Netlink, _wait_for, wanted_routes
from connlib.tun import make_device
from helpers_netns import in_namespace, ip, run_body

PATIENCE = 30.0


class Gate:
    """A call that ends when it is let through."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.ended = False

    def __call__(self) -> None:
        assert self.opened.wait(PATIENCE)
        self.ended = True


async def cancelled_by_task_cancel(gate: Gate) -> None:
    waiter = asyncio.create_task(_wait_for(ThreadCall(gate, "gate")))
    await asyncio.sleep(0)
    for _ in range(3):
        waiter.cancel()
        await asyncio.sleep(0.001)
        assert not waiter.done()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await waiter


async def cancelled_by_wait_for(gate: Gate) -> None:
    threading.Timer(0.05, gate.opened.set).start()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(_wait_for(ThreadCall(gate, "gate")), 0.001)


@pytest.mark.parametrize("cancelled", [cancelled_by_task_cancel, cancelled_by_wait_for])
def test_asyncio_s_own_cancellation_waits_for_the_end_too(
    cancelled: Callable[[Gate], asyncio.Future[None]],
) -> None:
    gate = Gate()
    asyncio.run(cancelled(gate))  # type: ignore[arg-type]
    assert gate.ended


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_scope_s_cancellation_waits_for_the_end(backend: str) -> None:
    gate = Gate()

    async def main() -> None:
        threading.Timer(0.05, gate.opened.set).start()
        with anyio.move_on_after(0.001) as scope:
            await _wait_for(ThreadCall(gate, "gate"))
            await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught

    anyio.run(main, backend=backend)
    assert gate.ended


def test_worker_threads_that_are_all_taken_do_not_matter() -> None:
    gate = Gate()
    gate.opened.set()

    async def main() -> None:
        trio.to_thread.current_default_thread_limiter().total_tokens = 1
        let_go = threading.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, let_go.wait, PATIENCE)
            await trio.testing.wait_all_tasks_blocked()
            try:
                with trio.fail_after(PATIENCE / 2):
                    await _wait_for(ThreadCall(gate, "gate"))
            finally:
                let_go.set()

    trio.run(main)
    assert gate.ended


# What is around a device


def prefixes(*texts: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(text) for text in texts)


def peers_with(*allowed: Sequence[IPv4Network | IPv6Network]) -> tuple[PeerConfig, ...]:
    return tuple(
        PeerConfig(public_key=PrivateKey.generate().public_key(), allowed_ips=tuple(each)) for each in allowed
    )


KEY = PrivateKey.generate()


def test_routes_are_for_what_no_address_brings_along() -> None:
    config = InterfaceConfig(
        private_key=KEY,
        addresses=(ip_interface("10.0.0.1/24"), ip_interface("fd00::1/64")),
        peers=peers_with(
            prefixes("10.0.0.2/32", "10.0.0.0/23", "10.0.0.0/24", "10.0.1.0/24", "0.0.0.0/0"),
            prefixes("fd00::2/128", "fd00::/63", "fd00:0:0:1::/64", "::/0", "::ffff:a00:2/128"),
        ),
    )
    assert list(wanted_routes(config)) == list(
        prefixes("10.0.0.0/23", "10.0.1.0/24", "fd00::/63", "fd00:0:0:1::/64", "::ffff:a00:2/128")
    )
    assert not wanted_routes(dataclasses.replace(config, routes=False))


def test_an_address_that_changes_changes_the_routes_of_peers_that_stay() -> None:
    config = InterfaceConfig(
        private_key=KEY,
        addresses=(ip_interface("10.0.0.1/24"),),
        peers=peers_with(prefixes("10.0.0.2/32"), prefixes("10.1.0.2/32")),
    )
    other = dataclasses.replace(config, addresses=(ip_interface("10.1.0.1/24"),))
    assert list(wanted_routes(other, (config, wanted_routes(config)))) == list(prefixes("10.0.0.2/32"))
    none = dataclasses.replace(config, routes=False)
    assert not wanted_routes(none, (config, wanted_routes(config)))


@settings(deadline=None)
@given(st.data())
def test_routes_that_follow_from_those_of_before_are_those_that_are_wanted(data: st.DataObject) -> None:
    """Prefixes that move from peer to peer, peers that come, go and change places, and addresses that change."""
    pool = prefixes(*(f"10.0.{n}.0/24" for n in range(6)))
    everybody = peers_with(*([] for _ in range(3)))
    known = None
    for _ in range(3):
        chosen = data.draw(st.lists(st.sampled_from(everybody), unique_by=id))
        owners = [data.draw(st.sampled_from([None, *chosen])) for _ in pool]
        peers = []
        for peer in chosen:
            mine = tuple(prefix for prefix, owner in zip(pool, owners, strict=True) if owner is peer)
            before = (
                next((each for each in known[0].peers if each.public_key == peer.public_key), peer)
                if known
                else peer
            )
            # Those that stay as they are stay the same objects, as a program's do.
            peers.append(
                before if before.allowed_ips == mine else dataclasses.replace(peer, allowed_ips=mine)
            )
        config = InterfaceConfig(
            private_key=KEY,
            addresses=(ip_interface(data.draw(st.sampled_from(["10.0.3.1/24", "10.0.0.1/22"]))),),
            routes=data.draw(st.sampled_from([True, True, False])),
            peers=tuple(peers),
        )
        routes = wanted_routes(config, known)
        assert routes.keys() == wanted_routes(config).keys()
        known = config, routes


class Asked:
    """Stands for the kernel's sockets: which routes were asked for, in which calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []

    def change(self, verb: str, index: int, several: Sequence[object]) -> Iterator[tuple[object, int]]:
        self.calls.append((verb, list(map(str, several))))
        return iter(())


def test_of_a_thousand_routes_the_kernel_is_asked_for_the_one_that_is_new() -> None:
    many = dict.fromkeys(ip_network((0x0A000000 + number, 32)) for number in range(1000))
    asked = Asked()
    link = _Link(_Netlink(None, cast(RouteSocket, asked)), 7, "wg0")
    have = LinkState(mtu=1420, routes=many)
    link.change(have, LinkState(mtu=1420, routes={**many, ip_network("10.9.0.0/16"): None}))
    assert asked.calls == [("add", ["10.9.0.0/16"])]
    gone, *rest = many
    link.change(have, LinkState(mtu=1420, routes=dict.fromkeys(rest)))
    assert asked.calls[1:] == [("del", [str(gone)])]


@pytest.mark.parametrize(("verb", "undone_by"), [("add", "del"), ("del", "add")])
def test_routes_are_undone_also_where_the_answer_of_the_kernel_is_lost(verb: str, undone_by: str) -> None:
    class Deaf(Asked):
        def change(self, verb: str, index: int, several: Sequence[object]) -> Iterator[tuple[object, int]]:
            answer = super().change(verb, index, several)
            if len(self.calls) == 1:
                raise OSError(errno.ENOBUFS, "No buffer space available")
            return answer

    asked = Deaf()
    link = _Link(_Netlink(None, cast(RouteSocket, asked)), 7, "wg0")
    without = LinkState(mtu=1420)
    with_one = LinkState(mtu=1420, routes={ip_network("10.9.0.0/16"): None})
    have, want = (without, with_one) if verb == "add" else (with_one, without)
    with pytest.raises(DeviceError):
        link.change(have, want)
    link.undo(have)
    assert asked.calls == [(verb, ["10.9.0.0/16"]), (undone_by, ["10.9.0.0/16"])]


def test_a_change_of_routes_opens_no_socket_for_addresses_and_the_other_way_round() -> None:
    old = LinkState(mtu=1420)
    for change, wanted in (
        ({"routes": {ip_network("10.9.0.0/16"): None}}, (False, True)),
        ({"mtu": 1400}, (True, False)),
        ({"dns": ("10.0.0.9",)}, (False, False)),
    ):
        new = dataclasses.replace(old, **cast(Any, change))
        with _Netlink.opened("wg0", old, new) as netlink:
            assert (netlink.links is not None, netlink.routes is not None) == wanted


@in_namespace
def test_answers_that_nobody_has_waited_for_are_not_taken_for_others() -> None:
    make_device("there")
    ip("link", "set", "there", "up")
    index = socket.if_nametoindex("there")
    with RouteSocket() as routes:
        routes._socket.send(_message("del", index, ip_network("10.8.0.0/16"), 77))
        assert list(routes.change("add", index, prefixes("10.9.0.0/16"))) == []
        assert [code for _, code in routes.change("add", index, prefixes("10.9.0.0/16"))] == [errno.EEXIST]


@in_namespace
def test_many_routes_go_to_the_kernel_at_once_and_each_error_is_its_own() -> None:
    make_device("there")  # whose descriptor ends with this process
    ip("link", "set", "there", "up")
    index = socket.if_nametoindex("there")
    many = [
        *(ip_network((0x0A000000 + number, 32)) for number in range(300)),
        *prefixes("fd00::/64", "fd00:1::/64"),
    ]
    sent: list[bytes] = []
    with RouteSocket() as routes:
        real = routes._socket
        routes._socket = cast(Any, Sending(real, sent))
        assert list(routes.change("add", index, many)) == []
        assert len(sent) == 3
        lines = (
            ip("route", "show", "dev", "there").splitlines()
            + ip("-6", "route", "show", "dev", "there").splitlines()
        )
        assert "10.0.0.7 scope link" in map(str.strip, lines)
        assert sum(line.startswith("10.0.") for line in lines) == 300
        taken = prefixes("10.0.0.7/32", "10.9.0.0/16", "fd00::/64")
        assert list(routes.change("add", index, taken)) == [
            (taken[0], errno.EEXIST),
            (taken[2], errno.EEXIST),
        ]
        assert list(routes.change("del", index, [*many, *taken])) == [
            (taken[0], errno.ESRCH),
            (taken[2], errno.ESRCH),
        ]
        assert "10." not in ip("route", "show", "dev", "there")


class Sending:
    """A socket that writes down what is sent."""

    def __init__(self, real: socket.socket, sent: list[bytes]) -> None:
        self._real, self._sent = real, sent

    def send(self, data: bytes) -> int:
        self._sent.append(data)
        return self._real.send(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


run_body(globals())
