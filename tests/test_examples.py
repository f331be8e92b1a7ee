"""The examples run, and print what they are there to show."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from connlib import PrivateKey
from interop.machine import missing_rights
from interop.netns import Background, Namespace, unique_name, wait_for

EXAMPLES = Path(__file__).parent.parent / "examples"
RUN_HERE = {"tunn.py", "roles.py"}


def output_of(example: str) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / example)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == RUN_HERE | {"gateway.py"}


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


def test_the_gateway_comes_up_from_a_file(tmp_path: Path) -> None:
    if reason := missing_rights():
        pytest.skip(reason)
    peer = PrivateKey.generate().public_key().to_base64()
    file = tmp_path / "wg0.conf"
    file.write_text(
        "[Interface]\n# connlib: interface = example0\nListenPort = 51820\n"
        f"PrivateKey = {PrivateKey.generate().to_base64()}\n"
        f"[Peer]\nPublicKey = {peer}\nEndpoint = 127.0.0.1:9\nPersistentKeepalive = 1\n"
    )
    file.chmod(0o600)
    namespace = Namespace(unique_name("exa"))
    try:
        command = namespace.command(sys.executable, str(EXAMPLES / "gateway.py"), str(file))
        process = Background(command, tmp_path / "log")
        try:
            wait_for(lambda: "HandshakeStarted()" in process.output(), "an event")
            assert process.output().splitlines() == [
                "example0 is up, UDP port 51820",
                f"{peer} HandshakeStarted()",
            ]
        finally:
            process.stop(signal.SIGTERM)
    finally:
        namespace.delete()
