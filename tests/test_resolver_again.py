"""A peer with a host name that has moved: it is looked up again when it does not answer a handshake."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import trio

from connlib import GaveUp, Interface, SessionEstablished, Timers
from connlib.driver import MemoryTun, MemoryUdp, open_interface
from helpers_driver import (
    CLIENT,
    CLIENT_HOST,
    GATEWAY,
    PORT,
    client_config,
    gateway_config,
    in_virtual_time,
    packet,
)

OLD, NEW = "192.0.2.10", "192.0.2.20"
NAMED = ("gateway.example", PORT)


class Names(trio.abc.HostnameResolver):
    """A name server whose answers change."""

    def __init__(self, *answers: str) -> None:
        self.answers = answers
        self.asked: list[float] = []

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        self.asked.append(trio.current_time())
        if not self.answers:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (answer, port)) for answer in self.answers]

    async def getnameinfo(self, *_: Any) -> Any:
        raise NotImplementedError


@asynccontextmanager
async def moved_gateway(
    endpoint: tuple[str, int] = NAMED, timers: Timers | None = None
) -> AsyncIterator[tuple[Interface, MemoryTun, MemoryTun]]:
    """A client, its device, and that of a gateway which is at NEW."""
    network, gateway_tun, client_tun = MemoryUdp(), MemoryTun(), MemoryTun()
    config = dataclasses.replace(client_config(endpoint), timers=timers or Timers())
    async with (
        open_interface(gateway_config(), tun=gateway_tun, udp=network.host(NEW)),
        open_interface(config, tun=client_tun, udp=network.host(CLIENT_HOST)) as client,
    ):
        yield client, client_tun, gateway_tun


def endpoint(client: Interface) -> tuple[str, int] | None:
    return client.stats().peers[0].endpoint


@in_virtual_time
async def test_a_peer_that_does_not_answer_is_looked_up_again_and_reached_at_its_new_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = Names(OLD)
    trio.socket.set_custom_hostname_resolver(names)
    with caplog.at_level(logging.INFO, "connlib"):
        async with moved_gateway() as (client, client_tun, gateway_tun):
            await trio.sleep(1)
            assert endpoint(client) == (OLD, PORT)
            names.answers = (NEW,)
            sent = packet(CLIENT, GATEWAY, b"waits")
            start = trio.current_time()
            await client_tun.send(sent)
            assert await gateway_tun.receive() == sent
            # Three initiations of 5 s each, with up to a third of a second more (section 6.1), and then the next one.
            assert 15 <= trio.current_time() - start <= 15 + 5 + 0.334
            assert endpoint(client) == (NEW, PORT)
            assert client.stats().lookups == {"asked": 2, "failed": 0, "moved": 1}
            await trio.sleep(3600)
            assert len(names.asked) == 2, "one that answers is not looked up"
    assert "gateway does not answer: gateway.example is 192.0.2.20 now" in caplog.messages


@in_virtual_time
async def test_a_peer_that_stays_silent_is_looked_up_less_and_less_often_and_once_more_when_given_up() -> (
    None
):
    names = Names(OLD)
    trio.socket.set_custom_hostname_resolver(names)
    async with moved_gateway() as (client, client_tun, _):
        await trio.sleep(1)
        events = client.events()
        start = trio.current_time()
        await client_tun.send(packet(CLIENT, GATEWAY))
        async for _, event in events:
            if isinstance(event, GaveUp):
                break
        await trio.sleep(3600)
        # REKEY_ATTEMPT_TIME is 90 s.
        assert [at - start for at in names.asked[1:]] == pytest.approx([15, 15 + 30, 90])
        assert client.stats().lookups == {"asked": 4, "failed": 0, "moved": 0}


@in_virtual_time
async def test_a_name_server_that_fails_meanwhile_moves_nothing() -> None:
    names = Names(OLD)
    trio.socket.set_custom_hostname_resolver(names)
    async with moved_gateway() as (client, client_tun, _):
        await trio.sleep(1)
        names.answers = ()
        await client_tun.send(packet(CLIENT, GATEWAY))
        await trio.sleep(3600)
        assert client.stats().lookups == {"asked": 4, "failed": 3, "moved": 0}
        assert endpoint(client) == (OLD, PORT)


@in_virtual_time
async def test_of_several_addresses_the_next_one_gets_its_turn() -> None:
    names = Names(OLD, NEW)
    trio.socket.set_custom_hostname_resolver(names)
    async with moved_gateway() as (client, client_tun, gateway_tun):
        await trio.sleep(1)
        assert endpoint(client) == (OLD, PORT)
        await client_tun.send(packet(CLIENT, GATEWAY))
        await gateway_tun.receive()
        assert endpoint(client) == (NEW, PORT)


@in_virtual_time
async def test_a_peer_with_an_address_is_never_looked_up() -> None:
    names = Names(NEW)
    trio.socket.set_custom_hostname_resolver(names)
    async with moved_gateway(endpoint=(OLD, PORT)) as (client, client_tun, _):
        await client_tun.send(packet(CLIENT, GATEWAY))
        await trio.sleep(3600)
        assert client.stats().lookups == {"asked": 0, "failed": 0, "moved": 0}


@in_virtual_time
async def test_a_peer_whose_name_is_taken_away_is_not_looked_up_any_more() -> None:
    names = Names(OLD)
    trio.socket.set_custom_hostname_resolver(names)
    async with moved_gateway() as (client, client_tun, _):
        await trio.sleep(1)
        await client_tun.send(packet(CLIENT, GATEWAY))
        await trio.sleep(5)
        await client.apply(client_config((OLD, PORT)))
        await trio.sleep(3600)
        assert len(names.asked) == 1


class SlowNames(Names):
    """A name server that takes a minute from the second question on."""

    async def getaddrinfo(self, *arguments: Any, **options: Any) -> Any:
        found = await super().getaddrinfo(*arguments, **options)
        if len(self.asked) > 1:
            await trio.sleep(60)
        return found


@in_virtual_time
async def test_an_answer_that_comes_when_the_peer_has_answered_is_not_used() -> None:
    names = SlowNames(NEW)
    trio.socket.set_custom_hostname_resolver(names)
    network, gateway_tun, client_tun = MemoryUdp(), MemoryTun(), MemoryTun()
    async with open_interface(client_config(NAMED), tun=client_tun, udp=network.host(CLIENT_HOST)) as client:
        await trio.sleep(1)
        await client_tun.send(packet(CLIENT, GATEWAY))
        await trio.sleep(16)
        assert len(names.asked) == 2
        names.answers = (OLD,)
        async with open_interface(gateway_config(), tun=gateway_tun, udp=network.host(NEW)):
            await gateway_tun.receive()
            await trio.sleep(300)
            assert endpoint(client) == (NEW, PORT)
            assert client.stats().lookups["moved"] == 0


def test_it_is_looked_up_again_on_asyncio_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connlib.resolver.UNANSWERED", 0.01)
    answers = [OLD, NEW]

    async def getaddrinfo(_host: Any, port: Any, **_: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (answers.pop(0) if answers[1:] else NEW, port))]

    async def main() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        with anyio.fail_after(30):
            async with moved_gateway(timers=Timers(rekey_timeout=0.1)) as (client, client_tun, gateway_tun):
                events = client.events()
                while endpoint(client) is None:
                    await anyio.sleep(0)
                await client_tun.send(packet(CLIENT, GATEWAY))
                while endpoint(client) != (NEW, PORT):
                    await anyio.sleep(0.001)
                assert client.stats().lookups["moved"] == 1
                await gateway_tun.receive()
                async for _, event in events:
                    if isinstance(event, SessionEstablished):
                        break

    anyio.run(main, backend="asyncio")
