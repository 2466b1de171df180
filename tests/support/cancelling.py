"""Helpers that cancel one task, or repeat a call and cancel it at each of its awaits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


async def cancel_everywhere(call: Callable[[], Coroutine[Any, Any, Any]], seconds: float = 60.0) -> Any:
    """Make a call again and again. Cancel the first call at once, the next after one turn of the event loop, and so on.

    Stop as soon as a call ends before its cancellation, and return the result of this call. Raise `TimeoutError` if all
    calls together take more than `seconds`.
    """
    async with asyncio.timeout(seconds):
        turns = 0
        while True:
            task = asyncio.create_task(call())
            for turn in range(turns):
                # The call may wait for an answer over loopback, so from the 20th turn on each turn takes 1 ms.
                await asyncio.sleep(0 if turn < 20 else 0.001)
                if task.done():
                    return await task
            task.cancel()
            try:
                # The task may have ended normally in spite of the cancellation.
                return await task
            except asyncio.CancelledError:
                turns += 1


async def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task, and check that the task ends as cancelled."""
    assert not task.done()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
