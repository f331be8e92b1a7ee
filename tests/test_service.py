"""`connlib up` as a service: what its manager hears, and what it is allowed to do."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from connlib import PrivateKey
from connlib.dns import LAST_PATIENCE
from helpers_service import CLIENT, Manager, open_folder, private_file, rights, start_up, two_ends
from interop.machine import own_namespace
from interop.netns import Background, Namespace, wait_for
from test_cli import COMMAND

__all__ = ["open_folder"]  # the fixture

ROOT = Path(__file__).resolve().parent.parent
UNIT = ROOT / "packaging" / "systemd" / "connlib@.service"
OWN = PrivateKey.generate()
UP = f'[interface]\nprivate_key = "{OWN.to_base64()}"\naddresses = ["10.9.0.1/24"]\nlisten_port = 51820\n'
NET_BIND_SERVICE, NET_ADMIN = 1 << 10, 1 << 12
NOBODY = "nobody"


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with own_namespace("sv") as made:
        yield made


# What the manager hears


def test_the_manager_hears_of_the_start_of_reloads_and_of_the_end(
    namespace: Namespace, tmp_path: Path
) -> None:
    file = private_file(tmp_path / "wg0.toml", UP)
    with Manager(tmp_path / "notify") as manager:
        process = start_up(namespace, file, environment=manager.environment)
        try:
            assert manager.hear() == {"READY": "1", "STATUS": "0 of 0 peers up"}
            assert namespace.has_link("wg0"), "it is said when all is there"
            peer = f'[[peers]]\npublic_key = "{PrivateKey.generate().public_key().to_base64()}"\n'
            for text, status in ((UP + peer, "0 of 1 peers up"), (UP + "?", "0 of 1 peers up")):
                private_file(file, text)
                before = int(Path("/proc/uptime").read_text().split(".")[0])
                process.send(signal.SIGHUP)
                begun = manager.hear()
                assert begun.keys() == {"RELOADING", "MONOTONIC_USEC"} and begun["RELOADING"] == "1"
                # CLOCK_MONOTONIC, which is not ahead of the time since the machine started.
                assert int(begun["MONOTONIC_USEC"]) / 1e6 < before + 60
                assert manager.hear() == {"READY": "1", "STATUS": status}
            assert process.stop() == 0
            assert manager.hear() == {"STOPPING": "1"}
            assert manager.heard() == [], "without a watchdog it is not fed"
        finally:
            if process.returncode is None:
                process.stop()
    assert "1 change" in process.output() and "not reloaded; nothing has changed" in process.output()


def test_the_manager_hears_how_many_peers_are_up_and_that_the_loop_turns(tmp_path: Path) -> None:
    with Manager(tmp_path / "notify") as manager:
        environment = {**manager.environment, "WATCHDOG_USEC": "400000"}
        with two_ends(tmp_path, environment=environment) as ends:
            assert manager.hear() == {"READY": "1", "STATUS": "0 of 1 peers up"}
            assert {"WATCHDOG": "1"} in manager.hear_until(WATCHDOG="1")
            assert ends.ping() == 1
            heard = manager.hear_until(STATUS="1 of 1 peers up")
            assert {frozenset(message) for message in heard} == {
                frozenset({"WATCHDOG"}),
                frozenset({"STATUS"}),
            }
            # A loop that does not turn feeds nobody.
            ends.client.send(signal.SIGSTOP)
            manager.heard()
            assert manager.heard() == []
            ends.client.send(signal.SIGCONT)
            manager.hear_until(WATCHDOG="1")


def test_what_the_manager_said_is_not_passed_on(namespace: Namespace, tmp_path: Path) -> None:
    """Nothing is executed by the command, but what it was started with shows what a child would get."""
    script = (
        "import os; os.environ.update(NOTIFY_SOCKET='/nowhere', WATCHDOG_USEC='1', WATCHDOG_PID='1', LISTEN_PID='1', "
        "LISTEN_FDS='3', LISTEN_FDNAMES='a:b:c'); from connlib.cli._service import Service\n"
        "with Service(None): print([name for name in os.environ if name.startswith(('NOTIFY', 'WATCHDOG', 'LISTEN'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


# Rights


def require_rights(process: Background, allowed: int, uid: int) -> None:
    """The process is that user and has these capabilities, no thread of it has others, and there is no way to any."""
    for thread in rights(process):
        assert thread["Uid"].split() == [str(uid)] * 4
        assert [int(thread[name], 16) & ~allowed for name in ("CapPrm", "CapEff")] == [0, 0], thread["Name"]
        assert [int(thread[name], 16) for name in ("CapInh", "CapBnd", "CapAmb")] == [0, 0, 0], thread["Name"]
        assert thread["NoNewPrivs"] == "1"
    (main,) = (thread for thread in rights(process) if thread["Pid"] == thread["Tgid"])
    assert [int(main[name], 16) for name in ("CapPrm", "CapEff")] == [allowed, allowed]


@pytest.mark.parametrize(("port", "allowed"), [(51820, NET_ADMIN), (53, NET_ADMIN | NET_BIND_SERVICE)])
def test_root_keeps_what_it_takes_to_change_the_interface_and_nothing_else(
    namespace: Namespace, tmp_path: Path, port: int, allowed: int
) -> None:
    file = private_file(tmp_path / "wg0.toml", UP.replace("51820", str(port)))
    with Manager(tmp_path / "notify") as manager:
        process = start_up(namespace, file, environment=manager.environment)
        try:
            manager.hear_until(READY="1")
            require_rights(process, allowed, 0)
            change_an_address_a_route_and_the_port(namespace, process, file, port)
            require_rights(process, allowed, 0)
            assert process.stop() == 0
            assert "warning" not in process.output() and "error" not in process.output()
        finally:
            if process.returncode is None:
                process.stop()


def change_an_address_a_route_and_the_port(
    namespace: Namespace, process: Background, file: Path, port: int
) -> None:
    key = PrivateKey.generate().public_key().to_base64()
    peer = f'[[peers]]\npublic_key = "{key}"\nallowed_ips = ["10.8.0.0/24"]\n'
    text = (
        UP.replace("51820", str(port + 1)).replace("10.9.0.1", "10.9.0.7") + "mtu = 1300\nfwmark = 7\n" + peer
    )
    owner = os.stat(file)
    private_file(file, text)
    os.chown(file, owner.st_uid, owner.st_gid)
    process.send(signal.SIGHUP)
    wait_for(lambda: "wg0: reloaded: 5 changes" in process.output(), "the reload")
    shown = namespace.run("ip", "address", "show", "wg0")
    assert "10.9.0.7/24" in shown and "10.9.0.1/24" not in shown and "mtu 1300" in shown
    assert "10.8.0.0/24 dev wg0" in namespace.run("ip", "route")
    assert f":{port + 1} " in namespace.run("ss", "-uln")


def test_another_user_gets_what_it_takes_to_change_the_interface_and_nothing_else(
    namespace: Namespace, open_folder: Path
) -> None:
    uid, gid = pwd.getpwnam(NOBODY)[2:4]
    file = private_file(open_folder / "wg0.toml", UP)
    os.chown(file, uid, gid)
    with Manager(open_folder / "notify") as manager:
        process = start_up(namespace, file, "--user", NOBODY, environment=manager.environment)
        try:
            manager.hear_until(READY="1")
            require_rights(process, NET_ADMIN, uid)
            for thread in rights(process):
                assert thread["Gid"].split() == [str(gid)] * 4
                assert set(thread["Groups"].split()) == {str(gid)}
            assert os.stat(f"/proc/{process.pid}/mem").st_uid == 0, "nobody else can read its memory"
            change_an_address_a_route_and_the_port(namespace, process, file, 51820)
            require_rights(process, NET_ADMIN, uid)
            assert process.stop() == 0
            assert "warning" not in process.output() and "error" not in process.output()
            assert manager.hear_until(STOPPING="1"), "it is heard from the other user, too"
        finally:
            if process.returncode is None:
                process.stop()
    assert not namespace.has_link("wg0")


def test_root_makes_the_control_socket_of_another_user_in_a_folder_of_root_s(
    namespace: Namespace, open_folder: Path
) -> None:
    file = private_file(open_folder / "wg0.toml", UP)
    own, foreign = open_folder / "root's", open_folder / "nobody's"
    foreign.mkdir()
    for path in (file, foreign):
        shutil.chown(path, NOBODY)
    # Twice, because the first one cannot remove its file.
    for folder, warnings in ((own, 0), (own, 0), (foreign, 1)):
        file.with_suffix(".log").unlink(missing_ok=True)
        process = start_up(namespace, file, "--user", NOBODY, "--run-dir", str(folder))
        try:
            shown = subprocess.run(
                [*COMMAND, "show", "wg0", "--run-dir", str(folder)],
                capture_output=True,
                timeout=60,
                check=False,
            )
            assert (shown.returncode, b"wg0  up for" in shown.stdout) == (
                (1, False) if warnings else (0, True)
            )
            assert process.stop() == 0
            assert process.output().count("warning: ") == warnings
            assert (folder / "wg0.sock").exists() != bool(warnings)
        finally:
            if process.returncode is None:
                process.stop(signal.SIGKILL)
    assert f"others can write into {foreign}, and so take the place of the control socket" in process.output()


def test_a_file_that_the_user_cannot_read_is_warned_about_at_once(
    namespace: Namespace, open_folder: Path
) -> None:
    """A reload would fail months later."""
    private_file(open_folder / "own.key", OWN.to_base64())
    file = open_folder / "wg0.toml"
    file.write_text('[interface]\nprivate_key_file = "own.key"\n')
    process = start_up(namespace, file, "--user", NOBODY)
    try:
        wait_for(lambda: "a reload would fail" in process.output(), "the warning")
        (line,) = (line for line in process.output().splitlines() if "warning: " in line)
        place = f"{file}:2:20: private_key_file: {open_folder}/own.key"
        assert (
            f"wg0: a reload would fail, as rights were given up: {place}: cannot read it: permission denied; "
            in line
        )
        process.send(signal.SIGHUP)
        wait_for(lambda: "wg0: not reloaded; nothing has changed" in process.output(), "the refusal")
        assert process.stop() == 0
    finally:
        if process.returncode is None:
            process.stop()


def test_root_is_warned_of_a_file_that_is_somebody_elses(namespace: Namespace, tmp_path: Path) -> None:
    """Without CAP_DAC_OVERRIDE, root reads what others may read."""
    file = private_file(tmp_path / "wg0.toml", UP)
    os.chown(file, *pwd.getpwnam(NOBODY)[2:4])
    process = start_up(namespace, file)
    try:
        problem = f"{file}: cannot read it: permission denied; "
        said = f"warning: wg0: a reload would fail, as rights were given up: {problem}"
        wait_for(lambda: said in process.output(), "the warning")
        assert process.stop() == 0
    finally:
        if process.returncode is None:
            process.stop()


def failure_of(*command: str) -> tuple[int, str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_a_user_that_does_not_exist_is_one_line_and_exit_2(tmp_path: Path) -> None:
    file = private_file(tmp_path / "wg0.toml", UP)
    # A key, by mistake.
    command = (*COMMAND, "up", "--user", OWN.to_base64(), str(file))
    said = "connlib: --user: there is no such user; name one that `getent passwd` lists\n"
    assert failure_of(*command) == (2, said)


@pytest.mark.parametrize("right", ["setuid", "setgid"])
def test_a_user_that_it_may_not_become_is_one_line_and_exit_1(
    namespace: Namespace, tmp_path: Path, right: str
) -> None:
    file = private_file(tmp_path / "wg0.toml", UP)
    command = ("setpriv", f"--bounding-set=-{right}", *COMMAND, "up", "--user", NOBODY, str(file))
    problem = "cannot become the user nobody: Operation not permitted"
    said = f"connlib: {problem}; start it as root, or without --user\n"
    assert failure_of(*namespace.command(*command)) == (1, said)


# Descriptors

LAUNCH = """
import os, socket, sys
from connlib.tun import make_device
port, name, *command = sys.argv[1:]
made = [make_device(name)[0]] if name else []
for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
    one = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.bind((address, int(port)))
    made.append(one.detach())
