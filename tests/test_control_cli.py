"""`connlib show`, `explain`, `apply` and `events`, of a tunnel that `connlib up` runs."""

from __future__ import annotations

import json
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from connlib import PrivateKey
from connlib.capture import WHOLE_PACKETS
from connlib.cli import _app
from connlib.control import DIRECTORY
from interop.machine import missing_rights
from interop.netns import Background, Wire, joined_namespaces, wait_for
from test_cli import COMMAND
from test_gateway_cli import CLIENT, UP, Command, connlib, joined, namespace, up, write

__all__ = ["connlib", "joined", "namespace"]

BOB = PrivateKey.generate().public_key().to_base64()
ADDED = f'[[peers]]\nname = "bob"\npublic_key = "{BOB}"\nallowed_ips = ["10.9.0.9/32"]\n'


@pytest.fixture
def run_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for control sockets, of a short name: their paths have 107 bytes at most."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "run"
        monkeypatch.setenv("CONNLIB_RUN_DIR", str(path))
        yield path


@pytest.fixture
def served(run_dir: Path, joined: tuple[Wire, Background], tmp_path: Path) -> tuple[Wire, Background]:
    """A gateway and a client that has pinged it."""
    wire, gateway = joined
    write(tmp_path / "gw0.toml", UP + CLIENT)
    gateway.send(signal.SIGHUP)
    wait_for(lambda: "reloaded: " in gateway.output(), "the reload")
    wire.hosts[1].run("ping", "-c", "1", "-W", "5", "10.9.0.1")
    return wire, gateway


def test_show_tells_of_all_that_run_by_name_and_as_json(
    served: tuple[Wire, Background], connlib: Command
) -> None:
    code, out, err = connlib("show")
    assert (code, err) == (0, "")
    assert "gw0  up for " in out and "cl0  up for " in out
    assert "UDP port 51820, 1 of 1 peer up" in out
    assert "client" in out
    code, out, err = connlib("show", "gw0", "--json")
    assert (code, err) == (0, "")
    status = json.loads(out)
    (peer,) = status["peers"]
    assert (status["name"], peer["name"], peer["state"]) == ("gw0", "client", "up")
    # One ping and its answer: a handshake initiation and at least one data message came.
    assert (peer["rx_packets"], peer["tx_packets"]) == (1, 1)
    assert OWN_SECRETS.isdisjoint(out.split('"'))


OWN_SECRETS = {"private_key", "preshared_key"}


def test_explain_says_a_sentence_for_each_peer(served: tuple[Wire, Background], connlib: Command) -> None:
    code, out, err = connlib("explain", "gw0", "client")
    assert (code, err) == (0, "")
    assert out.startswith("client: up: a session of ")
    code, out, err = connlib("explain", "gw0", "nobody")
    assert (code, out, err) == (1, "", "connlib: there is no peer 'nobody'\n")


def test_apply_changes_what_runs_and_says_what(
    served: tuple[Wire, Background], tmp_path: Path, connlib: Command
) -> None:
    wire, gateway = served
    file = write(tmp_path / "gw0.toml", UP + CLIENT + ADDED)
    change = f"+ bob, peer {BOB}, allowed IPs 10.9.0.9/32\n"
    assert connlib("apply", file, "--dry-run") == (0, change, "gw0: nothing was changed\n")
    assert "10.9.0.9" not in wire.hosts[0].run("ip", "route", "show", "dev", "gw0")
    assert connlib("apply", file) == (0, change, "")
    assert "gw0: changed by user 0: 1 change" in gateway.output()
    # Within the device's own network there is no route for it; the session went on.
    wire.hosts[1].run("ping", "-c", "1", "-W", "5", "10.9.0.1")
    assert gateway.output().count("session established") == 1
    assert connlib("apply", file) == (0, "no difference\n", "")
    code, out, _ = connlib("explain", "gw0", "bob")
    assert (code, out.partition(" never heard")[0]) == (0, "bob: waiting:")


