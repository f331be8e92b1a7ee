"""`connlib up` between a client and a network behind the gateway: who sees which address, and who is answered."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from connlib import PrivateKey
from helpers_config import OWN
from helpers_firewall import (
    FAMILY,
    GATEWAY_BEHIND,
    HOST_BEHIND,
    PATIENCE,
    Site,
    ask,
    count_replies,
    exchange,
    site,
    tables,
    write_setting,
)
from interop.machine import missing_rights, own_namespace
from interop.netns import Background, Namespace, wait_for
from test_cli import COMMAND

CLIENT_KEY = PrivateKey.generate()
INSIDE = ("10.9.0.2", "10.8.0.2", "fd09::2", "fd08::2")
"""The client's addresses; the gateway has one in the networks of the first and the third."""

GATEWAY = f"""\
[interface]
private_key_file = "own.key"
listen_port = 51820
addresses = ["10.9.0.1/24", "fd09::1/64"]
{{}}
[[peers]]
name = "client"
public_key = "{CLIENT_KEY.public_key().to_base64()}"
allowed_ips = ["10.9.0.2/32", "10.8.0.2/32", "fd09::2/128", "fd08::2/128"]
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def up(host: Namespace, file: Path) -> Background:
    log = file.with_suffix(".log")
    log.unlink(missing_ok=True)
    process = Background(host.command(*COMMAND, "up", str(file)), log)
    try:
        wait_for(
            lambda: " is up: " in process.output() or process.returncode is not None, "gateway up", PATIENCE
        )
        process.require_running()
    except BaseException:
        process.stop(signal.SIGKILL)
        raise
    return process


def reload(gateway: Background, file: Path, text: str) -> None:
    before = gateway.output().count("reloaded")
    write(file, text)
    gateway.send(signal.SIGHUP)
    wait_for(lambda: gateway.output().count("reloaded") > before, "the reload", PATIENCE)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[Site, Background]]:
    """`connlib up gw0.toml`, which masquerades nothing, a client of it, and a host behind it, in three namespaces."""
    if reason := missing_rights():
        pytest.skip(reason)
    with site() as made:
        write(tmp_path / "own.key", OWN.to_base64())
        client = (
            f'[interface]\nprivate_key = "{CLIENT_KEY.to_base64()}"\n'
            'addresses = ["10.9.0.2/24", "10.8.0.2/24", "fd09::2/64", "fd08::2/64"]\n'
            f'[[peers]]\npublic_key = "{OWN.public_key().to_base64()}"\n'
            'allowed_ips = ["10.9.0.1/32", "fd09::1/128", "192.168.66.0/24", "fd66::/64"]\n'
            f'endpoint = "{made.address(0, 4)}:51820"\n'
        )
        ends: list[Background] = []
        try:
            ends.append(up(made.gateway, write(tmp_path / "gw0.toml", GATEWAY.format(""))))
            ends.append(up(made.client, write(tmp_path / "cl0.toml", client)))
            for prefix in ("10.8.0.0/24", "fd08::/64"):
                version = 6 if ":" in prefix else 4
                made.behind.run("ip", "route", "add", prefix, "via", GATEWAY_BEHIND[version])
            made.client.run("ping", "-c", "1", "-W", "20", "10.9.0.1")
            yield made, ends[0]
        finally:
            for end in ends:
                if end.returncode is None:
                    end.stop(timeout=PATIENCE)


@pytest.fixture
def servers(place: tuple[Site, Background]) -> Iterator[dict[int, socket.socket]]:
    """A server on the host behind the gateway, by IP version."""
    made, _ = place
    found = {
        version: made.behind.make_socket(family, socket.SOCK_DGRAM) for version, family in FAMILY.items()
    }
    try:
        for version, server in found.items():
            server.bind((HOST_BEHIND[version], 7))
        yield found
    finally:
        for server in found.values():
            server.close()


@pytest.mark.parametrize("masquerade", ["true", '["10.9.0.0/24", "fd09::/64"]'])
def test_a_host_behind_the_gateway_sees_its_address_and_those_of_other_networks_as_they_are(
    place: tuple[Site, Background], servers: dict[int, socket.socket], tmp_path: Path, masquerade: str
) -> None:
    """What is masqueraded has no route back, so that an answer shows that it was."""
    made, gateway = place
    reload(gateway, tmp_path / "gw0.toml", GATEWAY.format(f"masquerade = {masquerade}"))
    assert "~ masquerade: + 10.9.0.0/24, fd09::/64\n" in gateway.output()
    assert "forwards no" not in gateway.output()
    seen = [ask(made.client, source, servers[6 if ":" in source else 4]) for source in INSIDE]
    assert seen == ["192.168.66.1", "10.8.0.2", "fd66::1", "fd08::2"]


def test_a_reload_changes_what_is_masqueraded_and_a_flow_of_another_source_goes_on(
    place: tuple[Site, Background], servers: dict[int, socket.socket], tmp_path: Path
) -> None:
    made, gateway = place
    server = servers[4]
    reload(gateway, tmp_path / "gw0.toml", GATEWAY.format('masquerade = ["10.9.0.0/24"]'))
    with (
        made.client.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as asking,
        made.client.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        asking.bind((INSIDE[0], 0))
        other.bind((INSIDE[1], 0))
        first, first_of_other = exchange(asking, server), exchange(other, server)
        assert (first[0], first_of_other[0]) == ("192.168.66.1", "10.8.0.2")
        for number in range(6):
            others = ', "10.8.0.0/24"' if number % 2 == 0 else ""
            reload(gateway, tmp_path / "gw0.toml", GATEWAY.format(f'masquerade = ["10.9.0.0/24"{others}]'))
            assert exchange(asking, server, str(number).encode()) == first
            assert exchange(other, server, str(number).encode()) == first_of_other, "it goes on as it began"
            assert ask(made.client, INSIDE[1], server) == ("192.168.66.1" if others else "10.8.0.2")
            assert tables(made.gateway) == {"connlib_gw0": 4 if others else 3}
    assert gateway.output().count("session established") == 1


def test_a_reload_that_fails_leaves_what_is_masqueraded_as_it_was(
    place: tuple[Site, Background], servers: dict[int, socket.socket], tmp_path: Path
) -> None:
    made, gateway = place
    reload(gateway, tmp_path / "gw0.toml", GATEWAY.format("masquerade = true"))
    made.gateway.run("ip", "route", "add", "10.3.0.0/24", "dev", "lo", "scope", "link")
    bad = GATEWAY.format('masquerade = ["10.8.0.0/24"]').replace(
        '"10.8.0.2/32"', '"10.8.0.2/32", "10.3.0.0/24"'
    )
    reload(gateway, tmp_path / "gw0.toml", bad)
    assert "gw0: cannot add the route to 10.3.0.0/24" in gateway.output()
    assert "gw0: not reloaded; nothing has changed" in gateway.output()
    seen = [ask(made.client, source, servers[4]) for source in INSIDE[:2]]
    assert seen == ["192.168.66.1", "10.8.0.2"]


def test_a_gateway_that_does_not_forward_says_so(place: tuple[Site, Background], tmp_path: Path) -> None:
    made, gateway = place
    write_setting(made.gateway, "net.ipv4.ip_forward", "0")
    reload(gateway, tmp_path / "gw0.toml", GATEWAY.format("masquerade = true"))
    warnings = [line for line in gateway.output().splitlines() if "warning: " in line]
    assert [line.partition("warning: ")[2] for line in warnings] == [
        "gw0: the kernel forwards no IPv4, so nothing from 10.9.0.0/24 leaves this machine; "
        "sysctl -w net.ipv4.ip_forward=1"
    ]


@pytest.mark.parametrize(("version", "address"), [(4, "10.9.0.1"), (6, "fd09::1")])
def test_a_probe_of_the_tunnel_s_address_by_a_neighbour_gets_no_answer(
    place: tuple[Site, Background], tmp_path: Path, version: int, address: str
) -> None:
    """CVE-2019-14899. The tunnel's own end, and the gateway itself, get theirs."""
    made, gateway = place
    via = GATEWAY_BEHIND[version]
    made.behind.run("ip", "route", "add", address, "via", via)
    assert count_replies(made.behind, address, 1, 50, then=via) == 0
    assert count_replies(made.client, address, 1, 50, then=address) == 50
    assert count_replies(made.gateway, address, 1, 50, then=via) == 50
    reload(gateway, tmp_path / "gw0.toml", GATEWAY.format("protect_addresses = false"))
    assert "~ protect addresses: on -> off\n" in gateway.output()
    assert count_replies(made.behind, address, 1, 50, then=via) == 50
    assert tables(made.gateway) == {}
    reload(gateway, tmp_path / "gw0.toml", GATEWAY.format(""))
    assert count_replies(made.behind, address, 1, 50, then=via) == 0


