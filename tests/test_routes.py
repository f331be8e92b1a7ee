"""Routes: a node forgets from where it sends when the machine would send from elsewhere, and not before."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any, cast

import pytest
import trio

from connlib import Node, routes
from connlib.routes import forget_stale_sources
from interop.machine import own_namespace
from interop.netns import Namespace


class Told:
    """A node as far as this is about it: with these peers."""

    def __init__(self, *endpoints: tuple[str, int]) -> None:
        self._endpoints = dict(enumerate(endpoints))
        self.told = 0

    def endpoints(self) -> Any:
        return self._endpoints

    def forget_sources(self) -> None:
        self.told += 1


def _network(host: Namespace) -> None:
    """Two ways out, the first of which is the default route."""
    for number in (1, 2):
        host.run("ip", "link", "add", f"way{number}", "type", "veth", "peer", "name", f"end{number}")
        host.run("ip", "address", "add", f"10.{number}.0.1/24", "dev", f"way{number}")
        for end in ("way", "end"):
            host.run("ip", "link", "set", f"{end}{number}", "up")
    host.run("ip", "route", "add", "default", "via", "10.1.0.9")


async def _times_told(node: Told, mark: int, *steps: Callable[[], object]) -> list[int]:
    """How often the node was told after each step."""
    counts = []
    looked = trio.Event()

    def set_up(probe: socket.socket) -> None:
        if mark:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        looked.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(forget_stale_sources, cast(Node, node), set_up)
        for step in (lambda: None, *steps):
            looked = trio.Event()
            step()
            with trio.fail_after(20):
                await looked.wait()
            # What it saw, it told at once: between the two nobody else runs.
            counts.append(node.told)
        nursery.cancel_scope.cancel()
    return counts[1:]


def test_a_node_is_told_of_another_way_out_and_not_of_other_changes() -> None:
    with own_namespace("clR") as host, host.entered():
        _network(host)
        node = Told(("10.1.0.7", 51820))
        told = trio.run(
            _times_told,
            node,
            0,
            lambda: host.run("ip", "address", "add", "10.1.0.2/24", "dev", "way1"),
            lambda: host.run("ip", "route", "add", "10.9.0.0/16", "via", "10.2.0.9"),
            lambda: host.run("ip", "route", "replace", "default", "via", "10.2.0.9"),
            lambda: host.run("ip", "route", "add", "10.1.0.7/32", "via", "10.2.0.9"),
            lambda: host.run("ip", "link", "set", "way1", "mtu", "1400"),
        )
        assert told == [0, 0, 1, 2, 2]


def test_the_way_is_that_of_marked_datagrams() -> None:
    with own_namespace("clR") as host, host.entered():
        _network(host)
        host.run("ip", "route", "add", "default", "via", "10.2.0.9", "table", "77")
        told = trio.run(
            _times_told,
            Told(),
            0x77,
            lambda: host.run("ip", "rule", "add", "fwmark", "0x78", "table", "77"),
            lambda: host.run("ip", "rule", "add", "fwmark", "0x77", "table", "77"),
        )
        assert told == [0, 1]


async def _until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.01)


def test_for_want_of_descriptors_nothing_is_forgotten_and_what_changes_is_noticed_later() -> None:
    node, asked, scarce = Told(("10.1.0.7", 51820)), 0, False

    def set_up(_probe: socket.socket) -> None:
        nonlocal asked
        asked += 1
        if scarce:
            raise OSError(errno.EMFILE, "Too many open files")

    async def main(host: Namespace) -> None:
        nonlocal scarce
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forget_stale_sources, cast(Node, node), set_up)
            await _until(lambda: asked > 0)
            scarce = True
            before = asked
            host.run("ip", "link", "set", "way1", "mtu", "1400")
            # It tries again by itself, whoever tells of nothing else.
            await _until(lambda: asked > before + 1)
            assert node.told == 0
            host.run("ip", "route", "replace", "default", "via", "10.2.0.9")
            host.run("ip", "route", "add", "10.1.0.7/32", "via", "10.2.0.9")
            before = asked
            await _until(lambda: asked > before)
            assert node.told == 0
            scarce = False
            await _until(lambda: node.told == 1)
            nursery.cancel_scope.cancel()

    with own_namespace("clR") as host, host.entered():
        _network(host)
        trio.run(main, host)


def test_who_has_no_descriptor_to_be_told_by_waits_for_one_and_forgets_what_may_have_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a change of the port, say, which starts it anew."""
    node, failures = Told(("10.1.0.7", 51820)), 2
    opened = routes.open_notices

    def open_notices(groups: int) -> socket.socket:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(groups)

    monkeypatch.setattr(routes, "open_notices", open_notices)

    async def main(host: Namespace) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forget_stale_sources, cast(Node, node), lambda _probe: None)
            await _until(lambda: node.told == 1)
            assert failures == 0
            host.run("ip", "route", "add", "10.1.0.7/32", "via", "10.2.0.9")
            await _until(lambda: node.told == 2)
            nursery.cancel_scope.cancel()

    with own_namespace("clR") as host, host.entered():
        _network(host)
        trio.run(main, host)


def test_others_have_their_turn_while_many_peers_are_asked_for() -> None:
    with own_namespace("clR") as host, host.entered():
        _network(host)
        node = Told(*((f"10.1.0.{number}", 51820) for number in range(2, 202)))
        turns, asked = 0, 0

        def set_up(_probe: socket.socket) -> None:
            nonlocal asked
            asked += 1

        async def others() -> None:
            nonlocal turns
            while asked < 202:
                await trio.lowlevel.checkpoint()
                turns += 1

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(forget_stale_sources, cast(Node, node), set_up)
                await others()
                nursery.cancel_scope.cancel()

        trio.run(main)
        assert turns >= 3


def test_a_system_that_does_not_tell_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_NETLINK")
    trio.run(forget_stale_sources, cast(Node, Told()), lambda _probe: None)
