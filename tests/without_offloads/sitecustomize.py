"""For tests with `--offload off` (conftest.py): Python reads a file of this name first, in each process.

Wherever a configuration leaves offloads to connlib (`offload = true`, or nothing said), it is as if it said `false`: in
the test's own process and in every program that it starts, `connlib-wg` included, which has no setting for that. What a
configuration names is left as it is. And the event loop moves the packets, not a thread (`worker`). The product knows
nothing of this, and has no switch of the kind.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


class _Loader(importlib.abc.Loader):
    """Loads a module as another loader does, and then changes it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _CHANGES[module.__name__](module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def without_offloads(module: Any) -> None:
    """Have the module take "all that the kernel can" for "nothing"."""
    named = module.offload_names
    module.offload_names = lambda offload: named(False if offload is True else offload)


def without_worker(module: Any) -> None:
    """Have the module find no thread for any ends."""
    module.worker_for = lambda *_: None
    module.queues_for = lambda _: 1


_CHANGES = {"connlib.tun": without_offloads, "connlib._mover": without_worker}
for _name, _change in _CHANGES.items():
    if _name in sys.modules:
        _change(sys.modules[_name])
sys.meta_path.insert(0, _Finder())