def test_an_address_that_the_neighbour_s_device_has_too_is_answered_there(
    place: tuple[Site, Background], tmp_path: Path
) -> None:
    made, gateway = place
    address = GATEWAY_BEHIND[4]
    reload(gateway, tmp_path / "gw0.toml", GATEWAY.format("").replace("10.9.0.1/24", f"{address}/32"))
    assert count_replies(made.behind, address, 1, 50, then=address) == 50


Start = Callable[..., Background]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[tuple[Namespace, Start]]:
    """A namespace, and what starts a gateway in it that masquerades."""
    started: list[Background] = []

    def start(name: str = "gw0", text: str = GATEWAY.format("masquerade = true")) -> Background:
        started.append(up(host, write(tmp_path / f"{name}.toml", text)))
        return started[-1]

    with own_namespace("gw") as host:
        write(tmp_path / "own.key", OWN.to_base64())
        try:
            yield host, start
        finally:
            for process in started:
                if process.returncode is None:
                    process.stop(timeout=PATIENCE)


def test_nothing_is_left_by_a_gateway_that_is_stopped(alone: tuple[Namespace, Start]) -> None:
    host, start = alone
    gateway = start()
    assert tables(host) == {"connlib_gw0": 4}
    assert gateway.stop(timeout=PATIENCE) == 0
    assert tables(host) == {}


