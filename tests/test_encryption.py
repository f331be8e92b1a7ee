"""The backend that seals and opens packets: which one it is, what a configuration says of it, and `connlib bench`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

import connlib.cli.bench
from connlib import ConfigDiff, ConfigError, InterfaceConfig, Node, NodeConfig, PeerConfig
from connlib._native import Encryption, LabNode, Tunnels
from connlib.cli.bench import BACKENDS, SIZES
from connlib.config import ENCRYPTIONS
from connlib.diff import compute_diff
from helpers_encryption import need
from two_tunnels import ALICE, BOB, START, UNIX_TIME, ipv4

MISSING = "the encryption ipsec-mb cannot be used: libIPSec_MB.so.1 cannot be loaded"


def has_avx512() -> bool:
    """What Linux says of the processor, of the parts of AVX-512 that the library needs."""
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    return {"avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"} <= flags


def config(encryption: str) -> NodeConfig:
    return NodeConfig(private_key=ALICE, encryption=encryption)


def node(encryption: str = "auto") -> Node:
    return Node(config(encryption), now=START, unix_time=UNIX_TIME)


def test_ring_is_there_always() -> None:
    assert node("ring").encryption == ("ring", "it was asked for")
    assert NodeConfig(private_key=ALICE).encryption == "auto"


def test_without_avx512_the_automatic_choice_is_ring_and_says_why() -> None:
    name, why = node().encryption
    if not has_avx512():
        assert (name, why) == ("ring", "this processor has no AVX-512")
    else:
        need("ipsec-mb")
        assert (name, why) == ("ipsec-mb", "this processor has AVX-512, and the library is there")


def test_ipsec_mb_can_be_forced_where_the_library_is_installed() -> None:
    need("ipsec-mb")
    assert node("ipsec-mb").encryption == ("ipsec-mb", "it was asked for")


def test_an_unknown_encryption_is_refused() -> None:
    for call in (
        lambda: node("aes"),
        lambda: Encryption("aes"),
        lambda: node("ring").apply(config("aes"), START),
    ):
        with pytest.raises(
            ConfigError, match='there is no encryption "aes"; use one of auto, ring, ipsec-mb'
        ):
            call()
    with pytest.raises(ConfigError, match="'aes' is no encryption"):
        InterfaceConfig(private_key=ALICE, encryption="aes")
    with pytest.raises(TypeError, match="encryption must be a str"):
        Node(replace(config("ring"), encryption=1), now=START, unix_time=UNIX_TIME)  # type: ignore[arg-type]


def test_another_encryption_is_applied_while_sessions_go_on() -> None:
    need("ipsec-mb")

    def side(own: int, encryption: str) -> NodeConfig:
        keys = (ALICE, BOB)
        network = ip_network(f"10.0.0.{2 - own}/32")
        peer = PeerConfig(
            public_key=keys[1 - own].public_key(),
            allowed_ips=(network,),
            endpoint=(f"192.0.2.{2 - own}", 51820),
        )
        return NodeConfig(private_key=keys[own], peers=(peer,), encryption=encryption)

    ends = [Node(side(own, "ring"), now=START, unix_time=UNIX_TIME) for own in (0, 1)]

    def exchange() -> list[bytes]:
        received = []
        for _ in range(4):
            for own in (0, 1):
                output = ends[own].drain()
                received += output.packets
                lengths = [len(transmit.datagram) for transmit in output.transmits]
                datagrams = b"".join(transmit.datagram for transmit in output.transmits)
                sources = [(f"192.0.2.{own + 1}", 51820)] * len(lengths)
                ends[1 - own].handle_datagrams(datagrams, lengths, sources, START)
        return received

    packets = [ipv4(bytes(n)) for n in range(150)]
    for encryption in ("ring", "ipsec-mb", "ring"):
        diff = ends[0].apply(side(0, encryption), START)
        assert diff.node == (() if encryption == ends[0].encryption[0] and not diff else ("encryption",))
        assert ends[0].encryption[0] == encryption
        ends[0].handle_packets(b"".join(packets), list(map(len, packets)), START)
        assert exchange() == packets
    assert ends[0].stats(START).peers[0].tunnel.sessions == 1


def test_the_laboratory_has_ring_whatever_is_asked_for() -> None:
    lab = LabNode(config("ipsec-mb"), now=START, unix_time=UNIX_TIME, seed=1)
    assert lab.encryption == ("ring", "it was asked for")
    assert lab.apply(config("auto"), START) == ConfigDiff()


def test_what_is_made_ahead_says_whether_the_encryption_can_be_had() -> None:
    need("ipsec-mb")
    Tunnels(config("ipsec-mb"), now=START, unix_time=UNIX_TIME)


WITHOUT_LIBRARY = """
from connlib import ConfigError, InterfaceConfig, Node, NodeConfig, PrivateKey
from connlib._native import Tunnels
from connlib.diff import compute_diff

