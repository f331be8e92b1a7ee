"""The protocols between a service manager and `connlib up`: descriptors, notifications, watchdog."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio

from connlib.cli._service import feed_watchdog
from connlib.cli._systemd import Given, Notifier, take_descriptors
from connlib.clock import BootClock
from connlib.driver import MemoryTun, open_interface
from helpers_driver import GATEWAY_KEY, client_config, in_real_time, in_virtual_time, loopback_socket
from helpers_netns import in_namespace, run_body
from helpers_service import Manager

# Descriptors


def passed(
    making: str, *, names: str = "", count: int | None = None, for_whom: str = "str(os.getpid())"
) -> object:
    """What a process makes of descriptors from 3 on, which `making` puts into the list `made`; or its one line."""
    script = f"""
import fcntl, json, os, socket
from connlib import DeviceError
made = []
{textwrap.dedent(making)}
# Out of the way first: any of them may be where another one is to be.
away = [fcntl.fcntl(one, fcntl.F_DUPFD, 50) for one in made]
for number, one in enumerate(away):
    os.dup2(one, 3 + number)
environment = {{"LISTEN_PID": {for_whom}, "LISTEN_FDS": "{{}}", "LISTEN_FDNAMES": {names!r}, "HOME": "/"}}
environment["LISTEN_FDS"] = {str(count)!r} if {count is not None} else str(len(made))
from connlib.cli._systemd import take_descriptors
try:
    given = take_descriptors(environment)
    udp = given.udp if isinstance(given.udp, tuple) else (given.udp,) if given.udp else ()
    print(json.dumps([[int(one.family) for one in udp], given.tun, sorted(environment)]))
    assert not any(os.get_inheritable(one.fileno()) for one in udp)
except DeviceError as error:
    print(json.dumps(str(error)))
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


UDP = """
def bound(family, address, only=1):
    one = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
    one.bind((address, 0))
    return one
"""
V4, V6 = int(socket.AF_INET), int(socket.AF_INET6)


def test_bound_sockets_are_told_apart_by_their_families_and_the_variables_are_taken_out() -> None:
    both = UDP + "made = [bound(socket.AF_INET6, '::1'), bound(socket.AF_INET, '127.0.0.1')]"
    assert passed(both) == [[V6, V4], None, ["HOME"]]
    assert passed(UDP + "made = [bound(socket.AF_INET, '127.0.0.1')]", names="udp") == [[V4], None, ["HOME"]]


def test_what_was_passed_to_another_process_is_left_alone() -> None:
    one = UDP + "made = [bound(socket.AF_INET, '127.0.0.1')]"
    assert passed(one, for_whom="str(os.getppid())") == [[], None, ["HOME"]]
    assert passed(one, for_whom="''") == [[], None, ["HOME"]]
    assert passed(one, count=-1) == [[], None, ["HOME"]]


@pytest.mark.parametrize(
    ("making", "problem"),
    [
        ("made = [socket.socket()]", "the descriptor 3 that was passed as 'x' is no UDP socket; "),
        (
            "made = [socket.socket(type=socket.SOCK_DGRAM)]",
            "the descriptor 3 that was passed as 'x' is not bound; ",
        ),
        (
            UDP + "made = [bound(socket.AF_INET, '127.0.0.1'), bound(socket.AF_INET, '127.0.0.1')]",
            "the descriptor 4 that was passed is a second socket of its family; ",
        ),
        (
            UDP + "made = [bound(socket.AF_INET6, '::', 0)]",
            "the descriptor 3 that was passed as 'x' is for IPv4 as well as IPv6; set BindIPv6Only=ipv6-only",
        ),
        ("made = [os.pipe()[0]]", "the descriptor 3 that was passed as 'x' is of no use; "),
        (
            "made = [os.open('/dev/null', os.O_RDWR)]",
            "the descriptor 3 that was passed as 'x' is no TUN device, or one without a name; ",
        ),
    ],
    ids=["tcp", "unbound", "second", "both families", "pipe", "null"],
)
def test_a_descriptor_that_is_of_no_use_is_one_line_that_says_which(making: str, problem: str) -> None:
    said = passed(making, names="x")
    assert isinstance(said, str) and said.startswith(problem)


def test_a_descriptor_that_is_not_open_is_one_line_that_says_which() -> None:
    said = passed("", count=200)
    assert isinstance(said, str) and said.startswith("cannot use the descriptor ")
    assert "that was passed: Bad file descriptor; pass one bound UDP socket" in said


@in_namespace
def test_a_tun_device_is_recognised() -> None:
    made = "from connlib.tun import make_device\nmade = [make_device('wgtest0')[0]]"
    assert passed(made) == [[], 3, ["HOME"]]
    # One that nothing was made with yet.
    without = passed("made = [os.open('/dev/net/tun', os.O_RDWR)]")
    assert isinstance(without, str) and "is no TUN device, or one without a name; " in without


def test_what_was_given_is_closed_once() -> None:
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    reader, writer = os.pipe()
    os.close(writer)
    with Given((one,), reader) as given:
        assert given.udp is one and given.tun == reader
    given.close()
    assert one.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)
    assert take_descriptors({}).udp is None


