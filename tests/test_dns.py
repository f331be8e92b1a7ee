"""Name servers of an interface. Programs in place of resolvectl and resolvconf write down what they are told."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_interface
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trio

from connlib import DeviceError, InterfaceConfig, PrivateKey, resolver
from connlib import dns as module
from connlib.dns import Dns
from connlib.driver import open_interface
from helpers_config import MINIMAL
from helpers_driver import GATEWAY_HOST, client_config, loopback_socket
from helpers_netns import in_namespace, run_body
from interop.machine import own_namespace
from interop.netns import Background, wait_for
from test_cli import COMMAND

SERVERS = ("10.7.0.1", "fd07::1")
PATIENCE = 30.0

PROGRAM = """\
#!/bin/sh
folder=${0%/*}
printf '%s' "${0##*/}" >> "$folder/said"
for argument; do printf ' %s' "${argument:-''}" >> "$folder/said"; done
while IFS= read -r line; do printf ' < %s' "$line" >> "$folder/said"; done
echo >> "$folder/said"
[ ! -e "$folder/${0##*/}-$1-fails" ] || { echo "Failed: no" >&2; echo "  bus" >&2; exit 1; }
"""


class Programs:
    """A folder with such programs, which is all that there is to be found."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.said = folder / "said"
        self.said.touch()
        for name in names:
            (folder / name).write_text(PROGRAM)
            (folder / name).chmod(0o755)

    def take(self) -> list[str]:
        """What they were told since the last time."""
        said = self.said.read_text().splitlines()
        self.said.write_text("")
        return said

    def fail(self, name: str, verb: str, fails: bool = True) -> None:
        mark = self.folder / f"{name}-{verb}-fails"
        if fails:
            mark.touch()
        else:
            mark.unlink()


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    made = Programs(tmp_path, "resolvectl", "resolvconf")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "_INTERFACE_ORDER", tmp_path / "interface-order")
    return made


# The device that every machine has.
DEVICE = "lo"


def test_resolved_is_told_the_servers_and_that_all_names_are_theirs(programs: Programs) -> None:
    dns = Dns()
    dns.change(DEVICE, ("10.7.0.1", "example.org", "fd07::1", "10.7.0.1"))
    assert programs.take() == ["resolvectl dns lo 10.7.0.1 fd07::1", "resolvectl domain lo example.org ~."]
    assert dns.is_set
    dns.change(DEVICE, ("10.7.0.2",))
    assert programs.take() == ["resolvectl dns lo 10.7.0.2", "resolvectl domain lo ~."]
    dns.change(DEVICE, ("example.org",))
    assert programs.take() == ["resolvectl dns lo ''", "resolvectl domain lo example.org"]
    dns.change(DEVICE, ())
    assert programs.take() == ["resolvectl revert lo"]
    assert not dns.is_set
    dns.unset(DEVICE)
    assert programs.take() == []


def test_resolvconf_is_told_a_file_and_takes_it_back(programs: Programs) -> None:
    (programs.folder / "resolvectl").unlink()
    dns = Dns()
    dns.change(DEVICE, ("10.7.0.1", "example.org", "fd07::1", "b.example"))
    told = (
        "resolvconf -a lo -m 0 -x < nameserver 10.7.0.1 < nameserver fd07::1 < search example.org b.example"
    )
    assert programs.take() == [told]
    dns.change(DEVICE, ("10.7.0.2",))
    assert programs.take() == ["resolvconf -a lo -m 0 -x < nameserver 10.7.0.2"]
    dns.unset(DEVICE)
    assert programs.take() == ["resolvconf -d lo"]


def test_debian_s_resolvconf_is_told_a_name_that_it_knows(programs: Programs) -> None:
    (programs.folder / "resolvectl").unlink()
    (programs.folder / "interface-order").touch()
    dns = Dns()
    dns.change("wg0", SERVERS)
    dns.unset("wg0")
    assert [line.split()[2] for line in programs.take()] == ["tun.wg0", "tun.wg0"]


@pytest.mark.parametrize("verb", ["dns", "domain"])
def test_resolvectl_without_resolved_leaves_it_to_resolvconf(programs: Programs, verb: str) -> None:
    programs.fail("resolvectl", verb)
    dns = Dns()
    dns.change(DEVICE, ("10.7.0.1",))
    told = ["resolvectl dns lo 10.7.0.1", "resolvectl domain lo ~."][: 1 if verb == "dns" else 2]
    assert programs.take() == [
        *told,
        "resolvectl revert lo",
        "resolvconf -a lo -m 0 -x < nameserver 10.7.0.1",
    ]
    dns.unset(DEVICE)
    assert programs.take() == ["resolvconf -d lo"]


