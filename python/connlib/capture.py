"""The packets of a running interface as a file for Wireshark, which can decrypt them if the keys are put into it.

    with connlib.capture_interface(interface, "wg0.pcapng", keys=True) as capture:
        await capture.follow()

Datagrams are captured where the interface's node gets them and hands them out, IP packets on the other side of it: what
the kernel loses between there and the network is in its own captures. Packets wait in a bounded memory until they are
written; what finds no room there is missed, and counted. A capture never makes a packet wait, but it is written in the
event loop, and a file that is slow to write to holds that up (and with it the packets, where it moves them).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import anyio
import anyio.lowlevel

from . import _pcapng as pcapng
from ._errors import CaptureError, ClosedError
from ._native import PublicKey
from ._types import CapturedPacket
from .config import InterfaceConfig
from .driver import Interface

__all__ = ["Capture", "capture_interface"]

CAPACITY = 8 << 20
"""Bytes of packets that may come within `PAUSE`."""
PAUSE = 0.05
"""Seconds between two looks at what has come."""
SLICE = 64
"""Packets that are written before others have their turn."""
LAST_SLICES = 64
"""As many at most are written at the end at one go: more than come within `PAUSE`, in some tens of milliseconds."""
WHOLE_PACKETS = 65_535

_SECOND = 10**9
_KINDS = ("outer", "inner")


class BinaryFile(Protocol):
    """What a capture can be written to."""

    def write(self, data: bytes, /) -> int | None:
        """Take some of the bytes, at least one, and say how many."""


@contextmanager
def capture_interface(
    interface: Interface,
    file: str | os.PathLike[str] | BinaryFile,
    *,
    outer: bool = True,
    inner: bool = False,
    keys: bool = False,
    snaplen: int = WHOLE_PACKETS,
) -> Iterator[Capture]:
    """Capture the packets of an interface, from now on and until the end of the block, into a file in pcapng.

    `Capture.follow`, which has to run meanwhile, writes them; at the end of the block the rest is written, and for each
    kind how many packets came by and how many were missed. Only one capture of an interface goes on at a time.

    file: a path, where no file may be yet; it is made for its owner's eyes alone (mode 0600). Or something that is open
        for writing bytes, which stays open.
    outer: the datagrams that come, whatever becomes of them, and those that are sent, as UDP packets with an
        unspecified address on this side. A comment names the peer, or says that there is none.
    inner: the IP packets from the TUN device, whatever becomes of them, and those for it, in clear.
    keys: put the secrets in with which Wireshark decrypts the datagrams: of each handshake from now on our ephemeral
        key and the preshared key, and our static private key. Whoever has the file can read the traffic, and can be
        this end of the tunnels until the private key is changed. Sessions that exist already stay unreadable, see
        `Capture.readable`.
    snaplen: how many bytes of each datagram or packet are kept, 1 to 65,535; with `keys`, all of them, since what is
        cut off cannot be decrypted.

    Raises `CaptureError` if the file cannot be made or written to, or if the interface is captured already,
    `ClosedError` after the interface was closed, and `ValueError` for arguments that make no sense.
    """
    if not (outer or inner):
        raise ValueError("a capture of nothing: outer or inner must be true")
    if keys and not outer:
        raise ValueError("keys are for what is encrypted: outer must be true")
    if not 1 <= snaplen <= WHOLE_PACKETS:
        raise ValueError(f"snaplen must be 1 to {WHOLE_PACKETS}, not {snaplen}")
    if keys and snaplen != WHOLE_PACKETS:
        raise ValueError(f"with keys, snaplen must be {WHOLE_PACKETS}: what is cut off cannot be decrypted")
    if not interface.is_open:
        raise ClosedError(f"the interface {interface.name} is closed")
    if interface._node.is_captured:
        raise CaptureError(f"{interface.name} is being captured already; end that capture first")
    kinds = tuple(kind for kind, wanted in zip(_KINDS, (outer, inner), strict=True) if wanted)
    with opened_target(file) as target:
        capture = Capture(interface, target, kinds, keys=keys, snaplen=snaplen)
        capture._begin()
        try:
            yield capture
        finally:
            capture._end()


class Capture:
    """A capture that goes on, as `capture_interface` gives it."""

    def __init__(
        self, interface: Interface, target: Target, kinds: tuple[str, ...], *, keys: bool, snaplen: int
    ) -> None:
        self._interface = interface
        self._node = interface._node
        self._target = target
        self._kinds = kinds
        self._keys = keys
        self._snaplen = snaplen
        # From the clock of the node to that of the file, which goes on evenly, whatever happens to the wall clock.
        self._unix_epoch = round((interface._clock.unix_time() - interface._clock.now()) * _SECOND)
        self._written = dict.fromkeys(_KINDS, 0)
        self._missed = dict.fromkeys(_KINDS, 0)
        self._readable: list[PublicKey] = []
        # The configuration that the names are of, and what is said of each peer's packets, as blocks have it.
        self._named: InterfaceConfig | None = None
        self._names: dict[PublicKey, str | None] = {}
        self._told: dict[tuple[PublicKey | None, bool], bytes] = {}

    @property
    def packets(self) -> int:
        """How many packets were written, of both kinds."""
        return sum(self._written.values())

    @property
    def missed(self) -> int:
        """How many packets came by and are not in the file, because they came faster than they were written."""
        return sum(self._missed.values())

    @property
    def readable(self) -> tuple[PublicKey, ...]:
        """The peers whose datagrams can be decrypted from their newest session on; without `keys`, none.

        That takes a handshake which began after the capture did: of a session that is in use there is one every two
        minutes, and `Interface.initiate_handshake` makes one now.
        """
        return tuple(self._readable)

    async def follow(self) -> None:
        """Write what is captured, until cancelled or until the interface is closed.

        Raises `CaptureError` if that does not work any more: a disk is full. The interface goes on.
        """
        while self._interface.is_open:
            await self._catch_up()
            await anyio.sleep(PAUSE)

    async def finish(self) -> None:
        """Capture nothing more, and write what has been captured, in turns with others: the end of the block has to do
        that at one go, and counts what would take it long as missed. Raises `CaptureError`.
        """
        self._node.capture(CAPACITY, outer=False, inner=False, snaplen=self._snaplen)
        await self._catch_up()

    async def _catch_up(self) -> None:
        while self._write() >= SLICE:
            await anyio.lowlevel.checkpoint()

    def _begin(self) -> None:
        blocks = [pcapng.section_header("connlib")]
        for kind in self._kinds:
            longest = self._snaplen + (pcapng.UDP_HEADERS if kind == "outer" else 0)
            blocks.append(pcapng.interface(f"{self._interface.name} {kind}", longest))
        self._target.write(b"".join(blocks))
        outer, inner = (kind in self._kinds for kind in _KINDS)
        # Keys first: of a handshake that is captured there are some.
        self._node.log_keys(self._keys)
        self._node.capture(CAPACITY, outer=outer, inner=inner, snaplen=self._snaplen)

    def _end(self) -> None:
        # What is left is to become less.
        self._node.capture(CAPACITY, outer=False, inner=False, snaplen=self._snaplen)
        try:
            if self._target.works:
                for _ in range(LAST_SLICES):
                    if self._write() < SLICE:
                        break
                self._miss_the_rest()
                self._target.write(b"".join(map(self._statistics, self._kinds)))
        finally:
            self._node.capture(0)
            self._node.log_keys(False)

    def _miss_the_rest(self) -> None:
        while packets := self._take():
            for packet in packets:
                self._missed[_kind(packet)] += 1

    def _take(self) -> list[CapturedPacket]:
        """Some packets, if there are any; what found no room meanwhile is counted."""
        packets, *missed = self._node.take_captured(SLICE)
        for kind, count in zip(_KINDS, missed, strict=True):
            self._missed[kind] += count
        return packets

    def _write(self) -> int:
        """Write some packets, if there are any; how many they were."""
        packets = self._take()
        # After the packets, so that the keys to all of these are there, and are put in before them.
        lines, readable = self._node.take_key_log()
        blocks = [pcapng.secrets(lines)] if lines else []
        blocks += map(self._block, packets)
        if blocks:
            self._target.write(b"".join(blocks))
        self._readable += readable
        return len(packets)

    def _block(self, packet: CapturedPacket) -> bytes:
        kind = _kind(packet)
        self._written[kind] += 1
        frame, size = packet.data, packet.size
        if packet.remote is not None:
            # More than that is no UDP over IPv4, but a caller of the node can make it up.
            kept = frame[: pcapng.MAX_UDP_PAYLOAD]
            size = min(size, pcapng.MAX_UDP_PAYLOAD)
            here, there = (pcapng.nowhere(packet.remote[0]), self._interface.listen_port), packet.remote
            ends = (here, there) if packet.outbound else (there, here)
            frame = pcapng.udp_frame(*ends, kept, size)
            size += len(frame) - len(kept)
        return pcapng.packet(
            self._kinds.index(kind),
            self._unix_epoch + packet.at,
            frame,
            size=size,
            options=self._options(packet.peer, packet.outbound),
        )

    def _options(self, peer: PublicKey | None, outbound: bool) -> bytes:
        config = self._interface.config
        if config is not self._named:
            self._named = config
            self._names = {each.public_key: each.name for each in config.peers}
            self._told.clear()
        options = self._told.get((peer, outbound))
        if options is None:
            whose = "of no peer" if peer is None else f"peer {self._names.get(peer) or peer}"
            options = pcapng.packet_options(outbound=outbound, comments=[whose])
            self._told[peer, outbound] = options
        return options

    def _statistics(self, kind: str) -> bytes:
        missed = self._missed[kind]
        received = self._written[kind] + missed
        at = self._unix_epoch + round(self._interface._clock.now() * _SECOND)
        return pcapng.statistics(self._kinds.index(kind), at, received=received, dropped=missed)


@contextmanager
def opened_target(file: str | os.PathLike[str] | BinaryFile, name: str = "its file") -> Iterator[Target]:
    """Where blocks of pcapng go; `name` is what something that is open is called. Raises `CaptureError` if the file
    cannot be made.
    """
    if isinstance(file, str | os.PathLike):
        with _OwnTarget(os.fspath(file)) as target:
            yield target
    else:
        yield Target(file, name)


class Target:
    """Where the blocks of a capture go, for as long as that works."""

    def __init__(self, file: BinaryFile, name: str) -> None:
        self._file = file
        self._name = name
        self.works = True

    def write(self, blocks: bytes) -> None:
        """Write all of them. Raises `CaptureError` if that does not work; from then on nothing does."""
        rest = blocks
        try:
            while rest:
                written = self._file.write(rest)
                if not written:
                    raise OSError("it takes no more")
                rest = rest[written:]
        except OSError as error:
            self.works = False
            self._tidy()
            raise CaptureError(
                f"the capture ends: cannot write to {self._name}: {error.strerror or error}"
            ) from None

    def _tidy(self) -> None:
        """Nothing can be done about a file of somebody else's."""


class _OwnTarget(Target):
    """A file that is made here."""

    def __init__(self, path: str) -> None:
        # Not through a link, and not over what is there: the file may hold secrets.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        try:
            self._own = open(os.open(path, flags, 0o600), "wb", buffering=0)  # noqa: SIM115
        except FileExistsError:
            raise CaptureError(f"{path} is there already; name another file to capture to") from None
        except OSError as error:
            raise CaptureError(f"cannot capture to {path}: {error.strerror}") from None
        super().__init__(self._own, path)
        self._whole = 0

    def __enter__(self) -> _OwnTarget:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._own.close()

    def write(self, blocks: bytes) -> None:
        super().write(blocks)
        self._whole += len(blocks)

    def _tidy(self) -> None:
        # Without the blocks that are there only in part, which a reader would complain about.
        with suppress(OSError):
            self._own.truncate(self._whole)
            # Somebody else's may be there by now.
            if not self._whole and os.path.samestat(os.lstat(self._name), os.fstat(self._own.fileno())):
                os.unlink(self._name)


def _kind(packet: CapturedPacket) -> str:
    return "inner" if packet.remote is None else "outer"
