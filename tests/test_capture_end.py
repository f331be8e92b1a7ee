"""The end of a capture: what of it is written, and who waits for that."""

from __future__ import annotations

import io

from connlib import capture_interface
from helpers_driver import counted_turns, in_virtual_time, open_pair
from helpers_pcapng import STATISTICS, blocks


@in_virtual_time
async def test_a_capture_that_is_finished_takes_turns_with_others_and_nothing_new() -> None:
    async with open_pair() as pair:
        file = io.BytesIO()
        with capture_interface(pair.gateway, file, outer=False, inner=True) as capture:
            for _ in range(320):
                await pair.exchange()
            async with counted_turns() as turns:
                await capture.finish()
            await pair.exchange()
            # Slices of 64: ten, and a turn between two of them.
            assert capture.packets == 640 and turns.count >= 8
            held = len(file.getvalue())
        # Only the statistics were left to be written.
        assert [kind for kind, _ in blocks(file.getvalue()[held:])] == [STATISTICS]


@in_virtual_time
async def test_the_end_of_the_block_writes_no_more_than_takes_a_moment_and_counts_the_rest() -> None:
    async with open_pair() as pair:
        with capture_interface(pair.gateway, io.BytesIO(), outer=False, inner=True) as capture:
            for _ in range(2_100):
                await pair.exchange()
        # 64 slices of 64.
        assert (capture.packets, capture.missed) == (4_096, 104)