def test_what_cannot_be_set_is_an_error_of_one_line(programs: Programs) -> None:
    programs.fail("resolvectl", "dns")
    programs.fail("resolvconf", "-a")
    dns = Dns()
    with pytest.raises(DeviceError) as caught:
        dns.change(DEVICE, SERVERS)
    assert str(caught.value) == (
        "lo: cannot set its DNS: resolvectl dns: Failed: no bus; resolvconf -a: Failed: no bus; have systemd-resolved "
        "run, install openresolv, or leave DNS out: names would be asked elsewhere"
    )
    assert not dns.is_set
    for name in ("resolvectl", "resolvconf"):
        (programs.folder / name).unlink()
    with pytest.raises(
        DeviceError, match="lo: cannot set its DNS: there is neither resolvectl nor resolvconf; have"
    ):
        dns.change(DEVICE, SERVERS)


def test_a_change_that_fails_restores_what_there_was(programs: Programs) -> None:
    dns = Dns()
    dns.change(DEVICE, ("10.7.0.1",))
    programs.take()
    programs.fail("resolvectl", "domain")
    with pytest.raises(DeviceError, match="resolvectl domain"):
        dns.change(DEVICE, ("10.7.0.2",))
    assert [line for line in programs.take() if " dns " in line] == [
        "resolvectl dns lo 10.7.0.2",
        "resolvectl dns lo 10.7.0.1",
    ]
    assert dns.is_set


def test_a_program_that_never_ends_is_an_error(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    (programs.folder / "resolvconf").unlink()
    (programs.folder / "resolvectl").write_text("#!/bin/sh\nwhile :; do :; done\n")
    monkeypatch.setattr(module, "LAST_PATIENCE", 0.1)
    with pytest.raises(DeviceError, match=r"resolvectl dns took longer than 0\.1 s"):
        Dns().change(DEVICE, SERVERS)


def test_what_cannot_be_given_back_is_a_warning_unless_the_device_is_gone(
    programs: Programs, caplog: pytest.LogCaptureFixture
) -> None:
    for device, warnings in ((DEVICE, 1), ("no-such-device", 0)):
        dns = Dns()
        dns.change(device, SERVERS)
        programs.fail("resolvectl", "revert")
        caplog.clear()
        dns.unset(device)
        assert [record.levelno for record in caplog.records] == [logging.WARNING] * warnings
        programs.fail("resolvectl", "revert", fails=False)
    assert caplog.messages == []


# In an interface

NAME = "wgtest0"


def config(**changes: Any) -> InterfaceConfig:
    return replace(
        client_config(), name=NAME, addresses=(ip_interface("10.0.0.2/24"),), dns=SERVERS, **changes
    )


class HostNames(trio.abc.HostnameResolver):
    """A name server that is not there, or whose answers say what the programs were told before."""

    def __init__(self, programs: Programs, *, failures: float = 0) -> None:
        self.programs = programs
        self.failures = failures
        """How many questions get no answer."""
        self.told_before: list[list[str]] = []

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        self.told_before.append(self.programs.said.read_text().splitlines())
        if len(self.told_before) <= self.failures:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (GATEWAY_HOST, port))]

    async def getnameinfo(self, *_: Any) -> Any:
        raise NotImplementedError


def with_name() -> InterfaceConfig:
    return replace(config(), peers=client_config(("gateway.example", 51820)).peers)


def run_with_programs(main: Any) -> None:
    with TemporaryDirectory(prefix="connlib-") as folder:
        os.environ["PATH"] = folder
        trio.run(main, Programs(Path(folder), "resolvectl"))


