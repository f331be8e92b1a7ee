"""What holds for the files of the repository as files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent

in_a_checkout = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git checkout")


SEEDS = "fuzz/seeds/"


@cache
def tracked() -> list[tuple[str, str]]:
    """(path, text) of every file that git knows, and that is text. What a fuzzer found is not."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    files = []
    for name in names.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file():
            data = path.read_bytes()
            if b"\0" not in data and not name.startswith(SEEDS):
                files.append((name, data.decode()))
    return files


# Home directories and scratch folders of somebody's machine. A path in a test may be made up: it is in a list here.
MACHINE_PATH = re.compile(r"(?<![\w.$}/~-])/(?:root|home/\w+|Users/\w+|work|tmp|private)/[\w.-]+")
REGISTRY_HOST = re.compile(
    r"(?:static\.|index\.)?crates\.io(?=[/:])|files\.pythonhosted\.org|pypi\.org(?=[/:])|proxy\.golang\.org"
    r"|registry\.npmjs\.org|deb\.debian\.org"
)
# cargo's own name for its registry; it is not where anything is fetched from.
CARGO_SOURCE = "registry+https://github.com/rust-lang/crates.io-index"


@in_a_checkout
def test_no_file_names_a_path_of_a_machine() -> None:
    assert tracked()
    for name, text in tracked():
        found = MACHINE_PATH.search(text)
        assert found is None, f"{name}: {found}"


@in_a_checkout
def test_no_file_names_the_host_of_a_registry() -> None:
    for name, text in tracked():
        if name != "tests/test_repository.py":
            found = REGISTRY_HOST.search(text.replace(CARGO_SOURCE, ""))
            assert found is None, f"{name}: {found}"


@in_a_checkout
def test_the_top_level_holds_only_what_belongs_there() -> None:
    """What somebody tried out in a checkout, a folder with keys say, is not added along with a change."""
    known = (
        ".ci .gitignore CHANGELOG.md Cargo.lock Cargo.toml LICENSE Makefile README.md THIRD_PARTY_NOTICES.md benches "
        "conftest.py deny.toml docs examples fuzz packaging patches pyproject.toml python requirements.lock rust "
        "rustfmt.toml tests tools"
    )
    assert {name.split("/")[0] for name, _ in tracked()} == set(known.split())


@in_a_checkout
def test_sources_stay_short() -> None:
    """A file of more than 600 lines has a second thing in it; the stub of the extension module cannot be two."""
    for name, text in tracked():
        if name.endswith((".py", ".rs")):
            assert text.count("\n") <= 600, name


def test_every_crate_has_a_licence_that_deny_toml_allows() -> None:
    """What cargo-deny would say, on machines that do not have it."""
    if shutil.which("cargo") is None:
        pytest.skip("needs cargo")
    allowed = set(tomllib.loads((ROOT / "deny.toml").read_text())["licenses"]["allow"])
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    packages = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)[
        "packages"
    ]
    for package in packages:
        assert acceptable(package["license"], allowed), f"{package['name']}: {package['license']}"


def acceptable(expression: str, allowed: set[str]) -> bool:
    """Whether an SPDX expression can be satisfied with allowed licences; "/" is an old way to write OR."""
    names = {name.replace(" WITH ", "-WITH-") for name in allowed}
    python = re.sub(
        r"\(|\)|[^()\s]+",
        lambda token: {"(": "(", ")": ")", "AND": "and", "OR": "or"}.get(token[0], str(token[0] in names)),
        expression.replace("/", " OR ").replace(" WITH ", "-WITH-"),
    )
    return bool(eval(python, {"__builtins__": {}}))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("MIT", True),
        ("GPL-3.0", False),
        ("MIT OR GPL-3.0", True),
        ("MIT AND GPL-3.0", False),
        ("MIT/GPL-3.0", True),
        ("(GPL-3.0 OR MIT) AND ISC", True),
        ("MIT WITH LLVM-exception", False),
    ],
)
def test_licence_expressions_are_understood(expression: str, expected: bool) -> None:
    assert acceptable(expression, {"MIT", "ISC"}) is expected


def test_the_versions_agree() -> None:
    import connlib

    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text())
    assert cargo["workspace"]["package"]["version"] == connlib.__version__


def test_the_notice_names_the_engine_that_is_built() -> None:
    """The wheel holds boringtun, so its notice goes with it, and into the wheel."""
    release = tomllib.loads((ROOT / "patches" / "boringtun" / "series.toml").read_text())
    notices = (ROOT / "THIRD_PARTY_NOTICES.md").read_text()
    assert f"{release['crate']} {release['version']}" in notices
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["license-files"]) == {"LICENSE", "THIRD_PARTY_NOTICES.md"}
