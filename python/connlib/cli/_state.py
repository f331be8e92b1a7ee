"""Where what outlives an interface is kept: one directory, with a file for each device."""

from __future__ import annotations

import os

from connlib.timestamps import TimestampStore

DEFAULT = "/var/lib/connlib"


def timestamp_store(device: str, directory: str | None = None) -> TimestampStore | None:
    """The file of a device in `directory`, else where $STATE_DIRECTORY, which systemd sets, or `DEFAULT` says.

    None if the variable is there and empty: that is how to have nothing kept where no option says so.
    """
    if directory is None:
        # systemd separates several directories by colons.
        directory = os.environ.get("STATE_DIRECTORY", DEFAULT).split(":")[0]
    return TimestampStore(os.path.join(directory, f"{device}.timestamps.json")) if directory else None
