"""The engine: the only owner of tasks and of the clock.

::

    intake -> buffer -> pump [permit, take] -> flight -> sender [attempt, judge, wait]* -> settle -> receipts

State changes happen in methods that do not await, so that whatever is cancelled, no event is between two places. An
event is in the buffer, or in one flight, or settled. The pump is a task that lives only while the buffer holds
events: an idle client has none.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Literal

from retailrocket_async._buffer import EventBuffer
from retailrocket_async._errors import FlushTimeoutError
from retailrocket_async._flight import Flight
from retailrocket_async._home import Home
from retailrocket_async._intake import Intake
from retailrocket_async._ledger import Ledger
from retailrocket_async._outcome import Delivered, Dropped, error_for
from retailrocket_async._report import CloseReport
from retailrocket_async._sender import Sender
from retailrocket_async._wire import BATCH_PATH, join

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from retailrocket_async._buffer import Batching, Buffer
    from retailrocket_async._flight import Turn
    from retailrocket_async._limiter import Limiter
    from retailrocket_async._outcome import Outcome
    from retailrocket_async._report import Stats, UndeliveredEvent
    from retailrocket_async._retry import RetryPolicy
    from retailrocket_async._transport import Transport

_LIMITER_RETRY = 1.0
"""Seconds until a limiter that raised is asked again."""

_DROPPED_AT_ONCE = 10
"""Batches that a close drops before others may run: a few milliseconds."""

_CLOSE_GRACE = 0.5
"""Seconds that connections get to close, after everything has its outcome."""


class Dispatcher:
    """Runs the rooms below it; see the module's text.

    Args:
        batching: caps of a batch, and its ordering.
        buffer: bounds of the buffer.
        retry: when to try again.
        limiter: asked once for every attempt.
        transport: carries the requests; closed at the end.
        on_outcome: told of every buffered event that was not delivered, batch by batch; None for nobody.

    Attributes:
        intake: takes the events.
    """

    def __init__(  # noqa: PLR0913 - the composition root fills it in
        self,
        *,
        batching: Batching,
        buffer: Buffer,
        retry: RetryPolicy,
        limiter: Limiter,
        transport: Transport,
        on_outcome: Callable[[Sequence[UndeliveredEvent]], object] | None = None,
    ) -> None:
        self._home = Home()
        self._buffer = EventBuffer(batching, buffer, self._home.now)
        self._ledger = Ledger(on_outcome)
        self._sender = Sender(
            self._home,
            self._ledger,
            limiter=limiter,
            retry=retry,
            transport=transport,
            at_once=batching.max_in_flight,
        )
        self.intake = Intake(
            self._home,
            self._buffer,
            self._ledger,
            keyed=batching.ordered or batching.by_session,
            arrived=self._arrived,
        )
        # A batch counts as in flight until it is settled, so that an outage holds few of them; its place on the
        # wire it has for each attempt only, so that direct sends pass a batch that waits for its retry.
        self._max_in_flight = batching.max_in_flight
        self._batches = 0
        self._pump: asyncio.Task[None] | None = None
        self._wake: asyncio.Future[None] | None = None
        self._flights: dict[Flight, asyncio.Task[None] | None] = {}
        self._closing: asyncio.Future[CloseReport] | None = None
        self._last_task: asyncio.Task[None] | None = None

    # --- sending ------------------------------------------------------------------------------------------------------

    async def send(self, path: str, body: bytes, count: int) -> Delivered:
        """Send one request of `count` events past the buffer, and return when the API has accepted it.

        Raises:
            DeliveryError: the subclass that matches the outcome, where it has not.
        """
        loop = self._home.enter()
        self.intake.check_open()
        landed: asyncio.Future[Outcome] = loop.create_future()
        self._ledger.tracked += count
        flight = Flight(path, body, count, started_at=loop.time(), opened_in=[self._buffer.generation], landed=landed)
        self._launch(flight)
        try:
            outcome = await landed
        except asyncio.CancelledError:
            self._cut_short(flight, "cancelled")
            raise
        if isinstance(outcome, Delivered):
            return outcome
        raise error_for(outcome)

    async def _run_pump(self) -> None:
        """Take batches as permits come, until the buffer is empty."""
        # Under an eager task factory this runs before `_pump` is set, and would be started twice.
        if asyncio.current_task() is not self._pump:
            await asyncio.sleep(0)
        while self._buffer.events:
            due_in = self._buffer.due_in() if self._batches < self._max_in_flight else None
            if due_in is None or due_in > 0:
                await self._sleep(due_in)
                continue
            try:
                turn = await self._sender.next_turn()
            except Exception as error:  # noqa: BLE001 - a limiter may be anybody's; without it nothing may leave
                self._sender.limiter_failed(error)
                await asyncio.sleep(_LIMITER_RETRY)
                continue
            self._take_off(turn)

    def _take_off(self, turn: Turn) -> None:
        """Take the batch that is next, now that it may leave: it has grown while the permit was waited for."""
        batch = self._buffer.take()
        if batch is None:
            turn.end()
            return
        self._batches += 1
        flight = Flight(
            BATCH_PATH,
            join(batch.envelopes),
            len(batch),
            started_at=self._home.now(),
            opened_in=batch.opened_in,
            batch=batch,
            turn=turn,
        )
        self._launch(flight)
        self.intake.admit_waiters()

    def _launch(self, flight: Flight) -> None:
        self._ledger.in_flight += flight.count
        # Entered first: under an eager task factory the flight may be over before `create_task` returns.
        self._flights[flight] = None
        task = self._home.enter().create_task(self._fly(flight))
        if flight in self._flights:
            self._flights[flight] = task
        task.add_done_callback(functools.partial(self._landed, flight))

    def _landed(self, flight: Flight, _: asyncio.Task[None]) -> None:
        # Whoever cancels settles first; what is left is a loop that shuts down with the client open. The task cannot
        # do this itself: it may be cancelled before its first step.
        if flight.outcome is None:
            self._settle(flight, flight.give_up("cancelled", self._home.now()))

    async def _fly(self, flight: Flight) -> None:
        """Bring a flight to its outcome, and settle it."""
        try:
            outcome = await self._sender.outcome_of(flight)
        except Exception as error:  # noqa: BLE001 - a defect, of ours or of a transport passed in
            self._ledger.tell_once(
                ("defect", type(error)), logging.ERROR, "a request ended in %s", type(error).__name__
            )
            outcome = flight.give_up("internal_error", self._home.now())
        self._settle(flight, outcome)

    async def _sleep(self, delay: float | None) -> None:
        """Wait until something happens to the buffer or, where `delay` says so, that many seconds."""
        loop = self._home.enter()
        wake = self._wake = loop.create_future()
        timer = None if delay is None else loop.call_later(delay, self._rouse)
        try:
            await wake
        finally:
            self._wake = None
            if timer is not None:
                timer.cancel()

    def _arrived(self, *, due_sooner: bool) -> None:
        # Where nothing is due sooner the pump knows, unless someone cancelled it: some shutdowns cancel every task.
        if due_sooner or self._pump is None or self._pump.done():
            self._kick()

    def _kick(self) -> None:
        """Have the pump look at the buffer, starting it where there is none."""
        if self._pump is None or self._pump.done():
            self._pump = self._home.enter().create_task(self._run_pump())
        else:
            self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # --- settling -----------------------------------------------------------------------------------------------------

    def _cut_short(self, flight: Flight, reason: Literal["cancelled", "closed"]) -> None:
        """End a flight now: it gets its outcome here, whatever its task is waiting for."""
        task = self._flights.get(flight)
        if reason == "closed" and not flight.attempts:
            self._settle(flight, Dropped(reason="closed"))
        else:
            self._settle(flight, flight.give_up(reason, self._home.now()))
        if task is not None:
            task.cancel()

    def _settle(self, flight: Flight, outcome: Outcome) -> None:
        """Give a flight its outcome, once: the first one stands."""
        if flight.outcome is not None:
            return
        flight.outcome = outcome
        self._flights.pop(flight, None)
        if flight.turn is not None:
            flight.turn.end()
        self._ledger.in_flight -= flight.count
        if flight.batch is None:
            self._ledger.close(outcome, flight.count, flight.opened_in)
        else:
            self._batches -= 1
            self._buffer.release(flight.batch)
            self._ledger.close_batch(flight.batch, outcome)
            self._rouse()
        if flight.landed is not None and not flight.landed.done():
            flight.landed.set_result(outcome)

    # --- lifecycle ----------------------------------------------------------------------------------------------------

    async def flush(self, timeout: float | None) -> None:  # noqa: ASYNC109 - a deadline of the API, told in its error
        """Return when everything tracked so far has its outcome.

        Raises:
            FlushTimeoutError: `timeout` seconds passed first.
        """
        self._home.enter()
        try:
            async with asyncio.timeout(timeout):
                await self._flushed()
        except TimeoutError:
            left = self._buffer.events + self._ledger.in_flight
            raise FlushTimeoutError(
                f"{left} event(s) had no outcome after {timeout} s; they go on being sent"
            ) from None

    async def _flushed(self) -> None:
        still_open = self._buffer.batches + sum(len(flight.opened_in) for flight in self._flights)
        generation = self._buffer.begin_flush()
        if not still_open:
            return
        if self._buffer.events:
            self._kick()
        await self._ledger.flushed(generation, still_open, self._home.enter().create_future())

    async def aclose(self, timeout: float | None) -> CloseReport:  # noqa: ASYNC109 - see flush
        """Refuse new events, flush, and settle what is left when `timeout` seconds have passed."""
        loop = self._home.enter()
        # First of all: it raises for what is no number of seconds, and then nothing has been closed.
        deadline = asyncio.timeout(timeout)
        if self._closing is not None:
            return await self._closed_by(self._closing, deadline)
        started_at = loop.time()
        self._closing = loop.create_future()
        self._ledger.keep_undelivered()
        self.intake.close()
        try:
            async with deadline:
                await self._flushed()
        except TimeoutError:
            pass
        finally:
            # Also where this call itself is cancelled: every event gets its outcome, and nothing stays behind.
            try:
                await self._abort()
            finally:
                report = CloseReport(
                    stats=self.stats(), undelivered=tuple(self._ledger.undelivered), elapsed=loop.time() - started_at
                )
                self._closing.set_result(report)
                # Kept, as the loop itself keeps no task alive.
                self._last_task = loop.create_task(self._sender.aclose())
        # A peer that does not answer must not hold the caller: the connections close by themselves later.
        await asyncio.wait({self._last_task}, timeout=_CLOSE_GRACE)
        return report

    async def _closed_by(self, closing: asyncio.Future[CloseReport], deadline: asyncio.Timeout) -> CloseReport:
        """Wait for the close that is under way, and cut it short at this caller's own deadline."""
        try:
            async with deadline:
                return await asyncio.shield(closing)
        except TimeoutError:
            await self._abort()
        # Everything has its outcome now, so the first caller's flush is over.
        return await asyncio.shield(closing)

    async def _abort(self) -> None:
        """Settle everything now; only a full buffer takes more than a moment, and lets others run meanwhile."""
        if self._pump is not None:
            self._pump.cancel()
        for flight in list(self._flights):
            self._cut_short(flight, "closed")
        waiting = self._buffer.drain()
        dropped = Dropped(reason="closed")
        try:
            for number, batch in enumerate(waiting, 1):
                self._ledger.close_batch(batch, dropped)
                if number % _DROPPED_AT_ONCE == 0:
                    await asyncio.sleep(0)
        finally:
            # Cancelled in the middle: the rest has no more time.
            for batch in waiting:
                self._ledger.close_batch(batch, dropped)

    @property
    def started(self) -> bool:
        """Whether the client has been used."""
        return self._home.loop is not None

    @property
    def closed(self) -> bool:
        """Whether a close has begun."""
        return self._closing is not None

    def stats(self) -> Stats:
        """Return a snapshot of the counters."""
        return self._ledger.stats(self._buffer, waiting=self.intake.waiting)
