"""`connlib-wg` in place of `wireguard-go`: with `wg`, `wg-quick` and `ip` as its only users, in network namespaces."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from interop.devices import CONNLIB_WG, INNER, RUN, End
from interop.netns import Background, Namespace, Wire, shell, unique_name, wait_for
from interop.traffic import ping

DOCUMENTATION = Path(__file__).parent.parent.parent / "docs" / "uapi.md"

pytestmark = pytest.mark.usefixtures("machine")


def test_two_devices_that_wg_set_configured_ping_each_other(ends: tuple[End, End]) -> None:
    one, other = ends
    # One packet: `ping` would repeat it. An initiation that finds the other device not up yet is repeated after 5 s.
    assert " 0% packet loss" in one.host.run("ping", "-n", "-c", "1", "-W", "10", INNER[1])
    assert " 0% packet loss" in other.host.run("ping", "-n", "-c", "1", "-W", "5", INNER[0])
    for end in ends:
        assert stat.S_IMODE(os.lstat(end.socket).st_mode) == 0o600
        assert " mtu 1420 " in end.host.run("ip", "link", "show", end.name)


def test_what_wg_shows_is_what_went_over_the_cable(ends: tuple[End, End]) -> None:
    """One handshake and two pings with 500 bytes in each direction; sizes of messages by the paper (section 5.4)."""
    one, other = ends
    one.host.run("ping", "-n", "-c", "2", "-i", "0.2", "-W", "5", "-s", "500", INNER[1])
    data = 16 + 528 + 16  # header, packet (padded already), tag
    keepalive = 16 + 16
    # The initiator confirms the session with the first packet, so that no keepalive is due.
    expected = (148 + 2 * data, 92 + 2 * data)
    for end, (sent, received) in ((one, expected), (other, expected[::-1])):
        ((_, rx, tx),) = end.show("transfer")
        assert (int(tx), int(rx)) in (
            (sent, received),
            (sent + keepalive, received),
            (sent, received + keepalive),
        )
        ((_, date),) = end.show("latest-handshakes")
        assert abs(int(date) - time.time()) < 30
    assert one.show("endpoints") == [[other.public, "192.0.2.2:51821"]]
    assert one.show("allowed-ips") == [[other.public, f"{INNER[1]}/32"]]
    assert one.show("public-key") == [[one.public]]
    dump = shell("wg", "show", one.name, "dump").split()
    assert dump[:4] == [one.key.read_text().strip(), one.public, "51820", "off"]
    assert one.name in shell("wg", "show", "interfaces").split()


def test_nothing_is_sent_before_the_device_is_up(stack: ExitStack, wire: Wire, tmp_path: Path) -> None:
    end = End(stack, wire.hosts[0], tmp_path)
    peer = shell("wg", "pubkey", stdin=shell("wg", "genkey")).strip()
    end.wg("private-key", str(end.key), "peer", peer, "endpoint", "192.0.2.2:9", "persistent-keepalive", "25")
    assert end.show("transfer") == [[peer, "0", "0"]]
    end.host.run("ip", "link", "set", end.name, "up")
    wait_for(lambda: end.show("transfer") != [[peer, "0", "0"]], "the first initiation")
    assert int(end.show("transfer")[0][2]) % 148 == 0


def test_without_a_descriptor_left_a_device_that_is_down_stays_silent_and_is_followed_later(
    stack: ExitStack, wire: Wire, tmp_path: Path
) -> None:
    """Fault 34."""
    end = End(stack, wire.hosts[0], tmp_path)
    peer = shell("wg", "pubkey", stdin=shell("wg", "genkey")).strip()
    end.wg("private-key", str(end.key), "peer", peer, "endpoint", "192.0.2.2:9", "persistent-keepalive", "25")
    pid = str(end.process.pid)
    before = shell("prlimit", "--pid", pid, "--nofile", "--noheadings", "--raw", "--output", "SOFT").strip()
    # Standard streams are all that could be opened now, and they are open.
    shell("prlimit", "--pid", pid, "--nofile=3:")
    end.host.run("ip", "link", "set", end.name, "mtu", "1300")
    wait_for(lambda: "Too many open files" in end.process.output(), "a warning")
    shell("prlimit", "--pid", pid, f"--nofile={before}:")
    assert end.show("transfer") == [[peer, "0", "0"]]
    end.host.run("ip", "link", "set", end.name, "up")
    wait_for(lambda: end.show("transfer") != [[peer, "0", "0"]], "the first initiation")


def test_every_setting_can_be_made_shown_and_taken_back(stack: ExitStack, wire: Wire, tmp_path: Path) -> None:
    end = End(stack, wire.hosts[0], tmp_path)
    psk = tmp_path / "psk"
    psk.write_text(shell("wg", "genpsk"))
    peer = shell("wg", "pubkey", stdin=shell("wg", "genkey")).strip()
    end.wg("private-key", str(end.key), "listen-port", "4242", "fwmark", "0xca6c")
    end.wg(
        *("peer", peer, "preshared-key", str(psk), "endpoint", "[2001:db8::2]:7"),
        *("persistent-keepalive", "25", "allowed-ips", "10.0.0.7/24,fd00::/64"),
    )
    assert end.show("listen-port") == [["4242"]] and end.show("fwmark") == [["0xca6c"]]
    assert end.show("preshared-keys") == [[peer, psk.read_text().strip()]]
    assert end.show("persistent-keepalive") == [[peer, "25"]]
    assert end.show("endpoints") == [[peer, "[2001:db8::2]:7"]]
    assert end.show("allowed-ips") == [[peer, "10.0.0.0/24", "fd00::/64"]]
    saved = shell("wg", "showconf", end.name)
    end.wg("fwmark", "off", "private-key", "/dev/null")
    end.wg("peer", peer, "preshared-key", "/dev/null", "persistent-keepalive", "off", "allowed-ips", "")
    assert end.show("fwmark") == [["off"]] and end.show("private-key") == [["(none)"]]
    assert end.show("preshared-keys") == [[peer, "(none)"]]
    assert end.show("persistent-keepalive") == [[peer, "off"]]
    assert end.show("allowed-ips") == [[peer, "(none)"]]
    end.wg("peer", peer, "remove")
    assert end.show("peers") == []
    conf = tmp_path / "saved.conf"
    conf.write_text(saved)
    shell("wg", "setconf", end.name, str(conf))
    assert shell("wg", "showconf", end.name) == saved


def test_files_are_set_synchronised_and_added(ends: tuple[End, End], tmp_path: Path) -> None:
    one, other = ends
    ping(one.host, INNER[1])
    conf = tmp_path / "c.conf"

    def handshake() -> str:
        return dict(one.show("latest-handshakes"))[other.public]

    established = handshake()
    conf.write_text(shell("wg", "showconf", one.name))
    shell("wg", "syncconf", one.name, str(conf))
    assert handshake() == established != "0", "what stays the same keeps its session"
    third = shell("wg", "pubkey", stdin=shell("wg", "genkey")).strip()
    added = tmp_path / "a.conf"
    added.write_text(f"[Peer]\nPublicKey = {third}\nAllowedIPs = 10.99.0.0/16\n")
    shell("wg", "addconf", one.name, str(added))
    assert {peer for (peer,) in one.show("peers")} == {other.public, third}
    assert handshake() == established
    shell("wg", "syncconf", one.name, str(conf))
    assert one.show("peers") == [[other.public]]
    shell("wg", "setconf", one.name, str(conf))
    assert handshake() == "0", "what is set anew has no session"
    ping(one.host, INNER[1])


def test_errors_have_the_names_that_wg_prints(stack: ExitStack, wire: Wire, tmp_path: Path) -> None:
    end = End(stack, wire.hosts[0], tmp_path)
    with wire.hosts[0].make_socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 4242))
        failed = subprocess.run(
            ["wg", "set", end.name, "listen-port", "4242"], capture_output=True, text=True, timeout=20
        )
    assert failed.returncode == 1 and "Address already in use" in failed.stderr
    assert "UDP port 4242 is in use" in end.process.output()
    failed = subprocess.run(["wg", "show", "cw-nowhere"], capture_output=True, text=True, timeout=20)
    assert failed.returncode == 1


def test_a_key_that_is_replaced_on_both_sides_is_used_at_once(ends: tuple[End, End], tmp_path: Path) -> None:
    one, other = ends
    ping(one.host, INNER[1])
    new = tmp_path / "new.key"
    new.write_text(shell("wg", "genkey"))
    public = shell("wg", "pubkey", stdin=new.read_text()).strip()
    before = other.show("transfer"), other.show("latest-handshakes")
    other.wg("private-key", str(new))
    assert (other.show("transfer"), other.show("latest-handshakes")) == before, "as the kernel has it"
    assert "0" not in before[0][0]
    one.wg("peer", other.public, "remove")
    one.wg("peer", public, "allowed-ips", f"{INNER[1]}/32", "endpoint", "192.0.2.2:51821")
    assert " 0% packet loss" in one.host.run("ping", "-n", "-c", "1", "-W", "5", INNER[1])
    # The own key as a peer is passed over in silence, as the kernel does.
    one.wg("peer", one.public, "allowed-ips", "10.98.0.0/16")
    assert one.show("peers") == [[public]]


def test_a_port_is_changed_while_traffic_flows(ends: tuple[End, End]) -> None:
    one, other = ends
    ping(one.host, INNER[1])
    for port in ("4001", "4002", "51820"):
        one.wg("listen-port", port)
        ping(one.host, INNER[1])
        assert other.show("endpoints") == [[one.public, f"192.0.2.1:{port}"]]
    ((_, date),) = one.show("latest-handshakes")
    assert time.time() - int(date) < 60


def test_a_mark_chooses_the_route_of_what_is_sent(ends: tuple[End, End]) -> None:
    """As `wg-quick` does for default routes: what is marked goes past a table that would lead into the tunnel."""
    one, _ = ends
    ping(one.host, INNER[1])
    one.host.run("ip", "rule", "add", "fwmark", "0x77", "table", "77")
    one.host.run("ip", "route", "add", "blackhole", "default", "table", "77")
    one.wg("fwmark", "0x77")
    lost = one.host.run("ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", INNER[1], check=False)
    assert " 100% packet loss" in lost
    one.wg("fwmark", "0")
    ping(one.host, INNER[1])


def test_a_device_moved_to_another_namespace_works_on(ends: tuple[End, End], wire: Wire) -> None:
    """The pattern of containers: UDP stays outside, only the device goes in, twice, under another name and MTU."""
    one, other = ends
    first, inside = Namespace(unique_name("clI")), Namespace(unique_name("clI"))

    def sent_for_a_full_packet() -> int:
        """Bytes for a packet of 1,300, which without the MTU would be padded to 1,312."""
        ((_, _, before),) = one.show("transfer")
        inside.run("ping", "-n", "-c", "1", "-W", "5", "-s", "1272", INNER[1], check=False)
        ((_, _, after),) = one.show("transfer")
        return int(after) - int(before)

    try:
        one.host.run("ip", "link", "set", one.name, "netns", first.name)
        first.run("ip", "link", "set", one.name, "netns", inside.name)
        one.address(INNER[0], inside)
        ping(inside, INNER[1])
        one.wg("peer", other.public, "persistent-keepalive", "25")
        inside.run("ip", "link", "set", one.name, "down")
        inside.run("ip", "link", "set", one.name, "name", "eth7", "mtu", "1300")
        inside.run("ip", "link", "set", "eth7", "up")
        ping(inside, INNER[1])
        assert one.show("persistent-keepalive") == [[other.public, "25"]]
        wait_for(lambda: sent_for_a_full_packet() == 16 + 1300 + 16, "padding within the new MTU")
    finally:
        first.delete()
        inside.delete()
    wait_for(lambda: one.process.returncode is not None, "the end of it, since its device is gone with that")
    assert one.process.returncode == 1 and not one.socket.exists()


def test_a_deleted_device_ends_it_within_a_second(ends: tuple[End, End]) -> None:
    one, _ = ends
    start = time.monotonic()
    one.host.run("ip", "link", "delete", one.name)
    wait_for(lambda: one.process.returncode is not None, "its end", timeout=5.0)
    print(f"ended after {time.monotonic() - start:.3f} s")
    assert one.process.returncode == 1 and not one.socket.exists()
    (line,) = [line for line in one.process.output().splitlines() if line.startswith("connlib-wg:")]
    assert "was deleted" in line


def test_a_deleted_socket_file_ends_it(ends: tuple[End, End]) -> None:
    one, _ = ends
    one.socket.unlink()
    wait_for(lambda: one.process.returncode is not None, "its end", timeout=5.0)
    assert one.process.returncode == 0 and not one.host.has_link(one.name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_leaves_nothing(
    stack: ExitStack, wire: Wire, tmp_path: Path, number: signal.Signals
) -> None:
    end = End(stack, wire.hosts[0], tmp_path)
    assert end.process.stop(number) == 0
    assert not end.socket.exists() and not wire.hosts[0].has_link(end.name)


def test_a_killed_one_leaves_a_socket_that_the_next_one_replaces(
    stack: ExitStack, wire: Wire, tmp_path: Path
) -> None:
    end = End(stack, wire.hosts[0], tmp_path)
    end.process.stop(signal.SIGKILL)
    assert end.socket.exists()
    again = Background(end.host.command(*CONNLIB_WG, "-f", end.name), tmp_path / "again.log")
    end.process = again
    wait_for(
        lambda: subprocess.run(["wg", "show", end.name], capture_output=True).returncode == 0, "the next one"
    )


def test_the_program_of_the_documentation_serves_its_own_interface(
    stack: ExitStack, ends: tuple[End, End], tmp_path: Path
) -> None:
    one, other = ends
    name = unique_name("cp")
    (script,) = re.findall(r"^```python\n(.*?)^```", DOCUMENTATION.read_text(), re.MULTILINE | re.DOTALL)
    program = tmp_path / "program.py"
    program.write_text(script.replace("wg0.conf", str(tmp_path / "wg0.conf")))
    conf = tmp_path / "wg0.conf"
    conf.touch(mode=0o600)
    conf.write_text(f"[Interface]\nPrivateKey = {shell('wg', 'genkey')}# connlib: interface = {name}\n")
    process = Background(one.host.command(sys.executable, str(program)), tmp_path / "program.log")
    stack.callback(process.stop)
    wait_for((RUN / f"{name}.sock").exists, "its socket")
    shell("wg", "set", name, "peer", other.public, "allowed-ips", "10.80.0.0/16")
    assert shell("wg", "show", name, "peers").split() == [other.public]
    assert "10.80.0.0/16" in one.host.run("ip", "route", "show", "dev", name), "as its own apply() makes them"
    process.stop(signal.SIGINT)
    assert not (RUN / f"{name}.sock").exists()


# --- In the background ----------------------------------------------------------------------------------------------


class Daemon:
    """`connlib-wg NAME` as a script calls it, and the process that it leaves behind."""

    def __init__(self, stack: ExitStack, host: Namespace, *command: str) -> None:
        self.host = host
        self.name = unique_name("cw")
        self.socket = RUN / f"{self.name}.sock"
        stack.callback(self.stop)
        self.done = subprocess.run(
            host.command(*(command or CONNLIB_WG), self.name), capture_output=True, text=True, timeout=60
        )

    def pids(self) -> list[int]:
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    words = (folder / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if self.name.encode() in words and b"connlib.cli.wg" in words:
                    found.append(int(folder.name))
        return found

    def stop(self) -> None:
        for pid in self.pids():
            os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not self.pids(), "the daemon to end")
        assert not self.socket.exists()


def test_it_returns_when_wg_can_go_on_and_has_left_the_terminal(
    stack: ExitStack, wire: Wire, tmp_path: Path
) -> None:
    daemon = Daemon(stack, wire.hosts[0])
    assert (daemon.done.returncode, daemon.done.stdout, daemon.done.stderr) == (0, "", "")
    shell("wg", "set", daemon.name, "listen-port", "4242")
    (pid,) = daemon.pids()
    _, _, after = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")
    _, parent, _, session, terminal = map(str, after.split()[:5])
    assert parent != str(os.getpid()) and terminal == "0" and session != str(pid)
    for stream in (0, 1, 2):
        assert os.readlink(f"/proc/{pid}/fd/{stream}") == "/dev/null"
    assert os.readlink(f"/proc/{pid}/cwd") == "/"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_whatever_standard_stream_it_is_started_without_it_serves(
    stack: ExitStack, wire: Wire, closed: str
) -> None:
    """Whatever is opened next has the descriptor of a closed stream, and is lost when the streams are let go."""
    daemon = Daemon(stack, wire.hosts[0], "sh", "-c", f'exec "$@" {closed}', "sh", *CONNLIB_WG)
    assert (daemon.done.returncode, daemon.done.stdout, daemon.done.stderr) == (0, "", "")
    shell("wg", "set", daemon.name, "listen-port", "4242")
    (pid,) = daemon.pids()
    for stream in (0, 1, 2):
        assert os.readlink(f"/proc/{pid}/fd/{stream}") == "/dev/null"


@pytest.mark.parametrize("name", ["../x", "a/b", "x" * 16, "%d", "all"])
def test_names_that_name_no_device_are_refused_in_one_line(wire: Wire, name: str) -> None:
    before = sorted(os.listdir(RUN)) if RUN.exists() else []
    done = subprocess.run(
        wire.hosts[0].command(*CONNLIB_WG, name), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert re.fullmatch(r"connlib-wg: .* cannot name a network device; .*\n", done.stderr), done.stderr
    assert (sorted(os.listdir(RUN)) if RUN.exists() else []) == before


def test_a_name_that_is_taken_is_refused_in_one_line_by_the_process_that_was_started(
    stack: ExitStack, wire: Wire
) -> None:
    daemon = Daemon(stack, wire.hosts[0])
    again = subprocess.run(
        wire.hosts[0].command(*CONNLIB_WG, daemon.name), capture_output=True, text=True, timeout=60
    )
    assert again.returncode == 1
    assert re.fullmatch(r"connlib-wg: there is a network device .*\n", again.stderr), again.stderr
    elsewhere = subprocess.run(
        wire.hosts[1].command(*CONNLIB_WG, daemon.name), capture_output=True, text=True, timeout=60
    )
    assert elsewhere.returncode == 1 and "belongs to a process that runs" in elsewhere.stderr
    assert not wire.hosts[1].has_link(daemon.name)
    assert daemon.socket.exists()


@pytest.mark.parametrize("arguments", [[], ["-x", "wg0"], ["wg0", "wg1"]])
def test_wrong_arguments_are_one_line(arguments: list[str]) -> None:
    done = subprocess.run([*CONNLIB_WG, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"connlib-wg: .*; try connlib-wg --help\n", done.stderr)


def test_help_and_version_say_what_it_is() -> None:
    shown = shell(*CONNLIB_WG, "--help")
    assert "--foreground" in shown and "LOG_LEVEL" in shown
    assert re.fullmatch(r"connlib-wg \d+\.\d+\.\d+\n", shell(*CONNLIB_WG, "--version"))


def test_a_script_that_calls_wireguard_go_may_call_it_instead(
    stack: ExitStack, ends: tuple[End, End], tmp_path: Path
) -> None:
    """PROGRAM makes the device, `ip` moves it to another namespace, and `wg set` goes on."""
    one, other = ends
    inside = Namespace(unique_name("clI"))
    stack.callback(inside.delete)
    daemon = Daemon(stack, other.host)
    script = tmp_path / "script"
    script.write_text(f"""set -e
