"""Peers whose endpoints are host names, in virtual time."""

from __future__ import annotations

import dataclasses
import logging
import socket
from typing import Any

import pytest
import trio

from connlib.control import status
from connlib.driver import MemoryTun, MemoryUdp, open_interface
from helpers_driver import (
    CLIENT,
    CLIENT_HOST,
    GATEWAY,
    GATEWAY_HOST,
    GATEWAY_KEY,
    PORT,
    Pair,
    client_config,
    gateway_config,
    in_virtual_time,
    open_pair,
    packet,
)


class Resolver(trio.abc.HostnameResolver):
    """A name server that is not up for a while."""

    def __init__(self, failures: int, answer: str = GATEWAY_HOST) -> None:
        self.failures = failures
        self.answer = answer
        self.asked: list[float] = []

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        assert host == b"gateway.example"
        self.asked.append(trio.current_time())
        if len(self.asked) <= self.failures:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (self.answer, port))]

    async def getnameinfo(self, *_: Any) -> Any:
        raise NotImplementedError


@in_virtual_time
async def test_a_host_name_is_looked_up_until_it_is_found(caplog: pytest.LogCaptureFixture) -> None:
    resolver = Resolver(failures=8)
    trio.socket.set_custom_hostname_resolver(resolver)
    with caplog.at_level(logging.INFO, "connlib"):
        async with open_pair(client_config(("gateway.example", PORT), persistent_keepalive=25.0)) as pair:
            # The interface is up all the while, and counts what it cannot send.
            await pair.client_tun.send(packet(CLIENT, GATEWAY))
            await trio.sleep(400)
            await pair.exchange()
            assert pair.client.stats().peers[0].endpoint == (GATEWAY_HOST, PORT)
    pauses = [later - earlier for earlier, later in zip(resolver.asked, resolver.asked[1:], strict=False)]
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60])
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 8
    assert warnings[0].startswith("gateway: cannot look up gateway.example: Temporary failure")


@in_virtual_time
async def test_explain_says_why_there_is_no_address_and_when_it_is_asked_for_again() -> None:
    resolver = Resolver(failures=3)
    trio.socket.set_custom_hostname_resolver(resolver)
    async with open_pair(client_config(("gateway.example", PORT))) as pair:
        gateway = GATEWAY_KEY.public_key()
        assert str(pair.client.explain(gateway)) == (
            "waiting: gateway.example is being looked up; next: it is tried again, if there is no answer"
        )
        await trio.sleep(1.5)  # after the second attempt, which is half a second ago, two seconds are waited
        assert str(pair.client.explain(gateway)) == (
            "waiting: gateway.example cannot be looked up: Temporary failure in name resolution; "
            "next: another look-up in 1.5 s"
        )
        reported = await status.report_status(pair.client, 0.0)
        (told,) = reported.peers
        assert (told.why, told.next, told.next_in) == (
            "gateway.example cannot be looked up: Temporary failure in name resolution",
            "another look-up",
            1.5,
        )
        assert reported.lookups == {"asked": 2, "failed": 2, "moved": 0}
        await trio.sleep(10)
        assert pair.client.explain(gateway).why == "never heard, and nothing was sent to it"


@in_virtual_time
async def test_a_name_that_is_no_concern_of_a_responder_is_not_told() -> None:
    """It waits for the peer, whether or not it knows where that is."""
    trio.socket.set_custom_hostname_resolver(Resolver(failures=99))
    async with open_pair() as pair:
        (peer,) = pair.gateway.config.peers
        named = gateway_config(peers=(dataclasses.replace(peer, endpoint=("gateway.example", 7)),))
        await pair.gateway.apply(named)
        await trio.sleep(2)
        assert pair.gateway.explain(peer.public_key).why == "never heard"


@in_virtual_time
async def test_another_host_name_is_a_change_that_apply_reports() -> None:
    resolver = Resolver(failures=0)
    trio.socket.set_custom_hostname_resolver(resolver)
    async with open_pair(client_config(("gateway.example", 1))) as pair:
        await trio.sleep(1)
        assert pair.client.stats().peers[0].endpoint == (GATEWAY_HOST, 1)
        diff = await pair.client.apply(client_config(("gateway.example", PORT)))
        assert diff.changed == ((GATEWAY_KEY.public_key(), ("endpoint",)),)
        await pair.exchange()
        assert not await pair.client.apply(client_config(("gateway.example", PORT)))
        await trio.sleep(1)
        assert len(resolver.asked) == 2
        await pair.client.apply(client_config((GATEWAY_HOST, PORT)))
        await pair.exchange()


@in_virtual_time
async def test_an_answer_that_comes_late_does_not_undo_what_a_packet_has_taught() -> None:
    (peer,) = gateway_config().peers
    named = gateway_config(peers=(dataclasses.replace(peer, endpoint=("gateway.example", 7)),))
    resolver = Resolver(failures=3, answer="203.0.113.5")
    trio.socket.set_custom_hostname_resolver(resolver)
    network, gateway_tun, client_tun = MemoryUdp(), MemoryTun(), MemoryTun()
    async with (
        open_interface(named, tun=gateway_tun, udp=network.host(GATEWAY_HOST)) as gateway,
        open_interface(client_config(), tun=client_tun, udp=network.host(CLIENT_HOST)) as client,
    ):
        await Pair(network, gateway, client, gateway_tun, client_tun).exchange()
        learned = gateway.stats().peers[0].endpoint
        await trio.sleep(60)
        assert len(resolver.asked) == 4
        assert gateway.stats().peers[0].endpoint == learned != ("203.0.113.5", 7)


@in_virtual_time
async def test_an_answer_that_cannot_be_used_is_a_failed_lookup() -> None:
    resolver = Resolver(failures=0, answer="fe80::1%lo")
    trio.socket.set_custom_hostname_resolver(resolver)
    async with open_pair(client_config(("gateway.example", PORT))) as pair:
        await trio.sleep(10)
        assert len(resolver.asked) > 2
        assert pair.client.stats().peers[0].endpoint is None


@in_virtual_time
async def test_names_that_cannot_be_names_are_no_crash() -> None:
    async with open_pair(client_config(("x" * 300, PORT))) as pair:
        await trio.sleep(5)
        assert pair.client.stats().peers[0].endpoint is None


@in_virtual_time
async def test_the_late_answer_for_a_new_peer_does_not_undo_what_a_packet_has_taught() -> None:
    (peer,) = gateway_config().peers
    named = gateway_config(peers=(dataclasses.replace(peer, endpoint=("gateway.example", 7)),))
    trio.socket.set_custom_hostname_resolver(Resolver(failures=3, answer="203.0.113.5"))
    network, gateway_tun, client_tun = MemoryUdp(), MemoryTun(), MemoryTun()
    async with (
        open_interface(gateway_config(peers=()), tun=gateway_tun, udp=network.host(GATEWAY_HOST)) as gateway,
        open_interface(client_config(), tun=client_tun, udp=network.host(CLIENT_HOST)) as client,
    ):
        await gateway.apply(named)
        await Pair(network, gateway, client, gateway_tun, client_tun).exchange()
        learned = gateway.stats().peers[0].endpoint
        await trio.sleep(60)
        assert gateway.stats().peers[0].endpoint == learned != ("203.0.113.5", 7)
