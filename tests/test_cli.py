"""The `connlib` command: what it prints, its exit codes, and that a failure is one line."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import connlib.cli.keys
from connlib import Event, HandshakeStarted, PrivateKey
from connlib.cli import main
from connlib.cli.up import describe_event
from interop.netns import Background, Namespace, unique_name, wait_for

COMMAND = (sys.executable, "-m", "connlib")

ALICE = PrivateKey.generate()


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, timeout=60, check=False)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["connlib", *arguments])
    return main()


# Keys


def test_the_public_key_is_the_one_of_rfc_7748() -> None:
    """Section 6.1: Alice's keys."""
    private = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    public = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert run("pubkey", stdin=base64.b64encode(private)).stdout == base64.b64encode(public) + b"\n"


def test_generated_keys_are_lines_of_44_characters_and_differ() -> None:
    outputs = [run(command) for command in ("genkey", "genkey", "genpsk", "genpsk")]
    assert all(output.returncode == 0 and output.stderr == b"" for output in outputs)
    assert {len(output.stdout) for output in outputs} == {45}
    assert len({output.stdout for output in outputs}) == 4
    private = base64.b64decode(outputs[0].stdout)
    assert (private[0] & 7, private[31] & 0xC0) == (0, 0x40), "clamped, as wg genkey does"


KEY = base64.b64encode(bytes(range(32)))


@pytest.mark.parametrize(
    "stdin",
    [
        KEY,
        KEY + b"\n",
        KEY + b"\r\n \t\n",
        b"",
        b"abc\n",
        b" " + KEY,
        KEY + KEY,
        KEY + b"\nx",
        KEY + b"\n" * 10_000 + b"x",
        KEY[:43] + b"A",
        KEY[:42] + b"B=",
        b"*" * 44,
        b"\xff" * 44,
        KEY[:20] + b"-" + KEY[21:],
    ],
)
def test_pubkey_takes_and_refuses_what_wg_does(stdin: bytes) -> None:
    ours = run("pubkey", stdin=stdin)
    if ours.returncode:
        assert (ours.returncode, ours.stdout) == (1, b"")
        assert ours.stderr.startswith(b"connlib: ") and ours.stderr.count(b"\n") == 1
        assert KEY[:20] not in ours.stderr
    if not shutil.which("wg"):
        pytest.skip("needs wg to compare with (Debian: wireguard-tools)")
    theirs = subprocess.run(["wg", "pubkey"], input=stdin, capture_output=True, timeout=10, check=False)
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)


@pytest.mark.parametrize(("umask", "warns"), [(0o022, True), (0o077, False)])
@pytest.mark.parametrize("command", ["genkey", "genpsk"])
def test_a_key_that_goes_to_a_world_accessible_file_is_warned_about(
    tmp_path: Path, command: str, umask: int, warns: bool
) -> None:
    file = tmp_path / "key"
    with open(os.open(file, os.O_WRONLY | os.O_CREAT, 0o666 & ~umask), "wb") as out:
        done = subprocess.run([*COMMAND, command], stdout=out, stderr=subprocess.PIPE, timeout=30, check=True)
    assert done.stderr.startswith(b"Warning: writing to world accessible file.\n") == warns
    assert len(file.read_bytes()) == 45


@pytest.mark.parametrize(
    ("redirection", "message"),
    [
        (">/dev/full", "connlib: No space left on device\n"),
        (">&-", "connlib: standard output is closed\n"),
        ("| true", ""),
    ],
)
def test_output_that_nobody_takes_is_no_traceback(redirection: str, message: str) -> None:
    script = f"set -o pipefail; {sys.executable} -m connlib genkey {redirection}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == message
    # A reader that is gone by then or is not: both happen.
    assert done.returncode in ((0, 1) if redirection == "| true" else (1,))