def test_a_bad_file_changes_nothing_and_every_error_has_its_place(
    served: tuple[Wire, Background], tmp_path: Path, connlib: Command
) -> None:
    before = connlib("show", "gw0", "--json")[1].count('"peer":')
    bad = write(tmp_path / "gw0.toml", UP + CLIENT + ADDED.replace("bob", "client") + "mtu = 9\n")
    code, out, err = connlib("apply", bad)
    assert (code, out) == (2, "")
    assert [line.partition(": ")[0] for line in err.splitlines()] == ["connlib", "connlib"]
    assert "gw0.toml:" in err and "there is another 'client'" in err and "mtu is not a key of" in err
    assert connlib("show", "gw0", "--json")[1].count('"peer":') == before
    # What only the running interface can know.
    code, out, err = connlib(
        "apply", write(tmp_path / "gw0.toml", UP.replace("[interface]", '[interface]\nname = "gw9"'))
    )
    assert (code, out) == (1, "")
    assert err.startswith("connlib: gw9 is not running: ")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_events_are_printed_as_they_happen(
    run_dir: Path, joined: tuple[Wire, Background], tmp_path: Path, options: tuple[str, ...]
) -> None:
    wire, gateway = joined
    events = Background((*COMMAND, "events", "gw0", *options), tmp_path / "events")
    try:
        wait_for(lambda: "gw0: following" in events.output(), "somebody to listen")
        write(tmp_path / "gw0.toml", UP + CLIENT)
        gateway.send(signal.SIGHUP)
        wait_for(lambda: "reloaded: " in gateway.output(), "the reload")
        wire.hosts[1].run("ping", "-c", "1", "-W", "5", "10.9.0.1")
        wait_for(lambda: "session established, started by the peer" in events.output(), "the event")
        assert gateway.stop() == 0
        wait_for(lambda: events.returncode is not None, "the end of the events")
        assert events.returncode == 0
    finally:
        if events.returncode is None:
            events.stop(signal.SIGKILL)
    _, *lines, last = events.output().splitlines()
    assert last == "gw0: went down"
    if options:
        told = [json.loads(line) for line in lines]
        assert ("client", "SessionEstablished") in [(event["name"], event["event"]) for event in told]
    else:
        assert any(line.endswith("  client  session established, started by the peer") for line in lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_how_events_are_stopped_and_no_failure(
    run_dir: Path, tmp_path: Path, number: int
) -> None:
    run_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(20.0)
        listener.bind(str(run_dir / "gw0.sock"))
        listener.listen()
        events = Background((*COMMAND, "events", "gw0"), tmp_path / "events.log")
        try:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b'{"result":null}\n')
                wait_for(lambda: "gw0: following" in events.output(), "somebody to listen")
                assert events.stop(number) == 0
        finally:
            if events.returncode is None:
                events.send(signal.SIGKILL)
    assert events.output() == "gw0: following; stop with Ctrl-C\n"


def test_the_commands_ask_where_interfaces_are_served() -> None:
    """Written down twice, because the commands say so in their help, for which nothing else is loaded."""
    assert _app.RUN_DIR == DIRECTORY
    assert _app.WHOLE_PACKETS == WHOLE_PACKETS


def test_the_socket_goes_with_the_tunnel_and_what_does_not_run_is_said_to(
    run_dir: Path, joined: tuple[Wire, Background], connlib: Command
) -> None:
    _, gateway = joined
    assert sorted(path.name for path in run_dir.iterdir()) == ["cl0.sock", "gw0.sock"]
    assert gateway.stop() == 0
    assert sorted(path.name for path in run_dir.iterdir()) == ["cl0.sock"]
    code, out, err = connlib("show", "gw0")
    assert (code, out) == (1, "")
    assert err == (
        f"connlib: gw0 is not running: nobody listens at {run_dir}/gw0.sock; `connlib show` lists what runs\n"
    )
    # The other one is still there, and the list has no trace of the first.
    assert connlib("show")[1].count(" up for ") == 1


def test_without_any_tunnel_show_says_so(run_dir: Path, connlib: Command) -> None:
    assert connlib("show") == (1, "", f"no interface of connlib runs here ({run_dir} has no socket)\n")


def test_a_tunnel_comes_up_where_no_socket_can_be_made(
    run_dir: Path, tmp_path: Path, connlib: Command
) -> None:
    if reason := missing_rights():
        pytest.skip(reason)
    run_dir.write_text("in the way")
    with joined_namespaces() as wire:
        write(tmp_path / "own.key", PrivateKey.generate().to_base64())
        gateway = up(wire.hosts[0], write(tmp_path / "gw0.toml", UP))
        assert (
            f"no control socket, so that `connlib show` does not find it: {run_dir} is not a directory"
            in gateway.output()
        )
        assert gateway.stop() == 0
        quiet = up(wire.hosts[0], write(tmp_path / "gw1.toml", UP), "--no-control")
        assert "control socket" not in quiet.output()
        assert quiet.stop() == 0
    assert run_dir.read_text() == "in the way"
