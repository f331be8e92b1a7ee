"""Faults 37 and 39: files that are wrong, and clients that dawdle."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from connlib import format_config
from interop.netns import Background, Namespace, unique_name, wait_for
from reliability import parties
from reliability.clients import Client, Crowd
from reliability.faults import Check, Run, at_least, at_most, count, note
from reliability.floods import GATEWAY
from reliability.places import child, yard
from reliability.system import COMMAND

CALLERS = 100
CONTROL_SOCKETS = Path("/var/run/wireguard")


def bad_files(run: Run) -> list[Check]:
    """Fault 37: what `connlib check` says about each, and how soon. Starting Python is in the time."""
    config = parties.gateway_config([parties.GATEWAY + 1])
    good = format_config(config).encode()
    secret = config.private_key.to_base64()
    files: dict[str, Callable[[], bytes]] = {
        "a bad line": lambda: good + b"AllowedIPs = nonsense\n",
        "NULs": lambda: good.replace(b"Peer", b"P\0er"),
        "half a key": lambda: good.replace(secret.encode(), secret[:20].encode()),
        "100 MB": lambda: good + b"# filled up with comments\n" * 4_000_000,
        "not text": lambda: bytes(range(256)) * 64,
    }
    checks = []
    echoed = traces = accepted = 0
    with TemporaryDirectory() as folder:
        for what, content in list(files.items())[: run.count(len(files), 1)]:
            path = Path(folder, "wg0.conf")
            path.unlink(missing_ok=True)
            path.touch(0o600)
            path.write_bytes(content())
            begin = time.monotonic()
            done = subprocess.run([*COMMAND, "check", str(path)], capture_output=True, text=True, timeout=60)
            checks.append(at_most(what, time.monotonic() - begin, 1, "s", timed=True))
            said = done.stdout + done.stderr
            accepted += done.returncode == 0
            traces += "Traceback" in said
            echoed += secret[:16] in said
    return [
        count("accepted", accepted, 0),
        count("tracebacks", traces, 0),
        count("keys echoed", echoed, 0),
        *checks,
    ]


def dawdlers(run: Run) -> list[Check]:
    """Fault 39: a hundred slow clients of the metrics and of the control socket, and one that is not."""
    requests = run.count(50, 3)
    with yard(1) as hosts, child(hosts.middle, "gateway", {"peers": 1000, "metrics": True}) as gateway:
        (friends,) = hosts.others
        made = friends.make_socket(socket.AF_INET, socket.SOCK_DGRAM)
        with Crowd([Client(parties.GATEWAY + 1, made, GATEWAY)]) as crowd, ExitStack() as slow:
            crowd.connect()
            port = gateway.ask("port")

            def call() -> socket.socket:
                caller = hosts.middle.make_socket(socket.AF_INET, socket.SOCK_STREAM)
                caller.connect(("127.0.0.1", port))
                return caller

            for number in range(CALLERS):
                caller = slow.enter_context(call())
                # Nothing, half a request, or one whose answer is not read.
                caller.sendall((b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")[number % 3])
            crowd.stream(0.5, 200)
            request = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
            first, *ready = [_took(call, request, b"ready") for _ in range(1 + requests)]
            crowd.stream(0.5, 200)
            crowd.settle()
            delivered = crowd.answered / crowd.sent
        first_settings, *settings = _control_socket(hosts.middle, requests)
    return [
        count("requests of others answered", len(ready) + len(settings), 2 * requests),
        at_most("another client of /readyz", max(ready) * 1000, 100, "ms", timed=True),
        at_most("another client of the control socket", max(settings) * 1000, 100, "ms", timed=True),
        at_least("the tunnel's requests answered", delivered * 100, 90, "%", timed=True),
        note("slow clients of each", CALLERS),
        note("/readyz while they all come at once", first * 1000, "ms"),
        note("the control socket while they all come at once", first_settings * 1000, "ms"),
    ]


def _control_socket(place: Namespace, requests: int) -> list[float]:
    """How long a client waits for the settings of a `connlib-wg` with a thousand peers."""
    name = unique_name("rl")
    path = CONTROL_SOCKETS / f"{name}.sock"
    with TemporaryDirectory() as folder, ExitStack() as slow:
        module = (COMMAND[0], "-c", "from connlib.cli.wg import main; main()")
        running = Background(place.command(*module, "-f", name), Path(folder, "log"))
        slow.callback(running.stop)
        wait_for(lambda: path.exists() or running.returncode is not None, "connlib-wg", 30)
        running.require_running()

        def call() -> socket.socket:
            caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            caller.connect(str(path))
            return caller

        _took(call, _thousand_peers(), b"errno=0")
        for number in range(CALLERS):
            slow.enter_context(call()).sendall((b"", b"set=1\nlisten_po", b"get=1\n\n" * 50)[number % 3])
        return [_took(call, b"get=1\n\n", b"errno=0") for _ in range(1 + requests)]


def _thousand_peers() -> bytes:
    lines = ["set=1"]
    for number in range(parties.GATEWAY + 1, parties.GATEWAY + 1001):
        lines.append(f"public_key={parties.key(number).public_key().to_bytes().hex()}")
        lines.append(f"allowed_ip={parties.address(number)}/32")
    return "\n".join([*lines, "", ""]).encode()


def _took(call: Callable[[], socket.socket], request: bytes, ending: bytes) -> float:
    """Seconds from the connection to the last byte of the answer."""
    begin = time.monotonic()
    with call() as caller:
        caller.settimeout(30)
        caller.sendall(request)
        said = b""
        while ending not in said:
            more = caller.recv(1 << 16)
            if not more:
                raise RuntimeError(f"no answer but {said!r}")
            said += more
    return time.monotonic() - begin
