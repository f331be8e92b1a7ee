"""A thousand peers, two hundred of them in use, while others come and go."""

from __future__ import annotations

import socket
import statistics
from dataclasses import replace

from reliability import parties
from reliability.clients import Client, Crowd
from reliability.faults import Check, Run, at_least, at_most, count, note
from reliability.floods import GATEWAY
from reliability.places import child, resident, yard

PEERS, LIVE = 1000, 200
CHANGES = 20
"""Peers that are added or removed in a second."""
RATE = 2000
"""Requests a second of all live peers together, each with its answer."""
WINDOW = 300
"""Requests that may be on their way at once: the device's queue has room for 500 packets."""


def churn(run: Run) -> list[Check]:
    """Peers are added and removed; nobody else's packet is lost for it."""
    return [
        *_churn(run, "in the interface's network", routed=False),
        *_churn(run, "each with a route", routed=True),
    ]


def _churn(run: Run, what: str, *, routed: bool) -> list[Check]:
    seconds = run.pick(60, 3)
    peers, live = run.count(PEERS, 100), run.count(LIVE, 20)
    rate = run.count(RATE, 200)
    options = {"peers": peers, "routed": routed}
    with yard(1) as hosts, child(hosts.middle, "gateway", options) as gateway:
        (friends,) = hosts.others
        numbers = range(parties.GATEWAY + 1, parties.GATEWAY + 1 + live)
        clients = [
            Client(number, friends.make_socket(socket.AF_INET, socket.SOCK_DGRAM), GATEWAY)
            for number in numbers
        ]
        with Crowd(clients) as crowd:
            crowd.connect()
            first = parties.GATEWAY + 1 + peers
            # As it is when all that is made once is there: buffers, and what the first changes leave.
            gateway.tell("churn", seconds=run.pick(5, 0.5), rate=CHANGES, first=first)
            crowd.stream(run.pick(5, 0.5), rate, window=WINDOW)
            gateway.read()
            crowd.settle()
            before, sent, answered = resident(gateway.pid), crowd.sent, crowd.answered
            handshakes = sum(client.established for client in clients)
            gateway.tell("churn", seconds=seconds, rate=CHANGES, first=first + PEERS)
            crowd.stream(seconds, rate, window=WINDOW)
            churned = gateway.read()
            crowd.settle()
            lost = (crowd.sent - sent) - (crowd.answered - answered)
            after = resident(gateway.pid)
            again = sum(client.established for client in clients) - handshakes
            received = gateway.ask("stats")
            routes = hosts.middle.run("ip", "-4", "route", "show", "dev", "wg0").splitlines()
    took = [each * 1000 for each in churned["took"]]
    used = [each * 1000 for each in churned["used"]]
    built = [each * 1000 for each in churned["built"]]
    checks = [
        at_least("requests", crowd.sent - sent, live, timed=False),
        count(f"of {crowd.sent - sent:,} requests of {live} untouched peers lost", lost, 0),
        count("peers afterwards", churned["peers"], peers),
        count("routes afterwards", len(routes), peers if routed else 1),
        at_least("changes", len(took), run.count(10, 4), timed=False),
        at_least("that is", len(took) / seconds, 0.95 * CHANGES, "a second", timed=True),
        note("sessions started anew, as they are every two minutes", again),
        note("datagrams at the gateway", received["udp"]["received"]),
        at_most("memory, compared with before", abs(after - before) / before * 100, 5, "%", timed=True),
        at_most("`apply` of one change, median", statistics.median(took), 50, "ms", timed=True),
        at_most("`apply`, longest", max(took), 50, "ms", timed=True),
        note("`apply`, median of the processor time", statistics.median(used), "ms"),
        note("`apply`, longest of the processor time", max(used), "ms"),
        note("making the new configuration, median", statistics.median(built), "ms"),
    ]
    return [replace(check, what=f"{what}: {check.what}") for check in checks]
