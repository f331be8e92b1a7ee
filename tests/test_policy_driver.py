"""Policies through `open_interface`: changed live in memory, and what a kernel makes of a refusal that it gets."""

from __future__ import annotations

import errno
import socket
from dataclasses import replace
from ipaddress import ip_interface, ip_network

import trio

from connlib import Action, DropReason, Policy, Protocol, Rule
from connlib.driver import MemoryTun, open_interface
from helpers_driver import (
    CLIENT,
    GATEWAY,
    client_config,
    gateway_config,
    in_virtual_time,
    loopback_socket,
    open_pair,
    packet,
)
from helpers_netns import in_namespace, run_body

# What the packets of the helpers are.
EXPERIMENT = 253


@in_virtual_time
async def test_a_policy_is_applied_while_the_session_goes_on() -> None:
    there, back = packet(CLIENT, GATEWAY), packet(GATEWAY, CLIENT)
    allow = Policy((Rule(action=Action.ALLOW, protocol=EXPERIMENT),))
    config = gateway_config()
    async with open_pair() as pair:
        await pair.exchange()
        for policy, passes in ((Policy(), False), (allow, True), (None, True)):
            peer = replace(config.peers[0], policy=policy)
            diff = await pair.gateway.apply(replace(config, peers=(peer,)))
            assert [change.fields for change in diff.changed] == [("policy",)]
            await pair.client_tun.send(there)
            if passes:
                assert await pair.gateway_tun.receive() == there
                await pair.gateway_tun.send(back)
                assert await pair.client_tun.receive() == back
            else:
                answer = await pair.client_tun.receive()
                assert (answer[9], answer[20], answer[21], answer[28:]) == (1, 3, 13, there)
        (stats,) = pair.gateway.stats().peers
        assert stats.tunnel.drops == {DropReason.DENIED: 1}
        assert stats.tunnel.responses_sent == 1


@in_namespace
def test_a_kernel_that_is_refused_tells_its_programs_at_once() -> None:
    """`connect` fails in a round trip instead of minutes: EHOSTUNREACH for ICMP, EACCES for ICMPv6."""
    policy = Policy((Rule(action=Action.ALLOW, protocol=Protocol.TCP, ports=(443,)),))
    gateway_tun = MemoryTun()

    async def main() -> None:
        with loopback_socket() as udp:
            peers = client_config(udp.getsockname()).peers
            to_gateway = replace(
                peers[0], allowed_ips=(ip_network("10.0.0.1/32"), ip_network("fd00:1::1/128"))
            )
            client = replace(
                client_config(),
                peers=(to_gateway,),
                name="wgtest1",
                mtu=1380,
                addresses=(ip_interface("10.0.0.2/24"), ip_interface("fd00:1::2/64")),
            )
            from_client = replace(
                gateway_config().peers[0],
                allowed_ips=(ip_network("10.0.0.2/32"), ip_network("fd00:1::2/128")),
                policy=policy,
            )
            async with (
                open_interface(
                    replace(gateway_config(), peers=(from_client,)), tun=gateway_tun, udp=udp
                ) as gateway,
                open_interface(client),
            ):
                for family, address, expected in (
                    (trio.socket.AF_INET, "10.0.0.1", errno.EHOSTUNREACH),
                    (trio.socket.AF_INET6, "fd00:1::1", errno.EACCES),
                ):
                    with trio.socket.socket(family, socket.SOCK_STREAM) as tcp:
                        try:
                            with trio.fail_after(30):
                                await tcp.connect((address, 22))
                            raise AssertionError("there was a connection")
                        except OSError as error:
                            assert error.errno == expected, error
                drops = gateway.stats().peers[0].tunnel.drops
                assert drops[DropReason.DENIED] >= 2, drops
                with trio.socket.socket(trio.socket.AF_INET, socket.SOCK_STREAM) as tcp:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(tcp.connect, ("10.0.0.1", 443))
                        with trio.fail_after(30):
                            while (arrived := await gateway_tun.receive())[9] != socket.IPPROTO_TCP:
                                pass
                        nursery.cancel_scope.cancel()
                assert arrived[16:20] == bytes([10, 0, 0, 1]) and arrived[22:24] == (443).to_bytes(2, "big")

    trio.run(main)


run_body(globals())