@in_namespace
def test_an_endpoint_is_looked_up_before_the_name_servers_behind_it_are_asked() -> None:
    async def main(programs: Programs) -> None:
        names = HostNames(programs)
        trio.socket.set_custom_hostname_resolver(names)
        with loopback_socket() as udp:
            async with open_interface(with_name(), udp=udp) as interface:
                await trio.testing.wait_all_tasks_blocked()
                assert names.told_before == [[]]
                assert programs.take() == [
                    f"resolvectl dns {NAME} 10.7.0.1 fd07::1",
                    f"resolvectl domain {NAME} ~.",
                ]
                assert interface.stats().peers[0].endpoint == (GATEWAY_HOST, 51820)
                # A change of something else asks nobody.
                await interface.apply(replace(with_name(), mtu=1300))
                assert programs.take() == [] and len(names.told_before) == 1
                await interface.apply(replace(with_name(), dns=()))
                assert programs.take() == [f"resolvectl revert {NAME}"]
                await interface.apply(with_name())
                assert len(names.told_before) == 2
            assert programs.take()[-1] == f"resolvectl revert {NAME}"

    run_with_programs(main)


@in_namespace
def test_an_endpoint_that_cannot_be_looked_up_at_the_start_is_looked_up_again() -> None:
    """A machine that is switched on may get its network later."""

    async def main(programs: Programs) -> None:
        names = HostNames(programs, failures=3)
        trio.socket.set_custom_hostname_resolver(names)
        resolver.FIRST_PAUSE = 0.01
        with loopback_socket() as udp, trio.fail_after(PATIENCE):
            async with open_interface(with_name(), udp=udp) as interface:
                await trio.testing.wait_all_tasks_blocked()
                assert names.told_before == [[]] * 4
                assert programs.take()[0] == f"resolvectl dns {NAME} 10.7.0.1 fd07::1"
                assert interface.stats().peers[0].endpoint == (GATEWAY_HOST, 51820)
                assert interface.stats().lookups == {"asked": 4, "failed": 3, "moved": 0}

    run_with_programs(main)


@in_namespace
def test_a_change_whose_endpoint_cannot_be_looked_up_before_is_an_error() -> None:
    async def main(programs: Programs) -> None:
        trio.socket.set_custom_hostname_resolver(HostNames(programs, failures=math.inf))
        with loopback_socket() as udp:
            async with open_interface(replace(with_name(), dns=()), udp=udp) as interface:
                with pytest.raises(
                    DeviceError,
                    match=r"^cannot look up gateway\.example before its own DNS is set: Temporary failure in name .*; ",
                ):
                    await interface.apply(replace(with_name(), mtu=1300))
                assert interface.config.mtu is None
        assert programs.take() == []

    run_with_programs(main)


@in_namespace
def test_name_servers_that_cannot_be_set_are_no_interface_and_no_change() -> None:
    async def main(programs: Programs) -> None:
        programs.fail("resolvectl", "dns")
        with loopback_socket() as udp:
            with pytest.raises(
                DeviceError, match=f"^{NAME}: cannot set its DNS: resolvectl dns: Failed: no bus; "
            ):
                async with open_interface(config(), udp=udp):
                    raise AssertionError("it must not come up")
            async with open_interface(replace(config(), dns=()), udp=udp) as interface:
                other = replace(config(), addresses=(ip_interface("10.0.9.2/24"),), mtu=1300)
                with pytest.raises(DeviceError, match="cannot set its DNS"):
                    await interface.apply(other)
                assert interface.config.dns == ()
                with open(f"/sys/class/net/{NAME}/mtu") as mtu:
                    assert int(mtu.read()) == 1420

    run_with_programs(main)


@in_namespace
def test_whoever_is_cancelled_gives_the_name_servers_back() -> None:
    async def main(programs: Programs) -> None:
        with loopback_socket() as udp, trio.CancelScope() as scope:
            async with open_interface(config(), udp=udp):
                scope.cancel()
                await trio.sleep_forever()
        assert programs.take()[-1] == f"resolvectl revert {NAME}"

    run_with_programs(main)


# In a tunnel of the command


@pytest.fixture
def client(tmp_path: Path) -> Iterator[tuple[Background, Path, Programs]]:
    """`connlib up cl0.conf` with a DNS line, its file, and the programs."""
    programs = Programs(tmp_path, "resolvectl")
    with own_namespace("cl") as namespace:
        file = tmp_path / "cl0.conf"
        file.touch(0o600)
        file.write_text(MINIMAL + "Address = 10.7.0.2/24\nDNS = 10.7.0.1, a.example\n")
        ip = shutil.which("ip")
        assert ip is not None
        command = namespace.command(*COMMAND, "up", str(file))
        process = Background((ip, *command[1:]), tmp_path / "log", env={"PATH": str(tmp_path)})
        try:
            yield process, file, programs
        finally:
            if process.returncode is None:
                process.stop(timeout=PATIENCE)


