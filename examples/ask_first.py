"""A gateway in one file whose hook asks a database whether a peer may begin a flow: python ask_first.py.

The rules say what is sure, and ask about the rest; the first packet of such a flow waits for the answer. The database
is SQLite's, in memory, asked in a thread, as one that takes its time would be.

Gateway and client are in this process and in memory. Without `tun` and `udp`, the gateway has a TUN device and a UDP
port, which needs CAP_NET_ADMIN; the hook stays the same.
"""

import sqlite3
import struct
from contextlib import closing
from ipaddress import ip_network

import trio

import connlib
from connlib.driver import MemoryTun, MemoryUdp

RULES = connlib.Policy(
    (
        connlib.Rule(action=connlib.Action.ALLOW, protocol=connlib.Protocol.UDP, ports=(53,), name="names"),
        connlib.Rule(action=connlib.Action.ASK, protocol=connlib.Protocol.UDP, name="ask"),
    ),
    default=connlib.Action.DENY,
)


class Grants:
    """Who may reach what."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._database.execute("CREATE TABLE grants (peer TEXT, port INTEGER)")

    def add(self, peer: str, port: int) -> None:
        self._database.execute("INSERT INTO grants VALUES (?, ?)", (peer, port))

    async def decide(self, question: connlib.FlowQuestion) -> bool:
        """The hook. What it raises refuses the flow, and is counted and logged."""
        found = await trio.to_thread.run_sync(
            self._find, question.name, question.destination_port, abandon_on_cancel=True
        )
        print(
            f"  asked: may {question.name} reach port {question.destination_port}? {'yes' if found else 'no'}"
        )
        return found

    def _find(self, peer: str | None, port: int | None) -> bool:
        query = "SELECT 1 FROM grants WHERE peer = ? AND port = ?"
        return self._database.execute(query, (peer, port)).fetchone() is not None


def udp(port: int) -> bytes:
    """A packet from 10.77.0.2, the client, to a port of 10.77.0.1; the checksum of UDP is left out."""
    header = struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, 0)
    return header + bytes([10, 77, 0, 2, 10, 77, 0, 1]) + struct.pack("!HHHH", 5000, port, 8, 0)


async def outcome(tun: MemoryTun, client_tun: MemoryTun) -> str:
    """Whether a packet arrives, or an ICMP message comes back."""
    said = ""

    async def wait(end: MemoryTun, what: str) -> None:
        nonlocal said
        await end.receive()
        said = what
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, tun, "arrived")
        nursery.start_soon(wait, client_tun, "refused, and told so by ICMP")
    return said


async def main(grants: Grants) -> None:
    network, tun, client_tun = MemoryUdp(), MemoryTun(), MemoryTun()
    key, client_key = connlib.PrivateKey.generate(), connlib.PrivateKey.generate()
    alice = connlib.PeerConfig(
        public_key=client_key.public_key(),
        name="alice",
        allowed_ips=(ip_network("10.77.0.2"),),
        policy=RULES,
    )
    to_gateway = connlib.PeerConfig(
        public_key=key.public_key(), allowed_ips=(ip_network("10.77.0.1"),), endpoint=("192.0.2.1", 51820)
    )
    gateway_end = connlib.InterfaceConfig(private_key=key, listen_port=51820, peers=(alice,))
    client_end = connlib.InterfaceConfig(private_key=client_key, peers=(to_gateway,))
    async with (
        connlib.open_interface(
            gateway_end, tun=tun, udp=network.host("192.0.2.1"), decide=grants.decide
        ) as gateway,
        connlib.open_interface(client_end, tun=client_tun, udp=network.host("192.0.2.2")),
    ):
        for port in (53, 443, 443, 22, 22):
            print(f"alice sends to port {port}")
            await client_tun.send(udp(port))
            print(" ", await outcome(tun, client_tun))
        print("hook:", dict(gateway.stats().hook))


with closing(sqlite3.connect(":memory:", check_same_thread=False)) as connection:
    table = Grants(connection)
    table.add("alice", 443)
    trio.run(main, table)
