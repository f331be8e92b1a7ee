"""The examples run, and print what they are there to show."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from connlib import PrivateKey
from helpers_service import private_file
from interop.machine import missing, missing_rights, own_namespace
from interop.netns import Background, Namespace, joined_namespaces, wait_for

EXAMPLES = Path(__file__).parent.parent / "examples"
RUN_HERE = {"tunn.py", "roles.py", "rotate_psk.py", "ask_first.py"}
WITH_DEVICES = {"gateway.py", "health_check.py", "add_peers.py", "test_two_interfaces.py"}


def output_of(example: str) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / example)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == RUN_HERE | WITH_DEVICES


def test_a_packet_goes_through_a_tunnel_in_virtual_time() -> None:
    lines = output_of("tunn.py").splitlines()
    assert lines[0] == "gateway received [] []"
    assert lines[1] == "client  received [] [SessionEstablished(initiator=True)]"
    assert lines[2].startswith("gateway received [b'E")
    assert lines[2].endswith("[SessionEstablished(initiator=False)]")
    assert lines[-1].startswith("client : next deadline Timeout(at=")


def test_only_the_client_starts_sessions() -> None:
    assert output_of("roles.py").splitlines() == [
        "the client sends: 1 packet arrived",
        "three hours later the gateway sends: 0 arrived, it waits",
        "the client sends: 2 arrived, both ways",
        "initiations: client 2 - gateway 0",
    ]


def test_a_preshared_key_is_rotated_within_one_session() -> None:
    assert output_of("rotate_psk.py").splitlines() == [
        "with the first key: a packet arrived, handshakes so far: 1",
        "the gateway has the second key: a packet arrived, handshakes so far: 1",
        "both have it: a packet arrived, handshakes so far: 1",
        "two minutes later, time for the second key: a packet arrived, handshakes so far: 2",
    ]


def test_a_hook_asks_a_database_once_a_flow() -> None:
    assert output_of("ask_first.py").splitlines() == [
        "alice sends to port 53",
        "  arrived",
        "alice sends to port 443",
        "  asked: may alice reach port 443? yes",
        "  arrived",
        "alice sends to port 443",
        "  arrived",
        "alice sends to port 22",
        "  asked: may alice reach port 22? no",
        "  refused, and told so by ICMP",
        "alice sends to port 22",
        "  refused, and told so by ICMP",
        "hook: {'asked': 2, 'failed': 0, 'late': 0, 'skipped': 0}",
    ]


PEER = PrivateKey.generate().public_key().to_base64()
# Both with one peer, which is not there.
WG_QUICK = f"""\
[Interface]
# connlib: interface = example0
ListenPort = 51820
PrivateKey = {PrivateKey.generate().to_base64()}
[Peer]
PublicKey = {PEER}
Endpoint = 127.0.0.1:9
PersistentKeepalive = 1
"""
TOML = f"""\
[interface]
name = "example0"
listen_port = 51820
private_key = "{PrivateKey.generate().to_base64()}"
[[peers]]
public_key = "{PEER}"
endpoint = "127.0.0.1:9"
persistent_keepalive = 1
"""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def started(stack: ExitStack, namespace: Namespace, log: Path, *command: str) -> Background:
    """A process in the namespace, which is stopped at the end."""
    process = Background(namespace.command(sys.executable, *command), log)
    stack.callback(lambda: process.returncode is None and process.stop(signal.SIGTERM))
    stack.callback(lambda: print(process.output()))
    return process


@pytest.mark.parametrize(("name", "text"), [("wg0.conf", WG_QUICK), ("wg0.toml", TOML)])
def test_the_gateway_comes_up_from_a_file_of_either_kind(
    stack: ExitStack, tmp_path: Path, name: str, text: str
) -> None:
    namespace = stack.enter_context(own_namespace("exa"))
    file = private_file(tmp_path / name, text)
    process = started(stack, namespace, tmp_path / "log", str(EXAMPLES / "gateway.py"), str(file))
    wait_for(lambda: "HandshakeStarted()" in process.output(), "an event")
    assert process.output().splitlines() == ["example0 is up, UDP port 51820", f"{PEER} HandshakeStarted()"]


def test_a_file_that_is_wrong_is_a_line_and_no_traceback(tmp_path: Path) -> None:
    file = private_file(tmp_path / "wg0.toml", "[interface]\nmtu = 1\n")
    command = [sys.executable, "-W", "error", str(EXAMPLES / "gateway.py"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and done.stderr.startswith(f"{file}:") and "Traceback" not in done.stderr


def test_the_health_check_says_why_a_peer_of_a_running_gateway_is_down(
    stack: ExitStack, tmp_path: Path
) -> None:
    namespace = stack.enter_context(own_namespace("exa"))
    folder = tmp_path / "run"
    file = private_file(tmp_path / "example0.toml", TOML)
    up = ("-m", "connlib", "up", str(file), "--run-dir", str(folder))
    gateway = started(stack, namespace, tmp_path / "up", *up)
    wait_for(lambda: " is up: " in gateway.output(), "the gateway")
    arguments = ("example0", "0.1", str(folder))
    check = started(
        stack, namespace, tmp_path / "log", "-W", "error", str(EXAMPLES / "health_check.py"), *arguments
    )
    wait_for(lambda: check.output().count("\n") > 1, "two lines")
    first = check.output().splitlines()[0]
    assert first.startswith(f"{PEER}: connecting: no reply from 127.0.0.1:9 ever: it is off, ")
    assert "; next: another initiation in " in first
    # A gateway that restarts.
    assert gateway.stop() == 0
    wait_for(lambda: "example0 is not running: " in check.output(), "the gateway to be missed")
    before = check.output()
    started(stack, namespace, tmp_path / "again", *up)
    wait_for(
        lambda: f"{PEER}: connecting: " in check.output().removeprefix(before), "the gateway to be back", 30
    )
    check.require_running()


def test_peers_come_and_go_while_the_gateway_runs(tmp_path: Path) -> None:
    if reason := missing_rights():
        pytest.skip(reason)
    key = PrivateKey.generate()
    with joined_namespaces() as wire:
        command = wire.hosts[0].command(sys.executable, "-W", "error", str(EXAMPLES / "add_peers.py"))
        log = (tmp_path / "log").open("w+")
        with (
            log,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True) as gateway,
        ):
            assert gateway.stdin is not None

            def said() -> list[str]:
                return (tmp_path / "log").read_text().splitlines()

            def tell(line: str) -> str:
                assert gateway.stdin is not None
                before = len(said())
                gateway.stdin.write(f"{line}\n")
                gateway.stdin.flush()
                wait_for(lambda: len(said()) > before, "an answer")
                return said()[-1]

            wait_for(lambda: bool(said()), "the gateway to be up")
            own = said()[0].removeprefix("UDP port 51820, public key ")
            file = tmp_path / "cl0.conf"
            file.write_text(
                f"[Interface]\nPrivateKey = {key.to_base64()}\nAddress = 10.77.0.2/24\n"
                f"[Peer]\nPublicKey = {own}\nEndpoint = {wire.address(0, 4)}:51820\nAllowedIPs = 10.77.0.1/32\n"
            )
            file.chmod(0o600)
            client = Background(
                wire.hosts[1].command(sys.executable, "-m", "connlib", "up", str(file)), tmp_path / "client"
            )
            try:
                wait_for(lambda: " is up: " in client.output(), "the client to be up")
                public = key.public_key().to_base64()
                other = PrivateKey.generate().public_key().to_base64()
                assert tell(f"add alice {public} 10.77.0.2") == "peers: alice"
                wire.hosts[1].run("ping", "-c", "1", "-W", "10", "10.77.0.1")
                assert tell(f"add bob {public} 10.77.0.3").startswith(
                    "nothing changed: public_key: 'alice' has"
                )
                assert tell("add bob abc 10.77.0.3").startswith("nothing changed: ")
                assert tell("remove carol").startswith("nothing changed: write: ")
                assert tell(f"add bob {other} 10.77.0.3") == "peers: alice, bob"
                wire.hosts[1].run("ping", "-c", "1", "-W", "5", "10.77.0.1")
                assert client.output().count("session established") == 1
                assert tell("remove alice") == "peers: bob"
                with pytest.raises(AssertionError, match="100% packet loss"):
                    wire.hosts[1].run("ping", "-c", "1", "-W", "1", "10.77.0.1")
                gateway.stdin.close()
                assert gateway.wait(10) == 0
            finally:
                client.stop()
                gateway.terminate()


def test_the_test_with_two_interfaces_passes() -> None:
    if reason := missing():
        pytest.skip(reason)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
    done = subprocess.run(
        [*command, str(EXAMPLES / "test_two_interfaces.py")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
