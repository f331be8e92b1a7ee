"""A tunnel that says every so many seconds why peers are down: python health_check.py FILE SECONDS.

FILE is a wg-quick file. Needs CAP_NET_ADMIN.
"""

import sys

import trio

import connlib


async def main(path: str, pause: float) -> None:
    async with connlib.open_interface(connlib.load_config(path)) as interface:
        while True:
            await trio.sleep(pause)
            for peer in interface.config.peers:
                explanation = interface.explain(peer.public_key)
                if explanation.state is not connlib.PeerState.UP:
                    print(f"{peer.name or peer.public_key.to_base64()}: {explanation}", flush=True)


trio.run(main, sys.argv[1], float(sys.argv[2]))