def test_a_key_is_made_without_loading_an_event_loop() -> None:
    code = (
        "import sys; from connlib.cli import main; sys.argv = ['connlib', 'genkey']; main(); "
        "sys.exit(str([name for name in ('trio', 'asyncio', 'pyroute2') if name in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stderr == "[]\n"


# Arguments and files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "connlib: No such command 'nonsense'"),
        (["--nonsense"], "connlib: No such option: --nonsense"),
        (["genkey", "x"], "connlib: Got unexpected extra argument"),
        (["up"], "connlib: Missing argument 'FILE'"),
        (["up", "--log-level", "loud", "x.conf"], "connlib: Invalid value for '--log-level'"),
        (
            ["up", "no-such-file.conf"],
            "connlib: no-such-file.conf: cannot read it: no such file or directory",
        ),
        (["up", "/"], "connlib: /: cannot read it: is a directory"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert call(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message) and err.count("\n") == 1


def write_config(folder: Path, text: str, name: str = "wg0.conf") -> Path:
    file = folder / name
    file.write_text(f"[Interface]\nPrivateKey = {ALICE.to_base64()}\n{text}")
    file.chmod(0o600)
    return file


def test_every_problem_of_a_file_is_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = write_config(tmp_path, "MTU = 1\nListenPort = 99999\n[Peer]\n")
    assert call(monkeypatch, "up", str(file)) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"connlib: {file}:3: MTU: 1 is out of range; use 576 to 65472",
        f"connlib: {file}:4: ListenPort: 99999 is out of range; use 0 to 65535",
    ]


def test_a_world_readable_file_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = write_config(tmp_path, "MTU = 1\n")
    file.chmod(0o644)
    assert call(monkeypatch, "up", str(file)) == 2
    assert "or pass --allow-world-readable" in capsys.readouterr().err
    assert call(monkeypatch, "up", "--allow-world-readable", str(file)) == 2
    assert ":3: MTU" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../x", "a/b", "x" * 16, "%d", "", "."])
def test_a_bad_device_name_exits_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    assert call(monkeypatch, "up", "--name", name, str(write_config(tmp_path, ""))) == 2
    assert "cannot name a network device; use 1 to 15" in capsys.readouterr().err


def test_a_file_whose_name_no_device_can_have_asks_for_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call(monkeypatch, "up", str(write_config(tmp_path, "", "the office.conf"))) == 2
    assert capsys.readouterr().err.endswith("choose a name with --name\n")


def test_help_and_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"connlib {connlib.__version__}\n"
    for arguments in ([], ["-h"], ["--help"]):
        assert call(monkeypatch, *arguments) == 0
        out = capsys.readouterr().out
        assert all(command in out for command in ("up", "genkey", "pubkey", "genpsk", "demo"))
        assert max(len(line) for line in out.splitlines()) <= 80
    assert call(monkeypatch, "up", "--help") == 0
    assert "--allow-world-readable" in capsys.readouterr().out


# Failures


def test_an_unexpected_exception_is_one_line_that_quotes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("a secret")

    monkeypatch.delenv("CONNLIB_DEBUG", raising=False)
    monkeypatch.setattr(connlib.cli.keys, "genkey", fail)
    assert call(monkeypatch, "genkey") == 1
    err = capsys.readouterr().err
    assert err == "connlib: internal error (RuntimeError); set CONNLIB_DEBUG=1 to see where, and report it\n"
    monkeypatch.setenv("CONNLIB_DEBUG", "1")
    assert call(monkeypatch, "genkey") == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_outside_of_up_exits_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(connlib.cli.keys, "genkey", interrupted)
    assert call(monkeypatch, "genkey") == 130
    assert capsys.readouterr().err == ""


def test_every_event_has_words() -> None:
    samples = {HandshakeStarted: HandshakeStarted()}
    for kind in get_args(Event):
        fields = {name: connlib.DropReason.ROLE if name == "reason" else 1 for name in kind.__slots__}
        level, text = describe_event(samples.get(kind) or kind(**fields))
        assert level and text.isprintable()


# A real device


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    if os.geteuid() != 0:
        pytest.skip("needs root, for a network namespace and a TUN device")
    if not Path("/dev/net/tun").exists():
        pytest.skip("needs /dev/net/tun")
    if not shutil.which("ip"):
        pytest.skip("needs ip (Debian: iproute2)")
    made = Namespace(unique_name("cli"))
    try:
        yield made
    finally:
        made.delete()


@pytest.fixture
def up(namespace: Namespace, tmp_path: Path) -> Iterator[Background]:
    """`connlib up wg0.conf` in the namespace, once it is up."""
    file = write_config(tmp_path, "ListenPort = 51820\nAddress = 10.9.0.1/24\n")
    process = Background(namespace.command(*COMMAND, "up", str(file)), tmp_path / "log")
    try:
        wait_for(lambda: "wg0 is up" in process.output() or process.returncode is not None, "wg0 to be up")
        yield process
    finally:
        if process.returncode is None:
            process.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_up_says_what_is_up_and_a_signal_stops_it(namespace: Namespace, up: Background, number: int) -> None:
    assert f"wg0 is up: UDP port 51820, public key {ALICE.public_key().to_base64()}, 0 peers" in up.output()
    assert namespace.has_link("wg0")
    assert "10.9.0.1/24" in namespace.run("ip", "address", "show", "wg0")
    assert up.stop(number) == 0
    assert up.output().splitlines()[-1].endswith("  wg0 is down")
    assert "Traceback" not in up.output()
    assert not namespace.has_link("wg0")


def test_a_second_signal_on_the_way_down_changes_nothing(namespace: Namespace, tmp_path: Path) -> None:
    command = namespace.command(*COMMAND, "up", str(write_config(tmp_path, "")))
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: namespace.has_link("wg0"), "wg0 to be up")
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                process.send_signal(number)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in log and log.splitlines()[-1].endswith("  wg0 is down")
    assert not namespace.has_link("wg0")


