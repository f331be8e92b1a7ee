"""The driver in virtual time, with both ends in memory: no root, no network, no waiting."""

from __future__ import annotations

import dataclasses
import gc
from ipaddress import ip_interface, ip_network
from typing import Any

import anyio
import pytest
import trio

from connlib import (
    ClosedError,
    ConfigError,
    DeviceError,
    DropReason,
    HandshakeStarted,
    PeerConfig,
    PeerEvent,
    PrivateKey,
    SessionEstablished,
    TimeoutReason,
    Transmit,
)
from connlib._turns import BUDGET, serve
from connlib.driver import MemoryTun, MemoryUdp, open_interface
from helpers_driver import (
    CLIENT,
    CLIENT_HOST,
    CLIENT_KEY,
    GATEWAY,
    GATEWAY_HOST,
    GATEWAY_KEY,
    PORT,
    SpyNode,
    client_config,
    gateway_config,
    in_virtual_time,
    open_pair,
    packet,
)

HOUR = 3600.0


@in_virtual_time
async def test_a_packet_each_way_after_one_handshake() -> None:
    async with open_pair() as pair:
        gateway_events, client_events = pair.gateway.events(), pair.client.events()
        await pair.exchange()
        gateway, client = GATEWAY_KEY.public_key(), CLIENT_KEY.public_key()
        assert await anext(client_events) == PeerEvent(gateway, HandshakeStarted())
        assert await anext(client_events) == PeerEvent(gateway, SessionEstablished(initiator=True))
        assert await anext(gateway_events) == PeerEvent(client, SessionEstablished(initiator=False))
        stats = pair.client.stats()
        assert stats.peers[0].tunnel.initiations_sent == 1
        assert stats.peers[0].endpoint == (GATEWAY_HOST, PORT)
        assert stats.tun["packets_read"] == stats.tun["packets_written"] == 1
        assert stats.udp["sent"] == pair.gateway.stats().udp["received"]


@in_virtual_time
async def test_an_interface_says_what_it_is() -> None:
    async with open_pair() as pair:
        assert pair.gateway.name == "memory"
        assert pair.gateway.listen_port == PORT
        assert pair.gateway.public_key == GATEWAY_KEY.public_key()
        assert pair.gateway.config == gateway_config()


@in_virtual_time
async def test_the_counters_of_the_ends_are_those_of_all_counters() -> None:
    async with open_pair() as pair:
        await pair.exchange()
        counters, stats = pair.client.end_counters(), pair.client.stats()
        assert counters == (stats.tun, stats.udp) and counters.udp["sent"] > 0
    assert pair.client.end_counters() == (pair.client.stats().tun, pair.client.stats().udp)


@in_virtual_time
async def test_many_packets_arrive_in_order() -> None:
    packets = [packet(CLIENT, GATEWAY, number.to_bytes(4, "big") * 300) for number in range(5 * BUDGET)]
    async with open_pair() as pair, trio.open_nursery() as nursery:
        await pair.exchange()

        async def send() -> None:
            for one in packets:
                await pair.client_tun.send(one)

        nursery.start_soon(send)
        assert [await pair.gateway_tun.receive() for _ in packets] == packets


@in_virtual_time
async def test_an_idle_tunnel_sleeps() -> None:
    async with open_pair() as pair:
        await pair.exchange()
        await trio.sleep(HOUR)
        before = pair.client.stats().timer_wakes, pair.gateway.stats().timer_wakes
        await trio.sleep(24 * HOUR)
        assert (pair.client.stats().timer_wakes, pair.gateway.stats().timer_wakes) == before
        await pair.exchange()


@in_virtual_time
async def test_it_wakes_at_the_announced_deadlines_and_at_no_other_time() -> None:
    async with open_pair(client_config(persistent_keepalive=25.0)) as pair:
        spies = SpyNode(pair.client), SpyNode(pair.gateway)
        await pair.exchange()
        await trio.sleep(24 * HOUR)
        for spy, interface in zip(spies, (pair.client, pair.gateway), strict=True):
            assert spy.timeouts
            for now, deadline in spy.timeouts:
                assert deadline is not None
                assert deadline.at <= now < deadline.at + 1e-6
            assert interface.stats().timer_wakes <= len(spy.timeouts) + 1
        keepalives = [d for _, d in spies[0].timeouts if d and d.reason is TimeoutReason.PERSISTENT_KEEPALIVE]
        assert 24 * HOUR / 25 - 60 <= len(keepalives) <= 24 * HOUR / 25 + 1
        # A renewed session every two minutes costs a few more deadlines, and that is all.
        assert len(spies[0].timeouts) < 2 * len(keepalives)