# Notifications


@pytest.mark.parametrize(
    "address", ["@connlib-test-{}", "@connlib@test-{}", "notify", "user@1000", "@notify"]
)
def test_what_is_said_is_heard_at_either_kind_of_address(address: str, tmp_path: Path) -> None:
    """An @ in front is that of the abstract namespace, and any other one belongs to the name."""
    with Manager(address.format(secrets.token_hex(4)) if "{}" in address else tmp_path / address) as manager:
        environment = {
            **manager.environment,
            "WATCHDOG_USEC": "30000000",
            "WATCHDOG_PID": str(os.getpid()),
            "A": "b",
        }
        notifier = Notifier.from_environment(environment)
        assert environment == {"A": "b"}
        assert notifier.is_heard and notifier.watchdog == 30
        notifier.send("READY=1", "STATUS=1 of 2 peers up")
        notifier.send("STOPPING=1")
        assert manager.hear() == {"READY": "1", "STATUS": "1 of 2 peers up"}
        assert manager.hear() == {"STOPPING": "1"}
        notifier.close()
        notifier.send("STATUS=nobody hears this")


@pytest.mark.parametrize(
    ("environment", "watchdog"),
    [
        ({"WATCHDOG_USEC": "500000"}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_a_watchdog_is_fed_only_if_it_is_ours(
    environment: dict[str, str], watchdog: float | None, tmp_path: Path
) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": str(tmp_path / "notify"), **environment})
    try:
        assert notifier.watchdog == watchdog
    finally:
        notifier.close()


def test_without_a_manager_nothing_is_said() -> None:
    for environment in ({}, {"NOTIFY_SOCKET": "vsock:2:1234"}, {"NOTIFY_SOCKET": ""}):
        notifier = Notifier.from_environment({"WATCHDOG_USEC": "500000", **environment})
        assert not notifier.is_heard and notifier.watchdog is None
        notifier.send("READY=1")


def test_a_manager_that_went_away_and_came_back_is_told_again(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "notify"))
    notifier.send("READY=1")
    with Manager(tmp_path / "notify") as manager:
        notifier.send("STATUS=first")
        assert manager.hear() == {"STATUS": "first"}
    notifier.send("STATUS=lost")
    os.unlink(tmp_path / "notify")
    with Manager(tmp_path / "notify") as manager:
        notifier.send("STATUS=second")
        assert manager.hear() == {"STATUS": "second"}
    notifier.close()


@in_virtual_time
async def test_what_a_busy_manager_has_no_room_for_is_said_later_and_in_order() -> None:
    with Manager(f"@connlib-test-{secrets.token_hex(4)}") as manager:
        notifier = Notifier(manager.address)
        said = 0
        while not notifier._waiting:
            notifier.send(f"STATUS={said}")
            said += 1
        notifier.send(f"STATUS={said}")
        heard = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(notifier.send_what_waits)
            await trio.sleep(1)
            assert len(notifier._waiting) == 2, "nobody has made room"
            heard += [int(manager.hear()["STATUS"]) for _ in range(said - 1)]
            await trio.sleep(1)
            assert not notifier._waiting
            nursery.cancel_scope.cancel()
        heard += [int(manager.hear()["STATUS"]) for _ in range(2)]
        assert heard == list(range(said + 1))
        notifier.close()


# The watchdog


@in_virtual_time
async def test_the_watchdog_is_fed_twice_an_interval_and_not_while_the_interface_is_late() -> None:
    late = 0.0
    with Manager(f"@connlib-test-{secrets.token_hex(4)}") as manager:
        notifier = Notifier(manager.address, 30)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed_watchdog, notifier, 30.0, lambda: late)
            await trio.sleep(100)
            assert manager.heard() == [{"WATCHDOG": "1"}] * 7, "at 0, 15, 30, 45, 60, 75 and 90 s"
            late = 1.5
            await trio.sleep(100)
            assert manager.heard() == []
            # As after a suspend, when the interface has only just not been woken yet.
            late = 0.5
            await trio.sleep(2)
            assert manager.heard() == [{"WATCHDOG": "1"}]
            nursery.cancel_scope.cancel()
        notifier.close()


@in_real_time
async def test_an_interface_is_late_by_the_time_since_its_next_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with loopback_socket() as udp, loopback_socket() as silent:
        async with open_interface(client_config(silent.getsockname()), tun=MemoryTun(), udp=udp) as interface:
            assert interface.lateness() == 0, "nothing is to be done"
            interface.initiate_handshake(GATEWAY_KEY.public_key())
            deadline = interface.stats().peers[0].next_timeout
            assert deadline is not None and -5.4 < interface.lateness() < 0, (
                "the next initiation (paper, 6.4)"
            )
            for late in (-1.0, 3.0):
                now = deadline.at + late
                monkeypatch.setattr(BootClock, "now", lambda _, now=now: now)
                assert interface.lateness() == late


run_body(globals())
