"""The end of a client: one deadline for all of it, and one report.

The deadline covers the flush, with all its waits and requests, the settling of what is left, the hooks that are told of
it, and the connections. What takes time after the flush gets a part of the time at its end.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING, Final

from retailrocket_async._delivery.ledger import AT_ONCE
from retailrocket_async._errors import error_for
from retailrocket_async._runtime.context import timeout_at
from retailrocket_async._stats import CloseReport

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from retailrocket_async._delivery.circuit_breaker import CircuitBreaker
    from retailrocket_async._delivery.ledger import Ledger
    from retailrocket_async._runtime.loop_affinity import LoopAffinity
    from retailrocket_async._stats import Stats

_GRACE: Final = 0.5
"""Seconds that connections get to close, after everything has its outcome; then they are left to themselves."""

_HOOK_TIME: Final = 0.1
"""Seconds that are kept for telling the hook of what is left."""

_DROP_TIME: Final = 5e-6
"""Seconds that are kept for settling an event that is left, with the turns of others meanwhile."""

_PIECES: Final = 5
"""Pieces by which the speed of the settling is known."""

_SETTLING: Final = 0.25
"""The part of the whole time that is kept for them at most."""

_ENDING: Final = 0.1
"""The part of the whole time that is kept for the hook at most."""


class Shutdown:
    """Closes a client, once; see the module's text.

    Args:
        affinity: the loop that the client belongs to.
        ledger: keeps what is not delivered for the report, and tells the hooks.
        breaker: tells what sending was halted for.
        begins: called first: nothing new is taken from then on.
        flushed: returns when everything has its outcome.
        leftovers: settles everything, piece by piece; yields what each piece has cost, counted in events.
        left: returns what settling everything would cost, counted likewise.
        disconnect: closes the connections.
        stats: returns the counters.
    """

    def __init__(  # noqa: PLR0913 - the rooms that end with it
        self,
        affinity: LoopAffinity,
        ledger: Ledger,
        breaker: CircuitBreaker,
        *,
        begins: Callable[[], None],
        flushed: Callable[[], Coroutine[None, None, None]],
        leftovers: Callable[[], Iterator[int]],
        left: Callable[[], int],
        disconnect: Callable[[], Coroutine[None, None, None]],
        stats: Callable[[], Stats],
    ) -> None:
        self._affinity = affinity
        self._ledger = ledger
        self._breaker = breaker
        self._begins = begins
        self._flushed = flushed
        self._leftovers = leftovers
        self._left = left
        self._disconnect = disconnect
        self._stats = stats
        self._report: asyncio.Future[CloseReport] | None = None
        self._last_tasks: tuple[asyncio.Task[None], ...] = ()

    @property
    def begun(self) -> bool:
        """Whether a close has begun."""
        return self._report is not None

    async def close(self, timeout: float | None) -> CloseReport:  # noqa: ASYNC109 - a deadline, of which parts are kept
        """Close within `timeout` seconds, or join the close that is under way."""
        started_at = self._affinity.now()
        ends_at = None if timeout is None else started_at + timeout
        if self._report is not None:
            return await self._join(self._report, ends_at)
        self._report = self._affinity.enter().create_future()
        self._ledger.keep_undelivered()
        self._begins()
        try:
            # Without any time not even the turns are taken that a timer needs.
            if timeout is None or timeout > 0.0:
                async with timeout_at(None if ends_at is None else ends_at - self._kept(timeout)):
                    await self._flushed()
        except TimeoutError:
            pass
        finally:
            # Also where this call itself is cancelled: every event gets its outcome, and nothing stays behind.
            try:
                await self._settle_rest(ends_at)
            finally:
                report = self._reported(started_at)
                self._report.set_result(report)
                create_task = self._affinity.create_task
                # Kept, as the loop itself keeps no task alive.
                self._last_tasks = create_task(self._disconnect()), create_task(self._end_hooks())
        await self._last_words(ends_at)
        return report

    async def _join(self, report: asyncio.Future[CloseReport], ends_at: float | None) -> CloseReport:
        """Wait for the close that is under way, and cut it short at this caller's own deadline."""
        try:
            async with timeout_at(ends_at):
                return await asyncio.shield(report)
        except TimeoutError:
            await self._settle_rest(ends_at)
        # Everything has its outcome now, so the first caller's flush is over.
        return await asyncio.shield(report)

    def _kept(self, timeout: float | None) -> float:
        """Return the seconds at the end that settling what is left, and telling of it, may take."""
        hooks = _HOOK_TIME if self._ledger.hooks.wants_outcomes else 0.0
        whole, left = timeout or 0.0, self._left()
        # What is done in one piece needs no turns of others.
        settling = left * _DROP_TIME if left > AT_ONCE else 0.0
        return min(_ENDING * whole, hooks) + min(_SETTLING * whole, settling)

    async def _settle_rest(self, ends_at: float | None) -> None:
        """Settle everything; others run meanwhile, as long as there is time for their turns and for what is left.

        Each of their turns takes as long as they like. So the speed of our own work is measured, and as soon as the
        rest would end at the deadline, or after it, the rest is settled in one go.
        """
        now = self._affinity.now
        leftovers, spent, began = self._leftovers(), 0, now()
        # Seconds per event of the last pieces; the median, as a log record or the collector makes one of them long.
        speeds: deque[float] = deque(maxlen=_PIECES)
        try:
            for cost in leftovers:
                spent += cost
                if spent < AT_ONCE:
                    continue
                speeds.append((now() - began) / spent)
                rest = sorted(speeds)[_PIECES // 2] * self._left() if len(speeds) == _PIECES else 0.0
                if ends_at is not None and now() + rest >= ends_at:
                    break
                await asyncio.sleep(0)
                spent, began = 0, now()
        finally:
            # No time, or cancelled in the middle, which leaves none.
            for _ in leftovers:
                pass

    def _reported(self, started_at: float) -> CloseReport:
        refusal = self._breaker.refusal(attempts=1)
        return CloseReport(
            stats=self._stats(),
            undelivered=tuple(self._ledger.undelivered),
            elapsed=self._affinity.now() - started_at,
            error=None if refusal is None else error_for(refusal),
        )

    async def _end_hooks(self) -> None:
        try:
            await self._ledger.hooks.drained()
        finally:
            self._ledger.hooks.close()

    async def _last_words(self, ends_at: float | None) -> None:
        """Let connections and hooks end; a peer or a hook that does not must not hold the caller beyond its time."""
        disconnecting, telling = self._last_tasks
        if (left := self._time_left(ends_at)) > 0.0:
            await asyncio.wait({disconnecting}, timeout=min(_GRACE, left))
        # A hook that closes must not wait for its own end: what is left is told of after it.
        if (left := self._time_left(ends_at)) > 0.0 and not self._ledger.hooks.calling:
            await asyncio.wait({telling}, timeout=None if math.isinf(left) else left)

    def _time_left(self, ends_at: float | None) -> float:
        return math.inf if ends_at is None else max(0.0, ends_at - self._affinity.now())
