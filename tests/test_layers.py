"""The layers of docs/architecture.md: who may import whom, and what the engine may not call."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "connlib"

needs_cargo = pytest.mark.skipif(shutil.which("cargo") is None, reason="needs cargo")

# --- Python ---------------------------------------------------------------------------------------------------------

LAYERS = {
    "base": {
        "_describe",
        "_errors",
        "_explain",
        "_fieldtypes",
        "_flows",
        "_groups",
        "_types",
        "_native",
        "_pcapng",
        "_policy",
        "_text",
        "_threads",
    },
    "config": {
        "_configfile",
        "_filechange",
        "_gatewayedit",
        "_gatewayrules",
        "_gatewayvalues",
        "_tomlplaces",
        "_wgsections",
        "_wgvalues",
        "_wholefile",
        "config",
        "gateway",
        "gatewayfile",
        "gatewayschema",
        "wgquick",
    },
    "upstream": {"upstream"},
    "driver": {
        "_clients",
        "_shared",
        "_nftables",
        "_interfacestats",
        "_mover",
        "_nodeconfig",
        "_pump",
        "_turns",
        "asking",
        "_rtnetlink",
        "capture",
        "clock",
        "diff",
        "dns",
        "driver",
        "events",
        "firewall",
        "links",
        "memory",
        "metrics",
        "resolver",
        "routes",
        "socketfile",
        "timestamps",
        "tun",
        "udp",
    },
    "lab": {"lab"},
    "uapi": {"uapi"},
    "control": {"control"},
    "cli": {"cli"},
    "package": {"__init__"},
    "command": {"__main__"},
}
MAY_IMPORT = {
    "base": {"base"},
    "config": {"base", "config"},
    "upstream": {"base"},
    # They share Node and Tunn, and nothing else.
    "driver": {"base", "config", "driver"},
    "lab": {"base", "config", "lab", "upstream"},
    "uapi": {"base", "config", "driver", "uapi"},
    "control": {"base", "config", "driver", "control"},
    "cli": {"base", "config", "driver", "lab", "uapi", "control", "package", "cli"},
    "package": {"base", "config", "driver", "control"},
    "command": {"cli"},
}


def modules() -> Iterator[tuple[str, Path]]:
    """(first part of the module's name below connlib, file) of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path


def imports(path: Path) -> set[str]:
    """What a file imports, wherever in it: names below connlib without that prefix, others in full."""
    package = ["connlib", *path.relative_to(PACKAGE).parent.parts]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parent, *(node.module or "").split(".")]).strip(".")
            below = base.startswith("connlib.")
            # `from . import x` imports a module or a name of the package; x stands for both.
            names |= {base} if below or node.level == 0 else {f"{base}.{alias.name}" for alias in node.names}
    return names


def layer_of(module: str) -> str:
    found = [layer for layer, members in LAYERS.items() if module in members]
    assert len(found) == 1, f"say in LAYERS to which layer connlib.{module} belongs"
    return found[0]


@pytest.mark.parametrize(
    ("module", "path"), [*modules()], ids=[str(path.relative_to(PACKAGE)) for _, path in modules()]
)
def test_python_modules_import_only_what_their_layer_may(module: str, path: Path) -> None:
    allowed = MAY_IMPORT[layer_of(module)]
    for name in imports(path):
        if name == "connlib":
            assert "package" in allowed, f"{path.name} imports the package, whose modules import it"
        elif name.startswith("connlib."):
            other = name.split(".")[1]
            assert layer_of(other) in allowed, f"{path.name} must not import {name}"


@pytest.mark.parametrize("layer", ["base", "config", "upstream", "lab"])
def test_only_the_driver_and_the_command_know_an_event_loop(layer: str) -> None:
    loops = {"trio", "anyio", "asyncio", "pyroute2", "socket", "select", "selectors"}
    for module, path in modules():
        if module in LAYERS[layer]:
            assert not {name.split(".")[0] for name in imports(path)} & loops, path.name


