"""`connlib show` and `connlib explain`: how running interfaces and their peers are, and why."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import msgspec
import trio
from rich import box
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from connlib._text import counted, counts, duration
from connlib.control import ControlClient, ControlError, PeerStatus, Status, running

FIRST_LOOK = 0.5
"""Seconds between two looks, of which rates are made where nobody watches for longer."""
WIDE = 120
"""Columns from which on a table has room for whole keys and for sentences beside them."""
SHORT_KEY = 8

_STYLES = {"up": "green", "connecting": "yellow", "waiting": "cyan", "idle": "dim", "down": "bold red"}


def run_show(name: str | None, *, run_dir: str, as_json: bool, watch: bool, interval: float) -> int:
    """Print the interface `name`, or all, once or until Ctrl-C; the exit code.

    Raises `ControlError` if the one that was named does not answer. Where none was, one that does not is said to, and
    the others are shown.
    """
    if name is None and not running(run_dir):
        print(_nothing(run_dir), file=sys.stderr)
        return 1

    async def look() -> dict[str, Status | ControlError]:
        if name is not None:
            return {name: await ControlClient(name, directory=run_dir).show()}
        # Anew each time: some may have come since.
        return await _look_at_all([ControlClient(each, directory=run_dir) for each in running(run_dir)])

    if as_json:
        return trio.run(_show_json, look, watch, interval)
    return trio.run(_show_tables, look, _nothing(run_dir), watch, interval)


def _nothing(run_dir: str) -> str:
    return f"no interface of connlib runs here ({run_dir} has no socket)"


def run_explain(name: str, peers: Sequence[str], *, run_dir: str) -> None:
    """Print a line for each peer. Raises `ControlError`."""

    async def ask() -> None:
        for said in await ControlClient(name, directory=run_dir).explain(peers):
            print(f"{said.name or said.peer}: {said}")

    trio.run(ask)


Look = Callable[[], Awaitable["dict[str, Status | ControlError]"]]


async def _show_json(look: Look, watch: bool, interval: float) -> int:
    while True:
        found = await look()
        for name, status in found.items():
            if isinstance(status, ControlError):
                print(f"connlib: {_silence(name, status)}", file=sys.stderr, flush=True)
            else:
                print(msgspec.json.encode(status).decode(), flush=True)
        if not watch:
            return _exit_code(found)
        await trio.sleep(interval)


async def _show_tables(look: Look, nothing: str, watch: bool, interval: float) -> int:
    console = Console(highlight=False)
    before = await look()
    if not watch:
        await trio.sleep(FIRST_LOOK)
        now = await look()
        console.print(_tables(before, now, console.width, nothing))
        return _exit_code(now)
    # On a screen of its own: what does not fit would stay above it, again with every look.
    has_screen = console.is_terminal and not console.is_dumb_terminal
    live = Live(console=console, screen=True, auto_refresh=False) if has_screen else None
    now = before
    with live or nullcontext():
        while True:
            tables = _tables(before, now, console.width, nothing)
            if live is not None:
                live.update(tables, refresh=True)
            else:
                console.print(tables)
            await trio.sleep(interval)
            before, now = now, await look()


async def _look_at_all(clients: Sequence[ControlClient]) -> dict[str, Status | ControlError]:
    """How they are, or why that is not known. All are asked at once, so that a silent one is waited for but once."""
    found: dict[str, Status | ControlError] = {}

    async def ask(client: ControlClient) -> None:
        try:
            found[client.name] = await client.show()
        except ControlError as error:
            found[client.name] = error

    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(ask, client)
    return {client.name: found[client.name] for client in clients}


def _exit_code(found: Mapping[str, Status | ControlError]) -> int:
    return int(any(isinstance(status, ControlError) for status in found.values()))


def _silence(name: str, error: ControlError) -> str:
    text = str(error)
    return text if text.startswith(name) else f"{name}: {text}"


Found = Mapping[str, "Status | ControlError"]


def _tables(before: Found, now: Found, width: int, nothing: str = "") -> RenderableType:
    parts: list[RenderableType] = [] if now else [Text(nothing)]
    for name, status in now.items():
        if isinstance(status, ControlError):
            parts.append(Text(_silence(name, status), style="bold red"))
            continue
        was = before.get(name, status)
        parts += _parts(status if isinstance(was, ControlError) else was, status, width)
    return Group(*parts)


def _parts(before: Status, now: Status, width: int) -> Iterator[RenderableType]:
    up = sum(peer.state == "up" for peer in now.peers)
    yield Text.assemble(
        (now.name, "bold"),
        f"  up for {duration(now.up_for)}, UDP port {now.listen_port}, {up} of {counted(len(now.peers), 'peer')} up",
    )
    yield Text(f"public key {now.public_key}", style="dim")
    if now.peers:
        yield _table(before, now, width >= WIDE)
        if width < WIDE:
            yield from (Text(f"{_called(peer)}: {_why(peer)}") for peer in now.peers)
    for what, numbers in (("dropped", now.drops), ("network errors", now.errors)):
        if numbers:
            yield Text(f"{what}: {counts(numbers)}", style="yellow")


def _table(before: Status, now: Status, wide: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("peer", overflow="fold")
    table.add_column("state")
    table.add_column("endpoint", overflow="fold")
    for title in ("session", "received", "sent"):
        table.add_column(title, justify="right")
    if wide:
        table.add_column("why, and what happens next", ratio=1, overflow="fold")
    earlier = {peer.peer: peer for peer in before.peers}
    seconds = now.unix_time - before.unix_time
    for peer in now.peers:
        was = earlier.get(peer.peer, peer)
        cells = [
            peer.name or (peer.peer if wide else _called(peer)),
            peer.state,
            peer.endpoint or "-",
            "-" if peer.session_age is None else duration(peer.session_age),
            _traffic(peer.rx_bytes, was.rx_bytes, seconds),
            _traffic(peer.tx_bytes, was.tx_bytes, seconds),
        ]
        if wide:
            cells.append(_why(peer))
        # As text: names and endpoints are no markup, whatever brackets and colons they have.
        row = [Text(cell) for cell in cells]
        row[1].stylize(_STYLES.get(peer.state, ""))
        table.add_row(*row)
    return table


def _called(peer: PeerStatus) -> str:
    """By its name, or else by the beginning of its key."""
    return peer.name or f"{peer.peer[:SHORT_KEY]}..."


def _why(peer: PeerStatus) -> str:
    said = str(peer).partition(": ")[2]
    return said + (f"; dropped: {counts(peer.drops)}" if peer.drops else "")


def _traffic(total: int, before: int, seconds: float) -> str:
    """Bytes so far and, if there are new ones, bytes per second."""
    # A peer that was made anew begins at zero.
    new = max(0, total - before)
    return decimal(total) + (f"\n{decimal(round(new / seconds))}/s" if new and seconds > 0 else "")
