"""Fault 39: clients of the metrics and of both control sockets that dawdle, and one that asks while settings change."""

from __future__ import annotations

import functools
import json
import math
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from interop.netns import Namespace, unique_name, wait_for
from reliability import parties
from reliability.clients import Client, Crowd
from reliability.faults import Check, Run, at_least, at_most, count, note
from reliability.floods import GATEWAY
from reliability.places import MEGABYTE, WG_COMMAND, background, child, resident, yard

CALLERS = 100
PEERS = 1000
WG_SOCKETS = Path("/var/run/wireguard")
STREAM = 200
"""Requests a second that the tunnel carries meanwhile."""

Call = Callable[[], socket.socket]
"""Connects to what is asked."""


def dawdlers(run: Run) -> list[Check]:
    """Fault 39."""
    requests = run.count(50, 3)
    checks = []
    with yard(1) as hosts, TemporaryDirectory() as folder:
        (friends,) = hosts.others
        options = {"peers": PEERS, "metrics": True, "control": folder}
        with child(hosts.middle, "gateway", options) as gateway, _tunnel(friends) as crowd:
            port = gateway.ask("port")

            def metrics() -> socket.socket:
                caller = hosts.middle.make_socket(socket.AF_INET, socket.SOCK_STREAM)
                caller.connect(("127.0.0.1", port))
                return caller

            page = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
            slow = (b"", b"GET /metr", page % b"/metrics")
            ready = (page % b"/readyz", b"ready")
            # The page of one scrape is kept for the next one.
            _took(metrics, slow[-1], b"# TYPE connlib_errors_total ")
            checks += _among(run, "/readyz", metrics, slow, ready, requests, crowd, gateway.pid)
            control = functools.partial(_connect, Path(folder, "wg0.sock"))
            show = json.dumps({"version": 1, "method": "show"}).encode() + b"\n"
            checks += _among(
                run,
                "connlib's control socket",
                control,
                (b"", show[:20], show * 50),
                (show, b"\n"),
                requests,
                crowd,
                gateway.pid,
            )
        with _connlib_wg(hosts.middle, Path(folder)) as (wg, pid), _tunnel(friends) as crowd:
            get = (b"get=1\n\n", b"errno=0\n\n")
            slow = (b"", b"set=1\nlisten_po", get[0] * 50)
            checks += _among(run, "the socket of connlib-wg", wg, slow, get, requests, crowd, pid)
            checks += _get_while_replaced(wg, run.count(100_000, 300))
    return checks


@contextmanager
def _tunnel(friends: Namespace) -> Iterator[Crowd]:
    made = friends.make_socket(socket.AF_INET, socket.SOCK_DGRAM)
    with Crowd([Client(parties.GATEWAY + 1, made, GATEWAY)]) as crowd:
        crowd.connect()
        yield crowd


def _connect(path: Path) -> socket.socket:
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    caller.connect(str(path))
    return caller


@contextmanager
def _connlib_wg(place: Namespace, folder: Path) -> Iterator[tuple[Call, int]]:
    """A `connlib-wg` with a thousand peers and a tunnel: how to connect to it, and its process."""
    name = unique_name("rl")
    path = WG_SOCKETS / f"{name}.sock"
    command = (*WG_COMMAND, "-f", name)
    with background(place, command, folder) as running:
        wait_for(lambda: path.exists() or running.returncode is not None, "connlib-wg", 30)
        running.require_running()
        place.run("ip", "address", "add", f"{parties.address(parties.GATEWAY)}/10", "dev", name)
        place.run("ip", "link", "set", name, "up")
        call = functools.partial(_connect, path)
        if _took(call, _thousand_peers(), b"errno=0\n\n") == math.inf:
            raise RuntimeError(f"the settings were refused: {running.output()}")
        yield call, running.pid


def _thousand_peers() -> bytes:
    lines = [
        "set=1",
        f"private_key={parties.key(parties.GATEWAY).to_bytes().hex()}",
        f"listen_port={parties.PORT}",
    ]
    for number in range(parties.GATEWAY + 1, parties.GATEWAY + 1 + PEERS):
        lines.append(f"public_key={parties.key(number).public_key().to_bytes().hex()}")
        lines.append(f"allowed_ip={parties.address(number)}/32")
    return "\n".join([*lines, "", ""]).encode()


