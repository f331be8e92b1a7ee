"""The examples run, and print what they are there to show."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from connlib import PrivateKey
from interop.machine import own_namespace
from interop.netns import Background, wait_for

EXAMPLES = Path(__file__).parent.parent / "examples"
RUN_HERE = {"tunn.py", "roles.py"}


def output_of(example: str) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / example)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == RUN_HERE | {"gateway.py", "health_check.py"}


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


@contextmanager
def running(example: str, folder: Path, *arguments: str) -> Iterator[tuple[Background, str]]:
    """An example with a device in a namespace of its own, whose only peer is not there; and the peer's public key."""
    peer = PrivateKey.generate().public_key().to_base64()
    file = folder / "wg0.conf"
    file.write_text(
        "[Interface]\n# connlib: interface = example0\nListenPort = 51820\n"
        f"PrivateKey = {PrivateKey.generate().to_base64()}\n"
        f"[Peer]\nPublicKey = {peer}\nEndpoint = 127.0.0.1:9\nPersistentKeepalive = 1\n"
    )
    file.chmod(0o600)
    with own_namespace("exa") as namespace:
        command = namespace.command(sys.executable, str(EXAMPLES / example), str(file), *arguments)
        process = Background(command, folder / "log")
        try:
            yield process, peer
        finally:
            process.stop(signal.SIGTERM)


def test_the_gateway_comes_up_from_a_file(tmp_path: Path) -> None:
    with running("gateway.py", tmp_path) as (process, peer):
        wait_for(lambda: "HandshakeStarted()" in process.output(), "an event")
        assert process.output().splitlines() == [
            "example0 is up, UDP port 51820",
            f"{peer} HandshakeStarted()",
        ]


def test_the_health_check_says_why_a_peer_is_down(tmp_path: Path) -> None:
    with running("health_check.py", tmp_path, "0.1") as (process, peer):
        wait_for(lambda: process.output().count("\n") > 1, "two lines")
        first = process.output().splitlines()[0]
        assert first.startswith(f"{peer}: connecting: no reply from 127.0.0.1:9 ever: it is off, ")
        assert "; next: another initiation in " in first
