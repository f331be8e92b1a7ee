"""A trace as a capture file that Wireshark reads: pcapng, with the keys inside if that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import connlib._pcapng as pcapng
from connlib.lab._flights import Flight, by_datagram, fate, flights
from connlib.lab._records import Arrived, Record
from connlib.lab._time import SECOND, UNIX_ORIGIN


def write_pcapng(
    file: BinaryIO,
    hosts: Sequence[str],
    records: Sequence[Record],
    *,
    keys: Sequence[str] | None = None,
    unix_origin: int = UNIX_ORIGIN,
) -> None:
    """Write the datagrams of a trace, each once, when it is sent, on an interface that has its sender's name.

    Timestamps are in nanoseconds. A comment says what was lost, dropped or copied on the way. Addresses are those
    outside of NATs, and 0 for a destination that is not known; Wireshark does not follow a session whose address
    changes.

    keys: lines of a key log (`LabTunn.key_log`), with which Wireshark shows what is inside of the tunnels. They are
        secrets, and whoever gets the file gets them: they are in it only if they are given here.
    unix_origin: when the world begins, in seconds since 1970.
    Raises `ValueError` for a datagram of more than 65,507 bytes, which no UDP packet holds, and for a line of a key log
    that is more than one line.
    """
    file.write(pcapng.section_header("connlib.lab"))
    for host in hosts:
        file.write(pcapng.interface(host))
    if keys is not None:
        file.write(pcapng.secrets(keys))
    places = {host: place for place, host in enumerate(hosts)}
    for copies in by_datagram(flights(records)).values():
        sent = copies[0].sent
        at = unix_origin * SECOND + sent.at
        destination = sent.destination or (pcapng.nowhere(sent.source[0]), 0)
        frame = pcapng.udp_frame(sent.source, destination, sent.data)
        comments = [comment for flight in copies if (comment := _comment(flight))]
        options = pcapng.packet_options(outbound=True, comments=comments)
        file.write(pcapng.packet(places[sent.host], at, frame, size=len(frame), options=options))


def _comment(flight: Flight) -> str:
    end = flight.end
    who = f"{end.host}: " if isinstance(end, Arrived) and end.error else ""
    told = who + fate(flight)
    return f"copy {flight.copy}: {told or 'arrived'}" if flight.copy else told