@in_virtual_time
async def test_a_deadline_that_moves_does_not_wake_the_sleeper() -> None:
    async with open_pair() as pair:
        await pair.exchange()
        before = pair.gateway.stats().timer_wakes
        # Each packet puts off or brings on a keepalive; while packets go both ways none is ever due.
        for _ in range(100):
            await pair.exchange()
            await trio.sleep(1)
        assert pair.gateway.stats().timer_wakes - before <= 100 / 60


class Suspendable:
    """A clock that can run ahead of the event loop's, as the system's does during suspend."""

    def __init__(self) -> None:
        self.suspended = 0.0
        self.wall_error = 0.0

    def now(self) -> float:
        return anyio.current_time() + self.suspended

    def unix_time(self) -> float:
        return 1.7e9 + self.now() + self.wall_error


@in_virtual_time
async def test_a_session_is_old_after_a_suspend() -> None:
    clock = Suspendable()
    async with open_pair(clock=clock) as pair:
        await pair.exchange()
        clock.suspended += 3 * HOUR
        # The first packet wakes the driver up, finds the session expired, and arrives by another one.
        await pair.exchange()
        assert pair.client.stats().peers[0].tunnel.initiations_sent == 2
        assert pair.gateway.stats().peers[0].tunnel.initiations_sent == 0


@in_virtual_time
async def test_deadlines_are_kept_on_a_clock_that_has_diverged() -> None:
    clock = Suspendable()
    clock.suspended = 1e6
    async with open_pair(client_config(persistent_keepalive=25.0), clock=clock) as pair:
        spy = SpyNode(pair.client)
        await pair.exchange()
        await trio.sleep(HOUR)
        assert len(spy.timeouts) > 100
        for now, deadline in spy.timeouts:
            assert deadline is not None
            assert deadline.at <= now < deadline.at + 1e-3


@in_virtual_time
async def test_a_wall_clock_that_is_set_costs_nothing() -> None:
    clock = Suspendable()
    async with open_pair(clock=clock) as pair:
        spy = SpyNode(pair.client)
        for step in (0.5, 3e8, -3e8, 0.0):
            clock.wall_error = step
            await trio.sleep(HOUR)
            await pair.exchange()
        # Half a second is not worth a word; the rest is.
        assert len(spy.unix_times) == 3
        # Timestamps strictly rise, or the gateway would have taken these for replays.
        assert pair.client.stats().peers[0].tunnel.initiations_sent == 4


@in_virtual_time
async def test_each_subscriber_has_events_of_its_own() -> None:
    async with open_pair() as pair:
        first, second = pair.client.events(), pair.client.events()
        await pair.exchange()
        third = pair.client.events()
        assert await anext(first) == await anext(second)
        pair.client.initiate_handshake(GATEWAY_KEY.public_key())
        assert (await anext(third)).event == HandshakeStarted()
    assert [event.event for event in [e async for e in first]][:1] == [SessionEstablished(initiator=True)]
    with pytest.raises(StopAsyncIteration):
        await anext(first)


@in_virtual_time
async def test_a_slow_subscriber_loses_the_oldest_events_and_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connlib.driver.EVENT_CAPACITY", 2)
    async with open_pair() as pair:
        events = pair.client.events()
        await pair.exchange()
        await trio.sleep(1)
        pair.client.initiate_handshake(GATEWAY_KEY.public_key())
        await trio.sleep(1)
        assert events.lost == 2
        assert (await anext(events)).event == HandshakeStarted()


@in_virtual_time
async def test_a_forgotten_subscription_costs_nothing() -> None:
    async with open_pair() as pair:
        pair.client.events()
        gc.collect()
        assert len(pair.client._subscribers._streams) == 0


