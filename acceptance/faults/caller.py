"""Scenarios with a difficult caller: it cancels sends, tracks from other threads, and has a hook that blocks."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from acceptance.faults.scenario import scenario
from acceptance.faults.testbed import SMALL
from acceptance.support.fault import Fault
from retailrocket_async import Buffer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from acceptance.faults.testbed import Testbed
    from retailrocket_async import Event, Receipt, UndeliveredEvent

_SMALL_BUFFER = 200
"""Size of the buffer in events; it is so small that callers have to wait."""

_BLOCKED = 0.5
"""Seconds for which the hook blocks: longer than the lag of the event loop on a busy machine."""


@scenario("cancelled-sends")
async def cancelled(testbed: Testbed) -> None:
    """If sends are cancelled in flight, each is counted, and its permit and connection can be used again."""
    client = testbed.open(batching=SMALL)
    await testbed.behave(Fault("stall", record=True))
    sends = [asyncio.create_task(testbed.send()) for _ in range(20)]
    await asyncio.sleep(0.5)
    for send in sends:
        send.cancel()
    await asyncio.wait(sends)
    await testbed.repair()
    begun_at = testbed.now()
    await testbed.burst(2000)
    await testbed.close()
    stats = client.stats()
    testbed.expect(stats.delivered == 2000, f"{2000 - stats.delivered} not delivered")
    testbed.expect(stats.abandoned == len(sends), f"{stats.abandoned} of {len(sends)} cancelled sends abandoned")
    took = testbed.now() - begun_at
    testbed.expect(took < 3.5, f"a hundred requests took {took:.1f} s instead of 2 s")


@scenario("threads")
async def threads(testbed: Testbed) -> None:
    """If eight threads track through a handle, they wait for room as callers of `track` do, and no event is lost."""
    client = testbed.open(batching=SMALL, buffer=Buffer(max_events=_SMALL_BUFFER))
    handle = client.threadsafe()

    def work(events: list[tuple[int, Event]]) -> list[tuple[int, Receipt]]:
        return [(number, handle.track(event)) for number, event in events]

    shares = [[testbed.event(group=f"thread{thread}") for _ in range(250)] for thread in range(8)]
    for share in await asyncio.gather(*(asyncio.to_thread(work, share) for share in shares)):
        testbed.receipts.update(share)
    testbed.expect(client.stats().pending <= _SMALL_BUFFER, f"{client.stats().pending} events in the buffer")
    await testbed.close()
    stats = client.stats()
    testbed.expect(stats.delivered == 2000, f"{2000 - stats.delivered} not delivered")


@scenario("hook-blocks-and-raises")
async def bad_hook(testbed: Testbed) -> None:
    """If a hook blocks and raises, neither the event loop nor the delivery is delayed; its errors are counted."""
    reported: list[int] = []

    def on_outcome(events: Sequence[UndeliveredEvent]) -> None:
        reported.append(len(events))
        time.sleep(_BLOCKED)
        raise OSError("the disk is full")

    client = testbed.open(on_outcome=on_outcome)
    await testbed.stream(2.0, 1000, poison=5)
    await testbed.close()
    stats = client.stats()
    testbed.expect(stats.delivered == stats.tracked - 5, f"{stats.tracked - 5 - stats.delivered} not delivered")
    testbed.expect(testbed.lag < _BLOCKED, f"the event loop was blocked for {testbed.lag:.2f} s")
    testbed.expect(
        sum(reported) + stats.hook_missed == 5,
        f"{sum(reported)} of 5 events reported to the hook, {stats.hook_missed} missed",
    )
    testbed.expect(stats.hook_errors == len(reported), f"{stats.hook_errors} of {len(reported)} errors counted")
