"""Lets a task wait until other code of the event loop wakes the task, or until a moment has come.

A `Wakeup` does not remember calls: `set` and `set_at` affect only a task that waits at the time of the call. So a task
must check its condition right before each wait, without an `await` between the check and the wait::

    while (opens_at := self._opens_at()) > loop.time():
        await self._wakeup.wait(opens_at)
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

from retailrocket_async._runtime.context import detached
from retailrocket_async._runtime.foreign_code import ensure_stack
from retailrocket_async._runtime.futures import set_done

_FRAMES: Final = 10
"""How many stack frames asyncio needs at most to schedule a waiting task. asyncio needs most in its debug mode."""


class Wakeup:
    """Wakes the one task that waits in `wait`; later waits of any task and any event loop may use the same object.

    A timer runs in an empty context and refers only to the future of its wait, so a timer keeps no data of the caller
    in memory. After the wait, neither the timer nor the future stays in memory.
    """

    __slots__ = ("_timer", "_waiter")

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, until: float | None = None) -> None:
        """Return after `set` was called, or at the moment `until`, whichever is first; let other tasks run meanwhile.

        The caller is woken in the next turn of the loop if `until` has passed already.

        Args:
            until: moment of the loop's clock; None or infinity for no such moment. `set_at` changes this moment.

        Raises:
            RuntimeError: another task waits already.
        """
        if self._waiting() is not None:
            raise RuntimeError("another task waits already: a Wakeup wakes one task")
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        # Forget a timer of an earlier loop: if that loop was closed since the last wait, the timer never fires.
        self._timer = None
        try:
            self.set_at(until)
            await waiter
        finally:
            # If the loop was closed during the wait, this code may run late, while a task of another loop waits.
            if self._waiter is waiter:
                self._stop_timer()
                self._waiter = None

    def set(self) -> None:
        """Wake the waiting task. Do nothing if no task waits, or if the loop of the waiting task is closed.

        Raises:
            RecursionError: too few stack frames are left. Nothing has changed, so a later call still wakes the task.
        """
        if (waiter := self._waiting()) is not None:
            # asyncio marks a future as done before it schedules the task. If scheduling failed, the task would never
            # run again.
            ensure_stack(_FRAMES)
            waiter.set_result(None)

    def set_at(self, moment: float | None) -> None:
        """Change the moment at which the waiting task is woken; do nothing if no task waits.

        If `moment` has passed already, the task is woken in the next turn of the loop.

        Args:
            moment: moment of the loop's clock; None or infinity to wait for `set` alone.

        Raises:
            RecursionError: too few stack frames are left. The task is then woken at the moment that was set before.
        """
        if (waiter := self._waiting()) is None:
            return
        timer: asyncio.TimerHandle | None = None
        if moment is not None and moment < math.inf:
            timer = detached(waiter.get_loop().call_at, moment, set_done, waiter)
        self._stop_timer()
        self._timer = timer

    def _waiting(self) -> asyncio.Future[None] | None:
        """Return the future of the task that waits and is not woken yet; None if there is no such task."""
        waiter = self._waiter
        if waiter is None or waiter.done() or waiter.get_loop().is_closed():
            return None
        return waiter

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