def test_an_argument_that_may_be_a_key_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = PrivateKey.generate().to_base64()
    for arguments in (("pubkey", key), ("up", key), (key,), ("up", "wg0.conf", "--name", key)):
        assert call(monkeypatch, *arguments) == 2
        assert key[:20] not in capsys.readouterr().err


def failure_in(namespace: Namespace, *command: str) -> str:
    done = subprocess.run(
        namespace.command(*command), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("connlib: ") and done.stderr.count("\n") == 1
    return done.stderr


def test_a_port_or_a_name_that_is_taken_is_one_line_and_exit_1(
    namespace: Namespace, up: Background, tmp_path: Path
) -> None:
    same_port = write_config(tmp_path, "ListenPort = 51820\n", "wg1.conf")
    assert "UDP port 51820 is in use; " in failure_in(namespace, *COMMAND, "up", str(same_port))
    same_name = write_config(tmp_path, "", "other.conf")
    message = failure_in(namespace, *COMMAND, "up", "--name", "wg0", str(same_name))
    assert "there is a network device 'wg0' already; " in message
    assert not namespace.has_link("wg1") and not namespace.has_link("other")
    up.require_running()


def test_up_without_the_right_to_make_a_device_is_one_line_and_exit_1(
    namespace: Namespace, tmp_path: Path
) -> None:
    file = write_config(tmp_path, "")
    unprivileged = ("setpriv", "--bounding-set=-net_admin")
    message = failure_in(namespace, *unprivileged, *COMMAND, "up", str(file))
    assert "no permission" in message and "CAP_NET_ADMIN" in message


def test_a_device_that_is_deleted_ends_up(namespace: Namespace, up: Background) -> None:
    """Fault 30."""
    namespace.run("ip", "link", "delete", "dev", "wg0")
    wait_for(lambda: up.returncode is not None, "connlib up to end")
    assert up.returncode == 1
    assert up.output().splitlines()[-1].startswith("connlib: the TUN device wg0 was deleted; ")


def test_a_log_that_nobody_reads_does_not_stop_the_tunnel(namespace: Namespace, tmp_path: Path) -> None:
    file = write_config(tmp_path, "")
    reader, writer = os.pipe()
    command = namespace.command(*COMMAND, "up", str(file))
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer) as process:
        os.close(writer)
        os.close(reader)
        try:
            wait_for(lambda: namespace.has_link("wg0"), "wg0 to be up")
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
