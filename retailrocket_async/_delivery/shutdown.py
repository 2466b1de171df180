"""Closes a client within one deadline, and returns a report.

Within the deadline the client flushes (with all requests, and the waits between them), settles the events that are
left, calls the hooks with these events, and closes the connections. The flush ends early enough to leave time for the
other steps.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING, Final

from retailrocket_async._delivery.ledger import AT_ONCE, EACH
from retailrocket_async._errors import error_for
from retailrocket_async._outcome import Dropped
from retailrocket_async._runtime.context import timeout_at
from retailrocket_async._stats import CloseReport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from retailrocket_async._delivery.circuit_breaker import CircuitBreaker
    from retailrocket_async._delivery.expiry import Expiry
    from retailrocket_async._delivery.flusher import Flusher
    from retailrocket_async._delivery.in_flight import InFlight
    from retailrocket_async._delivery.intake import Intake
    from retailrocket_async._delivery.ledger import Ledger
    from retailrocket_async._delivery.pump import Pump
    from retailrocket_async._delivery.sender import Sender
    from retailrocket_async._delivery.snapshot import Snapshot
    from retailrocket_async._queue.buffer import EventBuffer
    from retailrocket_async._runtime.loop_affinity import LoopAffinity

_GRACE: Final = 0.5
"""Seconds to wait, after all events are settled, until the connections are closed. Connections that need more time
close in the background."""

_HOOK_TIME: Final = 0.1
"""Seconds reserved for the hooks that get the leftover events (those that have no outcome after the flush)."""

_DROP_TIME: Final = 5e-6
"""Seconds reserved for settling each leftover event, including the time in which other tasks run."""

_PIECES: Final = 5
"""Number of pieces of leftover events: the speed of settling is estimated from the times of this many last pieces."""

_SETTLING: Final = 0.25
"""Largest fraction of the timeout that is reserved for settling leftover events."""

_ENDING: Final = 0.1
"""Largest fraction of the timeout that is reserved for hooks."""


class Shutdown:
    """Closes a client: flushes, settles the events that are left, and disconnects. Further calls wait for the first.

    Args:
        affinity: the loop that the client belongs to.
        ledger: collects undelivered events for the report, and has the hooks.
        breaker: knows why sending is halted, for the report.
        intake: accepts no event after a close has begun.
        buffer: holds the waiting events.
        in_flight: holds the flights.
        expiry: settles refused events sooner during a close.
        pump: takes no batch while the leftover events are settled.
        flusher: waits until all events have their outcome.
        sender: closes the connections.
        snapshot: reads the counters.
    """

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        affinity: LoopAffinity,
        ledger: Ledger,
        breaker: CircuitBreaker,
        *,
        intake: Intake,
        buffer: EventBuffer,
        in_flight: InFlight,
        expiry: Expiry,
        pump: Pump,
        flusher: Flusher,
        sender: Sender,
        snapshot: Snapshot,
    ) -> None:
        self._affinity = affinity
        self._ledger = ledger
        self._breaker = breaker
        self._intake = intake
        self._buffer = buffer
        self._in_flight = in_flight
        self._expiry = expiry
        self._pump = pump
        self._flusher = flusher
        self._sender = sender
        self._snapshot = snapshot
        self._report: asyncio.Future[CloseReport] | None = None
        self._last_tasks: tuple[asyncio.Task[None], ...] = ()

    @property
    def begun(self) -> bool:
        """Whether a close has begun."""
        return self._report is not None

    async def close(self, timeout: float | None) -> CloseReport:  # noqa: ASYNC109 - a deadline, of which parts are reserved
        """Close within `timeout` seconds, or wait for the close that is under way."""
        started_at = self._affinity.now()
        ends_at = None if timeout is None else started_at + timeout
        if self._report is not None:
            return await self._join(self._report, ends_at)
        self._report = self._affinity.enter().create_future()
        self._ledger.keep_undelivered()
        self._intake.close()
        self._expiry.close_begins()
        self._breaker.hurry(self._affinity.now())
        try:
            # With a timeout of 0 the flush does not even begin.
            if timeout is None or timeout > 0.0:
                async with timeout_at(None if ends_at is None else ends_at - self._kept(timeout)):
                    await self._flusher.flushed()
        except TimeoutError:
            pass
        finally:
            # Even if this call is cancelled, every event gets its outcome, and no task is left running.
            try:
                await self._settle_rest(ends_at)
            finally:
                report = self._reported(started_at)
                self._report.set_result(report)
                create_task = self._affinity.create_task
                # The tasks are stored because the loop itself holds only weak references to tasks.
                self._last_tasks = create_task(self._sender.aclose()), create_task(self._end_hooks())
        await self._wait_for_ends(ends_at)
        return report

    def _leftovers(self) -> Iterator[int]:
        """Settle all events that have no outcome, in pieces; yield the cost of each piece, counted in events."""
        self._expiry.close()
        self._pump.stop()
        for flight in self._in_flight:
            if flight.outcome is None:
                self._in_flight.cut_short(flight, "closed")
                yield EACH + flight.count
        dropped = Dropped(reason="closed")
        for batch in self._buffer.drain(AT_ONCE):
            self._ledger.close_batch(batch, dropped)
            yield len(batch) + len(batch.opened_in)

    def _left(self) -> int:
        """Return the cost of settling all events that have no outcome, counted in events."""
        return self._buffer.events + self._buffer.batches + self._in_flight.events + EACH * len(self._in_flight)

    async def _join(self, report: asyncio.Future[CloseReport], ends_at: float | None) -> CloseReport:
        """Wait for the close that is under way; if this caller's deadline passes first, settle all events at once."""
        try:
            async with timeout_at(ends_at):
                return await asyncio.shield(report)
        except TimeoutError:
            await self._settle_rest(ends_at)
        # All events have their outcome now, so the flush of the first call ends.
        return await asyncio.shield(report)

    def _kept(self, timeout: float | None) -> float:
        """Return the seconds reserved at the end for settling leftover events and running hooks."""
        hooks = _HOOK_TIME if self._ledger.hooks.wants_outcomes else 0.0
        whole, left = timeout or 0.0, self._left()
        # A small number of events is settled in one piece, in a negligible time.
        settling = left * _DROP_TIME if left > AT_ONCE else 0.0
        return min(_ENDING * whole, hooks) + min(_SETTLING * whole, settling)

    async def _settle_rest(self, ends_at: float | None) -> None:
        """Settle all events that have no outcome; let other tasks run between pieces as long as time allows.

        Other tasks may take any time. So the speed of settling is measured, and as soon as the remaining events need
        all the time until the deadline, these events are settled without letting other tasks run.
        """
        now = self._affinity.now
        leftovers, spent, began = self._leftovers(), 0, now()
        # The seconds per event that the last pieces took. The median is used, because a log record or a garbage
        # collection may delay a single piece.
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
            # Either no time is left, or this call was cancelled, or Ctrl-C was raised in an observer and has ended the
            # iterator. The remaining events are settled at once.
            for _ in self._leftovers():
                pass

    def _reported(self, started_at: float) -> CloseReport:
        refusal = self._breaker.refusal(attempts=1)
        return CloseReport(
            stats=self._snapshot.read(),
            undelivered=tuple(self._ledger.undelivered),
            elapsed=self._affinity.now() - started_at,
            error=None if refusal is None else error_for(refusal),
        )

    async def _end_hooks(self) -> None:
        try:
            await self._ledger.hooks.drained()
        finally:
            self._ledger.hooks.close()

    async def _wait_for_ends(self, ends_at: float | None) -> None:
        """Wait for connections and hooks to end, but not beyond the caller's deadline."""
        disconnecting, ending_hooks = self._last_tasks
        if (left := self._time_left(ends_at)) > 0.0:
            await asyncio.wait({disconnecting}, timeout=min(_GRACE, left))
        # If a hook itself closes the client, this call must not wait for that hook to end. The hook gets the leftover
        # events after this call.
        if (left := self._time_left(ends_at)) > 0.0 and not self._ledger.hooks.calling:
            await asyncio.wait({ending_hooks}, timeout=None if math.isinf(left) else left)

    def _time_left(self, ends_at: float | None) -> float:
        return math.inf if ends_at is None else max(0.0, ends_at - self._affinity.now())
