"""The engine that keeps events in memory: it runs the tasks that send requests.

::

    intake -> buffer -> pump [permit, take] -> flight -> sender [attempt, judge, wait]* -> settle -> receipts

A flight is a batch, or a direct send, on its way to the API. Every event is in the buffer, or in one flight, or
settled. The methods that move events do not await, so cancelling a task at any `await` loses no event. The pump is the
task that takes batches from the buffer. It runs only while the buffer holds events, so an idle client has no task.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterable
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Literal

from retailrocket_async._delivery.bulk_intake import accept_envelopes
from retailrocket_async._delivery.circuit_breaker import CircuitBreaker
from retailrocket_async._delivery.expiry import Expiry
from retailrocket_async._delivery.flight import Flight
from retailrocket_async._delivery.intake import Intake
from retailrocket_async._delivery.ledger import AT_ONCE, EACH, Ledger
from retailrocket_async._delivery.sender import Sender
from retailrocket_async._delivery.shutdown import Shutdown
from retailrocket_async._errors import FlushTimeoutError, RetailRocketError, error_for
from retailrocket_async._events.codec import BATCH_PATH, join
from retailrocket_async._outcome import Delivered, Dropped
from retailrocket_async._queue.buffer import EventBuffer
from retailrocket_async._runtime.context import detached, timeout_at
from retailrocket_async._runtime.foreign_code import ends_task, ensure_stack, write_log
from retailrocket_async._runtime.loop_affinity import LoopAffinity
from retailrocket_async._stats import StateChange, consistent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from retailrocket_async._delivery.flight import SendSlot
    from retailrocket_async._delivery.hooks import OutcomeHook, StateHook
    from retailrocket_async._delivery.ledger import Keep
    from retailrocket_async._delivery.rate_limiter import Limiter
    from retailrocket_async._delivery.retry import RetryPolicy
    from retailrocket_async._errors import EventValidationError
    from retailrocket_async._events.envelopes import EnvelopeReader
    from retailrocket_async._events.models import Event
    from retailrocket_async._http.transport import Transport
    from retailrocket_async._observer import Watch
    from retailrocket_async._outcome import Outcome
    from retailrocket_async._queue.batch import Batch
    from retailrocket_async._queue.options import Batching, Buffer
    from retailrocket_async._receipt import Receipt
    from retailrocket_async._stats import CloseReport, State, Stats

logger = logging.getLogger("retailrocket_async")

_CUT_OFF_LOG_DELAY = 1.0
"""Seconds between the cancellation of tasks by other code and the log record about the events of these tasks. If the
loop ends earlier, the record about the end of the loop includes these events."""

_LIMITER_RETRY = 1.0
"""Seconds to wait after the limiter raised an error, before the next permit is requested."""

_MAX_UNREPORTED = 10_000
"""Least capacity, in events, of the queue of undelivered events for the hook. The capacity is at least this large
because large batches may be in flight even if the buffer is small."""


class Dispatcher:
    """Accepts events into a buffer, sends them in batches, and gives each event an outcome.

    Args:
        batching: largest size of a batch, and whether visitors' events keep their order.
        buffer: bounds of the buffer, and what happens if the buffer is full.
        retry: decides whether and when a failed request is tried again.
        limiter: grants a permit for every attempt.
        transport: makes the requests; closed when the client closes.
        renewable: whether a function returns the API key, so that the key may change.
        on_outcome: called with buffered events that were not delivered; None for no hook.
        on_state_change: called when sending is halted, when the API is down, and when requests are sent again; None for
            no hook.
        keep: called with a batch whose events are also stored in a spool, and with its outcome, before the batch is
            settled; returns the outcome that the events get. None without a spool.
        watch: called for every request and every outcome; None without an observer.

    Attributes:
        intake: accepts the events.
    """

    def __init__(  # noqa: PLR0913 - the composition root fills it in
        self,
        *,
        batching: Batching,
        buffer: Buffer,
        retry: RetryPolicy,
        limiter: Limiter,
        transport: Transport,
        renewable: bool = False,
        on_outcome: OutcomeHook | None = None,
        on_state_change: StateHook | None = None,
        keep: Keep | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._affinity = LoopAffinity(self.loses)
        self._lost = False
        self._cut_off = 0
        # Function that returns the number of undelivered events in the spool; these events survive the end of the
        # process. None without a spool.
        self.kept_elsewhere: Callable[[], int] | None = None
        self._buffer = EventBuffer(batching, buffer, self._affinity.now)
        self._ledger = Ledger(
            self._affinity,
            on_outcome,
            on_state_change,
            max_unreported=max(_MAX_UNREPORTED, buffer.max_events),
            keep=keep,
            watch=watch,
        )
        self._breaker = CircuitBreaker(retry)
        self._expiry = Expiry(
            self._affinity,
            self._buffer,
            self._ledger,
            self._breaker,
            retry=retry,
            max_age=buffer.max_age,
            renewable=renewable,
            flights=lambda: list(self._flights),
            end=self._end,
            ended=lambda: self.intake.admit_waiters(),  # noqa: PLW0108 - the intake is made below
        )
        self._sender = Sender(
            self._affinity,
            self._ledger,
            breaker=self._breaker,
            limiter=limiter,
            retry=retry,
            transport=transport,
            at_once=batching.max_in_flight,
            max_age=buffer.max_age,
            part_over=self._part_over,
            expiry=self._expiry,
            watch=watch,
        )
        self.intake = Intake(
            self._affinity,
            self._buffer,
            self._ledger,
            keyed=batching.ordered or batching.by_session,
            overflow=buffer.overflow,
            arrived=self._arrived,
            expire=self._expiry.expire,
            max_age=buffer.max_age,
        )
        # A batch counts as in flight until the batch is settled, also while the batch waits for a retry. The number of
        # batches in flight is bounded, so in an outage all further events stay in the buffer. Only a running request
        # counts against the bound on requests (see `Sender`), so a direct send need not wait for a batch that waits for
        # its retry.
        self._timed = buffer.max_age is not None
        # A lane is a queue of batches in the buffer. A new event in a lane that is busy makes no batch due, so the
        # buffer does not report that the pump is needed. The intake therefore reports every event to `_arrived`, which
        # starts the pump if the pump has ended.
        self._watchful = self.intake.watched = self._timed or batching.ordered or batching.by_session
        self._max_in_flight = batching.max_in_flight
        self._batches = 0
        self._aborted = False
        self._pump: asyncio.Task[None] | None = None
        self._wake: asyncio.Future[None] | None = None
        self._flights: dict[Flight, asyncio.Task[None] | None] = {}
        self._shutdown = Shutdown(
            self._affinity,
            self._ledger,
            self._breaker,
            begins=self._close_begins,
            flushed=self._flushed,
            leftovers=self._settle_leftovers,
            left=self._cost_of_leftovers,
            disconnect=self._sender.aclose,
            stats=self.stats,
        )

    # --- accepting ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Do nothing: the first event starts the pump, and the first request opens the connections."""

    async def accept_many(
        self,
        events: Iterable[Event] | AsyncIterable[Event],
        *,
        track: Callable[[Event], Awaitable[Receipt]],
        prepare: Callable[[Event], tuple[str, bytes] | Receipt],  # noqa: ARG002 - for an engine that writes groups
    ) -> list[Receipt]:
        """Accept events one after the other; see `Engine.accept_many`."""
        if isinstance(events, AsyncIterable):
            return [await track(event) async for event in events]
        return [await track(event) for event in events]

    async def accept_envelopes(
        self, envelopes: Sequence[bytes], reader: EnvelopeReader, *, track: Callable[[Event], Awaitable[Receipt]]
    ) -> list[Receipt | EventValidationError]:
        """Accept the events that envelopes describe; see `Engine.accept_envelopes`."""
        return await accept_envelopes(envelopes, reader, self.intake, track=track)

    # --- sending ------------------------------------------------------------------------------------------------------

    async def send(self, path: str, body: bytes, names: Sequence[str]) -> Delivered:
        """Send one request without putting its events in the buffer; return when the API has accepted the request.

        Args:
            path: path of the request, relative to the base URL.
            body: body of the request.
            names: the names of the events in the request.

        Raises:
            DeliveryError: the API has not accepted the request; the subclass matches the outcome.
        """
        loop = self._affinity.enter()
        self.intake.check_open()
        ensure_stack()
        landed: asyncio.Future[Outcome] = loop.create_future()
        self._ledger.count_tracked(len(names))
        flight = Flight(
            path,
            body,
            names,
            started_at=loop.time(),
            opened_in=[self._buffer.generation],
            landed=landed,
            context=copy_context(),
        )
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
        """Take a batch from the buffer for each permit, and send the batch, until the buffer is empty."""
        # Under an eager task factory this code runs before `_pump` is set; without this pause, a second pump would be
        # started.
        if asyncio.current_task() is not self._pump:
            await asyncio.sleep(0)
        while self._buffer.events:
            if not self._expiry.expire():
                await asyncio.sleep(0)
                continue
            due_in = self._buffer.due_in() if self._batches < self._max_in_flight else None
            if due_in is None or due_in > 0:
                await self._sleep(due_in)
                continue
            try:
                turn = await self._sender.next_turn()
            except BaseException as error:  # a user's limiter may raise anything; without a permit nothing may leave
                if ends_task(error):
                    raise
                self._sender.limiter_failed(error)
                await asyncio.sleep(_LIMITER_RETRY)
                continue
            self._take_off(turn)

    def _take_off(self, turn: SendSlot) -> None:
        """Take the next batch from the buffer and send it; `turn` is the right to make its request.

        The batch is taken after the permit was granted, so that the batch could grow in the meantime.
        """
        batch = self._buffer.take() if self._expiry.expire() else None
        if batch is None:
            turn.end()
            return
        self._batches += 1
        flight = Flight(
            BATCH_PATH,
            join(batch.envelopes),
            [receipt.event_name for receipt in batch.receipts],
            started_at=self._affinity.now(),
            opened_in=batch.opened_in,
            batch=batch,
            turn=turn,
        )
        self._launch(flight)
        self.intake.admit_waiters()

    def _launch(self, flight: Flight) -> None:
        self._ledger.count_launched(flight.count)
        # The flight is added before its task is created: under an eager task factory the flight may be settled before
        # `create_task` returns.
        self._flights[flight] = None
        self._expiry.arrived()
        task = self._affinity.create_task(self._fly(flight))
        if flight in self._flights:
            self._flights[flight] = task
        detached(task.add_done_callback, functools.partial(self._landed, flight))

    def _landed(self, flight: Flight, _: asyncio.Task[None]) -> None:
        # Our own code settles a flight before it cancels the task. If the flight has no outcome here, other code has
        # cancelled the task, for example a loop that shuts down while the client is open. The task itself cannot settle
        # the flight, because a task may be cancelled before it starts.
        if flight.outcome is None:
            if self.kept_elsewhere is None and self._affinity.loop is not None:
                # The record is written a second later. If the loop ends before that, `loses` includes these events in
                # its count, so that a single record counts all lost events.
                self._ledger.quiet = True
                self._cut_off += flight.count
                self._affinity.call_later(_CUT_OFF_LOG_DELAY, self._log_cut_off)
            try:
                self._settle(flight, flight.give_up("cancelled", self._affinity.now()))
            finally:
                # `finally`, because Ctrl-C may be raised in an observer, and later records must still be logged.
                self._ledger.quiet = False

    def _log_cut_off(self) -> None:
        count, self._cut_off = self._cut_off, 0
        if count and not self._lost:
            message = "%d event(s): given up, cancelled: other code cancelled the tasks that sent them"
            self._ledger.log_once(("cancelled",), logging.ERROR, message, count)

    def nothing_to_lose(self) -> None:
        """From now on, do not log undelivered events when the client or its loop ends.

        Call this if nobody expects these events to be delivered.
        """
        self._lost = True

    def loses(self, how: str) -> None:
        """Log how many events are lost because the client, its loop or its process ended.

        Only the first call logs. May be called in any thread.

        Args:
            how: the start of the log message, e.g. "its event loop was closed".
        """
        if self.kept_elsewhere is None:
            count, what = self._buffer.events + self._ledger.in_flight + self._cut_off, "are lost"
        else:
            count, what = self.kept_elsewhere(), "are in the spool, whose next user sends them"
        if self._lost or not count:
            return
        self._lost = True
        message = "%s before the client was closed: %d undelivered event(s) %s; use 'async with', or await aclose()"
        write_log(logger, logging.ERROR, message, how, count, what)

    async def _fly(self, flight: Flight) -> None:
        """Send a flight, whole or in parts, until all its events have their outcome."""
        goes_on = True
        while goes_on:
            flight.fit(self._buffer.cap.bytes, self._affinity.now())
            try:
                outcome = await self._sender.outcome_of(flight)
            except BaseException as error:  # a defect, of ours or of a transport passed in
                if ends_task(error):
                    raise
                self._ledger.log_once(
                    ("defect", type(error)), logging.ERROR, "a request ended in %s", type(error).__name__
                )
                outcome = flight.give_up("internal_error", self._affinity.now())
            goes_on = self._goes_on(flight, outcome)

    def _goes_on(self, flight: Flight, outcome: Outcome) -> bool:
        """Divide or settle the current part of a flight, which got `outcome`; return whether another part follows."""
        if flight.outcome is not None:
            return False
        part, now = flight.batch, self._affinity.now()
        if part is not None:
            self._learn_cap(part, outcome, now)
            if flight.divide(outcome, now):
                return True
        outcome = flight.part_refused(outcome)
        if part is not None and flight.go_on(outcome, now):
            self._part_over(flight, part, outcome)
            return True
        self._settle(flight, outcome)
        return False

    def _learn_cap(self, part: Batch, outcome: Outcome, now: float) -> None:
        if isinstance(outcome, Delivered):
            self._buffer.cap.accepted(part.size, now)
        elif outcome.status == 413 and len(part) > 1:
            self._buffer.cap.refused(part.size, now)

    async def _sleep(self, delay: float | None) -> None:
        """Wait until the buffer changes, but at most `delay` seconds; None waits without limit."""
        wake = self._wake = self._affinity.enter().create_future()
        timer = None if delay is None else self._affinity.call_later(delay, self._rouse)
        try:
            await wake
        finally:
            self._wake = None
            if timer is not None:
                timer.cancel()

    def _arrived(self, *, due_sooner: bool) -> None:
        self._expiry.arrived()
        if due_sooner or self._pump is None or self._pump.done():
            self._kick()

    def _pump_ended(self, _: asyncio.Task[None]) -> None:
        # Some programs cancel every task when they shut down. The intake must report the next event to `_arrived`,
        # which then starts another pump.
        self.intake.watched = True

    def _kick(self) -> None:
        """Make the pump check the buffer; start the pump if it does not run."""
        if self._aborted:
            # A flush may begin while a close settles the leftover events; no batch must be sent then.
            return
        if self._pump is None or self._pump.done():
            ensure_stack()
            self._pump = self._affinity.create_task(self._run_pump())
            detached(self._pump.add_done_callback, self._pump_ended)
            self.intake.watched = self._watchful
        else:
            self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def hurry(self) -> None:
        """Send all waiting batches as soon as permits are granted, without waiting for the linger."""
        if self._buffer.events:
            self._buffer.begin_flush()
            self._kick()

    def give_back(self) -> None:
        """Drop all waiting events with the reason "closed"; requests in flight continue."""
        for batch in self._buffer.drain(AT_ONCE):
            self._ledger.close_batch(batch, Dropped(reason="closed"))

    def recall(self) -> None:
        """Settle all waiting events and every batch in flight with the reason "closed"; direct sends continue."""
        self.give_back()
        for flight in list(self._flights):
            if flight.outcome is None and flight.whole is not None:
                self._cut_short(flight, "closed")

    # --- settling -----------------------------------------------------------------------------------------------------

    def _cut_short(self, flight: Flight, reason: Literal["cancelled", "closed"]) -> None:
        """Settle a flight as cancelled or closed at once, even if its task still waits for something."""
        if reason == "closed" and not flight.attempts:
            self._end(flight, Dropped(reason="closed"))
        else:
            self._end(flight, flight.give_up(reason, self._affinity.now()))

    def _end(self, flight: Flight, outcome: Outcome) -> None:
        """Settle a flight, and cancel its task unless this call runs in that task."""
        task = self._flights.get(flight)
        self._settle(flight, outcome)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def _part_over(self, flight: Flight, part: Batch, outcome: Outcome) -> None:
        """Settle the events of `part`; the other events of the flight are still to be sent."""
        if flight.outcome is None:
            self._ledger.count_landed(len(part))
            self._ledger.close_batch(part, outcome)

    def _settle(self, flight: Flight, outcome: Outcome) -> None:
        """Settle the events of a flight with `outcome`; do nothing if the flight already has an outcome."""
        if flight.outcome is not None:
            return
        flight.outcome = outcome
        self._flights.pop(flight, None)
        if flight.turn is not None:
            flight.turn.end()
        self._ledger.count_landed(flight.count)
        if flight.whole is None or flight.batch is None:
            # The observer is called in the context of the caller of `send`. The flight then drops this context.
            context, flight.context = flight.context or Context(), None
            context.run(self._ledger.close, outcome, flight.count, flight.opened_in, flight.names)
        else:
            self._batches -= 1
            self._buffer.release(flight.whole)
            # A flush waits for whole batches. So only this part gets the generations of the batch, and the flush counts
            # the batch as settled when this part is settled.
            flight.batch.opened_in = flight.opened_in
            for part, its_outcome in [(flight.batch, outcome), *flight.waiting_parts(outcome)]:
                if part is not flight.batch:
                    self._ledger.count_landed(len(part))
                self._ledger.close_batch(part, its_outcome)
            self._rouse()
        if flight.landed is not None and not flight.landed.done():
            flight.landed.set_result(outcome)

    # --- lifecycle ----------------------------------------------------------------------------------------------------

    async def flush(self, timeout: float | None) -> None:  # noqa: ASYNC109 - a deadline of the public API, named in its error
        """Return when every event tracked so far has its outcome.

        Raises:
            FlushTimeoutError: some events had no outcome after `timeout` seconds.
        """
        loop = self._affinity.enter()
        ensure_stack()
        try:
            async with timeout_at(None if timeout is None else loop.time() + timeout):
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
        await self._ledger.flushed(generation, still_open, self._affinity.enter().create_future())

    async def aclose(self, timeout: float | None) -> CloseReport:  # noqa: ASYNC109 - see flush
        """Refuse new events, flush, and settle the events that have no outcome when `timeout` seconds have passed."""
        self._affinity.enter()
        ensure_stack()
        return await self._shutdown.close(timeout)

    def _close_begins(self) -> None:
        self.intake.close()
        self._expiry.close_begins()
        self._breaker.hurry(self._affinity.now())

    def _settle_leftovers(self) -> Iterator[int]:
        """Settle all events that have no outcome, in pieces; yield the cost of each piece, counted in events."""
        self._expiry.close()
        self._aborted = True
        if self._pump is not None:
            self._pump.cancel()
        for flight in list(self._flights):
            if flight.outcome is None:
                self._cut_short(flight, "closed")
                yield EACH + flight.count
        dropped = Dropped(reason="closed")
        for batch in self._buffer.drain(AT_ONCE):
            self._ledger.close_batch(batch, dropped)
            yield len(batch) + len(batch.opened_in)

    def _cost_of_leftovers(self) -> int:
        return self._buffer.events + self._buffer.batches + self._ledger.in_flight + EACH * len(self._flights)

    def hook_failed(self, name: str, error: BaseException) -> None:
        """Count an error that a user's hook raised in the task of the caller, and log the first error of each hook."""
        self._ledger.hook_failed(name, error)

    def spool_failed(self, error: BaseException) -> None:
        """Log that the spool could not be used; each kind of failure is logged once."""
        reason = str(error) if isinstance(error, RetailRocketError) else type(error).__name__
        self._ledger.log_once(("spool", reason), logging.ERROR, "%s", reason)

    def spool_ended(self, error: RetailRocketError) -> None:
        """Report that no event of the spool is sent any more, because of `error`."""
        self._ledger.report_state(
            StateChange(state="halted", previous=self._breaker.state, failure="spool", advice=str(error))
        )

    @property
    def state(self) -> State:
        """Whether requests are sent; see `Stats.state`."""
        return self._breaker.state

    @property
    def affinity(self) -> LoopAffinity:
        """The one event loop that the engine belongs to."""
        return self._affinity

    @property
    def started(self) -> bool:
        """Whether the client has been used."""
        return self._affinity.loop is not None

    @property
    def closed(self) -> bool:
        """Whether a close has begun."""
        return self._shutdown.begun

    def stats(self) -> Stats:
        """Return a consistent snapshot of the counters; may be called in any thread."""
        return self.counters() if self._affinity.here() else consistent(self.counters)

    def counters(self) -> Stats:
        """Return the counters; in another thread than the loop's, the sum of the counters may be wrong."""
        return self._ledger.stats(self._buffer, waiting=self.intake.waiting, state=self._breaker.state)