assert made == list(range(3, 3 + len(made)))
for fd in made:
    os.set_inheritable(fd, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(made)))
os.execv(command[0], command)
"""


@pytest.mark.parametrize("device", ["given0", ""], ids=["device and sockets", "sockets"])
def test_what_is_passed_is_used_and_without_a_link_to_manage_nothing_may_be_done(
    tmp_path: Path, device: str
) -> None:
    with two_ends(tmp_path) as ends:
        host = ends.wire.hosts[CLIENT]
        assert ends.client.stop() == 0
        file = tmp_path / "cl0.toml"
        log = tmp_path / "given.log"
        command = (sys.executable, "-c", LAUNCH, "40000", device, *COMMAND, "up", str(file))
        with Manager(tmp_path / "notify") as manager:
            client = Background(host.command(*command), log, manager.environment)
            try:
                wait_for(lambda: bool(manager.heard()) or client.returncode is not None, "READY")
                client.require_running()
                require_rights(client, 0 if device else NET_ADMIN, 0)
                assert f"{device or 'cl0'} is up: UDP port 40000, " in client.output()
                if device:
                    host.run("ip", "address", "add", "10.9.0.2/24", "dev", device)
                    host.run("ip", "link", "set", device, "up")
                assert ends.ping() == 1
                private_file(file, file.read_text().replace("listen_port = 0", "listen_port = 40001"))
                client.send(signal.SIGHUP)
                wait_for(lambda: "not reloaded" in client.output(), "the refusal")
                assert (
                    "the listen port cannot change from 40000: the sockets are the caller's"
                    in client.output()
                )
                assert client.stop() == 0
            finally:
                if client.returncode is None:
                    client.stop()
                print(client.output())


# The unit


def unit() -> dict[str, dict[str, list[str]]]:
    """Section -> name -> the values in order."""
    found: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section = found.setdefault(match[1], {})
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            section.setdefault(name, []).append(value)
    return found


def test_the_unit_says_how_the_command_behaves() -> None:
    service = unit()["Service"]
    assert service["Type"] == ["notify", "notify-reload"], "the second is for those who know it"
    assert service["ExecStart"] == ["connlib up /etc/connlib/%i.toml"]
    assert service["Restart"] == ["on-failure"] and service["RestartPreventExitStatus"] == ["2"]
    assert service["DeviceAllow"] == ["/dev/net/tun rw"] and service["DevicePolicy"] == ["closed"]
    for name in ("CapabilityBoundingSet", "AmbientCapabilities"):
        assert service[name] == ["CAP_NET_ADMIN CAP_NET_BIND_SERVICE"]
    assert "AF_NETLINK" in service["RestrictAddressFamilies"][0].split()
    assert service["RuntimeDirectory"] == ["connlib"] and service["RuntimeDirectoryPreserve"] == ["yes"]
    assert int(service["WatchdogSec"][0]) >= 10
    # A reload that is interrupted sets both parts of what there was, and then gives it back.
    assert int(service["TimeoutStopSec"][0]) > 3 * LAST_PATIENCE
    (user,) = service["User"]
    sysusers = (UNIT.parent / "connlib.sysusers").read_text()
    assert re.search(rf"^u {user} - ", sysusers, re.MULTILINE)


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    if (analyze := shutil.which("systemd-analyze")) is None:
        # What it says is less than what it would; the file is read above.
        return
    copy = tmp_path / "connlib@wg0.service"
    # The command may not be where systemd looks for it.
    text = UNIT.read_text().replace("ExecStart=connlib ", f"ExecStart={sys.executable} -m connlib ")
    version = re.search(r"\d+", subprocess.run([analyze, "--version"], capture_output=True, text=True).stdout)
    if version is not None and int(version[0]) < 253:
        text = text.replace("Type=notify-reload\n", "")
    copy.write_text(text)
    verified = subprocess.run(
        [analyze, "verify", "--man=no", str(copy)], capture_output=True, text=True, timeout=60
    )
    assert [line for line in verified.stderr.splitlines() if copy.name in line] == []


MDWE = """
import ctypes, os, sys
zero = ctypes.c_ulong(0)
# PR_SET_MDWE with PR_MDWE_REFUSE_EXEC_GAIN, since Linux 6.3; it stays over exec.
if ctypes.CDLL(None).prctl(65, ctypes.c_ulong(1), zero, zero, zero) != 0:
    sys.exit(77)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_it_works_where_memory_is_never_both_writable_and_executable(
    namespace: Namespace, tmp_path: Path
) -> None:
    """MemoryDenyWriteExecute, which calls into libc by way of ctypes could need lifted."""
    assert unit()["Service"]["MemoryDenyWriteExecute"] == ["yes"]
    file = private_file(tmp_path / "wg0.toml", UP)
    command = (sys.executable, "-c", MDWE, *COMMAND, "up", str(file))
    process = Background(namespace.command(*command), tmp_path / "log")
    try:
        wait_for(lambda: "wg0 is up" in process.output() or process.returncode is not None, "wg0 to be up")
        if process.returncode == 77:
            return  # a kernel that cannot be asked for it
        process.send(signal.SIGHUP)
        wait_for(lambda: "wg0: reloaded: no change" in process.output(), "the reload")
        assert process.stop() == 0
        assert "Traceback" not in process.output()
    finally:
        if process.returncode is None:
            process.stop()
