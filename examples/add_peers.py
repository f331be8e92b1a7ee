"""A gateway in one file that adds and removes peers while it runs: python add_peers.py. Needs CAP_NET_ADMIN.

It reads lines such as `add alice PUBLIC_KEY 10.77.0.2` and `remove alice`, until there are no more. The sessions of the
other peers go on meanwhile.
"""

import sys
from ipaddress import ip_interface, ip_network

import trio

import connlib

END = connlib.GatewayInterface(
    private_key=connlib.PrivateKey.generate(),
    name="example1",
    listen_port=51820,
    addresses=(ip_interface("10.77.0.1/24"),),
    role=connlib.Role.RESPONDER,
)


def changed(peers: dict[str, connlib.GatewayPeer], words: list[str]) -> dict[str, connlib.GatewayPeer]:
    """The peers after a command. Raises `ValueError`, which connlib's errors about values are, too."""
    match words:
        case ["add", name, key, address]:
            public_key = connlib.PublicKey.from_base64(key)
            peer = connlib.GatewayPeer(name=name, public_key=public_key, allowed_ips=(ip_network(address),))
            return {**peers, name: peer}
        case ["remove", name] if name in peers:
            return {other: peer for other, peer in peers.items() if other != name}
    raise ValueError("write: add NAME PUBLIC_KEY ADDRESS, or: remove NAME, of a peer that is there")


def config_of(peers: dict[str, connlib.GatewayPeer]) -> connlib.InterfaceConfig:
    return connlib.Gateway(interface=END, peers=tuple(peers.values())).to_interface_config()


async def main() -> None:
    peers: dict[str, connlib.GatewayPeer] = {}
    async with connlib.open_interface(config_of(peers)) as interface:
        print(f"UDP port {interface.listen_port}, public key {interface.public_key.to_base64()}", flush=True)
        async for line in trio.wrap_file(sys.stdin):
            try:
                after = changed(peers, line.split())
                await interface.apply(config_of(after))
            except ValueError as error:
                print(f"nothing changed: {error}", flush=True)
            else:
                peers = after
                print(f"peers: {', '.join(peers) or 'none'}", flush=True)


trio.run(main)
