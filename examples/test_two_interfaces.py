"""Two real interfaces in a test, each in a network namespace of its own: pytest test_two_interfaces.py. Needs root.

What a test of your own needs around it: a cable between two namespaces, `connlib up` in each, and everything gone at
the end, also if the test fails.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

import connlib

HOSTS = {"left": "192.0.2.1", "right": "192.0.2.2"}
INNER = {"left": "10.78.0.1", "right": "10.78.0.2"}


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


@pytest.fixture
def namespaces() -> Iterator[dict[str, str]]:
    """The names of two namespaces that a cable joins."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces and TUN devices")
    names = {side: f"{side}{os.getpid()}" for side in HOSTS}
    with ExitStack() as stack:
        for name in names.values():
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "delete", name)
        left, right = names.values()
        run("ip", "-n", left, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", right)
        for side, name in names.items():
            run("ip", "-n", name, "address", "add", f"{HOSTS[side]}/24", "dev", "cable")
            run("ip", "-n", name, "link", "set", "cable", "up")
        yield names


@pytest.fixture
def tunnel(namespaces: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """The same, with `connlib up` in each of the two."""
    keys = {side: connlib.PrivateKey.generate() for side in HOSTS}
    shared = connlib.PresharedKey.generate()
    with ExitStack() as stack:
        for side, other in (("left", "right"), ("right", "left")):
            peer = connlib.PeerConfig(
                public_key=keys[other].public_key(),
                preshared_key=shared,
                allowed_ips=(ip_network(INNER[other]),),
                endpoint=(HOSTS[other], 51820),
            )
            config = connlib.InterfaceConfig(
                private_key=keys[side],
                listen_port=51820,
                addresses=(ip_interface(f"{INNER[side]}/24"),),
                peers=(peer,),
            )
            file = tmp_path / f"{side}.conf"
            file.touch(mode=0o600)
            file.write_text(connlib.format_config(config))
            command = [sys.executable, "-m", "connlib", "up", str(file)]
            process = stack.enter_context(
                subprocess.Popen(
                    ["ip", "netns", "exec", namespaces[side], *command], stderr=subprocess.PIPE, text=True
                )
            )
            stack.callback(process.terminate)
            assert process.stderr is not None
            assert any(" is up: " in line for line in process.stderr), "it ended before it was up"
        yield namespaces


def test_a_ping_crosses_the_tunnel(tunnel: dict[str, str]) -> None:
    said = run(
        "ip", "netns", "exec", tunnel["left"], "ping", "-c", "3", "-i", "0.2", "-W", "5", INNER["right"]
    )
    assert "3 packets transmitted, 3 received" in said