key = PrivateKey.generate()
config = NodeConfig(private_key=key, encryption="ipsec-mb")
ring = Node(NodeConfig(private_key=key), now=1.0, unix_time=1.0)
for call in (
    lambda: Node(config, now=1.0, unix_time=1.0),
    lambda: Tunnels(config, now=1.0, unix_time=1.0),
    lambda: ring.apply(config, 1.0),
):
    try:
        call()
    except ConfigError as error:
        print(error)
print(ring.encryption[0])
old, new = (InterfaceConfig(private_key=key, encryption=name) for name in ("ring", "ipsec-mb"))
print(compute_diff(old, new).node)
"""


def test_without_the_library_what_needs_it_is_one_line_and_files_can_still_be_compared(
    tmp_path: Path,
) -> None:
    # The dynamic linker finds this one first, and cannot load it.
    (tmp_path / "libIPSec_MB.so.1").write_bytes(b"no library")
    command = [sys.executable, "-c", WITHOUT_LIBRARY]
    environment = {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    problem = (
        "the encryption ipsec-mb cannot be used: libIPSec_MB.so.1 cannot be loaded; install intel-ipsec-mb 1.3 "
        "(on Debian: libipsec-mb1), or use ring"
    )
    assert done.stdout.splitlines() == [problem] * 3 + ["ring", "('encryption',)"]


def test_a_change_of_the_encryption_is_a_difference_of_configurations() -> None:
    old, new = (InterfaceConfig(private_key=ALICE, encryption=name) for name in ("ring", "auto"))
    assert compute_diff(old, new).node == ("encryption",)
    assert not compute_diff(old, old)


def test_every_name_is_known_to_the_engine() -> None:
    for name in ENCRYPTIONS:
        if name != "ipsec-mb":
            assert Encryption(name).name in BACKENDS


# connlib bench


def bench(capsys: pytest.CaptureFixture[str], *, as_json: bool) -> str:
    connlib.cli.bench.run(seconds=0.0, as_json=as_json)
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_bench_says_first_which_backend_is_in_use_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    need("ipsec-mb")
    lines = bench(capsys, as_json=False).splitlines()
    assert lines[0] == ": ".join(node().encryption)
    head = lines.index("bytes      ring seal      ring open  ipsec-mb seal  ipsec-mb open")
    rows = [list(map(int, line.split())) for line in lines[head + 1 : head + 5]]
    assert [row[0] for row in rows] == [64, 576, 1420, 8920]
    assert all(len(row) == 5 and min(row) > 0 for row in rows)


def test_bench_says_the_same_to_programs(capsys: pytest.CaptureFixture[str]) -> None:
    need("ipsec-mb")
    out = bench(capsys, as_json=True)
    assert out.count("\n") == 1
    found = json.loads(out)
    assert (found["encryption"], found["why"]) == node().encryption
    assert found["missing"] == {}
    assert list(found["nanoseconds"]) == ["ring", "ipsec-mb"]
    for times in found["nanoseconds"].values():
        assert list(times) == list(map(str, SIZES))
        assert all(set(each) == {"seal", "open"} and min(each.values()) > 0 for each in times.values())


def test_bench_names_what_it_could_not_measure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(name: str = "auto", threads: int = 1) -> Encryption:
        if name == "ipsec-mb":
            raise ConfigError(MISSING)
        return Encryption("ring", threads)

    monkeypatch.setattr(connlib.cli.bench, "Encryption", without)
    lines = bench(capsys, as_json=False).splitlines()
    assert lines[-1] == f"not measured: {MISSING}"
    assert "bytes      ring seal      ring open" in lines
    found = json.loads(bench(capsys, as_json=True))
    assert found["missing"] == {"ipsec-mb": MISSING}
    assert list(found["nanoseconds"]) == ["ring"]


def test_what_is_measured_has_bounds() -> None:
    ring = Encryption("ring")
    for size in (0, 65_535):
        assert min(ring.measure(size, 0.0)) > 0
    for size, seconds in ((-1, 0.1), (65_536, 0.1), (64, -0.1), (64, 61.0), (64, float("nan"))):
        with pytest.raises(ValueError, match="must be"):
            ring.measure(size, seconds)


def test_the_command_takes_both_options() -> None:
    command = [sys.executable, "-m", "connlib", "bench", "--seconds", "0", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["encryption"] == node().encryption[0]
