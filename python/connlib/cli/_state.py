"""Where what outlives an interface is kept: one directory, with a file for each device."""

from __future__ import annotations

import os

from connlib._errors import ConnlibError
from connlib.timestamps import Timestamps, TimestampStore

DEFAULT = "/var/lib/connlib"


class StateFile(TimestampStore):
    """One that can be opened before the interface asks for it."""

    _early: tuple[Timestamps, Timestamps] | ConnlibError | None = None

    def open_early(self) -> None:
        """Open it now. What comes of it is for whoever calls `open` next."""
        try:
            self._early = super().open()
        except ConnlibError as error:
            self._early = error

    def open(self) -> tuple[Timestamps, Timestamps]:
        early, self._early = self._early, None
        if isinstance(early, ConnlibError):
            raise early
        return super().open() if early is None else early


def timestamp_store(device: str, directory: str | None = None) -> StateFile | None:
    """The file of a device in `directory`, else where $STATE_DIRECTORY, which systemd sets, or `DEFAULT` says.

    None if the variable is there and empty: that is how to have nothing kept where no option says so.
    """
    if directory is None:
        # systemd separates several directories by colons.
        directory = os.environ.get("STATE_DIRECTORY", DEFAULT).split(":")[0]
    return StateFile(os.path.join(directory, f"{device}.timestamps.json")) if directory else None