def test_importing_connlib_does_no_work() -> None:
    """No event loop, no command line and no netlink comes along, no thread starts, and nothing is set up."""
    script = """
import json, logging, signal, sys, threading
before = (logging.root.level, list(logging.root.handlers), signal.getsignal(signal.SIGINT), sys.excepthook)
import connlib
after = (logging.root.level, list(logging.root.handlers), signal.getsignal(signal.SIGINT), sys.excepthook)
print(json.dumps([sorted(sys.modules), threading.active_count(), before == after]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded, threads, untouched = json.loads(done.stdout)
    heavy = {"trio", "anyio", "asyncio", "typer", "click", "rich", "pyroute2", "msgspec", "connlib.cli"}
    assert not heavy & set(loaded)
    assert threads == 1
    assert untouched
    assert done.stderr == ""


# --- Rust -----------------------------------------------------------------------------------------------------------


@cache
def metadata() -> dict[str, Any]:
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    )
    return found


@cache
def normal_dependencies() -> dict[str, set[str]]:
    """Package name -> names of what it is linked with directly: no build- and no dev-dependencies."""
    names = {package["id"]: package["name"] for package in metadata()["packages"]}
    return {
        names[node["id"]]: {
            names[dependency["pkg"]]
            for dependency in node["deps"]
            if any(kind["kind"] is None for kind in dependency["dep_kinds"])
        }
        for node in metadata()["resolve"]["nodes"]
    }


def linked_with(crate: str) -> set[str]:
    """Everything that ends up in a binary with the crate."""
    found: set[str] = set()
    ahead = [crate]
    while ahead:
        for dependency in normal_dependencies()[ahead.pop()]:
            if dependency not in found:
                found.add(dependency)
                ahead.append(dependency)
    return found


def workspace_crates() -> set[str]:
    names = {package["id"]: package["name"] for package in metadata()["packages"]}
    return {names[member] for member in metadata()["workspace_members"]}


OURS = {
    "connlib-aead": set[str](),
    "connlib-boringtun": {"connlib-aead"},
    "connlib-core": {"connlib-aead", "connlib-boringtun"},
    "connlib-net": set[str](),
    "connlib-patched": set[str](),
    "connlib": {"connlib-core", "connlib-net"},
    "connlib-benches": {"connlib-core"},
}
IO = {"mio", "nix", "polling", "quinn-udp", "rustix", "socket2", "tokio", "async-io", "tun", "tun-rs"}


@needs_cargo
def test_rust_crates_depend_in_one_direction() -> None:
    assert workspace_crates() == set(OURS), "say in OURS what the new crate may depend on"
    for crate, allowed in OURS.items():
        assert normal_dependencies()[crate] & workspace_crates() == allowed, crate


@needs_cargo
@pytest.mark.parametrize(
    "crate", ["connlib-aead", "connlib-boringtun", "connlib-core", "connlib-net", "connlib-patched"]
)
def test_rust_crates_below_the_bindings_know_no_python(crate: str) -> None:
    assert not {name for name in linked_with(crate) if name.startswith("pyo3")}


@needs_cargo
@pytest.mark.parametrize("crate", ["connlib-aead", "connlib-boringtun", "connlib-core"])
def test_the_engine_and_the_core_do_no_io(crate: str) -> None:
    assert not linked_with(crate) & IO


@needs_cargo
def test_the_pristine_engine_is_linked_by_the_bindings_only() -> None:
    """The fork is made of its source; linking it too would hide a part that was not patched."""
    assert "boringtun" in normal_dependencies()["connlib"]
    assert "boringtun" not in linked_with("connlib-core")
    assert not linked_with("connlib-net") & {"boringtun", "ring"}


# --- The engine's source, patched -----------------------------------------------------------------------------------

FORBIDDEN = re.compile(
    r"""\bInstant::now\b | \bSystemTime\b | \.elapsed\(\) | \bUNIX_EPOCH\b | \bthread::sleep\b
    | \bOsRng\b | \bThreadRng\b | \bthread_rng\b | \bgetrandom\b | \bfrom_entropy\b | \bSystemRandom\b
    | \brand::random\b | \brand::rng\b""",
    re.VERBOSE,
)
# Comments, strings and characters; a lifetime is not a character.
_QUIET = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])'", re.DOTALL)
_TEST_ITEM = re.compile(r"#\[cfg\((?:all\()?test\b[^\]]*\]")


def shipped(source: str) -> str:
    """Rust source without comments, literals and items under #[cfg(test)]."""
    source = _QUIET.sub(lambda match: "\n" * match[0].count("\n"), source)
    while item := _TEST_ITEM.search(source):
        end, depth = item.end(), 0
        for end, character in enumerate(source[item.end() :], item.end()):  # noqa: B007
            depth += (character in "{([") - (character in "})]")
            if depth == 0 and character in "};":
                break
        source = source[: item.start()] + source[end + 1 :]
    return source


@pytest.fixture(scope="module")
def patched_sources() -> list[Path]:
    """The sources that the fork's build script wrote, as cargo says where."""
    command = ["cargo", "check", "--quiet", "--locked", "-p", "connlib-boringtun", "--message-format", "json"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message["reason"] == "build-script-executed" and "connlib-boringtun" in message["package_id"]:
            return sorted(Path(message["out_dir"]).rglob("*.rs"))
    raise AssertionError("cargo did not say where the build script of connlib-boringtun wrote to")


@needs_cargo
def test_the_patched_engine_reads_no_clock_and_no_global_randomness(patched_sources: list[Path]) -> None:
    found = [
        f"{path.name}: {match[0]}"
        for path in patched_sources
        for match in FORBIDDEN.finditer(shipped(path.read_text()))
    ]
    assert not found
    assert {"handshake.rs", "session.rs", "timers.rs", "rate_limiter.rs"} <= {
        path.name for path in patched_sources
    }


@pytest.mark.parametrize("crate", ["aead", "core"])
def test_the_core_reads_no_clock_and_no_global_randomness(crate: str) -> None:
    for path in (ROOT / "rust" / crate / "src").rglob("*.rs"):
        assert not FORBIDDEN.search(shipped(path.read_text())), path.name


@needs_cargo
def test_the_pristine_engine_would_be_caught() -> None:
    """The search finds what it is for: the release reads both."""
    (manifest,) = (
        Path(package["manifest_path"]) for package in metadata()["packages"] if package["name"] == "boringtun"
    )
    found = {
        match[0]
        for path in (manifest.parent / "src" / "noise").rglob("*.rs")
        for match in FORBIDDEN.finditer(shipped(path.read_text()))
    }
    assert {"Instant::now", "OsRng"} <= found
