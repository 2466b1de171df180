"""A time-out timer that first lets the event loop read answers that have already arrived."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_TURNS: Final = 64
"""Number of event loop iterations between the alarm's time and the call of its function; each iteration reads the
sockets.

The loop needs about ten iterations to read an answer from the first byte to the last."""


class Alarm:
    """Calls a function at a given loop time, but not before the loop has read its sockets.

    The function runs in an empty context, because the loop keeps a cancelled timer and its context in memory until the
    time of the timer.

    Args:
        at: the loop time (seconds) at which the alarm is due.
        call: the function to call.
    """

    def __init__(self, at: float, call: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._call = call
        self._handle: asyncio.Handle = self._loop.call_at(at, self._ring, _TURNS, context=contextvars.Context())

    def cancel(self) -> None:
        """Cancel the alarm: the function will not be called."""
        self._handle.cancel()

    def _ring(self, turns: int) -> None:
        if turns:
            self._handle = self._loop.call_soon(self._ring, turns - 1)
        else:
            self._call()