@in_virtual_time
async def test_a_closed_interface_says_so_and_keeps_its_counters() -> None:
    async with open_pair() as pair:
        events = pair.client.events()
        await pair.exchange()
    assert pair.client.stats().peers[0].tunnel.rx_packets == 1
    assert [event async for event in events]
    with pytest.raises(ClosedError):
        pair.client.events()
    with pytest.raises(ClosedError):
        await pair.client.apply(client_config())
    with pytest.raises(ClosedError):
        pair.client.initiate_handshake(GATEWAY_KEY.public_key())
    with pytest.raises(ClosedError):
        await pair.client_tun.receive()
    with pytest.raises(ClosedError):
        await pair.client_tun.send(packet(CLIENT, GATEWAY))


@in_virtual_time
async def test_a_restart_of_either_side_heals() -> None:
    network = MemoryUdp()
    gateway_host, client_host = network.host(GATEWAY_HOST), network.host("192.0.2.2")

    async def arrives(source: MemoryTun, target: MemoryTun, one: bytes) -> None:
        """Within 30 seconds, though nobody tells a sender that its session is gone: it has to miss an answer first."""
        for _ in range(30):
            await source.send(one)
            with trio.move_on_after(1):
                assert await target.receive() == one
                return
        raise AssertionError("no packet arrived")

    gateway_tun, client_tun = MemoryTun(), MemoryTun()
    there, back = packet(CLIENT, GATEWAY), packet(GATEWAY, CLIENT)
    async with open_interface(client_config(), tun=client_tun, udp=client_host):
        for _ in range(3):
            async with open_interface(gateway_config(), tun=gateway_tun, udp=gateway_host):
                await arrives(client_tun, gateway_tun, there)
                await arrives(gateway_tun, client_tun, back)
    async with open_interface(gateway_config(), tun=gateway_tun, udp=gateway_host):
        for _ in range(3):
            async with open_interface(client_config(), tun=client_tun, udp=client_host):
                await arrives(client_tun, gateway_tun, there)
                await arrives(gateway_tun, client_tun, back)


@in_virtual_time
async def test_apply_changes_peers_and_keeps_sessions() -> None:
    async with open_pair() as pair:
        await pair.exchange()
        other = PeerConfig(
            public_key=PrivateKey.generate().public_key(), allowed_ips=(ip_network("10.9.0.0/16"),)
        )
        bigger = gateway_config(peers=(*gateway_config().peers, other))
        diff = await pair.gateway.apply(bigger)
        assert (diff.added, diff.removed, diff.changed) == ((other.public_key,), (), ())
        assert pair.gateway.config == bigger
        await pair.exchange()
        assert pair.client.stats().peers[0].tunnel.initiations_sent == 1
        diff = await pair.gateway.apply(gateway_config(peers=(other,)))
        assert diff.removed == (CLIENT_KEY.public_key(),)
        assert not await pair.gateway.apply(gateway_config(peers=(other,)))


@in_virtual_time
async def test_apply_moves_the_deadline_of_the_sleeper() -> None:
    async with open_pair() as pair:
        await pair.exchange()
        await trio.sleep(HOUR)
        spy = SpyNode(pair.client)
        assert spy.deadline is None
        diff = await pair.client.apply(client_config(persistent_keepalive=5.0))
        assert diff.changed == ((GATEWAY_KEY.public_key(), ("persistent_keepalive",)),)
        await trio.sleep(60)
        assert pair.client.stats().peers[0].tunnel.keepalives_sent >= 11


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"queues": 2},
        {"listen_port": 65536},
        {"peers": (gateway_config().peers[0], gateway_config().peers[0])},
    ],
)
@in_virtual_time
async def test_a_bad_configuration_changes_nothing(change: dict[str, Any]) -> None:
    async with open_pair() as pair:
        await pair.exchange()
        with pytest.raises(ConfigError) as raised:
            await pair.gateway.apply(gateway_config(**change))
        assert "\n" not in str(raised.value) and raised.value.hint
        assert pair.gateway.config == gateway_config()
        await pair.exchange()
        assert pair.client.stats().peers[0].tunnel.initiations_sent == 1


