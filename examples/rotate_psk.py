"""A new preshared key for a peer, on both ends, without losing the session: python rotate_psk.py.

A session goes on with the keys it has; only the next handshake, two minutes after the last one at most, needs the same
preshared key on both ends. So there is time to change one end after the other: should a handshake come in between, it
is repeated every 5 s, while packets use the old session until that is three minutes old.

Both ends are in this process and in memory, in virtual time; `rotate` is all that a real one needs.
"""

from dataclasses import replace
from ipaddress import ip_network

import trio
from trio.testing import MockClock

import connlib
from connlib.driver import MemoryTun, MemoryUdp

PACKET = bytes.fromhex("4500001c00004000400126450a4d00020a4d0001") + b"\x08\x00\xf7\xff\x00\x00\x00\x00"


async def rotate(interface: connlib.Interface, peer: connlib.PublicKey, key: connlib.PresharedKey) -> None:
    peers = tuple(
        replace(each, preshared_key=key) if each.public_key == peer else each
        for each in interface.config.peers
    )
    await interface.apply(replace(interface.config, peers=peers))


async def main() -> None:
    network, tun, client_tun = MemoryUdp(), MemoryTun(), MemoryTun()
    a_key, b_key = connlib.PrivateKey.generate(), connlib.PrivateKey.generate()
    first, second = connlib.PresharedKey.generate(), connlib.PresharedKey.generate()
    to_client = connlib.PeerConfig(
        public_key=a_key.public_key(), preshared_key=first, allowed_ips=(ip_network("10.77.0.2"),)
    )
    to_gateway = connlib.PeerConfig(
        public_key=b_key.public_key(),
        preshared_key=first,
        allowed_ips=(ip_network("10.77.0.1"),),
        endpoint=("192.0.2.1", 51820),
    )
    gateway_end = connlib.InterfaceConfig(private_key=b_key, listen_port=51820, peers=(to_client,))
    client_end = connlib.InterfaceConfig(private_key=a_key, peers=(to_gateway,))
    async with (
        connlib.open_interface(gateway_end, tun=tun, udp=network.host("192.0.2.1")) as gateway,
        connlib.open_interface(client_end, tun=client_tun, udp=network.host("192.0.2.2")) as client,
        trio.open_nursery() as nursery,
    ):
        handshakes = 0

        async def count() -> None:
            nonlocal handshakes
            async for _, event in client.events():
                handshakes += isinstance(event, connlib.SessionEstablished)

        async def send(when: str) -> None:
            await client_tun.send(PACKET)
            with trio.fail_after(1):
                assert await tun.receive() == PACKET
            await trio.sleep(1)
            print(f"{when}: a packet arrived, handshakes so far: {handshakes}")

        nursery.start_soon(count)
        await send("with the first key")
        await rotate(gateway, a_key.public_key(), second)
        await send("the gateway has the second key")
        await rotate(client, b_key.public_key(), second)
        await send("both have it")
        await trio.sleep(130)
        await send("two minutes later, time for the second key")
        nursery.cancel_scope.cancel()


trio.run(main, clock=MockClock(autojump_threshold=0))
