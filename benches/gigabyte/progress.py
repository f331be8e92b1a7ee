"""How far a transfer is, for those who wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any


class Progress:
    """Bytes that have arrived so far, and whether more than what was asked for has to be sent."""

    def __init__(self) -> None:
        self.arrived = 0
        """Written by the receiver only."""
        self._enough = threading.Event()

    def stop(self) -> None:
        """Nothing is left that has to happen under traffic."""
        self._enough.set()

    def is_enough(self) -> bool:
        return self._enough.is_set()

    def wait_for(self, arrived: int, patience: float, running: Sequence[Future[Any]]) -> None:
        """Until so many bytes have arrived, or one of these has ended.

        Raises `TimeoutError` if for so many seconds nothing arrived.
        """
        known, since = -1, time.monotonic()
        while self.arrived < arrived and not any(each.done() for each in running):
            if self.arrived != known:
                known, since = self.arrived, time.monotonic()
            elif time.monotonic() > since + patience:
                raise TimeoutError(f"nothing has arrived for {patience:g} s, after {known:,} bytes")
            time.sleep(0.002)
