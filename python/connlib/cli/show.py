"""`connlib show` and `connlib explain`: how running interfaces and their peers are, and why."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import trio
from rich import box
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from connlib._text import counted, duration
from connlib.control import ControlClient, Status, running

FIRST_LOOK = 0.5
"""Seconds between two looks, of which rates are made where nobody watches for longer."""

_STYLES = {"up": "green", "connecting": "yellow", "waiting": "cyan", "idle": "dim", "down": "bold red"}


def run_show(name: str | None, *, run_dir: str, as_json: bool, watch: bool, interval: float) -> int:
    """Print the interface `name`, or all, once or until Ctrl-C; the exit code. Raises `ControlError`."""
    names = [name] if name is not None else running(run_dir)
    if not names:
        print(f"no interface of connlib runs here ({run_dir} has no socket)", file=sys.stderr)
        return 1
    clients = [ControlClient(each, directory=run_dir) for each in names]
    trio.run(_show_json if as_json else _show_tables, clients, watch, interval)
    return 0


def run_explain(name: str, peers: Sequence[str], *, run_dir: str) -> None:
    """Print a line for each peer. Raises `ControlError`."""

    async def ask() -> None:
        for said in await ControlClient(name, directory=run_dir).explain(peers):
            print(f"{_called(said.name, said.peer)}: {said}")

    trio.run(ask)


async def _show_json(clients: Sequence[ControlClient], watch: bool, interval: float) -> None:
    while True:
        for client in clients:
            print(msgspec.json.encode(await client.show()).decode(), flush=True)
        if not watch:
            return
        await trio.sleep(interval)


async def _show_tables(clients: Sequence[ControlClient], watch: bool, interval: float) -> None:
    console = Console(highlight=False)
    before = await _look(clients)
    if not watch:
        await trio.sleep(FIRST_LOOK)
        console.print(_tables(before, await _look(clients)))
        return
    # Where it is no terminal, one after the other is printed.
    with Live(
        _tables(before, before), console=console, auto_refresh=False, vertical_overflow="visible"
    ) as live:
        while True:
            await trio.sleep(interval)
            now = await _look(clients)
            live.update(_tables(before, now), refresh=True)
            before = now


async def _look(clients: Sequence[ControlClient]) -> list[Status]:
    return [await client.show() for client in clients]


def _tables(before: Sequence[Status], now: Sequence[Status]) -> RenderableType:
    return Group(*(part for was, is_ in zip(before, now, strict=True) for part in _parts(was, is_)))


def _parts(before: Status, now: Status) -> Iterator[RenderableType]:
    up = sum(peer.state == "up" for peer in now.peers)
    yield Text.assemble(
        (now.name, "bold"),
        f"  up for {duration(now.up_for)}, UDP port {now.listen_port}, {up} of {counted(len(now.peers), 'peer')} up",
    )
    yield Text(f"public key {now.public_key}", style="dim")
    if now.peers:
        yield _table(before, now)
    for what, counts in (("dropped", now.drops), ("network errors", now.errors)):
        if counts:
            yield Text(f"{what}: {_counts(counts)}", style="yellow")


def _table(before: Status, now: Status) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("peer", no_wrap=True)
    table.add_column("state")
    table.add_column("endpoint", overflow="fold")
    for title in ("session", "received", "sent"):
        table.add_column(title, justify="right")
    table.add_column("why, and what happens next", ratio=1, overflow="fold")
    earlier = {peer.peer: peer for peer in before.peers}
    seconds = now.unix_time - before.unix_time
    for peer in now.peers:
        was = earlier.get(peer.peer, peer)
        said = str(peer).partition(": ")[2]
        table.add_row(
            _called(peer.name, peer.peer),
            Text(peer.state, style=_STYLES.get(peer.state, "")),
            peer.endpoint or "-",
            "-" if peer.session_age is None else duration(peer.session_age),
            _traffic(peer.rx_bytes, was.rx_bytes, seconds),
            _traffic(peer.tx_bytes, was.tx_bytes, seconds),
            said + (f"; dropped: {_counts(peer.drops)}" if peer.drops else ""),
        )
    return table


def _called(name: str | None, key: str) -> str:
    return name if name is not None else key


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _traffic(total: int, before: int, seconds: float) -> str:
    """Bytes so far and, if there are new ones, bytes per second."""
    # A peer that was made anew begins at zero.
    new = max(0, total - before)
    return decimal(total) + (f"\n{decimal(round(new / seconds))}/s" if new and seconds > 0 else "")
