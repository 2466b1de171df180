"""The engine of a client with a spool: the caller's events go to disk first, and come to the real engine from there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import attrs

from retailrocket_async._delivery.counts import OutcomeCounts, merged
from retailrocket_async._errors import (
    ClientClosedError,
    DeliveryError,
    FlushTimeoutError,
    SpoolError,
    SpoolFullError,
)
from retailrocket_async._outcome import Abandoned, Dropped, Kept
from retailrocket_async._runtime.context import timeout_at
from retailrocket_async._spool.bulk_intake import accept_envelopes, accept_many
from retailrocket_async._spool.file import Usage, now
from retailrocket_async._spool.forwarder import Forwarder, LeasedLimiter
from retailrocket_async._spool.place import SpoolGoneError
from retailrocket_async._spool.process_events import ProcessEvents, SpoolReceipt
from retailrocket_async._spool.spool import decode_outcome, encode_outcome
from retailrocket_async._spool.writer import SpoolWriter
from retailrocket_async._stats import SpoolStats, consistent

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Sequence

    from retailrocket_async._delivery.dispatcher import Dispatcher
    from retailrocket_async._delivery.rate_limiter import Limiter
    from retailrocket_async._errors import EventValidationError
    from retailrocket_async._events.envelopes import EnvelopeReader
    from retailrocket_async._events.models import Event
    from retailrocket_async._outcome import Delivered, Outcome
    from retailrocket_async._queue.eviction import Overflow
    from retailrocket_async._queue.options import Batching
    from retailrocket_async._receipt import Receipt
    from retailrocket_async._runtime.loop_affinity import LoopAffinity
    from retailrocket_async._spool.file import Logged
    from retailrocket_async._spool.spool import SqliteSpool
    from retailrocket_async._spool.writer import Entry
    from retailrocket_async._stats import CloseReport, Stats

_LOOK: Final = 0.1
"""Seconds between two looks whether requests get through, while a close waits for them."""

_GRACE: Final = 1.0
"""Seconds that the file gets to be closed, after the deadline of a close, before it is left to its thread."""

_AGAIN: Final = 0.5
"""Seconds until the file is asked again what became of own events, if it could not be read."""

_MOST_UNWRITTEN: Final = 10_000
"""Events on their way to the disk from which on nothing is taken that does not wait for it."""


_LOST: Final = Abandoned(reason="lost", maybe_recorded=True, attempts=0)


class SpoolIntake:
    """The caller's side: an event is accepted when it is in the file. See `Intake`, whose methods these are."""

    def __init__(self, spooled: SpooledDispatcher) -> None:
        self._spooled = spooled
        self._affinity = spooled.engine.affinity
        self._write: Callable[[Entry], None] | None = None
        self.left_in_a_row = 1
        self.closed = False

    def accept_now(self, event: Event, envelope: bytes) -> Receipt | None:  # noqa: ARG002 - as Intake's
        """Return None: an event has to wait for the disk."""
        return None

    def wait_for_room(self, event: Event, envelope: bytes) -> asyncio.Future[Receipt]:
        """Return what gives the event's receipt once it is on disk."""
        admitted: asyncio.Future[Receipt] = self._affinity.enter().create_future()
        self._put(event.wire_name or event.event_name, envelope, admitted)
        return admitted

    async def accept(self, event: Event, envelope: bytes) -> Receipt:
        """Return the event's receipt once it is on disk."""
        return await self.wait_for_room(event, envelope)

    def accept_nowait(self, event: Event, envelope: bytes) -> Receipt:
        """Return the receipt of an event that will be on disk in a moment."""
        self._affinity.enter()
        writer = self._spooled.writer
        if writer is not None and (writer.full or writer.waiting >= _MOST_UNWRITTEN):
            raise SpoolFullError("the spool takes no more right now; wait (track), or raise its bounds")
        return self._put(event.wire_name or event.event_name, envelope, None)

    async def accept_many(self, events: Sequence[tuple[str, bytes]]) -> list[Receipt]:
        """Return the receipts of events, given by name and envelope, once all of them are on disk, written together."""
        receipts, error = await self.accept_group(events)
        if error is not None:
            raise error
        return receipts

    async def accept_group(
        self, events: Sequence[tuple[str, bytes]]
    ) -> tuple[list[Receipt], SpoolError | SpoolFullError | None]:
        """Return the receipts of the events that are on disk, and why those behind them are not accepted."""
        loop = self._affinity.enter()
        waiting: list[asyncio.Future[Receipt]] = [loop.create_future() for _ in events]
        for (name, envelope), admitted in zip(events, waiting, strict=True):
            self._put(name, envelope, admitted)
        receipts: list[Receipt] = []
        try:
            for admitted in waiting:
                receipts.append(await admitted)  # noqa: PERF401 - the receipts so far count if a later one fails
        except (SpoolError, SpoolFullError) as error:
            return receipts, error
        finally:
            # Those behind one that failed, or all where this call is cancelled, are withdrawn; an error is looked at.
            for admitted in waiting[len(receipts) :]:
                if not admitted.cancel() and not admitted.cancelled():
                    admitted.exception()
        return receipts, None

    def refuse(self, event: Event, envelope: bytes, *, tell: bool) -> Receipt:
        """Count an event that `before_send` does not want to be sent."""
        self._affinity.enter()
        self.check_open()
        receipt = self._spooled.engine.intake.refuse(event, envelope, tell=tell)
        self._spooled.count(Dropped(reason="before_send"), [event.event_name])
        return receipt

    async def let_others_run(self) -> None:
        """Yield."""
        await asyncio.sleep(0)

    def check_open(self) -> None:
        """Raise `ClientClosedError` where nothing is taken any more."""
        if self.closed:
            raise ClientClosedError("the client is closed, or is closing, and takes no new events")

    def _put(self, name: str, envelope: bytes, admitted: asyncio.Future[Receipt] | None) -> Receipt:
        if self.closed:
            self.check_open()
        write = self._write
        if write is None:
            write = self._write = self._spooled.started_writer().put
        receipt = SpoolReceipt(name)
        write((envelope, receipt, admitted))
        return receipt


