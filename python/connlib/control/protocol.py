"""The control protocol: JSON lines over a Unix socket, a request at a time. Pure.

    > {"version": 1, "method": "explain", "peers": ["alice"]}
    < {"result": [{"peer": "...", "name": "alice", "state": "up", ...}]}

An answer is a line with `result` or with `error`. After the one to `events`, a line follows for each event, until
either side closes. After the one to `capture` come lines that say how many bytes of a pcapng file follow each of
them; when the client has closed its side, the rest of the file comes. A stream that ends before its time ends with an
`error`. What has no `version` is no request; for one with another version, the answer says which one is spoken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from connlib._errors import ConnlibError
from connlib.gateway import Gateway

from .wire import decode_hook, encoder, unknown_settings

VERSION = 1
MAX_LINE = 16 * 1024 * 1024
"""Bytes of a request: a configuration of ten thousand peers has about three million."""


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="method"):
    version: int = VERSION


class Show(_Request, frozen=True, kw_only=True, tag="show"):
    """Everything about the interface: `status.Status`."""


class Explain(_Request, frozen=True, kw_only=True, tag="explain"):
    """Why peers are up or down: a list of `status.PeerExplanation`."""

    peers: tuple[str, ...] = ()
    """By name or public key; all if there is none."""


class Apply(_Request, frozen=True, kw_only=True, tag="apply"):
    """Change to another configuration, all of it or nothing: a list of `Difference`, in the words of `connlib diff`."""

    gateway: Gateway
    """With its keys, not with names of files."""
    dry_run: bool = False


class Events(_Request, frozen=True, kw_only=True, tag="events"):
    """What happens from now on: lines of `status.ReportedEvent`."""


class Capture(_Request, frozen=True, kw_only=True, tag="capture"):
    """Packets from now on, as a pcapng file: `CaptureNews`, each before its bytes."""

    outer: bool = True
    """The datagrams, as they are on the network."""
    inner: bool = False
    """The packets within the tunnels."""
    keys: bool = False
    """The secrets that decrypt it, the static private key among them. For root only."""
    snaplen: Annotated[int, Meta(ge=1, le=65_535)] = 65_535
    """Bytes of each packet that are kept."""


Request: TypeAlias = Show | Explain | Apply | Events | Capture


class CaptureNews(msgspec.Struct, frozen=True, kw_only=True):
    """What a capture has brought since the last news."""

    size: Annotated[int, Meta(ge=0)]
    """How many bytes of the file follow the line that says this."""
    packets: int
    """How many there are in the file so far."""
    missed: int
    """How many came faster than they were taken."""
    readable: tuple[str, ...]
    """Peers, by name or public key, that can be decrypted from now on."""


class Difference(msgspec.Struct, frozen=True):
    """One line of what `apply` has changed, or would change."""

    mark: str
    """+, -, ~ or !, as in `connlib.diff.Change`."""
    text: str

    def __str__(self) -> str:
        return f"{self.mark} {self.text}"


class Refusal(msgspec.Struct, frozen=True):
    """Why a request was not done."""

    kind: str
    """`version`, `request`, `permission`, `config`, `device`, `capture`, `closed`, `busy` or `internal`."""
    problems: tuple[str, ...]
    """A line for each."""


class ControlError(ConnlibError):
    """A running interface cannot be asked, or refuses. `str()` is its first line."""

    def __init__(self, kind: str, problems: Sequence[str]) -> None:
        super().__init__(problems[0] if problems else kind)
        self.kind = kind
        """As `Refusal.kind`; `connection` where there is nobody to ask."""
        self.problems: tuple[str, ...] = tuple(problems)
        """A line for each."""

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.kind, self.problems))


class _Head(msgspec.Struct):
    version: int


# What msgspec quotes may be a key that was put in the wrong place. Our own texts, which come the same way, quote none.
_QUOTING = re.compile(
    r"\A(Invalid (?:enum )?value |Object contains unknown field ).*?( - at `\$[^`]*`)?\Z", re.DOTALL
)

_head = msgspec.json.Decoder(_Head)
_request = msgspec.json.Decoder(Request, dec_hook=decode_hook)


def parse_request(line: bytes) -> Request:
    """Read a request. Raises `ControlError`, with no value that the line holds."""
    try:
        return _parse_request(line)
    except RecursionError:
        raise ControlError("request", ["the request is nested too deeply"]) from None


def _parse_request(line: bytes) -> Request:
    try:
        version = _head.decode(line).version
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise ControlError(
            "request", ['this is no request: a JSON object with "version" is expected']
        ) from None
    if version != VERSION:
        raise ControlError("version", [f"this gateway speaks version {VERSION} of the control protocol"])
    try:
        request: Request = _request.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        text = _QUOTING.sub(r"\1(not shown)\2", str(error))
        raise ControlError("request", [f"the request is malformed: {text}"]) from None
    if isinstance(request, Apply) and (unknown := list(unknown_settings(line))):
        raise ControlError("request", [f"the request is malformed: {each}" for each in unknown])
    if isinstance(request, Apply) and request.gateway.key_files():
        # It would be read with the rights of this process, and may be a pipe that never ends.
        raise ControlError(
            "request", ["the request names a file with a key; it must hold the keys themselves"]
        )
    return request


def dump_request(request: Request) -> bytes:
    """A request as a line."""
    return encoder.encode(request) + b"\n"


def dump_result(result: object) -> bytes:
    """The answer to a request that was done."""
    return b'{"result":' + encoder.encode(result) + b"}\n"


def dump_error(error: ControlError) -> bytes:
    """The answer to one that was not."""
    return encoder.encode({"error": Refusal(error.kind, error.problems)}) + b"\n"


def dump_line(value: object) -> bytes:
    """A line of a stream."""
    return encoder.encode(value) + b"\n"


class _Answer(msgspec.Struct):
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: Refusal | msgspec.UnsetType = msgspec.UNSET


_answer = msgspec.json.Decoder(_Answer)


def parse_answer(line: bytes, kind: Any) -> Any:
    """The result in an answer, as a `kind`. Raises `ControlError` for a refusal, and for what is no answer."""
    try:
        answer = _answer.decode(line)
        if isinstance(answer.error, Refusal):
            raise ControlError(answer.error.kind, answer.error.problems)
        if isinstance(answer.result, msgspec.Raw):
            return msgspec.json.decode(answer.result, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    raise ControlError("connection", ["what answers does not speak connlib's control protocol"])


def parse_line(line: bytes, kind: Any) -> Any:
    """A line of a stream, as a `kind`. Raises `ControlError`, for the refusal that ends one too."""
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return parse_answer(line, kind)


class Lines:
    """Cuts what comes into lines of at most `MAX_LINE` bytes."""

    def __init__(self, most: int = MAX_LINE) -> None:
        self._most = most
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that are complete now. Raises `ControlError` for one that is too long."""
        *complete, rest = data.split(b"\n")
        for line in complete:
            self._add(line)
            yield b"".join(self._pieces)
            self._pieces.clear()
            self._size = 0
        self._add(rest)

    def _add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._most:
            raise ControlError("request", [f"the line is longer than {self._most:,} bytes"])
        if piece:
            self._pieces.append(piece)
