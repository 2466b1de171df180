"""Runs a spool from the first event to `aclose`: creates writer and forwarder, and handles the writer's reports."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from retailrocket_async._errors import SpoolError
from retailrocket_async._outcome import Dropped
from retailrocket_async._receipt import share_of
from retailrocket_async._spool.failures import SpoolGoneError
from retailrocket_async._spool.forwarder import Forwarder
from retailrocket_async._spool.outcome_codec import encode_outcome
from retailrocket_async._spool.window import Window
from retailrocket_async._spool.writer import SpoolWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retailrocket_async._delivery.dispatcher import Dispatcher
    from retailrocket_async._errors import SpoolFullError
    from retailrocket_async._queue.eviction import Overflow
    from retailrocket_async._queue.options import Batching
    from retailrocket_async._spool.entries import Entry
    from retailrocket_async._spool.file import SpoolFile, Usage
    from retailrocket_async._spool.ledger import SpoolLedger
    from retailrocket_async._spool.outcome_log import LogEntry
    from retailrocket_async._spool.spool import SqliteSpool

_CATCH_UP_AGAIN: Final = 0.5
"""Seconds until `missed` looks up missing outcomes again if the file could not be read."""

_GRACE: Final = 1.0
"""Largest number of seconds that `end` waits for the writer's thread to close the file, even if the time-out of
`aclose` has passed."""


class RunningSpool:
    """Connects the writer, the forwarder, the engine and the ledger of a spool.

    A `RunningSpool` is also the writer's listener: the writer reports by calling its methods, see `WriterListener`.

    Args:
        spool: the settings of the spool.
        file: the file of the spool.
        engine: sends the events.
        ledger: counts the events of this process.
        batching: the bounds of a batch.
        once: names of events that are not sent again if the API may have recorded them.
        overflow: what happens if the spool is full; see `Buffer.overflow`.

    Attributes:
        writer: writes events and outcomes to the file.
        forwarder: passes events from the file to the engine.
    """

    def __init__(  # noqa: PLR0913 - its collaborators, and the settings of a spool
        self,
        spool: SqliteSpool,
        file: SpoolFile,
        engine: Dispatcher,
        ledger: SpoolLedger,
        *,
        batching: Batching,
        once: frozenset[str],
        overflow: Overflow,
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._forwarding: asyncio.Task[None] | None = None
        loop = engine.affinity.enter()
        self.writer = SpoolWriter(
            file,
            self,
            loop=loop,
            clock=loop.time,
            overflow=overflow,
            max_bytes=spool.max_bytes,
            min_free=spool.min_free,
            patience=spool.full_timeout,
            flushes=spool.durability == "interval",
            overflowed=_overflowed,
        )
        window = Window(
            # Allow twice the number of events that can be in flight: while the first half is in flight, the second half
            # fills the next batches.
            2 * batching.max_in_flight * batching.max_events,
            # Allow at most a quarter of the spool's size, because `drop_oldest` can drop only events that the engine
            # does not have yet.
            min(2 * batching.max_in_flight * batching.max_bytes, spool.max_bytes // 4),
        )
        self.forwarder = Forwarder(
            self.writer,
            engine,
            window,
            once=once,
            max_age=spool.max_age,
            lease_validity=file.lease.validity,
            clock=loop.time,
        )

    def start(self) -> None:
        """Start the writer's thread, and the task that passes events to the engine.

        Raises:
            SpoolError: no thread can be started.
        """
        self.writer.start(self.forwarder.reader)
        self._forwarding = self._engine.affinity.create_task(self.forwarder.run(self._ledger.process_events))

    # --- flushing and ending ------------------------------------------------------------------------------------------

    async def written(self) -> None:
        """Return when all events that were accepted before this call are in the file.

        Raises:
            SpoolError: the file cannot be used.
        """
        await self.writer.submit(lambda _: None)

    async def settled_all(self) -> None:
        """Return when all events of this process that are in the file now have an outcome.

        During this call, batches are sent at once, even if the batches are not full.
        """
        affinity, forwarder = self._engine.affinity, self.forwarder
        flushed = affinity.create_task(self._ledger.process_events.flushed(affinity.enter().create_future()))
        try:
            forwarder.skip_linger = True
            self._engine.hurry()
            forwarder.appended()
            await flushed
        finally:
            flushed.cancel()
            forwarder.skip_linger = False

    async def end(self) -> None:
        """Release the lease, close the file, and give every event an outcome. Call this after the engine was closed."""
        writer, forwarder = self.writer, self.forwarder
        # `_settle_rest` needs the id up to which another process may have sent events. If this process sends, the
        # reader knows this id; otherwise the id is read from the file.
        asked = None if forwarder.sending else writer.submit(lambda file: file.events.read_to())
        sent_to: int | None = forwarder.reader.read_before
        forwarder.release_lease()
        await asyncio.wait({writer.stop()}, timeout=_GRACE)
        writer.join()
        if self._forwarding is not None:
            self._forwarding.cancel()
        if asked is not None:
            sent_to = None if not asked.done() or asked.exception() is not None else asked.result()
        self._settle_rest(sent_to)

    def _settle_rest(self, sent_to: int | None) -> None:
        """Give an outcome to every event of this process that has no outcome yet.

        Args:
            sent_to: the id up to which another process may have sent events; None if the id is not known.
        """
        file_gone = self.forwarder.file_gone
        self._ledger.settle_pending(self.writer.pop_unsettled(), file_gone=file_gone)
        self._settle_kept()
        if file_gone:
            self._ledger.lose()
        self._ledger.keep(sent_to)

    def _settle_kept(self) -> None:
        kept, self.forwarder.kept = self.forwarder.kept, []
        self._ledger.settle_kept(kept)

    # --- the writer's listener ----------------------------------------------------------------------------------------

    def committed(self, entries: Sequence[Entry], last: int, *, claimed: bool) -> None:
        """Return the receipts of written events to the callers that wait, and let the forwarder feed the engine."""
        self.writer.waiting -= len(entries)
        if self._ledger.failure is not None:
            self._file_works()
        self._ledger.process_events.accepted([receipt for _, receipt, _ in entries], last)
        for _, receipt, admitted in entries:
            if admitted is not None and not admitted.done():
                admitted.set_result(receipt)
        if claimed:
            self.forwarder.feed_claimed(entries, last)
        else:
            self.forwarder.appended()

    def refused(self, entries: Sequence[Entry], error: SpoolError | SpoolFullError | None) -> None:
        """Raise `error` in the callers that wait, and drop the events of callers that do not wait.

        If `error` is None, drop the events of all callers.
        """
        self.writer.waiting -= len(entries)
        for envelope, receipt, admitted in entries:
            if admitted is not None and admitted.done():
                continue
            if error is not None and admitted is not None:
                admitted.set_exception(error)
                continue
            # There is no error, or the caller does not wait and cannot get the error, so the event is dropped.
            dropped = Dropped(reason="overflow")
            self._ledger.drop_direct(dropped, [receipt.event_name])
            self._engine.intake.end(envelope, share_of(receipt), dropped)
            if admitted is not None:
                admitted.set_result(receipt)

    def settled(self, log: Sequence[LogEntry]) -> None:
        """Give events of this process the outcomes that the new entries of the outcome log contain."""
        self._ledger.settle_log(log)

    def missed(self) -> None:
        """Look up which events of this process still wait in the file.

        All other events of this process get the outcome in the log or, if the log has none any more, `Abandoned`.
        """
        self.writer.catch_up(self._ledger.process_events.spans()).add_done_callback(self._caught_up)

    def _caught_up(self, found: asyncio.Future[tuple[list[int], list[LogEntry]]]) -> None:
        if found.cancelled():
            return
        if found.exception() is not None:
            # The writer calls `missed` only once for the same missing log entries, so the look-up is repeated here.
            if not self.writer.over:
                self._engine.affinity.call_later(_CATCH_UP_AGAIN, self.missed)
            return
        waiting, log = found.result()
        self._ledger.settle_log(log)
        self._ledger.settle_unknown(waiting)

    def measured(self, usage: Usage) -> None:
        """Note that the file can be used, and store how many events and bytes the file contains."""
        self._ledger.usage = usage
        self._file_works()

    def _file_works(self) -> None:
        self._ledger.failure = None
        self.forwarder.file_gone = False

    def failed(self, error: SpoolError) -> None:
        """Store the reason why the file cannot be used, and log the reason."""
        self._ledger.failure = error
        self.forwarder.file_gone = isinstance(error, SpoolGoneError)
        self._engine.spool_failed(error)

    def lease_lost(self, error: SpoolError) -> None:
        """Stop sending, because another process sends the events now and writes their outcomes."""
        self.writer.term += 1
        # Outcomes that were not written are discarded, because the other process sends these events again.
        self.writer.pop_unsettled()
        self.forwarder.lose()
        self._engine.spool_failed(error)

    def replaced(self) -> None:
        """Give every event of the old file an outcome, and continue with the file that has replaced the old file."""
        self.writer.term += 1
        self._ledger.settle_pending(self.writer.pop_unsettled(), file_gone=True)
        self.forwarder.file_gone = True
        self.forwarder.lose()
        self._settle_kept()
        lost = self._ledger.lose()
        self._file_works()
        self._engine.spool_failed(
            SpoolError(
                f"another spool is in the place of the one that was open: {lost} event(s) of this process that it"
                " held are lost, unless somebody has the old directory"
            )
        )

    def ended(self, error: SpoolError) -> None:
        """Stop sending: without the writer's thread no outcome is written, and another process may take the lease."""
        self._ledger.failure, self._ledger.ended = error, True
        self.writer.term += 1
        self.forwarder.stop()
        self.forwarder.reader.sending = False
        self._engine.recall()
        self._settle_rest(None)
        self._engine.spool_ended(error)


def _overflowed(name: str) -> str:
    return encode_outcome(Dropped(reason="overflow"), name)
