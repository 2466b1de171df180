"""If another thread reads the counters, all counters are from the same point in time."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from retailrocket_async import Buffer, RateLimit, SqliteSpool, Stats, View
from retailrocket_async._stats import consistent
from retailrocket_async.testing import RecordingClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

READS = 3_000
VIEW = View(session_external_id="a", product_id=1)


@pytest.fixture(autouse=True)
def _switching() -> Iterator[None]:
    """Switch threads as often as possible, so that the reading thread often interrupts a change of the counters."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def left_over(stats: Stats) -> int:
    """Return the number of tracked events that no other counter contains. It is 0 if the counters are consistent."""
    ended = stats.delivered + stats.rejected + stats.abandoned + stats.dropped + stats.kept
    return stats.tracked - ended - stats.pending - stats.in_flight


async def read_while_tracking(client: Any) -> list[Stats]:
    """Track events until another thread has read the counters `READS` times. Return all values that it has read."""
    read: list[Stats] = []
    failures: list[Exception] = []

    def reader() -> None:
        try:
            read.extend(client.stats() for _ in range(READS))
        except Exception as error:  # noqa: BLE001 - any error must fail the test
            failures.append(error)

    thread = threading.Thread(target=reader)
    thread.start()
    while thread.is_alive():
        for _ in range(20):
            await client.track(VIEW)
        await asyncio.sleep(0)
    thread.join()
    assert failures == []
    return read


@pytest.mark.parametrize("overflow", ["wait", "drop_oldest", "shed"])
async def test_in_memory(overflow: Any) -> None:
    """If another thread reads the counters, they add up to `tracked` at any time, and `tracked` never decreases."""
    buffer = Buffer(max_events=50, overflow=overflow)
    async with RecordingClient(buffer=buffer, rate_limit=RateLimit(requests=200)) as client:
        read = await read_while_tracking(client)

    assert {left_over(stats) for stats in read} == {0}
    assert all(stats.dropped == sum(stats.dropped_by.get("overflow", {}).values()) for stats in read)
    assert [stats.tracked for stats in read] == sorted(stats.tracked for stats in read)


async def test_with_a_spool(tmp_path: Path) -> None:
    """If the client has a spool and another thread reads the counters, they still add up to `tracked`."""
    async with RecordingClient(spool=SqliteSpool(tmp_path, durability="interval")) as client:
        read = await read_while_tracking(client)

    assert {left_over(stats) for stats in read} == {0}


def test_stopped_in_the_middle_of_a_change() -> None:
    """If the loop's thread is stopped while it changes counters, another thread reads counters that still add up."""
    early, late = Stats(tracked=5, delivered=1, pending=5), Stats(tracked=9, delivered=1, pending=3)

    assert [5, 3] == [attrs.evolve(consistent(lambda half=half: half)).pending for half in (early, late)]
    assert [0, 0] == [left_over(consistent(lambda half=half: half)) for half in (early, late)]


def test_changes_without_end() -> None:
    """If the counters change at every reading, the counters that are returned still add up to `tracked`."""
    counts = iter(range(10**6))
    read: Callable[[], Stats] = lambda: Stats(tracked=2 * (count := next(counts)), delivered=count)  # noqa: E731

    assert left_over(consistent(read)) == 0
