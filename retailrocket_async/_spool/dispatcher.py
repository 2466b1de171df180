"""The engine of a client with a spool: writes events to disk; a second engine sends the events later."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import attrs

from retailrocket_async._errors import DeliveryError, FlushTimeoutError, SpoolError
from retailrocket_async._outcome import Abandoned
from retailrocket_async._runtime.context import timeout_at
from retailrocket_async._spool.bulk_intake import accept_envelopes, accept_many
from retailrocket_async._spool.intake import SpoolIntake
from retailrocket_async._spool.ledger import SpoolLedger
from retailrocket_async._spool.running_spool import RunningSpool
from retailrocket_async._stats import consistent

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Sequence

    from retailrocket_async._delivery.dispatcher import Dispatcher
    from retailrocket_async._delivery.ledger import Keeper
    from retailrocket_async._errors import EventValidationError
    from retailrocket_async._events.envelopes import EnvelopeReader
    from retailrocket_async._events.models import Event
    from retailrocket_async._outcome import Delivered, Outcome
    from retailrocket_async._queue.batch import Batch
    from retailrocket_async._queue.eviction import Overflow
    from retailrocket_async._queue.options import Batching
    from retailrocket_async._receipt import Receipt
    from retailrocket_async._runtime.loop_affinity import LoopAffinity
    from retailrocket_async._spool.spool import SqliteSpool
    from retailrocket_async._spool.writer import SpoolWriter
    from retailrocket_async._stats import CloseReport, Stats

_LOOK: Final = 0.1
"""Seconds between two checks whether the API still accepts requests, while `aclose` waits for outcomes."""


class SpooledDispatcher:
    """Writes events to a spool, and sends these events with a second engine; has the methods of `Dispatcher`.

    Args:
        spool: the settings of the spool.
        shop: the partner id of the shop.
        make_engine: called with this object and a function; returns the engine that sends. The engine passes each batch
            and its outcome to `keep`. The function returns whether this process may send now; if not, the engine must
            begin no request.
        request_timeout: largest number of seconds for which a request is in flight.
        batching: the bounds of a batch.
        once: names of events that are not sent again if the API may have recorded them.
        overflow: what happens if the spool is full; see `Buffer.overflow`.

    Attributes:
        engine: the engine that sends.
        intake: accepts events into the spool.
    """

    def __init__(  # noqa: PLR0913 - the composition root fills it in
        self,
        spool: SqliteSpool,
        shop: str,
        make_engine: Callable[[Keeper, Callable[[], bool]], Dispatcher],
        *,
        request_timeout: float,
        batching: Batching,
        once: frozenset[str],
        overflow: Overflow,
    ) -> None:
        self._spool = spool
        self._file = spool.file(shop)
        self._file.lease.request_timeout = request_timeout
        self._batching = batching
        self._once = once
        self._overflow: Overflow = overflow
        self._ledger = SpoolLedger()
        self._running: RunningSpool | None = None
        self._closing: asyncio.Task[CloseReport] | None = None
        self._hurry: asyncio.Event = asyncio.Event()
        self.engine = make_engine(self, self._may_send)
        self.intake = SpoolIntake(self, self.engine, self._ledger)

    # --- the spool ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the spool, and begin to deliver the events in the spool.

        Raises:
            SpoolError: the spool cannot be used.
        """
        self.affinity.enter()
        if self._closing is None:
            self.started_writer()
            assert self._running is not None  # noqa: S101 - set by `started_writer`
            await self._running.written()

    @property
    def writer(self) -> SpoolWriter | None:
        """The writer of the spool; None until the client is used for the first time."""
        return None if self._running is None else self._running.writer

    def started_writer(self) -> SpoolWriter:
        """Return the writer of the spool; the first call starts the writer and the task that feeds the engine.

        Raises:
            SpoolError: no thread can be started.
        """
        if self._running is None:
            running = RunningSpool(
                self._spool,
                self._file,
                self.engine,
                self._ledger,
                batching=self._batching,
                once=self._once,
                overflow=self._overflow,
            )
            running.start()
            self._running = running
        return self._running.writer

    @property
    def _unwritten(self) -> int:
        return 0 if self._running is None else self._running.writer.waiting

    def keep(self, batch: Batch, outcome: Outcome) -> Outcome:
        """Have the outcome of a batch written to the file; return the outcome that its events get."""
        return outcome if self._running is None else self._running.forwarder.keep(batch, outcome)

    @property
    def undelivered(self) -> int:
        """Number of undelivered events that this process has tracked."""
        return self._ledger.process_events.pending + self._unwritten

    def _may_send(self) -> bool:
        return self._running is None or self._running.forwarder.reader.may_send()

    # --- methods of `Dispatcher` --------------------------------------------------------------------------------------

    async def accept_many(
        self,
        events: Iterable[Event] | AsyncIterable[Event],
        *,
        track: Callable[[Event], Awaitable[Receipt]],  # noqa: ARG002 - for an engine that accepts single events
        prepare: Callable[[Event], tuple[str, bytes] | Receipt],
    ) -> list[Receipt]:
        """Accept events, and write the events to the spool in groups; see `Engine.accept_many`."""
        return await accept_many(events, self.intake, prepare=prepare)

    async def accept_envelopes(
        self,
        envelopes: Sequence[bytes],
        reader: EnvelopeReader,
        *,
        track: Callable[[Event], Awaitable[Receipt]],  # noqa: ARG002 - as in `accept_many`
    ) -> list[Receipt | EventValidationError]:
        """Accept events as envelopes, and write the events to the spool in groups; see `Engine.accept_envelopes`."""
        return await accept_envelopes(envelopes, reader, self.intake)

    async def send(self, path: str, body: bytes, names: Sequence[str], visitors: Sequence[str]) -> Delivered:
        """Send one request without writing its events to the spool; see `Dispatcher.send`."""
        self.affinity.enter()
        self.intake.check_open()
        self._ledger.track_direct(len(names))
        outcome: Outcome = Abandoned(reason="cancelled", maybe_recorded=True)
        try:
            outcome = await self.engine.send(path, body, names, visitors)
        except DeliveryError as error:
            outcome = error.outcome
            raise
        else:
            return outcome
        finally:
            self._ledger.settle_direct(outcome, names)

    async def flush(self, timeout: float | None) -> None:  # noqa: ASYNC109 - given by `Engine`
        """Return when every event that this process has tracked so far has its outcome.

        Args:
            timeout: seconds to wait; None for no limit.

        Raises:
            FlushTimeoutError: some events had no outcome after `timeout` seconds.
            SpoolError: the spool cannot be used.
        """
        loop = self.affinity.enter()
        try:
            async with timeout_at(None if timeout is None else loop.time() + timeout):
                await self._flush()
        except TimeoutError:
            raise FlushTimeoutError(
                f"{self._ledger.process_events.pending} event(s) had no outcome after {timeout} s"
                f"{self.engine.longest_chain()}; they stay in the spool and go on being sent"
            ) from None

    async def _flush(self) -> None:
        running = self._running
        if running is None:
            return
        try:
            await running.written()
        except SpoolError:
            # If the client is closing, `aclose` settles every event in the end, so the error does not matter here.
            if not self.intake.closed:
                raise
            return
        await running.settled_all()

    async def aclose(self, timeout: float | None) -> CloseReport:  # noqa: ASYNC109 - given by `Engine`
        """Accept no more events, flush for up to `timeout` seconds, and close.

        Events that have no outcome after this time stay in the file. If a call of `aclose` is cancelled, a separate
        task goes on to close the client, but does not wait for further outcomes.
        """
        self.affinity.enter()
        if self._closing is None:
            self.intake.closed = True
            self._closing = self.affinity.create_task(self._close())
        timer = None if timeout is None else self.affinity.call_later(timeout, self._hurry.set)
        try:
            return await asyncio.shield(self._closing)
        except asyncio.CancelledError:
            self._hurry.set()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    async def _close(self) -> CloseReport:
        running = self._running
        if running is None:
            return await self.engine.aclose(0.0)
        try:
            await self._unless_hurried(self._flush())
        finally:
            running.forwarder.stop()
            if not running.forwarder.file_gone:
                self.engine.give_back()
            report = await self._close_engine()
            await running.end()
        return attrs.evolve(report, stats=self._with_spool(report.stats))

    async def _close_engine(self) -> CloseReport:
        await self._unless_hurried(self.engine.aclose(None))
        return await self.engine.aclose(0.0)

    async def _unless_hurried(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Await a coroutine, but cancel the coroutine if the time-out of `aclose` has passed or the engine cannot send.

        The engine cannot send if its state is not "sending". Cancelling loses no event: all events are in the file.
        """
        doing = asyncio.ensure_future(coroutine)
        hurrying = asyncio.ensure_future(self._hurry.wait())
        try:
            while not doing.done() and not hurrying.done() and self.engine.state == "sending":
                await asyncio.wait({doing, hurrying}, timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED)
        finally:
            doing.cancel()
            hurrying.cancel()
            await asyncio.wait({doing, hurrying})

    def stats(self) -> Stats:
        """Return a snapshot of the counters; may be called in any thread."""
        return self._counters() if self.affinity.here() else consistent(self._counters)

    def _counters(self) -> Stats:
        return self._with_spool(self.engine.counters())

    def _with_spool(self, stats: Stats) -> Stats:
        sends = self._running is not None and self._running.forwarder.sending
        return self._ledger.stats(stats, waiting=self._unwritten, sends=sends)

    def nothing_to_lose(self) -> None:
        """From now on, do not log unsent events when the client or its loop ends; see `Dispatcher.nothing_to_lose`."""
        self.engine.nothing_to_lose()

    def loses(self, how: str) -> None:
        """Log how many events are left in the spool; only the first call logs. See `Dispatcher.loses`."""
        self.engine.loses(how)

    def hook_failed(self, name: str, error: BaseException) -> None:
        """Count an error that a user's hook raised in the caller's task."""
        self.engine.hook_failed(name, error)

    @property
    def affinity(self) -> LoopAffinity:
        """The one event loop that the client belongs to."""
        return self.engine.affinity

    @property
    def started(self) -> bool:
        """Whether the client has been used."""
        return self.engine.started

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._closing is not None
