"""Recordings of a live interface: what came into its tunnels and when, as lines of JSON, and their replay.

The first line says what the peers are like; each other line is one input, `[nanoseconds, peer, kind, size, taken]`, or
`{"missed": n}` where inputs came faster than they were written down. There is no payload in it, no address and no key.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from connlib._errors import ConfigError
from connlib._native import PublicKey
from connlib._text import counted
from connlib._types import InputKind, NodeInput, PeerConfig, Role
from connlib.lab._packets import LARGEST, SMALLEST
from connlib.lab._scenarios import LATENCY, Asked, Scenario, Stage
from connlib.lab._time import SECOND

_VERSION = 1
_OVERHEAD = 32
"""Bytes of a data message around its packet: header and tag, paper section 5.4.6."""
_OTHER_SIDE = {
    Role.EITHER: Role.EITHER,
    Role.INITIATOR: Role.RESPONDER,
    Role.RESPONDER: Role.INITIATOR,
}
_KINDS = {kind.value: kind for kind in InputKind}


@dataclass(frozen=True, slots=True)
class RecordedPeer:
    """What is known of a peer."""

    role: Role
    keepalive: float | None


@dataclass(frozen=True, slots=True)
class RecordedInput:
    """One input of a peer's tunnel."""

    at: int
    """Nanoseconds since the beginning."""
    peer: int
    """Its place in the configuration."""
    kind: InputKind
    size: int
    taken: bool


@dataclass(frozen=True, slots=True)
class Recording:
    """A whole recording."""

    peers: tuple[RecordedPeer, ...]
    inputs: tuple[RecordedInput, ...]
    missed: int = 0
    """Inputs that came faster than they were written down."""
    is_cut: bool = False
    """Whether its last line is incomplete, because its writer was killed, and left out."""


class RecordingWriter:
    """Turns what a node wrote down into the lines of a recording."""

    def __init__(self, peers: Sequence[PeerConfig]) -> None:
        self._peers = {peer.public_key: number for number, peer in enumerate(peers)}
        self._roles = [(peer.role, peer.persistent_keepalive or None) for peer in peers]
        self._start: float | None = None

    def header(self) -> str:
        """The first line."""
        peers = [{"role": role.value, "keepalive": keepalive} for role, keepalive in self._roles]
        return json.dumps({"connlib-recording": _VERSION, "peers": peers}) + "\n"

    def lines(self, inputs: Iterable[NodeInput], missed: int = 0) -> Iterator[str]:
        """A line for each input; those of peers that were added since are left out."""
        for each in inputs:
            number = self._number(each.peer)
            if number is not None:
                if self._start is None:
                    self._start = each.at
                at = round((each.at - self._start) * SECOND)
                yield json.dumps([at, number, each.kind.value, each.size, each.taken]) + "\n"
        if missed:
            yield json.dumps({"missed": missed}) + "\n"

    def _number(self, peer: PublicKey) -> int | None:
        return self._peers.get(peer)


def load_recording(path: str | Path) -> Recording:
    """Read a recording. Raises `ConfigError`, with file and line, for what is none.

    One whose last line is incomplete was ended by force while it was written: what is complete is read.
    """
    hint = "give a file that `connlib crosscheck --record` wrote"
    peers: tuple[RecordedPeer, ...] | None = None
    inputs: list[RecordedInput] = []
    missed, is_cut = 0, False
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    if peers is not None and _is_cut(line):
                        is_cut = True
                        break
                    content = json.loads(line)
                    if peers is None:
                        peers = _peers(content)
                    elif isinstance(content, dict):
                        missed += _count(content["missed"])
                    else:
                        inputs.append(_input(content, len(peers), inputs[-1].at if inputs else 0))
                except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
                    message = "this is not a line of a recording"
                    raise ConfigError(message, path=str(path), line=number, hint=hint) from None
    except UnicodeDecodeError:
        raise ConfigError("this is not a recording", path=str(path), hint=hint) from None
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise ConfigError(f"cannot read it: {reason}", path=str(path), hint="name a recording") from None
    if peers is None:
        raise ConfigError("the file is empty", path=str(path), hint=hint)
    return Recording(peers, tuple(inputs), missed, is_cut)


def _is_cut(line: str) -> bool:
    """Whether a line begins as one and does not end: only the last one of a file can be like that."""
    if line.endswith("\n") or line[0] not in "[{":
        return False
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return True
    return False


def _peers(content: Any) -> tuple[RecordedPeer, ...]:
    if content["connlib-recording"] != _VERSION:
        raise ValueError
    return tuple(
        RecordedPeer(Role(peer["role"]), None if peer["keepalive"] is None else _keepalive(peer["keepalive"]))
        for peer in content["peers"]
    )


def _keepalive(value: Any) -> float:
    seconds = float(value)
    if not 1 <= seconds <= 65_535:
        raise ValueError
    return seconds


def _count(value: Any) -> int:
    # A month is more than upstream, which is polled, can be played.
    if type(value) is not int or not 0 <= value <= 31 * 86_400 * SECOND:
        raise ValueError
    return value


def _input(content: Any, peers: int, since: int) -> RecordedInput:
    at, peer, kind, size, taken = content
    if _count(peer) >= peers or _count(at) < since or type(taken) is not bool:
        raise ValueError
    return RecordedInput(at, peer, _KINDS[kind], _count(size), taken)


def replays(recording: Recording) -> list[Scenario]:
    """A script for each peer that something came from or went to: A is the recorded side, B the peer.

    What is replayed is packets and the beginnings of handshakes: B's one latency before they came. What follows from
    them, retries and renewals is each engine's own, and so are keepalives: those that B sent are not in it.
    """
    return [
        _replay(recording, number)
        for number in range(len(recording.peers))
        if any(each.peer == number for each in recording.inputs)
    ]


def _replay(recording: Recording, number: int) -> Scenario:
    peer = recording.peers[number]
    inputs = [each for each in recording.inputs if each.peer == number]

    def play(stage: Stage) -> None:
        for each in inputs:
            at = each.at / SECOND
            match each.kind:
                case InputKind.PACKET:
                    stage.a.send(at=stage.at(at), size=_packet_size(each.size))
                case InputKind.INITIATION if each.taken:
                    stage.b.initiate_handshake(at=stage.at(max(0.0, at - LATENCY)))
                case InputKind.DATA if each.taken and each.size > _OVERHEAD:
                    # Padding cannot be told from the packet, and does no harm.
                    stage.b.send(
                        at=stage.at(max(0.0, at - LATENCY)), size=_packet_size(each.size - _OVERHEAD)
                    )
                case InputKind.HANDSHAKE:
                    stage.a.initiate_handshake(at=stage.at(at))
                case _:
                    pass

    ends = recording.inputs[-1].at / SECOND
    return Scenario(
        number=number,
        title=f"peer {number} of the recording, {counted(len(inputs), 'input')} in {ends:,.1f} s",
        play=play,
        until=ends + 1.0,
        asked=Asked(None, None, None),
        connected=False,
        keepalives=(peer.keepalive, None),
        roles=(peer.role, _OTHER_SIDE[peer.role]),
    )


def _packet_size(size: int) -> int:
    return min(max(size, SMALLEST), LARGEST)
