"""The engine that keeps events in memory: it builds the objects that deliver events, and connects them.

::

    Intake --> EventBuffer --> Pump --> Flight --> Runner --> InFlight --> Ledger --> receipts
                                         |          |  ^
                                     SendGate       v  |
                                                   Sender

A flight is a batch, or a direct send (the request of `send`), on its way to the API. Every event is in the buffer, in
one flight, or settled (has its outcome). The methods that move events do not await, so cancelling a task at any `await`
loses no event. Each object calls only objects that were built before it. `Expiry`, `Shutdown` and cancelled callers end
flights through `InFlight`, too.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterable
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING

from retailrocket_async._delivery.bulk_intake import accept_envelopes
from retailrocket_async._delivery.circuit_breaker import CircuitBreaker
from retailrocket_async._delivery.expiry import Expiry
from retailrocket_async._delivery.flight import Flight, FlightState
from retailrocket_async._delivery.flusher import Flusher
from retailrocket_async._delivery.gate import SendGate
from retailrocket_async._delivery.in_flight import InFlight
from retailrocket_async._delivery.intake import Intake
from retailrocket_async._delivery.ledger import AT_ONCE, Ledger
from retailrocket_async._delivery.pump import Pump
from retailrocket_async._delivery.realtime import Realtime
from retailrocket_async._delivery.runner import Runner
from retailrocket_async._delivery.sender import Sender
from retailrocket_async._delivery.shutdown import Shutdown
from retailrocket_async._delivery.snapshot import Snapshot
from retailrocket_async._delivery.waiting_callers import WaitingCallers
from retailrocket_async._errors import FlushTimeoutError, RetailRocketError, WrongLoopError, error_for
from retailrocket_async._outcome import Delivered, Dropped
from retailrocket_async._queue.buffer import EventBuffer
from retailrocket_async._runtime.context import detached, timeout_at
from retailrocket_async._runtime.foreign_code import ensure_stack, write_log
from retailrocket_async._runtime.loop_affinity import LoopAffinity
from retailrocket_async._runtime.wakeup import Wakeup
from retailrocket_async._stats import StateChange

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from retailrocket_async._delivery.hooks import OutcomeHook, StateHook
    from retailrocket_async._delivery.ledger import Keeper
    from retailrocket_async._delivery.rate_limiter import Limiter
    from retailrocket_async._delivery.retry import RetryPolicy
    from retailrocket_async._errors import EventValidationError
    from retailrocket_async._events.envelopes import EnvelopeReader
    from retailrocket_async._events.models import Event
    from retailrocket_async._http.transport import Transport
    from retailrocket_async._observer import Watch
    from retailrocket_async._outcome import Outcome
    from retailrocket_async._queue.options import Batching, Buffer
    from retailrocket_async._receipt import Receipt
    from retailrocket_async._stats import CloseReport, State, Stats

logger = logging.getLogger("retailrocket_async")

_MAX_UNREPORTED = 10_000
"""Least capacity, in events, of the queue of undelivered events for the hook. The capacity is at least this large
because large batches may be in flight even if the buffer is small."""


class Dispatcher:
    """Accepts events into a buffer, sends them in batches, and gives each event an outcome.

    Args:
        batching: largest size of a batch, and largest number of requests in flight.
        buffer: bounds of the buffer, and what happens if the buffer is full.
        retry: decides whether and when a failed request is tried again.
        limiter: grants a permit for every attempt.
        transport: makes the requests; closed when the client closes.
        renewable: whether a function returns the API key, so that the key may change.
        on_outcome: called with buffered events that were not delivered; None for no hook.
        on_state_change: called when sending is halted, when the API is down, and when requests are sent again; None for
            no hook.
        keeper: a spool that stores the events, too; None without a spool.
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
        keeper: Keeper | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._affinity = LoopAffinity(self.loses)
        self._lost = False
        self._keeper = keeper
        self._buffer = EventBuffer(batching, buffer, self._affinity.now)
        self._ledger = Ledger(
            self._affinity,
            on_outcome,
            on_state_change,
            max_unreported=max(_MAX_UNREPORTED, buffer.max_events),
            keeper=keeper,
            watch=watch,
        )
        self._breaker = CircuitBreaker(retry)
        wakeup = Wakeup()
        callers = WaitingCallers(self._affinity, self._buffer, self._ledger, wakeup, max_age=buffer.max_age)
        self._in_flight = InFlight(self._affinity, self._buffer, self._ledger, callers, wakeup)
        self._in_flight.logs_losses = keeper is None
        self._expiry = Expiry(
            self._affinity,
            self._buffer,
            self._ledger,
            self._breaker,
            retry=retry,
            max_age=buffer.max_age,
            renewable=renewable,
            in_flight=self._in_flight,
            callers=callers,
        )
        gate = SendGate(self._affinity, self._ledger, self._breaker, limiter, at_once=batching.max_in_flight)
        sender = Sender(
            self._affinity,
            self._ledger,
            self._breaker,
            gate,
            retry=retry,
            transport=transport,
            max_age=buffer.max_age,
            expiry=self._expiry,
            watch=watch,
        )
        self._runner = Runner(self._affinity, self._ledger, self._buffer.cap, self._in_flight, sender, self._expiry)
        self._pump = Pump(
            self._affinity,
            self._buffer,
            callers,
            in_flight=self._in_flight,
            expiry=self._expiry,
            gate=gate,
            runner=self._runner,
            wakeup=wakeup,
            max_in_flight=batching.max_in_flight,
            realtime=Realtime() if batching.realtime else None,
        )
        self.intake = Intake(
            self._affinity,
            self._buffer,
            self._ledger,
            callers,
            pump=self._pump,
            expiry=self._expiry,
            overflow=buffer.overflow,
            timed=buffer.max_age is not None,
        )
        self._flusher = Flusher(self._affinity, self._buffer, self._ledger, self._in_flight, self._pump)
        self._snapshot = Snapshot(self._affinity, self._buffer, self._ledger, callers, self._in_flight, self._breaker)
        self._shutdown = Shutdown(
            self._affinity,
            self._ledger,
            self._breaker,
            intake=self.intake,
            buffer=self._buffer,
            in_flight=self._in_flight,
            expiry=self._expiry,
            pump=self._pump,
            flusher=self._flusher,
            sender=sender,
            snapshot=self._snapshot,
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

    async def send(self, path: str, body: bytes, names: Sequence[str], visitors: Sequence[str]) -> Delivered:
        """Send one request without putting its events in the buffer; return when the API has accepted the request.

        The request is sent when all earlier events of its visitors have their outcome.

        Args:
            path: path of the request, relative to the base URL.
            body: body of the request.
            names: the names of the events in the request.
            visitors: the session ids of the events' visitors; ``""`` if an event has no session id.

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
        self._in_flight.enter(flight)
        try:
            granted = functools.partial(self._start_soon, flight)
            flight.hold = self._buffer.hold(map(self._buffer.key_of, visitors), granted)
            if flight.hold.departed:
                self._start(flight)
            else:
                # `EventBuffer.hold` made the earlier events of these visitors due, so the pump must check the buffer.
                self._pump.kick()
            outcome = await landed
        except BaseException:
            # The caller was cancelled, or the request could not be started, for example at the recursion limit.
            self._in_flight.cut_short(flight, "cancelled")
            raise
        if isinstance(outcome, Delivered):
            return outcome
        raise error_for(outcome)

    def _start_soon(self, flight: Flight) -> None:
        """Start a direct send in the next turn of the loop, because all earlier events of its visitors have outcomes.

        The send is not started at once, because the buffer may be in the middle of a change now, and an eager task
        would run code of users at once.
        """
        # If the loop is closed, the caller of `send` never runs again, and its coroutine ends the flight.
        with suppress(RuntimeError, WrongLoopError):
            detached(self._affinity.enter().call_soon, self._start_or_end, flight)

    def _start_or_end(self, flight: Flight) -> None:
        try:
            self._start(flight)
        except BaseException:
            self._in_flight.cut_short(flight, "cancelled")
            raise

    def _start(self, flight: Flight) -> None:
        if flight.outcome is None:
            flight.become(FlightState.QUEUED)
            self._expiry.arrived()
            self._in_flight.launch(flight, self._runner.run(flight))

    def nothing_to_lose(self) -> None:
        """From now on, do not log undelivered events when the client or its loop ends.

        This is for callers who do not expect these events to be delivered.
        """
        self._lost = True
        self._in_flight.logs_losses = False

    def loses(self, how: str) -> None:
        """Log how many events are lost because the client, its loop or its process ended.

        Only the first call logs. May be called in any thread.

        Args:
            how: the start of the log message, e.g. "its event loop was closed".
        """
        if self._keeper is None:
            count, what = self._buffer.events + self._in_flight.events + self._in_flight.cut_off, "are lost"
        else:
            count, what = self._keeper.undelivered, "are in the spool, whose next user sends them"
        if self._lost or not count:
            return
        self.nothing_to_lose()
        message = "%s before the client was closed: %d undelivered event(s) %s; use 'async with', or await aclose()"
        write_log(logger, logging.ERROR, message, how, count, what)

    def hurry(self) -> None:
        """Send all waiting batches as soon as permits are granted, without waiting for the linger."""
        self._flusher.hurry()

    def give_back(self) -> None:
        """Drop all waiting events with the reason "closed"; requests in flight continue."""
        for batch in self._buffer.drain(AT_ONCE):
            self._ledger.close_batch(batch, Dropped(reason="closed"))

    def recall(self) -> None:
        """Settle all waiting events and every batch in flight with the reason "closed"; direct sends continue."""
        self.give_back()
        for flight in self._in_flight:
            if flight.outcome is None and flight.whole is not None:
                self._in_flight.cut_short(flight, "closed")

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
                await self._flusher.flushed()
        except TimeoutError:
            left = self._buffer.events + self._in_flight.events
            raise FlushTimeoutError(
                f"{left} event(s) had no outcome after {timeout} s{self.longest_chain()}; they go on being sent"
            ) from None

    def longest_chain(self) -> str:
        """Return how many events of one visitor wait for each other, as a remark for an error; ``""`` if none do."""
        longest = self._buffer.longest_backlog()
        return f" (one visitor has {longest} of them, which are sent one batch after the other)" if longest else ""

    async def aclose(self, timeout: float | None) -> CloseReport:  # noqa: ASYNC109 - see flush
        """Refuse new events, flush, and settle the events that have no outcome when `timeout` seconds have passed."""
        self._affinity.enter()
        ensure_stack()
        return await self._shutdown.close(timeout)

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
        """Whether `aclose` has been called."""
        return self._shutdown.begun

    def stats(self) -> Stats:
        """Return a consistent snapshot of the counters; may be called in any thread."""
        return self._snapshot.read()

    def counters(self) -> Stats:
        """Return the counters; in another thread than the loop's, the sum of the counters may be wrong."""
        return self._snapshot.read_here()