ip link set {daemon.name} netns {inside.name}
wg set {daemon.name} private-key {one.key} listen-port 4242
wg set {daemon.name} peer {other.public} allowed-ips 0.0.0.0/0 endpoint 127.0.0.1:51821
ip -n {inside.name} address add 10.66.0.9/24 dev {daemon.name}
ip -n {inside.name} link set {daemon.name} up
ip -n {inside.name} route add default dev {daemon.name}
""")
    other.wg("peer", one.public, "allowed-ips", "10.66.0.9/32")
    other.host.run("sh", str(script))
    ping(inside, INNER[1])


def test_wg_quick_brings_it_up_and_down(stack: ExitStack, ends: tuple[End, End], tmp_path: Path) -> None:
    one, other = ends
    if not shutil.which("wg-quick"):
        pytest.skip("needs wg-quick (Debian: wireguard-tools)")
    if Path("/sys/module/wireguard").exists():
        pytest.skip("wg-quick uses the kernel's WireGuard where there is one")
    name = unique_name("cq")
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(CONNLIB_WG)} "$@"\n')
    program.chmod(0o700)
    # Where the kernel's module could be loaded, `ip` would do that.
    fake = tmp_path / "bin" / "ip"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\ncase "$*" in *"type wireguard"*) exit 1;; esac\nexec {shutil.which("ip")} "$@"\n'
    )
    fake.chmod(0o700)
    conf = tmp_path / f"{name}.conf"
    conf.touch(mode=0o600)
    key = shell("wg", "genkey")
    conf.write_text(f"""[Interface]
