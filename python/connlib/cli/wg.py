"""`connlib-wg NAME`: an interface for `wg` and `wg-quick`, in place of `wireguard-go`.

The command line and its behaviour are those of https://www.wireguard.com/xplatform/: make the TUN device, leave the
terminal, serve the control socket; end at SIGINT or SIGTERM, with the device, or with the socket's file. Addresses,
routes, MTU and link state are whoever's who started it. The device may be renamed and moved to another network
namespace: it is known by its descriptor. UDP stays where the process was started.

Exit codes: 0 for a stop by signal or by removal of the socket's file, 1 for a failure, the loss of the device among
them, 2 for bad arguments.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import NoReturn

from connlib.config import check_interface_name

from . import complain, report_failure
from ._daemon import detach, take_standard_descriptors

PROGRAM = "connlib-wg"

LEVELS = {
    "silent": "critical",
    "error": "error",
    "warning": "warning",
    "info": "info",
    "verbose": "debug",
    "debug": "debug",
}
"""What LOG_LEVEL may be, by the names that other implementations have, and what that is to `logging`."""

log = logging.getLogger("connlib.wg")


def main() -> int:
    """Run the command that `sys.argv` asks for, and return its exit code."""
    try:
        take_standard_descriptors()
        arguments = _parser().parse_args()
        name = check_interface_name(arguments.name)
        level = _level()
        report = _stay if arguments.foreground else _detach(level)
    except BaseException as error:
        return report_failure(error, PROGRAM)
    code = 1
    try:
        _run(name, level, lambda: report(0))
        return 0
    except BaseException as error:
        code = report_failure(error, PROGRAM)
        return code
    finally:
        if code:
            _report_failure_to_start(report, code)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # One line, like every other error. argparse repeats arguments, which are no secrets here.
        complain(f"{message}; try {PROGRAM} --help", PROGRAM)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    import connlib

    parser = _Parser(
        prog=PROGRAM,
        description="Make the TUN device NAME, go into the background, and serve wg, wg-quick and other tools that "
        "speak WireGuard's configuration protocol at /var/run/wireguard/NAME.sock.",
        epilog="Environment: LOG_LEVEL is silent, error (the default), warning, info or debug (verbose). In the "
        "background, logs go to standard error only if it is set. STATE_DIRECTORY is where timestamps of handshakes "
        "are kept in place of /var/lib/connlib; empty for nowhere.",
        allow_abbrev=False,
    )
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {connlib.__version__}")
    parser.add_argument("name", metavar="NAME", help="name of the device, 1 to 15 letters, digits or _=+.-")
    return parser


def _level() -> str:
    """What LOG_LEVEL says; the default for what it should not say, since a tunnel is worth more than its log."""
    return LEVELS.get(os.environ.get("LOG_LEVEL", "").lower(), "error")


def _stay(code: int) -> None:
    """In the foreground, nobody waits for a report."""


def _detach(level: str) -> Callable[[int], None]:
    return detach(keep_output="LOG_LEVEL" in os.environ and level != LEVELS["silent"])


def _report_failure_to_start(report: Callable[[int], None], code: int) -> None:
    try:
        report(code)
    except OSError:
        pass  # nobody waits any more


def _run(name: str, level: str, ready: Callable[[], None]) -> None:
    from ._dumps import forbid_dumps
    from ._stop import stop_signals
    from .up import set_up_log

    stop_signals.install()
    import trio

    set_up_log(level)
    # Before there is a key to be seen.
    forbid_dumps(log)
    try:
        trio.run(_serve, name, ready)
    finally:
        stop_signals.tell(None)


async def _serve(name: str, ready: Callable[[], None]) -> None:
    import trio

    from connlib._native import PrivateKey
    from connlib.config import InterfaceConfig
    from connlib.driver import open_interface
    from connlib.links import DEFAULT_MTU
    from connlib.socketfile import SocketFile
    from connlib.tun import make_device, set_mtu
    from connlib.uapi.device import Device
    from connlib.uapi.link import follow_link
    from connlib.uapi.server import serve

    from ._state import timestamp_store
    from ._stop import stop_signals
    from .up import freeze_what_stays, stop_by_signal

    with ExitStack() as stack, trio.CancelScope() as scope:
        stop_by_signal(stop_signals, scope)
        descriptor, made = make_device(name, headers=True)
        stack.callback(os.close, descriptor)
        set_mtu(made, DEFAULT_MTU)
        nobodys = InterfaceConfig(private_key=PrivateKey.generate(), mtu=DEFAULT_MTU, routes=False)
        # There is no key yet, and no peer: what was kept for them waits in the node.
        store = timestamp_store(made)
        async with open_interface(nobodys, tun=descriptor, timestamps=store) as interface:
            device = Device(interface, keyless=True, up=False)
            freeze_what_stays()
            with SocketFile(name) as file:
                ready()
                log.info("%s is there, and waits for wg at %s", name, file.path)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(serve, device, file.socket)
                    nursery.start_soon(follow_link, device, descriptor)
                    await file.wait_removed()
                    log.info("stopping: %s was removed", file.path)
                    nursery.cancel_scope.cancel()


if __name__ == "__main__":
    sys.exit(main())