def _among(
    run: Run,
    what: str,
    call: Call,
    slow: Sequence[bytes],
    quick: tuple[bytes, bytes],
    requests: int,
    crowd: Crowd,
    pid: int,
) -> list[Check]:
    """A hundred slow clients come at once, and at once somebody else asks, again and again, while the tunnel is used.

    slow: what they send: nothing, a part of a request, or requests whose answers are not read. quick: the request of
    the other one, and how its answer ends. pid: the process that answers.
    """
    # As it is when all that is made once is there.
    crowd.stream(run.pick(1, 0.2), STREAM)
    warm = _took(call, *quick)
    crowd.settle()
    before, sent, answered = resident(pid), crowd.sent, crowd.answered
    with ExitStack() as stack, ThreadPoolExecutor(1) as other:
        callers = [stack.enter_context(call()) for _ in range(CALLERS)]
        for number, caller in enumerate(callers):
            caller.setblocking(False)
            said = slow[number % len(slow)]
            # It takes all of that, or what there is room for; where this took long, the first were sent away meanwhile.
            with suppress(BrokenPipeError, ConnectionResetError):
                caller.send(said) if said else None
        asking = other.submit(lambda: [_took(call, *quick) for _ in range(1 + requests)])
        while not asking.done():
            crowd.stream(0.1, STREAM)
        crowd.settle()
        grown = resident(pid) - before
        held = sum(map(_is_open, callers))
    times = asking.result()
    first, later = times[0] * 1000, max(times[1:]) * 1000
    delivered = (crowd.answered - answered) / (crowd.sent - sent)
    return [
        count(
            f"{what}: requests of somebody else answered",
            sum(each < math.inf for each in times),
            1 + requests,
        ),
        note(f"{what}: without slow clients", warm * 1000, "ms"),
        at_most(
            f"{what}: the first request, while {CALLERS} slow clients come",
            first,
            100,
            "ms",
            timed=True,
        ),
        at_most(f"{what}: the slowest of those after it", later, 100, "ms", timed=True),
        note(f"{what}: slow clients that are not sent away", held),
        at_least(f"{what}: the tunnel's requests answered", delivered * 100, 90, "%", timed=True),
        at_most(f"{what}: memory grown by", grown / MEGABYTE, 1, "MB", timed=True),
    ]


def _is_open(caller: socket.socket) -> bool:
    poll = select.poll()
    poll.register(caller, select.POLLRDHUP)
    return not poll.poll(0)


def _took(call: Call, request: bytes, ending: bytes) -> float:
    """Seconds from the connection to the last byte of the answer; infinity if there is none."""
    begin = time.monotonic()
    try:
        with call() as caller:
            caller.settimeout(30)
            caller.sendall(request)
            said = b""
            while ending not in said:
                more = caller.recv(1 << 16)
                if not more:
                    return math.inf
                said += more
    except OSError:
        return math.inf
    return time.monotonic() - begin


KEYS = 3
PREFIXES = 5
"""Of each key."""
ASKERS = 10
"""Clients that ask for the settings: each has a request that waits while they are replaced."""
AT_ONCE = 100
"""Requests of each that are sent before their answers are read."""


def _get_while_replaced(call: Call, gets: int) -> list[Check]:
    """Each request to set replaces all peers by those of one generation; no answer is of two of them."""
    stop = threading.Event()
    asked, mixed, seen = 0, 0, set()
    _replace(call, 0)
    with ThreadPoolExecutor(1) as other, ExitStack() as stack:
        askers = [stack.enter_context(call()) for _ in range(ASKERS)]
        replacing = other.submit(_replace_again_and_again, call, stop)
        try:
            while asked < gets and not replacing.done():
                each = min(AT_ONCE, (gets - asked) // ASKERS)
                for asker in askers:
                    asker.settimeout(30)
                    asker.sendall(b"get=1\n\n" * each)
                for answer in (answer for asker in askers for answer in _answers(asker, each)):
                    prefixes = re.findall(rb"allowed_ip=10\.(\d+\.\d+)\.", answer)
                    mixed += len(set(prefixes)) != 1 or len(prefixes) != KEYS * PREFIXES
                    seen.update(prefixes)
                    asked += 1
        finally:
            stop.set()
        generations = replacing.result()
    return [
        count("the socket of connlib-wg: settings asked for while they are replaced", asked, gets),
        count("of them not of one moment", mixed, 0),
        note("replaced meanwhile", generations),
        at_least("settings that were seen", len(seen), min(generations, gets / 100), timed=False),
    ]


def _answers(asker: socket.socket, number: int) -> list[bytes]:
    said = b""
    while said.count(b"\n\n") < number:
        more = asker.recv(1 << 16)
        if not more:
            raise RuntimeError("a client was sent away")
        said += more
    return said.split(b"\n\n")[:number]


def _replace_again_and_again(call: Call, stop: threading.Event) -> int:
    generation = 0
    while not stop.is_set():
        generation += 1
        _replace(call, generation)
    return generation


def _replace(call: Call, generation: int) -> None:
    lines = ["set=1", "replace_peers=true"]
    for number in range(KEYS):
        lines.append(f"public_key={parties.key(2 + number).public_key().to_bytes().hex()}")
        for prefix in range(number * PREFIXES, (number + 1) * PREFIXES):
            lines.append(f"allowed_ip=10.{generation >> 8 & 255}.{generation & 255}.{prefix}/32")
    if _took(call, "\n".join([*lines, "", ""]).encode(), b"errno=0\n\n") == math.inf:
        raise RuntimeError("the settings were refused")
