"""A timer that lets the event loop read its sockets before it judges that an answer is late."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_TURNS: Final = 64
"""Turns of the event loop between the alarm's time and its call; each turn reads the sockets.

A request takes about ten turns from the first byte of its answer to the last."""


class Alarm:
    """Calls a function at a given loop time, but not before the loop has read its sockets.

    The function runs in an empty context, as the loop keeps a cancelled timer, and its context, until its time.

    Args:
        at: the loop time.
        call: the function.
    """

    def __init__(self, at: float, call: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._call = call
        self._handle: asyncio.Handle = self._loop.call_at(at, self._ring, _TURNS, context=contextvars.Context())

    def cancel(self) -> None:
        """Never call the function."""
        self._handle.cancel()

    def _ring(self, turns: int) -> None:
        if turns:
            self._handle = self._loop.call_soon(self._ring, turns - 1)
        else:
            self._call()
