"""Cancelling a call at each of its awaits, one after the other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


async def cancel_everywhere(call: Callable[[], Coroutine[Any, Any, Any]], seconds: float = 60.0) -> Any:
    """Make a call again and again, cancelled after 1, 2, 3... turns of the event loop, until one comes to its end.

    Whatever it waits for comes in turns too few to be of use, so turns that wait get longer and longer.
    """
    async with asyncio.timeout(seconds):
        turns = 0
        while True:
            task = asyncio.create_task(call())
            for turn in range(turns):
                # An answer over loopback takes a moment: from the 20th turn on, wait for it.
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
    """Cancel a task, and see it end so."""
    assert not task.done()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
