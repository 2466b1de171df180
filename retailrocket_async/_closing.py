"""The end of a client: one deadline for all of it, and one report.

The deadline covers the flush, with all its waits and requests, the settling of what is left, the hooks that are told of
it, and the connections. What takes time after the flush gets a part of the time at its end.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final

from retailrocket_async._outcome import Rejected, error_for
from retailrocket_async._report import CloseReport

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from retailrocket_async._breaker import Breaker
    from retailrocket_async._home import Home
    from retailrocket_async._ledger import Ledger
    from retailrocket_async._report import Stats

_GRACE: Final = 0.5
"""Seconds that connections get to close, after everything has its outcome; then they are left to themselves."""

_HOOK_TIME: Final = 0.1
"""Seconds that are kept for telling the hook of what is left."""

_DROP_TIME: Final = 5e-6
"""Seconds that are kept for settling an event that is left."""

_BATCH_TIME: Final = 1e-5
"""Seconds that are kept for a batch that is left, beside its events."""

_SETTLING: Final = 0.25
"""The part of the whole time that is kept for them at most."""

_ENDING: Final = 0.1
"""The part of the whole time that is kept for the hook at most."""


class Closing:
    """Closes a client, once; see the module's text.

    Args:
        home: the loop that the client belongs to.
        ledger: keeps what is not delivered for the report, and tells the hooks.
        breaker: tells what sending was halted for.
        begins: called first: nothing new is taken from then on.
        flushed: returns when everything has its outcome.
        abort: gives everything its outcome now.
        disconnect: closes the connections.
        stats: returns the counters.
        batches: returns how many batches, and direct sends, have no outcome.
    """

    def __init__(  # noqa: PLR0913 - the rooms that end with it
        self,
        home: Home,
        ledger: Ledger,
        breaker: Breaker,
        *,
        begins: Callable[[], None],
        flushed: Callable[[], Coroutine[None, None, None]],
        abort: Callable[[], Coroutine[None, None, None]],
        disconnect: Callable[[], Coroutine[None, None, None]],
        stats: Callable[[], Stats],
        batches: Callable[[], int],
    ) -> None:
        self._home = home
        self._ledger = ledger
        self._breaker = breaker
        self._begins = begins
        self._flushed = flushed
        self._abort = abort
        self._disconnect = disconnect
        self._stats = stats
        self._batches = batches
        self._report: asyncio.Future[CloseReport] | None = None
        self._last_tasks: tuple[asyncio.Task[None], ...] = ()

    @property
    def begun(self) -> bool:
        """Whether a close has begun."""
        return self._report is not None

    async def close(self, timeout: float | None) -> CloseReport:  # noqa: ASYNC109 - a deadline, of which parts are kept
        """Close within `timeout` seconds, or join the close that is under way."""
        started_at = self._home.now()
        ends_at = None if timeout is None else started_at + timeout
        if self._report is not None:
            return await self._join(self._report, ends_at)
        self._report = self._home.enter().create_future()
        self._ledger.keep_undelivered()
        self._begins()
        try:
            async with asyncio.timeout_at(None if ends_at is None else ends_at - self._kept(timeout)):
                await self._flushed()
        except TimeoutError:
            pass
        finally:
            # Also where this call itself is cancelled: every event gets its outcome, and nothing stays behind.
            try:
                await self._abort()
            finally:
                report = self._reported(started_at)
                self._report.set_result(report)
                create_task = self._home.enter().create_task
                # Kept, as the loop itself keeps no task alive.
                self._last_tasks = create_task(self._disconnect()), create_task(self._end_hooks())
        await self._last_words(ends_at)
        return report

    async def _join(self, report: asyncio.Future[CloseReport], ends_at: float | None) -> CloseReport:
        """Wait for the close that is under way, and cut it short at this caller's own deadline."""
        try:
            async with asyncio.timeout_at(ends_at):
                return await asyncio.shield(report)
        except TimeoutError:
            await self._abort()
        # Everything has its outcome now, so the first caller's flush is over.
        return await asyncio.shield(report)

    def _kept(self, timeout: float | None) -> float:
        """Return the seconds at the end that settling what is left, and telling of it, may take."""
        stats = self._stats()
        hooks = _HOOK_TIME if self._ledger.hooks.wants_outcomes else 0.0
        settling = (stats.pending + stats.in_flight) * _DROP_TIME + self._batches() * _BATCH_TIME
        whole = timeout or 0.0
        return min(_ENDING * whole, hooks) + min(_SETTLING * whole, settling)

    def _reported(self, started_at: float) -> CloseReport:
        status = self._breaker.status
        return CloseReport(
            stats=self._stats(),
            undelivered=tuple(self._ledger.undelivered),
            elapsed=self._home.now() - started_at,
            error=None if status is None else error_for(Rejected(status=status)),
        )

    async def _end_hooks(self) -> None:
        try:
            await self._ledger.hooks.drained()
        finally:
            self._ledger.hooks.close()

    async def _last_words(self, ends_at: float | None) -> None:
        """Let connections and hooks end; a peer or a hook that does not must not hold the caller beyond its time."""
        disconnecting, telling = self._last_tasks
        await asyncio.wait({disconnecting}, timeout=min(_GRACE, self._left(ends_at)))
        # A hook that closes must not wait for its own end: what is left is told of after it.
        if (left := self._left(ends_at)) > 0.0 and not self._ledger.hooks.calling:
            await asyncio.wait({telling}, timeout=None if math.isinf(left) else left)

    def _left(self, ends_at: float | None) -> float:
        return math.inf if ends_at is None else max(0.0, ends_at - self._home.now())
