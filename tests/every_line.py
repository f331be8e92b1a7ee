"""Killing an action of ours at each of its lines, to see what a kill leaves behind (fault 36).

Run in a process of its own, that has no other threads: `python every_line.py ACTION FOLDER`. Each time, a forked child
does the action and is killed (SIGKILL) one line later than the one before, until one gets to its end.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from connlib import PrivateKey, load_gateway, parse_config
from connlib._gatewayedit import change_of
from connlib.cli import init
from connlib.cli.peer import NewPeer, add_peer, remove_peer
from connlib.gatewayfile import parse_gateway

CODE = ("_filechange.py", "_wholefile.py", "peer.py", "init.py")

OLD = """\
# of the office
[interface]
private_key_file = "office.key"
listen_port = 51820
addresses = ["10.7.0.1/24"]
endpoint = "vpn.example.org:51820"

[[peers]]
name = "bob"  # the boss
public_key = "1iky+uIqyaCILbKxNDkOQSE+mysvjSSiOZ7YVM3k6QA="
preshared_key_file = "bob.psk"
allowed_ips = ["10.7.0.2/32"]
"""
ALONE = OLD.partition("\n[[peers]]")[0]
KEY = PrivateKey.generate().to_base64() + "\n"

ALICE = NewPeer(
    name="alice",
    public_key=None,
    with_preshared_key=True,
    addresses=(),
    endpoint=None,
    dns=(),
    allowed_ips=(),
    keepalive=25,
)


def in_a_child(action: Callable[[], None], killed_at: int) -> bool:
    """Do it in a child that is killed at its line of this number, counted from 1; whether that came."""
    child = os.fork()
    if child == 0:
        try:
            lines = 0

            def trace(frame: FrameType, event: str, _: Any) -> Any:
                nonlocal lines
                if not frame.f_code.co_filename.endswith(CODE):
                    return None
                if event == "line":
                    lines += 1
                    if lines == killed_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                return trace

            write = os.write
            # So that there are lines between the parts of what is written.
            os.write = lambda descriptor, data: write(descriptor, bytes(data)[:100])
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            sys.settrace(trace)
            action()
            sys.settrace(None)
        except BaseException as error:
            os.write(1, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def lay(files: dict[str, str]) -> None:
    """Have these files in the folder, and no other."""
    for name in os.listdir():
        os.unlink(name)
    for name, text in files.items():
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(descriptor, text.encode())
        os.close(descriptor)


BEFORE = {"office.toml": OLD, "office.key": KEY, "bob.psk": KEY}


def add(output: str | None = "alice.conf") -> None:
    add_peer(ALICE, "office.toml", qr=False, output=output, allow_world_readable=False)


def remove() -> None:
    remove_peer("bob", "office.toml")


def make() -> None:
    init.run("office.toml", endpoint="vpn.example.org", networks=["10.7.0.0/24"], port=51820)


def clean() -> None:
    with change_of("office.toml"):
        pass


def after_add() -> bool:
    """Whether the new file is there; the old one is, otherwise."""
    text = Path("office.toml").read_text()
    load_gateway("office.toml")
    clean()
    own = Path("alice.conf") if "alice.conf" in os.listdir() else None
    changed = text != OLD
    if changed:
        assert text.startswith(OLD), text
        assert [peer.name for peer in parse_gateway(text).peers] == ["bob", "alice"]
        assert own is not None
        # It was handed out as a whole before.
        public_key = parse_config(own.read_text()).private_key.public_key()
        assert load_gateway("office.toml").peers[1].public_key == public_key
    if own is not None:
        assert own.stat().st_mode & 0o777 == 0o600
        own.unlink()
    assert set(os.listdir()) == {*BEFORE, *(["alice.psk"] if changed else [])}, os.listdir()
    return changed


def after_remove() -> bool:
    text = Path("office.toml").read_text()
    load_gateway("office.toml")
    clean()
    assert text in (OLD, ALONE)
    assert set(os.listdir()) == set(BEFORE) - ({"bob.psk"} if text == ALONE else set()), os.listdir()
    return text == ALONE


def after_make() -> bool:
    if changed := Path("office.toml").exists():
        load_gateway("office.toml")
        clean()
    else:
        with change_of("office.toml", new=True):
            pass
    assert set(os.listdir()) == ({"office.toml", "office.key"} if changed else set()), os.listdir()
    return changed


def after_clean() -> bool:
    assert Path("office.toml").read_text() == OLD
    load_gateway("office.toml")
    changed = set(os.listdir()) - {".office.toml.connlib-lock"} == set(BEFORE)
    clean()
    assert set(os.listdir()) == set(BEFORE), os.listdir()
    return changed


def lay_killed_add() -> None:
    lay({**BEFORE, ".office.toml.connlib-new": OLD[:50], ".office.toml.connlib-key": KEY})
    os.link(".office.toml.connlib-key", "alice.psk")


ACTIONS: dict[str, tuple[Callable[[], None], Callable[[], None], Callable[[], bool]]] = {
    "add": (lambda: lay(BEFORE), add, after_add),
    "remove": (lambda: lay(BEFORE), remove, after_remove),
    "init": (lambda: lay({}), make, after_make),
    "clean": (lay_killed_add, clean, after_clean),
}

if __name__ == "__main__":
    # What reaches the disk when is no matter of kills, and takes long.
    os.fsync = lambda fd: None
    prepare, action, after = ACTIONS[sys.argv[1]]
    os.chdir(sys.argv[2])
    kills, states = 0, []
    killed = True
    while killed:
        prepare()
        killed = in_a_child(action, kills + 1)
        kills += killed
        states.append(after())
    # The old, and from some line on the new.
    assert states == sorted(states) and len(set(states)) == 2, states
    print(f"killed at {kills} lines, {states.count(True)} times after the change")
