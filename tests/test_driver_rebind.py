"""What `Interface.apply` changes of an interface's sockets while it is up, and of peers that stay."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from connlib import ConfigError, DeviceError, NodeConfig, PeerConfig, PrivateKey
from connlib._native import Tunnels
from connlib.driver import LoopClock, MemoryTun, MemoryUdp, open_interface
from helpers_driver import (
    CLIENT,
    CLIENT_HOST,
    CLIENT_KEY,
    GATEWAY,
    GATEWAY_HOST,
    GATEWAY_KEY,
    PORT,
    client_config,
    gateway_config,
    in_real_time,
    in_virtual_time,
    loopback_socket,
    open_pair,
    packet,
)

OTHER_PORT = 4242


@in_virtual_time
async def test_another_port_keeps_the_sessions_and_the_counters_and_frees_the_old_port() -> None:
    async with open_pair() as pair:
        await pair.exchange()
        before = pair.client.stats()
        diff = await pair.client.apply(dataclasses.replace(client_config(), listen_port=OTHER_PORT))
        assert diff.node == ("listen_port",)
        assert pair.client.listen_port == OTHER_PORT
        await pair.exchange()
        assert pair.gateway.stats().peers[0].endpoint == (CLIENT_HOST, OTHER_PORT), "the gateway follows"
        after = pair.client.stats()
        assert after.peers[0].tunnel.initiations_sent == before.peers[0].tunnel.initiations_sent
        assert after.udp["sent"] > before.udp["sent"] and after.udp["received"] > before.udp["received"]
        assert client_config().listen_port == 0, "the system's choice in memory is 51820"
        # The old port is another interface's now, which ours does not take away when it closes.
        async with open_interface(gateway_config(), tun=MemoryTun(), udp=pair.network.host(CLIENT_HOST)):
            await pair.client.apply(dataclasses.replace(client_config(), listen_port=OTHER_PORT + 1))
            await pair.exchange()
            assert (CLIENT_HOST, PORT) in pair.network._sockets


@in_virtual_time
async def test_port_zero_keeps_a_chosen_port_and_draws_one_in_place_of_a_named_one() -> None:
    async with open_pair() as pair:
        chosen = pair.client.listen_port
        assert not await pair.client.apply(client_config())
        assert pair.client.listen_port == chosen
        await pair.gateway.apply(gateway_config(listen_port=0))
        assert pair.gateway.listen_port != PORT
        await anyio.wait_all_tasks_blocked()
        assert (GATEWAY_HOST, PORT) not in pair.network._sockets


@in_virtual_time
async def test_a_port_in_use_changes_nothing() -> None:
    async with open_pair() as pair:
        await pair.exchange()
        other = pair.network.host(GATEWAY_HOST).open(OTHER_PORT)
        with pytest.raises(DeviceError):
            await pair.gateway.apply(gateway_config(listen_port=OTHER_PORT, peers=()))
        assert pair.gateway.config == gateway_config() and pair.gateway.listen_port == PORT
        await pair.exchange()
        other.close()


@in_virtual_time
async def test_a_port_that_was_had_is_given_back_when_the_configuration_is_refused() -> None:
    async with open_pair() as pair:
        low_order = dataclasses.replace(
            gateway_config().peers[0], public_key=type(CLIENT_KEY.public_key()).from_bytes(bytes(32))
        )
        with pytest.raises(ConfigError):
            await pair.gateway.apply(gateway_config(listen_port=OTHER_PORT, peers=(low_order,)))
        assert (GATEWAY_HOST, OTHER_PORT) not in pair.network._sockets
        await pair.exchange()


@in_virtual_time
async def test_a_rehearsal_is_of_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """With each key a node makes a computation: of a thousand peers that stay, none is made again."""
    rehearsed = []

    def tunnels(config: NodeConfig, *, now: float, unix_time: float) -> Tunnels:
        rehearsed.append([peer.public_key for peer in config.peers])
        return Tunnels(config, now=now, unix_time=unix_time)

    old, changed, new = (PrivateKey.generate().public_key() for _ in range(3))
    first = gateway_config(peers=(PeerConfig(public_key=old), PeerConfig(public_key=changed)))
    async with open_interface(first, tun=MemoryTun(), udp=MemoryUdp()) as interface:
        monkeypatch.setattr("connlib._nodeconfig.Tunnels", tunnels)
        peers = (first.peers[0], PeerConfig(public_key=changed, name="other"), PeerConfig(public_key=new))
        await interface.apply(dataclasses.replace(first, listen_port=OTHER_PORT, peers=peers))
        assert rehearsed == [[changed, new]]
        other_key = dataclasses.replace(
            interface.config, listen_port=OTHER_PORT + 1, private_key=PrivateKey.generate()
        )
        await interface.apply(other_key)
        assert rehearsed[1:] == [[old, changed, new]]


@pytest.mark.parametrize(("many", "in_thread"), [(16, False), (17, True)])
def test_the_keys_of_many_peers_are_worked_out_in_a_thread(
    many: int, in_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_in: list[bool] = []

    def tunnels(config: NodeConfig, *, now: float, unix_time: float) -> Tunnels:
        made_in.append(threading.current_thread() is not threading.main_thread())
        return Tunnels(config, now=now, unix_time=unix_time)

    async def main() -> None:
        monkeypatch.setattr("connlib._nodeconfig.Tunnels", tunnels)
        peers = tuple(PeerConfig(public_key=PrivateKey.generate().public_key()) for _ in range(many))
        keys = {peer.public_key for peer in peers}
        with loopback_socket() as udp:
            async with open_interface(gateway_config(peers=()), tun=MemoryTun(), udp=udp) as interface:
                assert set((await interface.apply(gateway_config(peers=peers))).added) == keys
                # Those that are made anew as well, and not when they only stay.
                diff = await interface.apply(gateway_config(peers=peers), anew=keys)
                assert set(diff.added) == set(diff.removed) == keys
                await interface.apply(gateway_config(peers=peers))

    anyio.run(main, backend="trio")
    assert made_in == [in_thread, in_thread, False]


def on_both_loops(body: Callable[[], Any]) -> None:
    for backend in ("trio", "asyncio"):

        async def bounded() -> None:
            with anyio.fail_after(60):
                await body()

        anyio.run(bounded, backend=backend)


def test_real_sockets_move_to_another_port_on_both_loops() -> None:
    async def body() -> None:
        gateway_tun, client_tun = MemoryTun(), MemoryTun()
        async with open_interface(gateway_config(listen_port=0), tun=gateway_tun) as gateway:
            endpoint = ("127.0.0.1", gateway.listen_port)
            async with open_interface(client_config(endpoint), tun=client_tun) as client:
                # The watch over the machine's routes, one for each interface, begins by itself.
                await anyio.wait_all_tasks_blocked()
                descriptors = len(os.listdir("/proc/self/fd"))
                for number in range(20):
                    with loopback_socket() as probe:
                        free = probe.getsockname()[1]
                    await client.apply(dataclasses.replace(client_config(endpoint), listen_port=free))
                    assert client.listen_port == free
                    sent = packet(CLIENT, GATEWAY, b"%d" % number)
                    await client_tun.send(sent)
                    assert await gateway_tun.receive() == sent
                await anyio.wait_all_tasks_blocked()
                assert len(os.listdir("/proc/self/fd")) <= descriptors, "the old sockets are closed"
                assert client.stats().peers[0].tunnel.initiations_sent == 1
                assert client.stats().udp["sent"] >= 21, "counted over all of them"

    on_both_loops(body)


@in_real_time
async def test_a_port_that_another_process_has_is_refused_with_its_reason() -> None:
    with loopback_socket() as taken:
        async with open_interface(gateway_config(listen_port=0), tun=MemoryTun()) as gateway:
            before = gateway.listen_port
            with pytest.raises(DeviceError, match="is in use") as raised:
                await gateway.apply(gateway_config(listen_port=taken.getsockname()[1]))
            assert isinstance(raised.value.__cause__, OSError)
            assert raised.value.__cause__.errno == errno.EADDRINUSE
            assert gateway.listen_port == before


@in_real_time
async def test_sockets_of_the_caller_stay_where_they_are() -> None:
    with loopback_socket() as mine:
        async with open_interface(gateway_config(), tun=MemoryTun(), udp=mine) as gateway:
            with pytest.raises(ConfigError, match="the caller's"):
                await gateway.apply(gateway_config(listen_port=OTHER_PORT))
            assert gateway.listen_port == mine.getsockname()[1]
        assert mine.fileno() >= 0


@pytest.mark.skipif(not hasattr(socket, "SO_MARK"), reason="needs SO_MARK (Linux)")
@in_real_time
async def test_a_mark_is_on_the_sockets_at_once_and_goes_along_to_another_port() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, for SO_MARK")

    def marks() -> set[int]:
        sockets = gateway._udp._sockets.values()  # type: ignore[attr-defined]
        return {one.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) & 0xFFFF_FFFF for one in sockets}

    config = gateway_config(listen_port=0, fwmark=0xCA6C)
    async with open_interface(config, tun=MemoryTun()) as gateway:
        assert marks() == {0xCA6C}
        diff = await gateway.apply(dataclasses.replace(config, fwmark=0xFFFF_FFFF))
        assert diff.node == ("fwmark",) and marks() == {0xFFFF_FFFF}
        with loopback_socket() as probe:
            free = probe.getsockname()[1]
        await gateway.apply(dataclasses.replace(config, fwmark=7, listen_port=free))
        assert marks() == {7} and gateway.listen_port == free
        await gateway.apply(dataclasses.replace(config, fwmark=0, listen_port=free))
        assert marks() == {0}


@pytest.mark.skipif(not hasattr(socket, "SO_MARK"), reason="needs SO_MARK (Linux)")
@in_real_time
async def test_a_mark_that_cannot_be_set_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(one: socket.socket, mark: int) -> None:
        if one.family == socket.AF_INET6 and mark:
            raise PermissionError(errno.EPERM, "no")

    async with open_interface(gateway_config(listen_port=0), tun=MemoryTun()) as gateway:
        monkeypatch.setattr("connlib.udp._set_mark", refuse)
        with pytest.raises(DeviceError, match="fwmark 0x5"):
            await gateway.apply(gateway_config(listen_port=0, fwmark=5, peers=()))
        assert gateway.config == gateway_config(listen_port=0)


@in_virtual_time
async def test_a_peer_made_anew_has_no_session_no_counters_and_no_learned_address() -> None:
    async with open_pair() as pair:
        await pair.exchange()
        peer = CLIENT_KEY.public_key()
        assert pair.gateway.stats().peers[0].endpoint is not None
        diff = await pair.gateway.apply(gateway_config(), anew=[peer])
        assert (diff.added, diff.removed, diff.changed) == ((peer,), (peer,), ())
        (stats,) = pair.gateway.stats().peers
        assert (stats.endpoint, stats.tunnel.sessions, stats.tunnel.rx_bytes) == (None, 0, 0)


@in_virtual_time
async def test_a_peer_is_relocated_to_an_address_that_was_configured_before() -> None:
    """Without that, the same endpoint again says nothing new, and what roaming taught stays."""
    async with open_pair() as pair:
        await pair.exchange()
        # The gateway moves, and the client follows its datagrams.
        await pair.gateway.apply(gateway_config(listen_port=OTHER_PORT))
        await pair.gateway_tun.send(packet(GATEWAY, CLIENT))
        await pair.client_tun.receive()
        assert pair.client.stats().peers[0].endpoint == (GATEWAY_HOST, OTHER_PORT)
        await pair.client.apply(client_config())
        assert pair.client.stats().peers[0].endpoint == (GATEWAY_HOST, OTHER_PORT)
        await pair.client.apply(client_config(), relocate=[GATEWAY_KEY.public_key()])
        assert pair.client.stats().peers[0].endpoint == (GATEWAY_HOST, PORT)


@in_virtual_time
async def test_a_port_that_was_had_is_given_back_when_what_comes_after_it_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(_self: object, _config: object) -> None:
        raise DeviceError("no route")

    async with open_pair() as pair:
        monkeypatch.setattr("connlib.driver.Interface._set_link", fail)
        with pytest.raises(DeviceError, match="no route"):
            await pair.gateway.apply(gateway_config(listen_port=OTHER_PORT))
        assert (GATEWAY_HOST, OTHER_PORT) not in pair.network._sockets
        await pair.exchange()


class UnsteadyClock(LoopClock):
    """Its wall clock is read a little later each time, as two clocks always are."""

    def __init__(self) -> None:
        super().__init__()
        self._late = itertools.cycle((0.0, 0.02, 0.2, 0.01))

    def unix_time(self) -> float:
        return super().unix_time() + next(self._late)


@in_virtual_time
async def test_the_date_of_a_handshake_is_the_same_whenever_it_is_asked_for() -> None:
    async with open_pair(clock=UnsteadyClock()) as pair:
        await pair.exchange()
        dates = set()
        for _ in range(20):
            stats = pair.client.stats()
            age = stats.peers[0].tunnel.last_handshake
            assert age is not None
            dates.add(round(stats.unix_time - age, 3))
            await anyio.sleep(1.7)
        assert len(dates) == 1
