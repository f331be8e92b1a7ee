"""Every public symbol is exported once, sorted, and documented."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import subprocess
import sys
import typing
from collections.abc import Iterator
from types import FunctionType, ModuleType

import pytest

import connlib
import connlib._errors
import connlib._flows
import connlib._native
import connlib._policy
import connlib._types
import connlib.lab
import connlib.upstream

PUBLIC: tuple[ModuleType, ...] = (connlib, connlib.lab, connlib.upstream)


def test_all_is_sorted_without_repetition_and_complete() -> None:
    assert connlib.__all__ == sorted(connlib.__all__)
    assert len(connlib.__all__) == len(set(connlib.__all__))
    assert dir(connlib) == connlib.__all__
    modules = {name for _, name, _ in pkgutil.iter_modules(connlib.__path__)}
    # Each is imported when it is first asked for.
    assert not [name for name in connlib.__all__ if not hasattr(connlib, name)]
    public = {name for name in vars(connlib) if not name.startswith("_")} - modules
    assert set(connlib.__all__) - public == {"__version__"}
    assert public <= set(connlib.__all__)


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    code = "import connlib, sys; print([name for name in sys.modules if name.startswith('connlib.')])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_what_is_not_exported_is_an_attribute_error() -> None:
    assert connlib.open_interface is importlib.import_module("connlib.driver").open_interface
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = connlib.nothing_of_this_name  # type: ignore[attr-defined]


def test_every_name_is_one_object_of_one_module() -> None:
    seen: dict[int, str] = {}
    for name in connlib.__all__:
        value = getattr(connlib, name)
        assert id(value) not in seen, f"{name} is {seen[id(value)]} again"
        seen[id(value)] = name


@pytest.mark.parametrize("module", [connlib._errors, connlib._flows, connlib._policy, connlib._types])
def test_every_public_class_of_a_private_module_is_exported(module: object) -> None:
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__  # type: ignore[attr-defined]
    }
    assert own <= set(connlib.__all__)


def test_the_extension_exports_what_its_stub_lists() -> None:
    classes = {name for name, value in vars(connlib._native).items() if isinstance(value, type)}
    assert classes == set(connlib._native.__all__)
    # Seeds, descriptors, compiled policies, backends, tunnels made ahead and the pristine engine are not public.
    internal = {
        "BootTimer",
        "CompiledPolicy",
        "Encryption",
        "LabNode",
        "LabTunn",
        "Pump",
        "TunIo",
        "Tunnels",
        "UdpIo",
        "UpstreamTunn",
        "Worker",
    }
    assert classes - internal <= set(connlib.__all__)
    assert not internal & set(connlib.__all__)


def test_upstream_exports_its_tunnel() -> None:
    assert connlib.upstream.__all__ == ["Tunn"]
    assert connlib.upstream.Tunn is connlib._native.UpstreamTunn


def test_upstream_has_every_method_of_our_tunnel() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert methods(connlib.upstream.Tunn) == methods(connlib.Tunn)


# `Link.towards` is for the world, which carries datagrams over a direction.
FOR_THE_LAB_ITSELF = {"Link: Direction"}


@pytest.mark.parametrize("package", PUBLIC, ids=lambda package: str(package.__name__))
def test_what_stands_in_a_public_signature_can_be_imported_from_a_public_module(package: ModuleType) -> None:
    exported = {id(getattr(module, name)) for module in PUBLIC for name in module.__all__}
    hidden = {
        f"{name}: {kind.__name__}"
        for name in package.__all__
        for kind in classes_in_signatures(getattr(package, name))
        if id(kind) not in exported and is_private(kind.__module__)
    }
    assert hidden - FOR_THE_LAB_ITSELF == set()


def is_private(module: str) -> bool:
    first, *below = module.split(".")
    return first == "connlib" and any(part.startswith("_") for part in below)


def classes_in_signatures(value: object) -> Iterator[type]:
    """Those that a user of a class or a function is told to give, or gets."""
    own = list(vars(value).items()) if isinstance(value, type) else []
    for member in [value, *(member for name, member in own if not name.startswith("_"))]:
        plain = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if isinstance(plain, FunctionType | type):
            # What only a type checker imports is not there to be looked up.
            exported = {name: getattr(module, name) for module in PUBLIC for name in module.__all__}
            scope = {**vars(sys.modules[plain.__module__]), **exported}
            for hint in typing.get_type_hints(plain, scope).values():
                yield from classes_of(hint)


def classes_of(hint: object) -> Iterator[type]:
    if isinstance(hint, type) and not typing.get_args(hint):
        yield hint
    for argument in typing.get_args(hint):
        yield from classes_of(argument)


@pytest.mark.parametrize("package", [connlib.lab, connlib.upstream])
def test_the_other_packages_export_each_name_once_and_nothing_else(package: ModuleType) -> None:
    assert len(package.__all__) == len(set(package.__all__))
    exported = [getattr(package, name) for name in package.__all__]
    assert len({id(value) for value in exported}) == len(exported)
    public = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public == set(package.__all__)


def test_everything_exported_has_a_docstring_or_is_a_constant() -> None:
    for name in connlib.__all__:
        value = getattr(connlib, name)
        if isinstance(value, type) and value.__module__ != "connlib._native":
            # What `dataclass` and `NamedTuple` write themselves begins with the name.
            assert value.__doc__ and not value.__doc__.startswith(f"{name}("), name


def test_drop_reasons_and_timeout_reasons_have_distinct_readable_values() -> None:
    for members in (connlib.DropReason, connlib.TimeoutReason, connlib.Role, connlib.VerdictReason):
        values = [member.value for member in members]
        assert len(set(values)) == len(values)
        for member in members:
            assert member.name == member.name.upper()
            assert member.value == member.value.lower()


def test_the_version_is_that_of_the_installed_distribution() -> None:
    assert connlib.__version__ == importlib.metadata.version("connlib")


def test_every_module_can_be_imported_first() -> None:
    for name in (
        "connlib._native",
        "connlib._flows",
        "connlib._policy",
        "connlib._types",
        "connlib._errors",
        "connlib.upstream",
    ):
        importlib.import_module(name)
        subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
