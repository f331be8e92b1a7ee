"""Why peers of a running gateway are down, every so many seconds: python health_check.py NAME SECONDS [FOLDER].

NAME is an interface of `connlib up`, or of its unit, on this machine. FOLDER is that of its control socket, if it is
not /run/connlib. To be run by root, or by the user that runs the gateway.
"""

import sys

import trio

import connlib


async def main(name: str, pause: float, folder: str) -> None:
    gateway = connlib.ControlClient(name, directory=folder)
    while True:
        try:
            for peer in await gateway.explain():
                if peer.state != "up":
                    print(f"{peer.name or peer.peer}: {peer}", flush=True)
        except connlib.ControlError as error:
            print(error, flush=True)  # it restarts, perhaps
        await trio.sleep(pause)


name, pause, *folder = sys.argv[1:]
trio.run(main, name, float(pause), folder[0] if folder else "/run/connlib")
