"""The backends that seal and open packets, for tests that need one."""

from __future__ import annotations

import pytest

from connlib import ConfigError
from connlib._native import Encryption


def need(name: str) -> Encryption:
    """The backend of this name, or a skip that says what is missing."""
    try:
        return Encryption(name)
    except ConfigError as error:
        pytest.skip(str(error))
