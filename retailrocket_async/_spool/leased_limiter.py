"""Prevents a process that was stopped from sending events after another process has taken the lease of the spool."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from retailrocket_async._delivery.rate_limiter import Limiter, Permit

_LOOK: Final = 0.05
"""Seconds between two checks whether this process still holds the lease, after this process was stopped for a time."""


class LeasedLimiter:
    """A limiter that grants no permit for a request while another process may hold the lease (the right to send).

    Args:
        limiter: grants the permits.
        may_send: returns True if no other process can hold the lease; called after the limiter has granted a permit.
    """

    def __init__(self, limiter: Limiter, may_send: Callable[[], bool]) -> None:
        self._limiter = limiter
        self._may_send = may_send

    async def acquire(self) -> Permit | None:
        """Wait for a permit of the limiter; then wait until this process may send, and return the permit."""
        permit = await self._limiter.acquire()
        try:
            while not self._may_send():  # noqa: ASYNC110 - the thread of the spool finds out
                await asyncio.sleep(_LOOK)
        except BaseException:
            if permit is not None:
                permit.done()
            raise
        return permit

    def pause_until(self, deadline: float) -> None:
        """Let no request begin before `deadline`, in seconds of the loop's time."""
        self._limiter.pause_until(deadline)

    def throttled(self, sent_at: float) -> None:
        """Notify the limiter of a 429 for a request that was sent at `sent_at`, in seconds of the loop's time."""
        self._limiter.throttled(sent_at)
