"""Passes events from a spool's file to the engine, and outcomes from the engine to the file.

::

    file --read--> window --feed--> engine --keep--> settlement --write--> file --log--> events of every process

If no older event waits in the file, an event that this process has just written is passed to the engine directly,
without being read from the file. One process at a time holds the lease, the right to send; every other process tries to
acquire the lease every half second. Only a bounded number of events (the window) is in memory, even if many more events
wait in the file.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

import attrs

from retailrocket_async._errors import SpoolError
from retailrocket_async._events.codec import label_of, name_of
from retailrocket_async._fate import Fate, tags_in
from retailrocket_async._outcome import Abandoned, Delivered, Dropped, Kept
from retailrocket_async._runtime.futures import set_result
from retailrocket_async._spool.dead_letters import reason_of
from retailrocket_async._spool.file import Settlement, now
from retailrocket_async._spool.id_ranges import ranges
from retailrocket_async._spool.outcome_codec import encode_outcome
from retailrocket_async._spool.reader import SpoolReader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from retailrocket_async._delivery.dispatcher import Dispatcher
    from retailrocket_async._outcome import Outcome
    from retailrocket_async._queue.batch import Batch
    from retailrocket_async._spool.entries import Entry
    from retailrocket_async._spool.event_table import Rows
    from retailrocket_async._spool.file import SpoolFile
    from retailrocket_async._spool.id_ranges import Range
    from retailrocket_async._spool.process_events import ProcessEvents
    from retailrocket_async._spool.window import Window
    from retailrocket_async._spool.writer import SpoolWriter

_LEASE_POLL: Final = 0.5
"""Seconds between two attempts to acquire the lease; also the pause after an error of the file."""

_READ_POLL: Final = 0.05, 0.25
"""Shortest and longest pause in seconds between two reads of the file while the file has no unread events."""

_LOG_POLL: Final = 0.1
"""Seconds between two reads of the log of outcomes, while another process sends the events of this process."""


class StoredEvent(NamedTuple):
    """What the engine stores with an event of the file, as the event's tag; see `Fate.tags`.

    Attributes:
        id: the id of the event in the file.
        name: the event's name as the API spells it.
        maybe_sent: whether another process may have sent the event.
    """

    id: int
    name: str
    maybe_sent: bool


class Forwarder:
    """Passes events of the file to the engine, and passes the outcomes that the engine reports to the writer.

    Args:
        writer: calls functions that use the file, in the writer's thread.
        engine: sends the events.
        window: limits how many events the engine may have at a time.
        once: names of events that are not sent again if the API may have recorded them.
        max_age: seconds after which an event expires, that is, is not sent any more.
        lease_validity: number of seconds after each renewal of the lease in which requests may begin.
        clock: returns the loop's time in seconds; called in any thread.

    Attributes:
        reader: reads the events, in the writer's thread.
        skip_linger: whether batches are sent at once, without waiting until they are full.
        kept: ids and outcomes of events that the engine settled without an answer from the API. These events stay in
            the file, or were lost with the file.
        file_gone: whether the file is not at its path any more. The events in the file are lost then.
    """

    def __init__(  # noqa: PLR0913 - its collaborators, and the settings of a spool
        self,
        writer: SpoolWriter,
        engine: Dispatcher,
        window: Window,
        *,
        once: frozenset[str],
        max_age: float,
        lease_validity: float,
        clock: Callable[[], float],
    ) -> None:
        self._writer = writer
        self._engine = engine
        self._window = window
        self._once = once
        self._max_age = max_age
        # The time of the last event that was passed to the engine. The engine expects events in the order of time.
        self._came_at = 0.0
        # Whether this process may have sent some of the events that stay in the file.
        self._left_maybe_sent = False
        # True while `lose` withdraws all events from the engine.
        self._handing_over = False
        self._stopped = False
        self._wake: asyncio.Future[None] | None = None
        self.reader = SpoolReader(
            self, loop=engine.affinity.enter(), window=window, clock=clock, lease_validity=lease_validity
        )
        self.skip_linger = False
        self.kept: list[tuple[list[Range], Kept | Abandoned]] = []
        self.file_gone = False

    @property
    def sending(self) -> bool:
        """Whether this process sends the events of the spool."""
        return self.reader.sending

    # --- feeding ------------------------------------------------------------------------------------------------------

    async def run(self, process_events: ProcessEvents) -> None:
        """Pass events to the engine until `stop` is called.

        While another process holds the lease (the right to send), read the log of outcomes again and again as long as
        some of `process_events` have no outcome.
        """
        pause = _READ_POLL[0]
        reader = self.reader
        while not self._stopped:
            try:
                if not self.sending:
                    await self._wait_for_lease(process_events)
                elif not self._window.is_worth_reading():
                    await self._sleep(_READ_POLL[1])
                elif (await self._writer.submit(reader.read, reader.was_read)).ids:
                    pause = _READ_POLL[0]
                else:
                    pause = min(pause * 1.5, _READ_POLL[1])
                    await self._sleep(pause)
            except SpoolError:
                # The writer reports the error and opens the file again, so this task only waits.
                await self._sleep(_LEASE_POLL)

    async def _wait_for_lease(self, process_events: ProcessEvents) -> None:
        loop = asyncio.get_running_loop()
        if await self._writer.submit(self.reader.acquire_lease, self.reader.lease_acquired) is None:
            until = loop.time() + _LEASE_POLL
            while (left := until - loop.time()) > 0.0 and not self._stopped:
                if process_events.pending:
                    self._writer.poll_log()
                await self._sleep(min(_LOG_POLL, left))

    def lease_acquired(self) -> None:
        """Begin to pass events to the engine, because this process holds the lease (the right to send) now."""
        self.reader.sending = not self._stopped

    def lose(self) -> None:
        """Withdraw all events from the engine, because another process sends them or the file is lost."""
        self.reader.sending = False
        self._left_maybe_sent = False
        self._handing_over = True
        try:
            self._engine.recall()
        finally:
            self._handing_over = False
        self._wake_up()

    def damage_found(self, count: int) -> None:
        """Log that `count` damaged events became dead letters."""
        self._engine.spool_failed(
            SpoolError(
                f"{count} event(s) of the spool were damaged on disk, and are dead letters now, with the reason"
                " 'damaged': check the disk; 'retailrocket-async spool dead list' shows what is left of them"
            )
        )

    def events_read(self, rows: Rows) -> None:
        """Pass events that were read from the file to the engine."""
        if self._stopped:
            return
        time, here = now(), self._engine.affinity.now()
        late = time - self._max_age
        for number, at, body in zip(*rows, strict=True):
            # The engine must get a time that is neither in the future nor before the previous event's time. Times in
            # the file may break this rule, because the clocks of processes differ a little, and may be set back.
            came_at = max(self._came_at, min(here, here - (time - at)))
            self._feed(number, name_of(body), body, came_at, expired=at <= late)
            self._came_at = came_at
        self._fed(len(rows.ids), sum(map(len, rows.bodies)))

    def feed_claimed(self, entries: Sequence[Entry], last: int) -> None:
        """Pass events that this process has just written and claimed to the engine; see `SpoolReader.claims`.

        Args:
            entries: the events; their ids are consecutive.
            last: the id of the last event.
        """
        if self._stopped:
            return
        self._came_at = here = max(self._came_at, self._engine.affinity.now())
        for number, (envelope, receipt, _) in enumerate(entries, last - len(entries) + 1):
            self._feed(number, receipt.event_name, envelope, here, expired=False)
        self._fed(len(entries), sum([len(entry[0]) for entry in entries]))

    def _feed(self, number: int, name: str, body: bytes, came_at: float, *, expired: bool) -> None:
        maybe_sent = number <= self.reader.read_before
        stored = StoredEvent(number, name, maybe_sent)
        outcome: Outcome | None = Dropped(reason="expired") if expired else None
        if maybe_sent and name in self._once:
            outcome = Abandoned(reason="at_most_once", maybe_recorded=True, attempts=0)
        if outcome is not None:
            self._engine.intake.end(body, (Fate([name], [stored]), None), outcome)
        else:
            self._engine.intake.feed(body, name, label_of(body)[1], came_at, stored)

    def _fed(self, count: int, size: int) -> None:
        self._window.add(count, size)
        if self.skip_linger:
            self._engine.hurry()

    def appended(self) -> None:
        """Wake the task that reads the file, because events were added to the file."""
        if self.sending and self._window.is_worth_reading():
            self._wake_up()

    async def _sleep(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        wake = self._wake = loop.create_future()
        timer = loop.call_later(seconds, self._wake_up)
        try:
            await wake
        finally:
            self._wake = None
            timer.cancel()

    def _wake_up(self) -> None:
        if self._wake is not None:
            set_result(self._wake, None)

    # --- outcomes -----------------------------------------------------------------------------------------------------

    def keep(self, batch: Batch, outcome: Outcome) -> Outcome:
        """Write the outcome of a batch to the file, and return the outcome that the events of the batch get.

        The engine calls this method before it settles the receipts of a batch. If the batch was not sent because the
        engine was closed or cancelled, no outcome is written, and the events stay in the file. The method then returns
        `Kept`, or `Abandoned` with the reason "lost" if the file is gone.
        """
        events = [tag for tag in tags_in(batch.shares) if isinstance(tag, StoredEvent)]
        if not events:
            return outcome
        self._window.remove(len(events), sum(map(len, batch.envelopes)))
        if self._window.is_worth_reading():
            self._wake_up()
        if isinstance(outcome, Kept | Dropped | Abandoned) and _is_cut_short(outcome):
            maybe = outcome.maybe_recorded or any(each.maybe_sent for each in events)
            self._left_maybe_sent = self._left_maybe_sent or maybe
            kept: Kept | Abandoned = Kept(maybe_recorded=maybe, attempts=outcome.attempts)
            if self.file_gone:
                kept = Abandoned(reason="lost", maybe_recorded=maybe, attempts=outcome.attempts)
            if self.file_gone or not self._handing_over:
                self.kept.append((ranges(each.id for each in events), kept))
            return kept
        for maybe_sent in (False, True):
            chosen = [each for each in events if each.maybe_sent is maybe_sent]
            if chosen:
                self._settle(chosen, _maybe_sent_before(outcome) if maybe_sent else outcome, maybe_sent=maybe_sent)
        return outcome

    def _settle(self, events: Sequence[StoredEvent], outcome: Outcome, *, maybe_sent: bool) -> None:
        dead = None if isinstance(outcome, Delivered) else reason_of(outcome)
        by_name: dict[str, list[int]] = {}
        if isinstance(outcome, Dropped):
            # Dropped events are counted by name, so there is a separate settlement for each name.
            for each in events:
                by_name.setdefault(each.name, []).append(each.id)
        else:
            by_name[""] = [each.id for each in events]
        for name, ids in by_name.items():
            self._writer.settle(
                Settlement(ranges(ids), encode_outcome(outcome, name), dead, maybe_sent or outcome.maybe_recorded)
            )

    # --- stopping -----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop passing events to the engine."""
        self._stopped = True
        self._wake_up()

    def release_lease(self) -> None:
        """Let the writer's thread write all outcomes passed to the thread so far, and then release the lease.

        The lease is the right to send. If this process has sent none of the events that stay in the file, this is
        recorded in the file, too.
        """
        if self.sending:
            self.reader.sending = False
            release = _release if self._left_maybe_sent else _release_unsent
            self._writer.submit_until_done(release, with_lease=True)


def _release(file: SpoolFile) -> None:
    file.lease.release()


def _release_unsent(file: SpoolFile) -> None:
    """Record in the file that no waiting event was sent, and release the lease."""
    file.events.mark_read(0)
    file.lease.release()


def _is_cut_short(outcome: Kept | Dropped | Abandoned) -> bool:
    return isinstance(outcome, Kept) or outcome.reason in ("closed", "cancelled")


def _maybe_sent_before(outcome: Outcome) -> Outcome:
    """Return the outcome for events that another process may have sent, and the API may have recorded, before.

    The result is `outcome` with changed fields: for example, `maybe_recorded` is True. A `Dropped` for an expired event
    becomes an `Abandoned`.
    """
    match outcome:
        case Delivered():
            return attrs.evolve(outcome, maybe_duplicate=True)
        case Abandoned():
            return attrs.evolve(outcome, maybe_recorded=True)
        case Dropped(reason="expired"):
            return Abandoned(reason="expired", maybe_recorded=True, attempts=0)
        case _:
            return outcome
