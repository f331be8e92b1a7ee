"""Where the things of a sequence diagram lie from top to bottom: time that is folded, and rows within an instant.

What happens at one instant at one host lies in rows below each other, in the order in which it happened, so that three
packets that leave at once are three arrows. Between instants the distance grows with the time, but slowly, and where
nothing is under way for long, the time is folded away. What then repeats itself is folded away as well, with a count.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from connlib._text import counted
from connlib.lab._flights import Flight, by_datagram, fate, say
from connlib.lab._records import (
    Arrived,
    Changed,
    Copied,
    Delivered,
    Discarded,
    Happened,
    Lost,
    Offered,
    Record,
    Sent,
    Woke,
)
from connlib.lab._time import SECOND

ROW = 19.0
"""Pixels between two rows."""
LOSS_DEPTH = 26.0
"""How far below its sender a lost datagram ends, in pixels."""
_LATENCY_HEIGHT = 50.0
_LEAST_HEIGHT = 24.0
_MOST_HEIGHT = 84.0
_FOLD_HEIGHT = 62.0
_DEFAULT_LATENCY = SECOND // 50
_PAUSE = 5
"""After how many latencies without a datagram under way what follows is another burst."""
_FOLD_AFTER = SECOND // 4
_LONGEST_PATTERN = 8
_LEAST_REPEATS = 3


class Mark(enum.Enum):
    """What stands beside a lane."""

    APPLICATION = enum.auto()
    DEADLINE = enum.auto()
    EVENT = enum.auto()
    CHANGE = enum.auto()
    DROP = enum.auto()


@dataclass(frozen=True, slots=True)
class Spot:
    """A place on a lane: which instant, and which row of it."""

    lane: int
    at: int
    row: int


@dataclass(frozen=True, slots=True)
class Label:
    """A mark on a lane with its text beside it."""

    spot: Spot
    mark: Mark
    text: str


@dataclass(frozen=True, slots=True)
class Arrow:
    """A datagram on its way."""

    flight: Flight
    start: Spot
    to_lane: int
    end: Spot | None
    """None: it does not come to any host while the diagram lasts."""


@dataclass(frozen=True, slots=True)
class Shade:
    """From when to when a machine was asleep (one lane), or a link was cut (two)."""

    lanes: tuple[int, ...]
    start: int
    end: int | None
    """None: the end of the diagram."""


@dataclass(frozen=True, slots=True)
class Fold:
    """Time that is left out, before an instant."""

    top: float
    bottom: float
    text: str
    repeats: bool
    """Whether things are left out with it."""


@dataclass(slots=True)
class Layout:
    """A diagram from top to bottom; heights are in pixels from 0."""

    labels: list[Label] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)
    shades: list[Shade] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    tops: dict[int, float] = field(default_factory=dict)
    """The height of the first row of each instant that is shown, in nanoseconds."""
    bottom: float = 0.0

    def height(self, spot: Spot) -> float:
        """Where a spot is."""
        return self.tops[spot.at] + spot.row * ROW

    def height_at(self, instant: int) -> float:
        """Where an instant is, or the next one that is shown."""
        return min((top for at, top in self.tops.items() if at >= instant), default=self.bottom)


def lay_out(hosts: Sequence[str], records: Sequence[Record], flying: Sequence[Flight]) -> Layout:
    """Place records in their order, and those of the flights that start among them."""
    placer = _Placer({host: lane for lane, host in enumerate(hosts)}, records, flying)
    layout = placer.layout
    latencies = [
        arrow.end.at - arrow.start.at
        for arrow in layout.arrows
        if arrow.end and arrow.end.at > arrow.start.at
    ]
    latency = round(median(latencies)) if latencies else _DEFAULT_LATENCY
    bursts = _bursts(sorted(placer.rows), layout.arrows, latency)
    _place_instants(layout, placer, [*_without_repeats(bursts, placer.signatures())], latency)
    layout.labels = [label for label in layout.labels if label.spot.at in layout.tops]
    layout.arrows = [arrow for arrow in layout.arrows if arrow.start.at in layout.tops]
    return layout


class _Placer:
    """Gives each thing its row."""

    def __init__(self, lanes: dict[str, int], records: Sequence[Record], flying: Sequence[Flight]) -> None:
        self.layout = Layout()
        self.rows: dict[int, int] = defaultdict(int)
        """How many rows each instant has."""
        self.lossy: dict[int, int] = {}
        """The last row of each instant from which a datagram gets lost."""
        self._lanes = lanes
        # The next free row on the lane and beside it, by instant and lane.
        self._inside: dict[tuple[int, int], int] = defaultdict(int)
        self._beside: dict[tuple[int, int], int] = defaultdict(int)
        self._starts: dict[int, Spot] = {}
        self._asleep: dict[int, int] = {}
        self._cuts: dict[tuple[int, int], tuple[int, set[int]]] = {}
        self._flights = by_datagram(flying)
        self._links = {
            f"{one}-{other}": (min(lanes[one], lanes[other]), max(lanes[one], lanes[other]))
            for one, other in itertools.permutations(lanes, 2)
        }
        self._last = records[-1].at if records else 0
        for record in records:
            self._place(record)
        for lane, since in self._asleep.items():
            self.layout.shades.append(Shade((lane,), since, None))
        for lanes_between, (since, _) in self._cuts.items():
            self.layout.shades.append(Shade(lanes_between, since, None))

    def signatures(self) -> dict[int, tuple[object, ...]]:
        """What each instant consists of, whenever it is and whichever handshake it belongs to."""
        parts: dict[int, list[object]] = defaultdict(list)
        for label in self.layout.labels:
            text = label.mark if label.mark is Mark.APPLICATION else label.text
            parts[label.spot.at].append((label.spot.lane, label.spot.row, text))
        for arrow in self.layout.arrows:
            sent, start, end = arrow.flight.sent, arrow.start, arrow.end
            what = (start.lane, start.row, arrow.to_lane, sent.kind, len(sent.data), fate(arrow.flight))
            parts[start.at].append((*what, end and end.row))
        return {at: tuple(part) for at, part in parts.items()}

    def _place(self, record: Record) -> None:
        if isinstance(record, Changed):
            self._change(record)
            return
        lane, at = self._lanes[record.host], record.at
        match record:
            case Offered():
                to = f" to {record.peer}" if len(self._lanes) > 2 else ""
                text = f"sends packet {record.packet}{to}, {record.size:,} B"
                self._label(lane, at, Mark.APPLICATION, text)
            case Discarded():
                self._label(lane, at, Mark.DROP, f"packet {record.packet} dropped: {record.reason.value}")
            case Delivered():
                self._label(lane, at, Mark.APPLICATION, f"gets packet {record.packet}")
            case Happened():
                self._label(lane, at, Mark.EVENT, say(record.event))
            case Woke():
                self._label(lane, at, Mark.DEADLINE, record.reason.value)
            case Sent():
                self._send(record.datagram, lane, at)
            case Arrived() | Lost():
                self._end(record)
            case Copied():
                # Its arrow is drawn with the datagram's.
                pass

    def _label(self, lane: int, at: int, mark: Mark, text: str) -> None:
        key = (at, lane)
        row = max(self._beside[key], self._inside[key] - 1)
        self._beside[key] = row + 1
        self.layout.labels.append(Label(self._spot(lane, at, row), mark, text))

    def _row_inside(self, lane: int, at: int, *, comes: bool) -> Spot:
        """Where an arrow comes to a lane, or leaves it: beside what happened there last, as that may be why."""
        row = max(self._inside[at, lane], self._beside[at, lane] - (0 if comes else 1))
        self._inside[at, lane] = row + 1
        return self._spot(lane, at, row)

    def _spot(self, lane: int, at: int, row: int) -> Spot:
        self.rows[at] = max(self.rows[at], row + 1)
        return Spot(lane, at, row)

    def _send(self, datagram: int, lane: int, at: int) -> None:
        start = self._starts[datagram] = self._row_inside(lane, at, comes=False)
        free = True
        for flight in self._flights[datagram]:
            if flight.end is not None and flight.end.at > self._last:
                flight = replace(flight, end=None)
            if flight.end is None or (isinstance(flight.end, Lost) and flight.end.at == at):
                # Copies that get as far as each other would lie on each other.
                spot = start if free else self._row_inside(lane, at, comes=False)
                free = False
                to_lane = self._lanes[flight.sent.peer]
                self.layout.arrows.append(Arrow(flight, spot, to_lane, None))
                self.lossy[at] = max(self.lossy.get(at, 0), spot.row)

    def _end(self, end: Arrived | Lost) -> None:
        """Where a datagram comes to a host, which may be asleep."""
        flight = next((flight for flight in self._flights[end.datagram] if flight.end is end), None)
        start = self._starts.get(end.datagram)
        if flight is None or start is None or (isinstance(end, Lost) and end.at == start.at):
            return
        lane = self._lanes[end.host if isinstance(end, Arrived) else flight.sent.peer]
        if lane == start.lane:
            self._label(lane, end.at, Mark.DROP, f"own {flight.label} comes back")
            return
        spot = self._row_inside(lane, end.at, comes=True)
        self.layout.arrows.append(Arrow(flight, start, lane, spot))
        if why := fate(flight):
            self._label(lane, end.at, Mark.DROP, why)

    def _change(self, record: Changed) -> None:
        what, at = record.what, record.at
        lane = self._lanes.get(record.where)
        pair = self._links.get(record.where)
        if lane is not None:
            if what.startswith("sleeps"):
                self._asleep[lane] = at
            elif what == "wakes up":
                self.layout.shades.append(Shade((lane,), self._asleep.pop(lane, 0), at))
            self._label(lane, at, Mark.CHANGE, what)
        elif pair is not None:
            self._cut(pair, what, at)
            hosts = [*self._lanes]
            for one, other in (pair, pair[::-1]):
                self._label(one, at, Mark.CHANGE, f"link to {hosts[other]} {what}")
        else:
            # A NAT has no lane.
            self._label(0, at, Mark.CHANGE, f"{record.where} {what}")

    def _cut(self, pair: tuple[int, int], what: str, at: int) -> None:
        """A link is cut or healed, in both directions or towards one host."""
        verb, _, towards = what.partition(" towards ")
        ends = {self._lanes[towards]} if towards else {*pair}
        since, before = self._cuts.pop(pair, (at if verb == "cut" else 0, set[int]()))
        if after := before | ends if verb == "cut" else before - ends:
            self._cuts[pair] = (since, after)
        else:
            self.layout.shades.append(Shade(pair, since, at))


# --- Time -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Burst:
    """Instants between which something is always under way, or soon will be."""

    instants: tuple[int, ...]
    repeats: str = ""
    """What is left out after it, if anything."""


def _bursts(instants: Sequence[int], arrows: Sequence[Arrow], latency: int) -> list[_Burst]:
    lands: dict[int, int] = defaultdict(int)
    for arrow in arrows:
        if arrow.end is not None:
            lands[arrow.start.at] = max(lands[arrow.start.at], arrow.end.at)
    bursts: list[list[int]] = []
    busy_until = 0
    for at in instants:
        if not bursts or (at > busy_until and at - bursts[-1][-1] > _PAUSE * latency):
            bursts.append([])
        bursts[-1].append(at)
        busy_until = max(busy_until, lands[at])
    return [_Burst(tuple(burst)) for burst in bursts]


def _without_repeats(bursts: Sequence[_Burst], signatures: dict[int, tuple[object, ...]]) -> Iterator[_Burst]:
    """The bursts without those that repeat the ones before them, of which the last before the gap says so."""
    looks = [tuple(signatures.get(at, ()) for at in burst.instants) for burst in bursts]
    place = 0
    while place < len(bursts):
        length, repeats = _longest_repeat(looks, place)
        pattern = bursts[place : place + length]
        yield from pattern[:-1]
        if repeats > 1:
            starts = [burst.instants[0] for burst in bursts[place : place + length * repeats : length]]
            yield _Burst(pattern[-1].instants, _say_repeats(starts))
        else:
            yield pattern[-1]
        place += length * repeats


def _longest_repeat(looks: Sequence[object], place: int) -> tuple[int, int]:
    """The length of the pattern that starts here and saves most, and how often it is there; (1, 1) for none."""
    best = (1, 1)
    for length in range(1, _LONGEST_PATTERN + 1):
        pattern = looks[place : place + length]
        repeats = 1
        while looks[place + repeats * length : place + (repeats + 1) * length] == pattern:
            repeats += 1
        if repeats >= _LEAST_REPEATS and length * (repeats - 1) > best[0] * (best[1] - 1):
            best = (length, repeats)
    return best


def _say_repeats(starts: Sequence[int]) -> str:
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    least, most = duration(min(gaps)), duration(max(gaps))
    every = least if least == most else f"{least} to {most}"
    return f"the same {counted(len(starts) - 1, 'time')} more, every {every}"


def _place_instants(layout: Layout, placer: _Placer, bursts: Sequence[_Burst], latency: int) -> None:
    height = 0.0
    before: int | None = None
    repeats = ""
    for burst in bursts:
        for at in burst.instants:
            if before is not None:
                least = _LEAST_HEIGHT
                if before in placer.lossy:
                    below = (placer.rows[before] - 1 - placer.lossy[before]) * ROW
                    least = max(least, LOSS_DEPTH + ROW - below)
                is_first = at == burst.instants[0]
                if repeats or (is_first and at - before > _FOLD_AFTER):
                    top = height + least - _LEAST_HEIGHT
                    height = top + _FOLD_HEIGHT
                    text = repeats or duration(at - before)
                    layout.folds.append(Fold(top, height, text, bool(repeats)))
                else:
                    height += max(least, _distance(at - before, latency))
                repeats = ""
            layout.tops[at] = height
            height += (placer.rows[at] - 1) * ROW
            before = at
        repeats = burst.repeats
    if before in placer.lossy:
        height += LOSS_DEPTH
    if repeats:
        layout.folds.append(Fold(height, height + _FOLD_HEIGHT, repeats, True))
        height += _FOLD_HEIGHT
    layout.bottom = height + _LEAST_HEIGHT


def _distance(time: int, latency: int) -> float:
    return min(max(_LATENCY_HEIGHT * math.sqrt(time / latency), _LEAST_HEIGHT), _MOST_HEIGHT)


def duration(nanoseconds: int) -> str:
    """A length of time in words: seconds up to ten minutes, with milliseconds if there are any."""
    milliseconds = (nanoseconds + 500_000) // 1_000_000
    seconds, milliseconds = divmod(milliseconds, 1000)
    fraction = f".{milliseconds:03d}".rstrip("0") if milliseconds else ""
    if seconds < 600:
        return f"{seconds}{fraction} s"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours:,} h"] if hours else []
    parts += [f"{minutes} min"] if minutes else []
    parts += [f"{seconds}{fraction} s"] if seconds or fraction else []
    return " ".join(parts)