def test_up_sets_the_dns_of_its_file_and_gives_it_back(client: tuple[Background, Path, Programs]) -> None:
    process, file, programs = client
    wait_for(lambda: " is up: " in process.output(), "the tunnel to be up", PATIENCE)
    assert programs.take() == ["resolvectl dns cl0 10.7.0.1", "resolvectl domain cl0 a.example ~."]
    assert "cl0: names are looked up by 10.7.0.1, a.example (resolvectl)\n" in process.output()
    file.write_text(file.read_text().replace("10.7.0.1,", "10.7.0.9,"))
    process.send(signal.SIGHUP)
    wait_for(lambda: "~ DNS: + 10.7.0.9; - 10.7.0.1\n" in process.output(), "the reload", PATIENCE)
    assert programs.take() == ["resolvectl dns cl0 10.7.0.9", "resolvectl domain cl0 a.example ~."]
    assert process.stop(timeout=PATIENCE) == 0
    assert programs.take() == ["resolvectl revert cl0"]


def test_up_waits_for_the_network_to_look_a_name_up_and_can_be_stopped_meanwhile(
    client: tuple[Background, Path, Programs],
) -> None:
    process, file, _ = client
    process.stop(signal.SIGKILL)
    key = PrivateKey.generate().public_key().to_base64()
    file.write_text(f"{file.read_text()}[Peer]\nPublicKey = {key}\nEndpoint = vpn.connlib.invalid:51820\n")
    again = Background(process.command, file.with_name("again"), env={"PATH": str(file.parent)})
    try:
        said = "cannot look up vpn.connlib.invalid before its own DNS is set: "
        wait_for(lambda: said in again.output() or again.returncode is not None, "a look-up", PATIENCE)
        again.require_running()
        assert "; next attempt in 1 s\n" in again.output() and " is up: " not in again.output()
        assert again.stop(timeout=PATIENCE) == 0
    finally:
        if again.returncode is None:
            again.stop(signal.SIGKILL)
        print(again.output())


@pytest.mark.parametrize("when", ["start", "reload", "end"])
def test_a_program_that_hangs_does_not_keep_a_tunnel_that_is_to_stop(
    client: tuple[Background, Path, Programs], when: str
) -> None:
    """Whoever stops a service kills it soon, and takes a kill for a failure. Nothing of the program stays, either."""
    process, file, programs = client
    mark = programs.folder / "hangs"
    pattern = {"start": "dns:*", "reload": "dns:*10.7.0.9*", "end": "revert:*"}[when]
    hangs = f'echo $$ >> "$folder/hangs"; exec {shutil.which("sleep")} 1000'
    script = f'{PROGRAM}case "$1:$*" in {pattern}) {hangs} ;; esac\n'
    (programs.folder / "resolvectl").write_text(script)
    if when != "start":
        wait_for(lambda: " is up: " in process.output(), "the tunnel to be up", PATIENCE)
    if when == "reload":
        file.write_text(file.read_text().replace("10.7.0.1,", "10.7.0.9,"))
        process.send(signal.SIGHUP)
    if when != "end":
        wait_for(mark.exists, "the program that hangs", PATIENCE)
    assert process.stop(timeout=PATIENCE) == 0
    assert "Traceback" not in process.output() and (" is up: " in process.output()) == (when != "start")
    (pid,) = mark.read_text().split()
    assert not Path(f"/proc/{pid}").exists()
    said = "resolvectl revert took longer than 2 s" if when == "end" else "resolvectl dns was interrupted"
    assert said in process.output()


def test_who_was_cancelled_before_waits_for_no_more_than_what_gives_back(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever undoes a change sets what there was, and is not interrupted in that."""
    monkeypatch.setattr(module, "LAST_PATIENCE", 0.3)

    async def main() -> None:
        dns = Dns()
        with trio.CancelScope() as scope:
            async with dns.interruptible():
                scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked()
                dns.change(DEVICE, SERVERS)
                assert programs.take()[-1] == f"resolvectl domain {DEVICE} ~."
                (programs.folder / "resolvconf").unlink()
                (programs.folder / "resolvectl").write_text("#!/bin/sh\nwhile :; do :; done\n")
                with pytest.raises(DeviceError, match=r"resolvectl dns took longer than 0\.3 s"):
                    dns.change(DEVICE, SERVERS[:1])

    trio.run(main)


run_body(globals())
