"""`connlib apply FILE`: have a running tunnel change to what a file says, all of it or nothing."""

from __future__ import annotations

import dataclasses

import trio
from rich.console import Console

from connlib.config import check_interface_name
from connlib.control import ControlClient

from ._files import load, name_after
from .diff import print_changes


def run(file: str, *, name: str | None, run_dir: str, dry_run: bool, allow_world_readable: bool) -> None:
    """Print what has changed, or would. Raises `ConfigError` for a file that is wrong, and `ControlError`."""
    config = load(file, allow_world_readable=allow_world_readable)
    device = check_interface_name(name) if name is not None else config.name or name_after(file)
    config = dataclasses.replace(config, name=device)
    client = ControlClient(device, directory=run_dir)

    async def ask() -> None:
        print_changes(await client.apply(config, dry_run=dry_run))
        if dry_run:
            Console(stderr=True, highlight=False).print(f"{device}: nothing was changed", style="dim")

    trio.run(ask)