@in_virtual_time
async def test_an_engine_that_refuses_a_configuration_refuses_it_before_anything_changes() -> None:
    # A key of low order, which only the engine can tell from others.
    low_order = dataclasses.replace(
        gateway_config().peers[0], public_key=type(CLIENT_KEY.public_key()).from_bytes(bytes(32))
    )
    async with open_pair() as pair:
        with pytest.raises(ConfigError):
            await pair.gateway.apply(gateway_config(peers=(low_order,)))
        await pair.exchange()
    network = MemoryUdp()
    with pytest.raises(ConfigError):
        async with open_interface(gateway_config(peers=(low_order,)), tun=MemoryTun(), udp=network):
            pass
    assert not network._sockets


@in_virtual_time
async def test_what_the_body_raises_comes_out_as_it_is() -> None:
    class Mine(Exception):
        pass

    with pytest.raises(Mine):
        async with open_pair():
            raise Mine


@in_virtual_time
async def test_a_memory_tun_serves_one_interface_at_a_time() -> None:
    network, tun = MemoryUdp(), MemoryTun()
    async with open_interface(gateway_config(), tun=tun, udp=network):
        with pytest.raises(DeviceError, match="in use"):
            async with open_interface(client_config(), tun=tun, udp=network):
                pass
        assert len(network._sockets) == 1
    async with open_interface(gateway_config(), tun=tun, udp=network):
        pass


@in_virtual_time
async def test_a_memory_tun_starts_empty_with_its_second_interface() -> None:
    network, tun = MemoryUdp(), MemoryTun()
    tun.send_nowait(packet(GATEWAY, CLIENT))
    async with open_interface(gateway_config(), tun=tun, udp=network) as interface:
        await trio.sleep(1)
        assert interface.stats().tun["packets_read"] == 1, "what was sent before it was open waited for it"
        tun.send_nowait(packet(GATEWAY, CLIENT))
    async with open_interface(gateway_config(), tun=tun, udp=network) as interface:
        await trio.sleep(1)
        assert interface.stats().tun["packets_read"] == 0
        tun.send_nowait(packet(GATEWAY, CLIENT))
        await trio.sleep(1)
        assert interface.stats().tun["packets_read"] == 1


@in_virtual_time
async def test_ends_of_another_kind_are_a_type_error() -> None:
    ends: Any
    for ends in ({"udp": 3}, {"udp": ("a", "b")}, {"udp": MemoryTun()}, {"tun": True}, {"tun": "wg0"}):
        with pytest.raises(TypeError, match=r"^(tun|udp) must be a [^\n]* not (int|str|MemoryTun|bool)$"):
            async with open_interface(gateway_config(), **{"tun": MemoryTun(), "udp": MemoryUdp(), **ends}):
                pass


@in_virtual_time
async def test_an_interface_shows_what_it_is() -> None:
    async with open_interface(gateway_config(), tun=MemoryTun(), udp=MemoryUdp()) as interface:
        assert repr(interface) == "<Interface memory, port 51820, 1 peer>"
    assert repr(interface) == "<Interface memory, port 51820, closed>"


@in_virtual_time
async def test_a_port_in_memory_serves_one_interface_at_a_time() -> None:
    host = MemoryUdp().host(GATEWAY_HOST)
    async with open_interface(gateway_config(), tun=MemoryTun(), udp=host):
        with pytest.raises(DeviceError, match=r"UDP port 51820 of 192\.0\.2\.1 is in use; "):
            async with open_interface(gateway_config(), tun=MemoryTun(), udp=host):
                pass


@in_virtual_time
async def test_an_application_that_does_not_read_loses_packets_and_not_the_tunnel() -> None:
    async with open_pair() as pair:
        await pair.exchange()
        for _ in range(1500):
            await pair.client_tun.send(packet(CLIENT, GATEWAY))
        await trio.sleep(1)
        assert pair.gateway_tun.lost == pair.gateway.stats().tun["lost"] == 1500 - 1024
        assert len([pair.gateway_tun.receive_nowait() for _ in range(1024)]) == 1024
        with pytest.raises(anyio.WouldBlock):
            pair.gateway_tun.receive_nowait()


@in_virtual_time
async def test_what_is_no_packet_is_refused_by_a_memory_tun() -> None:
    tun = MemoryTun()
    for length in (0, 65_536):
        with pytest.raises(ValueError, match="1 to 65535"):
            await tun.send(bytes(length))


