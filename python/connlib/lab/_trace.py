"""Traces: what happened in a world, to count, to compare, and to look at."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Literal, TypeAlias

from connlib.lab._diagram import draw_png, draw_svg
from connlib.lab._errors import LabError
from connlib.lab._pcapng import write_pcapng
from connlib.lab._records import (
    Arrived,
    Copied,
    Delivered,
    Discarded,
    Lost,
    Offered,
    Record,
    Sent,
)
from connlib.lab._table import format_table
from connlib.lab._time import SECOND

Outcome: TypeAlias = Literal["delivered", "discarded", "dropped", "lost", "in flight", "waiting"]
"""Of a packet: it came out once or more, its tunnel discarded it, the other one dropped its datagram, a link lost that,
it is on its way, or it waits for a session (with upstream, which does not say which packet it seals or drops: or it was
discarded, or lost)."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a packet."""

    offered: Offered
    outcome: Outcome
    at: int
    """When that was decided, in nanoseconds; for what is not decided yet, when it was offered or sent."""
    why: str | None = None
    deliveries: int = 0


@dataclass(slots=True)
class Trace:
    """The records of a world, in the order in which things happened."""

    records: list[Record] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    """In the order in which they were made."""

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def sent(
        self,
        kinds: str = "IRCDK",
        *,
        host: str | None = None,
        since: float = 0.0,
        until: float = float("inf"),
    ) -> list[Sent]:
        """The datagrams of these kinds that were sent, by all or by one host, from `since` to `until` inclusive."""
        return [
            record
            for record in self.records
            if isinstance(record, Sent)
            and record.kind in kinds
            and host in (None, record.host)
            and since <= record.at / SECOND <= until
        ]

    def times(self, kinds: str, *, host: str | None = None, since: float = 0.0) -> list[float]:
        """When those were sent, in seconds."""
        return [sent.at / SECOND for sent in self.sent(kinds, host=host, since=since)]

    def counts(self, host: str | None = None) -> Counter[str]:
        """How many datagrams of each kind were sent, by everybody or by one host."""
        return Counter(sent.kind for sent in self.sent(host=host))

    def delivered(self, host: str | None = None) -> list[Delivered]:
        """The packets that came out, at all hosts or at one, in order."""
        return [
            record for record in self.records if isinstance(record, Delivered) and host in (None, record.host)
        ]

    def fates(self) -> dict[int, Fate]:
        """What became of each packet, by its number, in the order in which they were offered."""
        offered: dict[int, Offered] = {}
        decided: dict[int, Fate] = {}
        deliveries: Counter[int] = Counter()
        datagrams: dict[int, int] = {}
        ends: dict[int, list[Arrived | Lost]] = defaultdict(list)
        copies: Counter[int] = Counter()
        for record in self.records:
            match record:
                case Offered():
                    offered[record.packet] = record
                case Sent(packet=int(number)):
                    datagrams[number] = record.datagram
                    decided[number] = Fate(offered[number], "in flight", record.at)
                case Copied():
                    copies[record.datagram] += 1
                case Lost() | Arrived():
                    ends[record.datagram].append(record)
                case Discarded():
                    decided[record.packet] = Fate(
                        offered[record.packet], "discarded", record.at, record.reason.value
                    )
                case Delivered():
                    deliveries[record.packet] += 1
                    if deliveries[record.packet] == 1:
                        decided[record.packet] = Fate(offered[record.packet], "delivered", record.at)
                case _:
                    pass
        fates: dict[int, Fate] = {}
        for number, packet in offered.items():
            datagram = datagrams.get(number, -1)
            # As long as one copy is on its way, nothing is decided by the end of another.
            last = ends[datagram][-1] if len(ends[datagram]) > copies[datagram] else None
            fates[number] = self._fate(packet, decided.get(number), deliveries[number], last)
        return fates

    @staticmethod
    def _fate(offered: Offered, decided: Fate | None, deliveries: int, last: Arrived | Lost | None) -> Fate:
        if decided is None:
            return Fate(offered, "waiting", offered.at)
        if decided.outcome == "delivered":
            return Fate(offered, "delivered", decided.at, None, deliveries)
        if decided.outcome == "in flight" and last is not None:
            if isinstance(last, Lost):
                return Fate(offered, "lost", last.at, last.why)
            return Fate(offered, "dropped", last.at, last.error.value if last.error else None)
        return decided

    def table(self, *, since: float = 0.0, until: float = inf, kinds: Collection[str] | None = None) -> str:
        """What happened, a line for each datagram, packet, event, deadline and change, ended by a newline.

        since, until: seconds, inclusive. kinds: only lines of these kinds: I, R, C, D, K, `offered`, `discarded`,
        `delivered`, `event`, `wake`, `change`. Raises `ValueError` for another one.
        """
        return format_table(self.hosts, self.records, since=since, until=until, kinds=kinds)

    def draw(self, path: str | Path, *, since: float = 0.0, until: float = inf, title: str = "") -> None:
        """Draw a sequence diagram, time downwards, as SVG or PNG by the end of the file's name.

        Raises `LabError` for another ending, `PictureError` if this machine can make no PNG, and `OSError`.
        """
        path = Path(path)
        if path.suffix == ".svg":
            svg = draw_svg(self.hosts, self.records, since=since, until=until, title=title)
            path.write_text(svg, encoding="utf-8")
        elif path.suffix == ".png":
            path.write_bytes(draw_png(self.hosts, self.records, since=since, until=until, title=title))
        else:
            raise LabError(f"a picture is a .svg or a .png, not {path.name}")

    def save_capture(self, path: str | Path, *, keys: Sequence[str] | None = None) -> None:
        """Write the datagrams as pcapng, for Wireshark.

        keys: what `World.key_log` says, to have Wireshark decrypt them: then the file holds the private keys of the
        world's hosts, which are for nothing else. Raises `OSError`.
        """
        with open(path, "wb") as file:
            write_pcapng(file, self.hosts, self.records, keys=keys)

    def to_bytes(self) -> bytes:
        """All of it, so that two traces are equal if and only if these bytes are."""
        return "".join(f"{record!r}\n" for record in self.records).encode()