PrivateKey = {key}Address = 10.66.0.3/24
MTU = 1380
ListenPort = 4300
FwMark = 0x99
[Peer]
PublicKey = {other.public}
AllowedIPs = {INNER[1]}/32, 10.77.0.0/16
Endpoint = 192.0.2.2:51821
""")
    other.wg("peer", shell("wg", "pubkey", stdin=key).strip(), "allowed-ips", "10.66.0.3/32")
    environment = [
        "env",
        f"WG_QUICK_USERSPACE_IMPLEMENTATION={program}",
        f"PATH={fake.parent}:{os.environ['PATH']}",
    ]
    stack.callback(lambda: one.host.run("ip", "link", "delete", name, check=False))
    one.host.run(*environment, "wg-quick", "up", str(conf), timeout=60)
    assert (RUN / f"{name}.sock").exists()
    ping(one.host, INNER[1])
    assert "mtu 1380" in one.host.run("ip", "link", "show", name)
    assert "10.77.0.0/16" in one.host.run("ip", "route", "show", "dev", name)
    assert shell("wg", "show", name, "fwmark").strip() == "0x99"
    one.host.run(*environment, "wg-quick", "down", str(conf), timeout=60)
    assert not one.host.has_link(name)
    wait_for(lambda: not (RUN / f"{name}.sock").exists(), "the socket to go with its device")