@in_virtual_time
async def test_a_lossy_network_is_healed_by_retries() -> None:
    async with open_pair() as pair:
        datagrams = iter(range(1000))
        pair.network.drop = lambda _source, _destination, _datagram: next(datagrams) < 3
        await pair.client_tun.send(packet(CLIENT, GATEWAY))
        await pair.gateway_tun.receive()
        assert pair.client.stats().peers[0].tunnel.initiations_sent > 1
        assert pair.client.stats().udp["lost"] + pair.gateway.stats().udp["lost"] == 3


@in_virtual_time
async def test_a_descriptor_that_is_ready_for_nothing_does_not_cost_a_core() -> None:
    turns = 0

    async def wait() -> None:
        await trio.lowlevel.checkpoint()

    def turn() -> int:
        nonlocal turns
        turns += 1
        return 0

    with trio.move_on_after(10):
        await serve(wait, turn)
    assert turns < 10 / 0.05 + 10


def test_it_runs_on_asyncio_too() -> None:
    async def main() -> None:
        with anyio.fail_after(30):
            async with open_pair() as pair:
                events = pair.client.events()
                await pair.exchange()
                assert (await anext(events)).event == HandshakeStarted()
                await pair.gateway.apply(gateway_config())
        with pytest.raises(ZeroDivisionError):
            async with open_pair():
                1 / 0  # noqa: B018

    anyio.run(main, backend="asyncio")


def test_deadlines_are_kept_on_asyncio_too() -> None:
    async def main() -> None:
        async with open_pair(client_config(persistent_keepalive=1.0)) as pair:
            await pair.exchange()
            before = pair.client.stats()
            with anyio.fail_after(60):
                while (
                    pair.client.stats().peers[0].tunnel.keepalives_sent
                    < before.peers[0].tunnel.keepalives_sent + 2
                ):
                    await anyio.sleep(0.1)
            # Each wake is for a deadline: nothing polls.
            after = pair.client.stats()
            sent = after.peers[0].tunnel.keepalives_sent - before.peers[0].tunnel.keepalives_sent
            assert after.timer_wakes - before.timer_wakes <= sent + 1

    anyio.run(main, backend="asyncio")


@in_virtual_time
async def test_a_packet_that_no_datagram_carries_is_dropped_and_the_tunnel_goes_on() -> None:
    async with open_pair() as pair:
        await pair.exchange()
        for length in (65_472, 65_473, 65_535):
            await pair.client_tun.send(packet(CLIENT, GATEWAY, bytes(length - 20)))
        assert len(await pair.gateway_tun.receive()) == 65_472
        await pair.exchange()
        assert pair.client.stats().peers[0].tunnel.drops == {DropReason.TOO_LARGE: 2}


def test_a_network_in_memory_carries_what_udp_carries() -> None:
    network = MemoryUdp()
    sender, receiver = (network.host(address).open(PORT) for address in (CLIENT_HOST, GATEWAY_HOST))
    sender.deliver([Transmit((GATEWAY_HOST, PORT), bytes(size)) for size in (65_507, 65_508)])
    assert (sender.stats()["sent"], sender.stats()["lost"]) == (1, 1)
    receiver.close()


@in_virtual_time
async def test_apply_reports_what_only_the_interface_sees() -> None:
    async with open_pair() as pair:
        before = pair.client.config
        (peer,) = before.peers
        renamed = dataclasses.replace(
            before, peers=(dataclasses.replace(peer, name="other", persistent_keepalive=25.0),)
        )
        diff = await pair.client.apply(renamed)
        assert diff.changed == ((peer.public_key, ("persistent_keepalive", "name")),)
        moved = dataclasses.replace(renamed, addresses=(ip_interface("10.9.9.9/24"),), routes=False)
        diff = await pair.client.apply(moved)
        assert (diff.changed, diff.node) == ((), ("addresses", "routes"))
        assert not await pair.client.apply(moved)


@in_virtual_time
async def test_threads_change_at_any_time() -> None:
    async with open_pair() as pair:
        for threads in (64, 2, 1):
            wanted = dataclasses.replace(client_config(), threads=threads)
            diff = await pair.client.apply(wanted)
            assert (diff.changed, diff.node) == ((), ("threads",))
            assert not await pair.client.apply(wanted)
            await pair.exchange()