class SpooledDispatcher:
    """Takes the place of the `Dispatcher` where there is a spool, and drives it; see the module's text.

    Args:
        spool: where events wait.
        shop: the partner id.
        make_engine: makes the engine, given what says how events end, and what makes its limiter of another one.
        batching: caps of a batch.
        once: names of events that are not sent again once they may have been recorded.
        overflow: what a full spool does.

    Attributes:
        engine: the engine.
        intake: takes the events.
        writer: the way to the file; None before the first use.
    """

    def __init__(  # noqa: PLR0913 - the composition root fills it in
        self,
        spool: SqliteSpool,
        shop: str,
        make_engine: Callable[[Callable[..., Outcome], Callable[[Limiter], Limiter]], Dispatcher],
        *,
        batching: Batching,
        once: frozenset[str],
        overflow: Overflow,
    ) -> None:
        self._spool = spool
        self._file = spool.file(shop)
        self._batching = batching
        self._once = once
        self._overflow: Overflow = overflow
        self._process_events = ProcessEvents()
        self.engine = make_engine(self._keep, lambda limiter: LeasedLimiter(limiter, self._may_send))
        self.engine.kept_elsewhere = lambda: (
            self._process_events.pending + (0 if self.writer is None else self.writer.waiting)
        )
        self.intake = SpoolIntake(self)
        self.writer: SpoolWriter | None = None
        # The events of direct sends, and others that never were in the file.
        self._direct = OutcomeCounts()
        self._direct_tracked = 0
        self._forwarder: Forwarder | None = None
        self._draining: asyncio.Task[None] | None = None
        self._usage = Usage(0, 0, 0, None)
        self._failure: SpoolError | None = None
        self._ended = False
        self._tracked_at = 0
        self._closing: asyncio.Task[CloseReport] | None = None
        self._hurry: asyncio.Event = asyncio.Event()

    # --- the file -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the spool, and begin to deliver what is in it.

        Raises:
            SpoolError: it cannot be used.
        """
        self.affinity.enter()
        if self._closing is None:
            await self.started_writer().ask(lambda _: None)

    def started_writer(self) -> SpoolWriter:
        """Return the way to the file; the first call starts everything."""
        if self.writer is None:
            loop, batching = self.affinity.enter(), self._batching
            writer = SpoolWriter(
                self._file,
                self,
                loop=loop,
                clock=loop.time,
                overflow=self._overflow,
                max_bytes=self._spool.max_bytes,
                min_free=self._spool.min_free,
                patience=self._spool.full_timeout,
                flushes=self._spool.durability == "interval",
                overflowed=_overflowed,
            )
            forwarder = writer.reader = Forwarder(
                writer,
                self.engine,
                once=self._once,
                keyed=batching.ordered or batching.by_session,
                # What is on the wire, and as much again to fill the next batches from.
                window=2 * batching.max_in_flight * batching.max_events,
                # A quarter of a small spool at most, so that the oldest events can give way to new ones.
                window_bytes=min(2 * batching.max_in_flight * batching.max_bytes, self._spool.max_bytes // 4),
                max_age=self._spool.max_age,
                # Half of the time after which another process takes over: less than that is left for the request.
                lease=self._file.silence / 2,
                clock=loop.time,
            )
            # Without its thread nothing would ever come of what it is given.
            writer.start()
            self.writer, self._forwarder = writer, forwarder
            self._draining = self.affinity.create_task(forwarder.run(lambda: bool(self._process_events.pending)))
        return self.writer

    def _keep(self, batch: Any, outcome: Outcome) -> Outcome:  # noqa: ANN401 - a Batch, as the forwarder knows
        return outcome if self._forwarder is None else self._forwarder.keep(batch, outcome)

    def _may_send(self) -> bool:
        return self._forwarder is None or self._forwarder.may_send()

    def committed(self, entries: Sequence[Entry], last: int, *, taken: bool) -> None:
        """Tell callers that their events are in the file."""
        assert self.writer is not None  # noqa: S101 - it is what calls this
        self.writer.waiting -= len(entries)
        if self._failure is not None:
            self._worked()
        self._process_events.accepted([receipt for _, receipt, _ in entries], last)
        for _, receipt, admitted in entries:
            if admitted is not None and not admitted.done():
                admitted.set_result(receipt)
        if self._forwarder is not None and taken:
            self._forwarder.feed_own(entries, last)
        elif self._forwarder is not None:
            self._forwarder.appended()

    def refused(self, entries: Sequence[Entry], error: SpoolError | SpoolFullError | None) -> None:
        """Tell callers that their events are not in the file."""
        assert self.writer is not None  # noqa: S101 - as above
        self.writer.waiting -= len(entries)
        for envelope, receipt, admitted in entries:
            if admitted is not None and admitted.done():
                continue
            if error is not None and admitted is not None:
                admitted.set_exception(error)
                continue
            # Dropped, or nobody is there to be told by an exception.
            dropped = Dropped(reason="overflow")
            self.count(dropped, [receipt.event_name])
            self.engine.intake.end(envelope, receipt, dropped)
            if admitted is not None:
                admitted.set_result(receipt)

    def settled(self, log: Sequence[Logged]) -> None:
        """Give own events the outcomes that the log tells."""
        for entry in log:
            self._process_events.settled(entry.ids, *_heard(entry.outcome))

    def missed(self) -> None:
        """Find out which own events have an outcome that nobody tells any more."""
        assert self.writer is not None  # noqa: S101 - as above
        self.writer.catch_up(self._process_events.spans()).add_done_callback(self._caught_up)

    def _caught_up(self, found: asyncio.Future[tuple[list[int], list[Logged]]]) -> None:
        if found.cancelled():
            return
        if found.exception() is not None:
            # Nothing else would bring this here again.
            if self.writer is not None and not self.writer.over:
                self.affinity.call_later(_AGAIN, self.missed)
            return
        waiting, log = found.result()
        self.settled(log)
        self._process_events.forget(waiting, Abandoned(reason="untold", maybe_recorded=True, attempts=0))

    def measured(self, usage: Usage) -> None:
        """Note how much is in the file, which can be used."""
        self._usage = usage
        self._worked()

    def _worked(self) -> None:
        self._failure = None
        if self._forwarder is not None:
            self._forwarder.gone = False

    def failed(self, error: SpoolError) -> None:
        """Tell that the file could not be used."""
        self._failure = error
        if self._forwarder is not None:
            self._forwarder.gone = isinstance(error, SpoolGoneError)
        self.engine.spool_failed(error)

    def lead_lost(self, error: SpoolError) -> None:
        """Send no more: another process does, and tells what becomes of the events."""
        assert self.writer is not None  # noqa: S101 - as above
        assert self._forwarder is not None  # noqa: S101 - as above
        self.writer.term += 1
        # What was not written yet is void: the other process sends those events again.
        self.writer.unsettled()
        self._forwarder.lose()
        self.engine.spool_failed(error)

    def replaced(self) -> None:
        """Give every event of the file that is gone its outcome, and go on with the one in its place."""
        assert self.writer is not None  # noqa: S101 - as above
        assert self._forwarder is not None  # noqa: S101 - as above
        self.writer.term += 1
        for settlement, _ in self.writer.unsettled():
            self._process_events.settled(settlement.ids, *_heard(settlement.outcome))
        self._forwarder.gone = True
        self._forwarder.lose()
        self._end_fed()
        lost = self._process_events.pending
        self._process_events.forget([], _LOST)
        self._worked()
        self.engine.spool_failed(
            SpoolError(
                f"another spool is in the place of the one that was open: {lost} event(s) of this process that it"
                " held are lost, unless somebody has the old directory"
            )
        )

    def ended(self, error: SpoolError) -> None:
        """Send no more: what comes of events cannot be written, and another process takes this one's place."""
        assert self.writer is not None  # noqa: S101 - as above
        assert self._forwarder is not None  # noqa: S101 - as above
        self._failure, self._ended = error, True
        self.writer.term += 1
        self._forwarder.stop()
        self._forwarder.leads = False
        self.engine.recall()
        self._end_own(None)
        self.engine.spool_ended(error)

    def _end_fed(self) -> None:
        """Give events that were with the engine, and are not any more, their outcome."""
        assert self._forwarder is not None  # noqa: S101 - as above
        kept, self._forwarder.kept = self._forwarder.kept, []
        for ids, outcome in kept:
            self._process_events.settled(ids, outcome)

    def _end_own(self, sent: int | None) -> None:
        """Give every event of this process its outcome, as far as it is known.

        Args:
            sent: up to this id another process may have sent them; None if that is not known.
        """
        assert self.writer is not None  # noqa: S101 - as above
        assert self._forwarder is not None  # noqa: S101 - as above
        gone = self._forwarder.gone
        for settlement, written in self.writer.unsettled():
            outcome, name = _heard(settlement.outcome)
            if not written and not gone:
                # It is in the file still, and will be sent again.
                outcome = Kept(maybe_recorded=outcome.maybe_recorded, attempts=outcome.attempts)
            self._process_events.settled(settlement.ids, outcome, name)
        self._end_fed()
        if gone:
            self._process_events.forget([], _LOST)
        if sent is None or sent > 0:
            self._process_events.settled([(1, 1 << 62 if sent is None else sent)], Kept(maybe_recorded=True))
        self._process_events.keep(Kept())

    def count(self, outcome: Outcome, names: Sequence[str]) -> None:
        """Count events that never were in the file."""
        self._direct_tracked += len(names)
        self._direct.add(outcome, len(names), names)

    # --- as the Dispatcher --------------------------------------------------------------------------------------------

    async def accept_many(
        self,
        events: Iterable[Event] | AsyncIterable[Event],
        *,
        track: Callable[[Event], Awaitable[Receipt]],  # noqa: ARG002 - for an engine that accepts single events
        prepare: Callable[[Event], tuple[str, bytes] | Receipt],
    ) -> list[Receipt]:
        """Accept events, written in groups; see `Engine.accept_many`."""
        return await accept_many(events, self.intake, prepare=prepare)

    async def accept_envelopes(
        self,
        envelopes: Sequence[bytes],
        reader: EnvelopeReader,
        *,
        track: Callable[[Event], Awaitable[Receipt]],  # noqa: ARG002 - as above
    ) -> list[Receipt | EventValidationError]:
        """Accept the events that envelopes describe, written in groups; see `Engine.accept_envelopes`."""
        return await accept_envelopes(envelopes, reader, self.intake)

    async def send(self, path: str, body: bytes, names: Sequence[str]) -> Delivered:
        """Send one request past the spool; see `Dispatcher.send`."""
        self.affinity.enter()
        self.intake.check_open()
        self._direct_tracked += len(names)
        outcome: Outcome = Abandoned(reason="cancelled", maybe_recorded=True)
        try:
            outcome = await self.engine.send(path, body, names)
        except DeliveryError as error:
            outcome = error.outcome
            raise
        else:
            return outcome
        finally:
            self._direct.add(outcome, len(names), names)

    async def flush(self, timeout: float | None) -> None:  # noqa: ASYNC109 - as the Dispatcher's
        """Return when everything that this process has tracked so far has its outcome."""
        loop = self.affinity.enter()
        try:
            async with timeout_at(None if timeout is None else loop.time() + timeout):
                await self._flushed()
        except TimeoutError:
            raise FlushTimeoutError(
                f"{self._process_events.pending} event(s) had no outcome after {timeout} s; "
                "they stay in the spool and go on being sent"
            ) from None

    async def _flushed(self) -> None:
        if self.writer is None or self._forwarder is None:
            return
        loop = self.affinity.enter()
        # First what is on its way to the file; where it is closed everything has its outcome.
        try:
            await self.writer.ask(lambda _: None)
        except SpoolError:
            if not self.intake.closed:
                raise
            return
        flushed = self.affinity.create_task(self._process_events.flushed(loop.create_future()))
        try:
            self._forwarder.hurries = True
            self.engine.hurry()
            self._forwarder.appended()
            await flushed
        finally:
            flushed.cancel()
            self._forwarder.hurries = False

    async def aclose(self, timeout: float | None) -> CloseReport:  # noqa: ASYNC109 - as the Dispatcher's
        """Take no more, flush within `timeout` seconds, and leave the rest in the file."""
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
        writer, forwarder = self.writer, self._forwarder
        if writer is None or forwarder is None:
            return await self.engine.aclose(0.0)
        try:
            await self._or_hurry(self._flushed())
        finally:
            forwarder.stop()
            if not forwarder.gone:
                self.engine.give_back()
            report = await self._close_engine()
            # One that sends knows what it has sent itself; of another one the file tells.
            sent = None if forwarder.leads else writer.ask(lambda file: file.read_to())
            before: int | None = forwarder.read_before
            forwarder.resign()
            await asyncio.wait({writer.stop()}, timeout=_GRACE)
            writer.join()
            if self._draining is not None:
                self._draining.cancel()
            if sent is not None:
                before = None if not sent.done() or sent.exception() is not None else sent.result()
            self._end_own(before)
        return attrs.evolve(report, stats=self._with_own(report.stats))

    async def _close_engine(self) -> CloseReport:
        await self._or_hurry(self.engine.aclose(None))
        return await self.engine.aclose(0.0)

    async def _or_hurry(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Wait for something until there is no time left, or while nothing gets through: the events are safe."""
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
        """Return a snapshot of the counters, in whatever thread."""
        return self._counters() if self.affinity.here() else consistent(self._counters)

    def _counters(self) -> Stats:
        return self._with_own(self.engine.counters())

    def _with_own(self, stats: Stats) -> Stats:
        own, direct, usage = self._process_events, self._direct, self._usage
        counts = own.counts
        return attrs.evolve(
            stats,
            tracked=own.tracked + self._direct_tracked,
            delivered=counts.delivered + direct.delivered,
            rejected=counts.rejected + direct.rejected,
            abandoned=counts.abandoned + direct.abandoned,
            dropped=counts.dropped + direct.dropped,
            dropped_by=merged(counts.dropped_copy(), direct.dropped_copy()),
            kept=counts.kept + direct.kept,
            pending=own.pending,
            in_flight=self._direct_tracked - direct.total,
            state="halted" if self._ended else stats.state,
            waiting=0 if self.writer is None else self.writer.waiting,
            spool=SpoolStats(
                sends=self._forwarder is not None and self._forwarder.leads,
                events=usage.events,
                size=usage.bytes,
                dead=usage.dead,
                oldest_age=0.0 if usage.oldest_at is None else max(0.0, now() - usage.oldest_at),
                failure=None if self._failure is None else str(self._failure),
            ),
        )

    def nothing_to_lose(self) -> None:
        """See `Dispatcher.nothing_to_lose`."""
        self.engine.nothing_to_lose()

    def loses(self, how: str) -> None:
        """Tell, once, how many events are left in the spool; see `Dispatcher.loses`."""
        self.engine.loses(how)

    def hook_failed(self, name: str, error: BaseException) -> None:
        """Count what a user's hook raised at the caller's line."""
        self.engine.hook_failed(name, error)

    @property
    def affinity(self) -> LoopAffinity:
        """The one loop that all of this belongs to."""
        return self.engine.affinity

    @property
    def started(self) -> bool:
        """Whether the client has been used."""
        return self.engine.started

    @property
    def closed(self) -> bool:
        """Whether a close has begun."""
        return self._closing is not None


def _heard(text: str) -> tuple[Outcome, str]:
    """Return the outcome that the log tells; one that is damaged, or a newer version's, is not known."""
    try:
        return decode_outcome(text)
    except (ValueError, TypeError, KeyError):
        return Abandoned(reason="untold", maybe_recorded=True, attempts=0), ""


def _overflowed(name: str) -> str:
    return encode_outcome(Dropped(reason="overflow"), name)
