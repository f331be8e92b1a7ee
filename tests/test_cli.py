"""The `connlib` command: what it prints, its exit codes, and that a failure is one line."""

from __future__ import annotations

import base64
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import connlib.cli.keys
from connlib import ConfigError, InterfaceConfig, PrivateKey
from connlib.cli import main
from connlib.cli._stop import STOP_SIGNALS
from interop.machine import own_namespace
from interop.netns import Background, Namespace, wait_for

COMMAND = (sys.executable, "-m", "connlib")

ALICE = PrivateKey.generate()


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, timeout=60, check=False)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["connlib", *arguments])
    # Handlers and log are set up for the life of a process, and this is the one of the tests.
    log = logging.getLogger("connlib")
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    for attribute in ("handlers", "propagate", "level"):
        monkeypatch.setattr(log, attribute, getattr(log, attribute))
    # So are rights given up, without which other tests could do nothing.
    monkeypatch.setattr("connlib.cli._service.narrow", lambda *_: None)
    monkeypatch.setattr("connlib.cli._service.drop", lambda *_: None)
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        return main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


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


@pytest.mark.parametrize(
    "arguments",
    [
        ["pubkey", KEY.decode()],
        ["genkey", "x", KEY.decode()],
        ["up", KEY.decode()],
        ["up", KEY.decode()[:-1]],
        ["up", "x.conf", KEY.decode()],
        ["up", "x.conf", "--name", KEY.decode()],
        ["up", "x.conf", "--log-level", KEY.decode()],
        ["up", "x.conf", f"--{KEY.decode()}"],
        [KEY.decode()],
    ],
)
def test_a_key_among_the_arguments_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("connlib: ") and err.count("\n") == 1
    key = KEY.decode()
    assert not [start for start in range(len(key) - 12) if key[start : start + 12] in out + err]


def test_an_empty_path_is_called_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "up", "") == 2
    assert capsys.readouterr().err == "connlib: the path is empty; name a wg-quick file\n"


@pytest.mark.parametrize("arguments", ["", "--help", "up -h", "--version"])
def test_help_that_nobody_can_read_is_an_error(arguments: str) -> None:
    script = f"{sys.executable} -m connlib {arguments} >&-"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (1, "connlib: standard output is closed\n")


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
        f"connlib: {file}:3:7: MTU: 1 is out of range; use 576 to 65472",
        f"connlib: {file}:4:14: ListenPort: 99999 is out of range; use 0 to 65535",
        f"connlib: {file}:5:1: this [Peer] has no PublicKey; add the peer's public key",
    ]


def test_a_world_readable_file_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = write_config(tmp_path, "MTU = 1\n")
    file.chmod(0o644)
    assert call(monkeypatch, "up", str(file)) == 2
    assert "or pass --allow-world-readable" in capsys.readouterr().err
    assert call(monkeypatch, "up", "--allow-world-readable", str(file)) == 2
    assert ":3:7: MTU" in capsys.readouterr().err


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


def interrupted_at(module: str, number: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, sent a signal as it begins to import a module."""
    code = f"""
import os, sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), {int(number)})

