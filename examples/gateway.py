"""A WireGuard gateway in a few lines: python gateway.py FILE. Needs CAP_NET_ADMIN.

FILE is a gateway's TOML file or, with another ending, a wg-quick file.
"""

import sys

import trio

import connlib


def load(path: str) -> connlib.InterfaceConfig:
    return (
        connlib.load_gateway(path).to_interface_config()
        if path.endswith(".toml")
        else connlib.load_config(path)
    )


async def main(path: str) -> None:
    async with connlib.open_interface(load(path)) as interface:
        print(f"{interface.name} is up, UDP port {interface.listen_port}", flush=True)
        async for peer, event in interface.events():
            print(peer.to_base64() if peer else interface.name, event, flush=True)


try:
    trio.run(main, sys.argv[1])
except connlib.ConnlibError as error:
    sys.exit(str(error))
