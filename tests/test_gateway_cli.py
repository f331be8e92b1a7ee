"""`connlib check`, `schema` and `diff`, and `connlib up` of a TOML file that is changed while it runs."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest

from connlib import PrivateKey
from helpers_config import ALICE, BOB, OWN, SHARED
from helpers_config import FULL as WG_QUICK
from helpers_gateway import FULL, MINIMAL
from interop.machine import missing_rights, own_namespace
from interop.netns import Background, Namespace, Wire, joined_namespaces, wait_for
from test_cli import COMMAND, call


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def connlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command: its exit code, and what it prints to standard output and to standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = call(monkeypatch, *map(str, arguments))
        return code, *capsys.readouterr()

    return run


# check


@pytest.mark.parametrize(("name", "text"), [("wg0.toml", FULL), ("wg0.conf", WG_QUICK)])
def test_a_file_that_is_right_is_said_to_be_in_a_line(
    connlib: Command, tmp_path: Path, name: str, text: str
) -> None:
    file = write(tmp_path / name, text)
    public = OWN.public_key().to_base64()
    said = f"{file} is right: responder, UDP port 51820, 2 peers, 3 prefixes, public key {public}\n"
    assert connlib("check", file) == (0, said, "")


def test_every_error_of_a_toml_file_is_a_line_with_its_place(connlib: Command, tmp_path: Path) -> None:
    file = write(tmp_path / "wg0.toml", MINIMAL + "mtu = 1\nlisten_prt = 1\n[[peers]]\n")
    code, out, err = connlib("check", file)
    assert (code, err) == (1, "")
    assert out.splitlines() == [
        f"{file}:3:7: mtu: 1 is out of range; use 576 to 65472",
        f"{file}:4:1: listen_prt is not a key of [interface]; did you mean listen_port?",
        f"{file}:5:1: this peer has no public_key; add it",
    ]


def test_every_error_of_a_wg_quick_file_is_a_line_with_its_place(connlib: Command, tmp_path: Path) -> None:
    text = f"[Interface]\nPrivateKey = {OWN.to_base64()}\n  MTU =  1\nListenPrt = 1\n\t# connlib: role=x\n[Pear]\n"
    file = write(tmp_path / "wg0.conf", text)
    code, out, err = connlib("check", file)
    assert (code, err) == (1, "")
    assert [line.partition("; ")[0] for line in out.splitlines()] == [
        f"{file}:3:10: MTU: 1 is out of range",
        f"{file}:4:1: ListenPrt is not a key of [Interface]",
        f"{file}:5:18: 'x' is not a role",
        f"{file}:6:1: '[Pear]' is not a section",
    ]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (f"[Interface]\nPrivateKey = {OWN.to_base64()}\n[Peer]\n", "3:1"),
        (f" [Interface]\nPrivateKey = {OWN.to_base64()}\nMTU\0 = 5\n", "3:4"),
        (f"[Interface]\nPrivateKey = {OWN.to_base64()}\n MTU = 1400 # connlib: rol = x\n", "3:13"),
        (f"[Interface]\nPrivateKey = {OWN.to_base64()}\n [Peer]\n  PublicKey={'A' * 43}=\n", "4:13"),
        (" ListenPort = 5\n", "1:2"),
    ],
)
def test_the_column_of_a_wg_quick_error_is_that_of_what_is_wrong(
    connlib: Command, tmp_path: Path, text: str, place: str
) -> None:
    file = write(tmp_path / "wg0.conf", text)
    assert connlib("check", file)[1].startswith(f"{file}:{place}: ")


@pytest.mark.parametrize(
    ("name", "start", "line", "count"),
    [
        ("wg0.conf", f"[Interface]\nPrivateKey = {OWN.to_base64()}\n", "MTU = 1\n", 1000),
        ("wg0.toml", MINIMAL, "x{} = 1\n", 1000),
    ],
)
def test_where_very_much_is_wrong_it_says_that_it_did_not_read_on(
    connlib: Command, tmp_path: Path, name: str, start: str, line: str, count: int
) -> None:
    file = write(tmp_path / name, start + "".join(line.format(number) for number in range(count - 1)))
    assert "the rest was not read" not in connlib("check", file)[1]
    write(file, start + "".join(line.format(number) for number in range(2 * count)))
    lines = connlib("check", file)[1].splitlines()
    assert len(lines) == count + 1
    assert lines[-1] == f"{file}: there may be more: the rest was not read"


def test_what_is_only_doubtful_is_a_warning(connlib: Command, tmp_path: Path) -> None:
    text = f'{MINIMAL}role = "initiator"\n[[peers]]\npublic_key = "{ALICE.to_base64()}"\n'
    code, out, err = connlib("check", write(tmp_path / "wg0.toml", text))
    assert code == 0 and " is right: initiator, a UDP port of the system's choice, 1 peer, 0 prefixes" in out
    assert err.startswith(f"warning: {tmp_path}/wg0.toml:4:1: this peer can never be reached")


def test_a_file_after_which_no_device_can_be_called_is_warned_about_unless_it_names_one(
    connlib: Command, tmp_path: Path
) -> None:
    file = write(tmp_path / "a-name-of-16-let.toml", MINIMAL)
    said = f"warning: {file}: no network device can be called like this file; choose a name with --name\n"
    assert connlib("check", file)[::2] == (0, said)
    write(file, MINIMAL + 'name = "wg0"\n')
    assert connlib("check", file)[::2] == (0, "")


@pytest.mark.parametrize("name", ["wg0.toml", "wg0.conf"])
def test_a_file_that_cannot_be_read_or_that_everybody_can_read_is_not_right(
    connlib: Command, tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    assert connlib("check", file)[0] == 1
    assert connlib("check", file)[1].startswith(f"{file}: cannot read it: no such file or directory; name a")
    write(file, FULL if name.endswith(".toml") else WG_QUICK, 0o644)
    code, out, _ = connlib("check", file)
    assert code == 1 and "every user of this machine can read or change it (mode 0644)" in out
    assert connlib("check", file, "--allow-world-readable")[0] == 0


def test_a_key_is_not_echoed_and_arguments_that_are_wrong_exit_2(connlib: Command) -> None:
    code, out, err = connlib("check", OWN.to_base64())
    assert code == 1 and OWN.to_base64()[:12] not in out + err
    assert connlib("check")[0] == 2
    assert connlib("diff", "x")[0] == 2


# schema and diff


def test_the_schema_is_printed(connlib: Command) -> None:
    code, out, err = connlib("schema")
    assert (code, err) == (0, "")
    schema = json.loads(out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)


def test_the_diff_of_two_files_of_either_kind_is_printed(connlib: Command, tmp_path: Path) -> None:
    old = write(tmp_path / "old.conf", WG_QUICK)
    new = write(tmp_path / "new.toml", FULL)
    assert connlib("diff", old, new) == (0, "no difference\n", "")
    write(new, FULL.replace("1380", "1400").replace("alice", "carol").replace("51820\n", "51822\n", 1))
    assert connlib("diff", old, new) == (
        0,
        "~ MTU: 1380 -> 1400\n~ UDP port: 51820 -> 51822\n~ alice: name: alice -> carol\n",
        "",
    )


def test_of_two_files_a_bad_one_is_named(connlib: Command, tmp_path: Path) -> None:
    old = write(tmp_path / "old.toml", FULL)
    new = write(tmp_path / "new.toml", MINIMAL + "mtu = 1\n")
    assert connlib("diff", old, new) == (
        2,
        "",
        f"connlib: {new}:3:7: mtu: 1 is out of range; use 576 to 65472\n",
    )


# up, with real devices


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with own_namespace("gw") as made:
        yield made


UP = """\
[interface]
private_key_file = "own.key"
listen_port = 51820
addresses = ["10.9.0.1/24"]
role = "responder"
"""


def up(namespace: Namespace, file: Path, *options: str) -> Background:
    process = Background(namespace.command(*COMMAND, "up", str(file), *options), file.with_suffix(".log"))
    wait_for(lambda: " is up: " in process.output() or process.returncode is not None, "the tunnel to be up")
    process.require_running()
    return process


@pytest.fixture
def gateway(namespace: Namespace, tmp_path: Path) -> Iterator[Background]:
    """`connlib up gw0.toml` in the namespace."""
    write(tmp_path / "own.key", OWN.to_base64())
    process = up(namespace, write(tmp_path / "gw0.toml", UP))
    try:
        yield process
    finally:
        if process.returncode is None:
            process.stop()


def test_up_takes_a_toml_file_and_its_name(namespace: Namespace, gateway: Background) -> None:
    assert (
        f"gw0 is up: UDP port 51820, public key {OWN.public_key().to_base64()}, 0 peers" in gateway.output()
    )
    assert "10.9.0.1/24" in namespace.run("ip", "address", "show", "gw0")
    assert gateway.stop() == 0
    assert not namespace.has_link("gw0")


def test_a_hangup_applies_what_the_file_says_now_at_once(
    namespace: Namespace, gateway: Background, tmp_path: Path
) -> None:
    peer = f'[[peers]]\nname = "alice"\npublic_key = "{ALICE.to_base64()}"\nallowed_ips = ["10.8.0.0/24"]\n'
    write(tmp_path / "gw0.toml", UP.replace("10.9.0.1/24", "10.9.0.2/24") + "mtu = 1300\n" + peer)
    gateway.send(signal.SIGHUP)
    wait_for(lambda: "allowed IPs 10.8.0.0/24" in gateway.output(), "the reload")
    assert [line.partition("  ")[2] for line in gateway.output().splitlines()[1:]] == [
        "gw0: reloaded: 3 changes",
        "  ~ MTU: 1420 -> 1300",
        "  ~ addresses: + 10.9.0.2/24; - 10.9.0.1/24",
        f"  + alice, peer {ALICE.to_base64()}, allowed IPs 10.8.0.0/24",
    ]
    shown = namespace.run("ip", "address", "show", "gw0")
    assert "10.9.0.2/24" in shown and "10.9.0.1/24" not in shown and "mtu 1300" in shown
    assert "10.8.0.0/24 dev gw0" in namespace.run("ip", "route")
    gateway.send(signal.SIGHUP)
    wait_for(lambda: "gw0: reloaded: no change" in gateway.output(), "another reload")
    assert gateway.stop() == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (UP + "mtu = 1\n", "gw0.toml:6:7: mtu: 1 is out of range; use 576 to 65472"),
        (
            UP.replace("[interface]\n", '[interface]\nname = "gw1"\n'),
            "the name cannot change from gw0 to gw1 while the interface is up",
        ),
        (
            UP + "queues = 2\n",
            "queues are made when the interface starts, and cannot change from 1 to 2; stop the interface and",
        ),
        ("?" + UP, "gw0.toml:1:1: this is not TOML"),
        (UP.replace("own.key", "other.key"), "other.key: cannot read it: no such file or directory"),
        # Its address is taken back, because the route cannot be had: the loopback device has it.
        (
            UP.replace('"]', '", "10.9.1.1/24"]')
            + f'[[peers]]\npublic_key = "{BOB.to_base64()}"\nallowed_ips = ["10.3.0.0/24"]\n',
            "gw0: cannot add the route to 10.3.0.0/24",
        ),
    ],
    ids=["value", "name", "queues", "syntax", "key", "route"],
)
def test_a_bad_file_is_said_to_be_and_changes_nothing(
    namespace: Namespace, gateway: Background, tmp_path: Path, text: str, said: str
) -> None:
    namespace.run("ip", "route", "add", "10.3.0.0/24", "dev", "lo", "scope", "link")
    before = namespace.run("ip", "address", "show", "gw0"), namespace.run("ip", "route")
    write(tmp_path / "gw0.toml", text)
    gateway.send(signal.SIGHUP)
    wait_for(lambda: "gw0: not reloaded; nothing has changed" in gateway.output(), "the refusal")
    assert said in gateway.output() and "error: " in gateway.output()
    assert (namespace.run("ip", "address", "show", "gw0"), namespace.run("ip", "route")) == before
    write(tmp_path / "gw0.toml", UP)
    gateway.send(signal.SIGHUP)
    wait_for(lambda: "gw0: reloaded: no change" in gateway.output(), "the reload of what was there")
    assert gateway.stop() == 0


CLIENT_KEY = PrivateKey.generate()
CLIENT = f"""\
[[peers]]
name = "client"
public_key = "{CLIENT_KEY.public_key().to_base64()}"
preshared_key_file = "shared.key"
allowed_ips = ["10.9.0.2/32"]
"""


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[tuple[Wire, Background]]:
    """`connlib up gw0.toml`, without peers, and `connlib up cl0.toml`, a client of it, in two namespaces."""
    if reason := missing_rights():
        pytest.skip(reason)
    write(tmp_path / "own.key", OWN.to_base64())
    write(tmp_path / "shared.key", SHARED.to_base64())
    with joined_namespaces() as wire:
        client = (
            f'[interface]\nprivate_key = "{CLIENT_KEY.to_base64()}"\naddresses = ["10.9.0.2/24"]\n[[peers]]\n'
            f'public_key = "{OWN.public_key().to_base64()}"\npreshared_key_file = "shared.key"\n'
            f'allowed_ips = ["10.9.0.1/32"]\nendpoint = "{wire.address(0, 4)}:51820"\n'
        )
        ends: list[Background] = []
        try:
            ends.append(up(wire.hosts[0], write(tmp_path / "gw0.toml", UP)))
            ends.append(up(wire.hosts[1], write(tmp_path / "cl0.toml", client)))
            yield wire, ends[0]
        finally:
            for end in ends:
                if end.returncode is None:
                    end.stop()


def reload(gateway: Background, file: Path, text: str) -> None:
    before = gateway.output().count("reloaded: ")
    write(file, text)
    gateway.send(signal.SIGHUP)
    wait_for(lambda: gateway.output().count("reloaded: ") > before, "the reload")


def test_a_peer_that_a_reload_adds_is_served_and_called_by_its_name(
    joined: tuple[Wire, Background], tmp_path: Path
) -> None:
    wire, gateway = joined
    reload(gateway, tmp_path / "gw0.toml", UP + CLIENT)
    wire.hosts[1].run("ping", "-c", "1", "-W", "5", "10.9.0.1")
    assert "client  session established, started by the peer" in gateway.output()
    assert gateway.stop() == 0


def test_a_reload_loses_no_packet_of_another_peer(joined: tuple[Wire, Background], tmp_path: Path) -> None:
    wire, gateway = joined
    reload(gateway, tmp_path / "gw0.toml", UP + CLIENT)
    wire.hosts[1].run("ping", "-c", "1", "-W", "5", "10.9.0.1")
    command = wire.hosts[1].command("ping", "-i", "0.005", "-c", "400", "-W", "5", "10.9.0.1")
    pings = Background(command, tmp_path / "pings")
    for number in range(10):
        other = PrivateKey.generate().public_key().to_base64()
        added = f'[[peers]]\npublic_key = "{other}"\nallowed_ips = ["10.8.{number}.0/24"]\n'
        address = UP.replace('"]', f'", "10.9.9.{number}/32"]')
        reload(gateway, tmp_path / "gw0.toml", address + CLIENT + added)
    wait_for(lambda: pings.returncode is not None, "the pings to end", timeout=30)
    assert "400 packets transmitted, 400 received" in pings.output()
    # One session all the time.
    assert gateway.output().count("session established") == 1


def test_a_reload_takes_a_rule_away_while_the_session_goes_on(
    joined: tuple[Wire, Background], tmp_path: Path
) -> None:
    wire, gateway = joined
    ping = ("ping", "-c", "1", "-W", "5", "10.9.0.1")
    rule = '[[peers.rules]]\nallow = true\nname = "ping"\nprotocol = "icmp"\n'
    reload(gateway, tmp_path / "gw0.toml", UP + CLIENT + rule)
    wire.hosts[1].run(*ping)
    reload(gateway, tmp_path / "gw0.toml", UP + CLIENT + "rules = []\n")
    assert "~ client: rule 1 removed: allow icmp (ping)\n" in gateway.output()
    said = wire.hosts[1].run(*ping, check=False)
    assert "Packet filtered" in said, "the client is told at once"
    reload(gateway, tmp_path / "gw0.toml", UP + CLIENT)
    wire.hosts[1].run(*ping)
    reload(gateway, tmp_path / "gw0.toml", UP + CLIENT + rule)
    wire.hosts[1].run(*ping)
    assert gateway.output().count("session established") == 1
    assert gateway.stop() == 0
    assert ", 1 denied, 1 flow at the end\n" in gateway.output()
    assert "denied by a policy 1" in gateway.output()


# A new session, whose controlling terminal is standard input, and whose leader becomes the command.
IN_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_a_terminal_that_is_closed_stops_it(namespace: Namespace, tmp_path: Path) -> None:
    """Then SIGHUP means what it was made for."""
    file = write(tmp_path / "wg0.conf", f"[Interface]\nPrivateKey = {OWN.to_base64()}\n")
    master, slave = pty.openpty()
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", IN_A_TERMINAL, *namespace.command(*COMMAND, "up", str(file))],
            stdin=slave,
            stdout=output,
            stderr=output,
        )
    os.close(slave)
    try:
        wait_for(lambda: "wg0 is up" in log.read_text() or process.poll() is not None, "wg0 to be up")
        os.kill(process.pid, signal.SIGHUP)
        wait_for(lambda: "wg0: reloaded: no change" in log.read_text(), "a reload while there is a terminal")
        os.close(master)
        master = -1
        assert process.wait(10) == 0
        assert "stopping: SIGHUP" in log.read_text()
        assert log.read_text().splitlines()[-1].endswith("  wg0 is down")
    finally:
        if master >= 0:
            os.close(master)
        if process.poll() is None:
            process.kill()
            process.wait()