def test_nothing_is_left_by_a_gateway_that_is_killed_and_the_next_one_has_one_table(
    alone: tuple[Namespace, Start],
) -> None:
    host, start = alone
    for _ in range(3):
        gateway = start()
        assert tables(host) == {"connlib_gw0": 4}
        gateway.stop(signal.SIGKILL, timeout=PATIENCE)
        assert tables(host) == {}


def test_nobody_else_can_change_the_table(alone: tuple[Namespace, Start]) -> None:
    """Whoever loads another set of rules, and flushes those there are, would stop the masquerading."""
    host, start = alone
    gateway = start()
    script = "from connlib import _nftables as n; n.Tables().commit([n.delete_table('connlib_gw0')])"
    with pytest.raises(AssertionError, match=r"Operation not permitted"):
        host.run(*COMMAND[:1], "-c", script)
    assert tables(host) == {"connlib_gw0": 4}
    assert gateway.stop(timeout=PATIENCE) == 0


def test_two_gateways_of_one_machine_have_a_table_each(alone: tuple[Namespace, Start]) -> None:
    host, start = alone
    other = GATEWAY.format("masquerade = true")
    for one, another in (
        ("51820", "51821"),
        ("10.9.", "10.10."),
        ("10.8.", "10.11."),
        ("fd09", "fd10"),
        ("fd08", "fd11"),
    ):
        other = other.replace(one, another)
    gateways = [start(), start("gw-1", other)]
    assert tables(host) == {"connlib_gw-1": 4, "connlib_gw0": 4}
    assert gateways[0].stop(timeout=PATIENCE) == 0
    assert tables(host) == {"connlib_gw-1": 4}
    assert gateways[1].stop(timeout=PATIENCE) == 0
