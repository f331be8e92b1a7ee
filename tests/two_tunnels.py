"""Two tunnels that are called by hand, and packets to send through them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from connlib import Output, PrivateKey, PublicKey, Tunn

UNIX_TIME = 1_700_000_000.0
START = 1_000.0
SOURCE = ("192.0.2.1", 51820)

ALICE = PrivateKey.from_bytes(bytes([1] * 32))
BOB = PrivateKey.from_bytes(bytes([2] * 32))


def ipv4(payload: bytes = b"", source: str = "10.0.0.1", destination: str = "10.0.0.2") -> bytes:
    """An IPv4 packet with a header of 20 bytes (RFC 791); its checksum does not matter to a tunnel."""
    length = 20 + len(payload)
    header = bytes([0x45, 0]) + length.to_bytes(2, "big") + bytes(4) + bytes([64, 17]) + bytes(2)
    addresses = b"".join(bytes(map(int, text.split("."))) for text in (source, destination))
    return header + addresses + payload


def ipv6(payload: bytes = b"") -> bytes:
    """An IPv6 packet with a header of 40 bytes (RFC 8200) from fd00::1 to fd00::2."""
    header = bytes([0x60, 0, 0, 0]) + len(payload).to_bytes(2, "big") + bytes([17, 64])
    prefix = bytes([0xFD]) + bytes(14)
    return header + prefix + b"\x01" + prefix + b"\x02" + payload


def tunnel(
    own: PrivateKey = ALICE, peer: PublicKey | None = None, *, now: float = START, **options: Any
) -> Tunn:
    """A tunnel of `own` to the other of the two keys."""
    other = BOB if own == ALICE else ALICE
    return Tunn(own, peer or other.public_key(), now=now, unix_time=UNIX_TIME, **options)


def only(items: list[bytes]) -> bytes:
    """The one item of a list."""
    (item,) = items
    return item


def handshake(initiator: Tunn, responder: Tunn, now: float = START) -> None:
    """Establish a session that both sides have confirmed."""
    initiation = initiator.initiate_handshake(now)
    response = responder.decapsulate(only(initiation.datagrams), now, SOURCE)
    confirmation = initiator.decapsulate(only(response.datagrams), now, SOURCE)
    for datagram in confirmation.datagrams:
        assert responder.decapsulate(datagram, now, SOURCE).error is None


def connected(**options: Any) -> tuple[Tunn, Tunn]:
    """Alice, who initiated, and Bob, with a session that was made at `START`."""
    alice, bob = tunnel(ALICE, **options), tunnel(BOB, **options)
    handshake(alice, bob)
    return alice, bob


def deliver(datagrams: Iterable[bytes], to: Tunn, now: float) -> list[Output]:
    """Hand datagrams over."""
    return [to.decapsulate(datagram, now, SOURCE) for datagram in datagrams]


def nothing(output: Output) -> bool:
    """Whether a call caused nothing."""
    return output == ([], [], [], None)
