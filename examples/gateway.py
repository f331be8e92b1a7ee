"""A WireGuard gateway in ten lines: python gateway.py FILE, where FILE is a wg-quick file. Needs CAP_NET_ADMIN."""

import sys

import trio

import connlib


async def main(path: str) -> None:
    async with connlib.open_interface(connlib.load_config(path)) as interface:
        print(f"{interface.name} is up, UDP port {interface.listen_port}", flush=True)
        async for peer, event in interface.events():
            print(peer.to_base64() if peer else interface.name, event, flush=True)


trio.run(main, sys.argv[1])