sys.meta_path.insert(0, Interrupt())
sys.argv = {["connlib", *arguments]!r}
from connlib.cli import main
sys.exit(main())
"""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("module", ["connlib.cli._app", "typer", "connlib.cli.keys", "connlib._native"])
def test_ctrl_c_during_an_import_is_silent(module: str) -> None:
    done = interrupted_at(module, signal.SIGINT, "genkey")
    assert done.returncode in (130, -signal.SIGINT)
    assert (done.stdout, done.stderr) == ("", "")


def test_hardly_anything_is_imported_before_main() -> None:
    """Meanwhile, Ctrl-C would be a traceback."""
    code = (
        "import sys; before = set(sys.modules); import connlib.cli; "
        "print(sorted(name for name in sys.modules if name not in before | {'__future__'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "['connlib', 'connlib.cli']\n"


@pytest.mark.parametrize("module", ["typer", "connlib.cli.up", "connlib._native", "trio"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_that_is_stopped_during_its_imports_exits_0(module: str, number: int, tmp_path: Path) -> None:
    done = interrupted_at(module, number, "up", str(tmp_path / "missing.conf"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("module", ["typer", "connlib.cli.up", "connlib._native", "trio"])
def test_a_hangup_during_its_imports_is_a_wish_to_reload_and_does_not_stop_it(
    module: str, tmp_path: Path
) -> None:
    done = interrupted_at(module, signal.SIGHUP, "up", str(tmp_path / "missing.conf"))
    assert done.returncode == 2
    assert done.stderr.startswith(f"connlib: {tmp_path}/missing.conf: cannot read it: no such file")


def test_up_that_is_stopped_while_it_waits_for_its_file_exits_0(tmp_path: Path) -> None:
    pipe = tmp_path / "wg0.conf"
    os.mkfifo(pipe, 0o600)
    with subprocess.Popen([*COMMAND, "up", str(pipe)], stderr=subprocess.PIPE) as process:
        try:
            writer = os.open(pipe, os.O_WRONLY)  # waits for the reader
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=30)
            os.close(writer)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, b"")


# A real device


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with own_namespace("cli") as made:
        yield made


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_says_what_is_up_and_a_signal_stops_it(namespace: Namespace, up: Background, number: int) -> None:
    assert f"wg0 is up: UDP port 51820, public key {ALICE.public_key().to_base64()}, 0 peers" in up.output()
    assert namespace.has_link("wg0")
    assert "10.9.0.1/24" in namespace.run("ip", "address", "show", "wg0")
    assert up.stop(number) == 0
    assert up.output().splitlines()[-1].endswith("  wg0 is down")
    assert "Traceback" not in up.output()
    assert not namespace.has_link("wg0")


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("pause", [0.0, 0.01, 0.05])
def test_a_second_signal_changes_nothing(
    namespace: Namespace, up: Background, second: int, pause: float
) -> None:
    up.send(signal.SIGINT)
    end = time.monotonic() + 10
    while up.returncode is None and time.monotonic() < end:
        time.sleep(pause)
        up.send(second)
    assert up.returncode == 0
    # Which of two is first, where both come before either is looked at, is not for this test to say.
    assert up.output().count("stopping: ") == 1
    assert "Traceback" not in up.output()
    assert up.output().splitlines()[-1].endswith("  wg0 is down")


def test_under_nohup_a_hangup_is_ignored(namespace: Namespace, tmp_path: Path) -> None:
    file = write_config(tmp_path, "")
    process = Background(namespace.command("nohup", *COMMAND, "up", str(file)), tmp_path / "log")
    try:
        wait_for(lambda: "wg0 is up" in process.output() or process.returncode is not None, "wg0 to be up")
        process.send(signal.SIGHUP)
        assert process.stop(signal.SIGTERM) == 0
        assert "stopping: SIGTERM" in process.output()
    finally:
        if process.returncode is None:
            process.stop()


def test_errors_of_the_network_are_reported_and_counted_at_the_end(
    namespace: Namespace, tmp_path: Path
) -> None:
    peer = PrivateKey.generate().public_key().to_base64()
    # There is no route out of the namespace.
    file = write_config(
        tmp_path,
        f"Table = off\n[Peer]\nPublicKey = {peer}\nEndpoint = 192.0.2.1:9\nPersistentKeepalive = 1\n",
    )
    process = Background(namespace.command(*COMMAND, "up", str(file)), tmp_path / "log")
    try:
        wait_for(lambda: "udp send ENETUNREACH" in process.output(), "a warning")
        assert process.stop() == 0
    finally:
        if process.returncode is None:
            process.stop()
    lines = process.output().splitlines()
    (warning,) = (line for line in lines if "warning: " in line)
    assert "wg0: network errors: udp send ENETUNREACH " in warning
    (closing,) = (line for line in lines if "  network errors: " in line)
    assert "  network errors: udp send ENETUNREACH " in closing


def test_a_configuration_that_open_interface_refuses_is_said_to_be_of_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse(_config: InterfaceConfig, **_options: object) -> None:
        raise ConfigError("this cannot be", hint="change it")

    monkeypatch.setattr("connlib.cli.up.open_interface", refuse)
    file = write_config(tmp_path, "")
    assert call(monkeypatch, "up", str(file)) == 2
    assert capsys.readouterr().err == f"connlib: {file}: this cannot be; change it\n"


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


@pytest.mark.parametrize("limit", [8, 10, 12, 14, 15, 17, 18, 20])
def test_too_few_descriptors_are_one_line_that_says_so(
    namespace: Namespace, tmp_path: Path, limit: int
) -> None:
    """Fault 34, at the start."""
    file = write_config(tmp_path, "")
    script = f'ulimit -n {limit}; exec "$@"'
    message = failure_in(namespace, "bash", "-c", script, "bash", *COMMAND, "up", str(file))
    assert message.endswith("oo many open files; raise the limit of open files: ulimit -n\n")
    assert not namespace.has_link("wg0")
