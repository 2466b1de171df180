"""Accepts events into a spool: an event is accepted as soon as the event is on disk."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from retailrocket_async._errors import ClientClosedError, SpoolError, SpoolFullError
from retailrocket_async._fate import Fate
from retailrocket_async._outcome import Dropped
from retailrocket_async._receipt import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from retailrocket_async._delivery.dispatcher import Dispatcher
    from retailrocket_async._events.models import Event
    from retailrocket_async._spool.entries import Entry
    from retailrocket_async._spool.ledger import SpoolLedger
    from retailrocket_async._spool.writer import SpoolWriter

_SHARED: Final = 20
"""Number of events that share a fate. The number is small because `ProcessEvents` forgets a fate only if no caller
holds any of its receipts."""

_MOST_UNWRITTEN: Final = 10_000
"""Number of unwritten events above which `track_nowait` raises `SpoolFullError`."""


class WriterSource(Protocol):
    """Provides the writer of the spool, and starts the writer for the first event."""

    @property
    def writer(self) -> SpoolWriter | None:
        """The writer; None until the writer is started."""
        ...

    def started_writer(self) -> SpoolWriter:
        """Return the writer; the first call starts the writer."""
        ...


class SpoolIntake:
    """Passes events to the writer of a spool; has the methods of `EventIntake`.

    Args:
        source: returns the writer, and starts the writer if necessary.
        engine: the engine that sends; also counts and reports the events that `before_send` drops.
        ledger: counts all events of the client, also those that `before_send` drops.

    Attributes:
        left_in_a_row: number of events that may be accepted before the caller should let other tasks run. The value is
            always 1 and never decreases, because other tasks can run while an event waits for the disk.
        closed: whether new events are refused, because `aclose` was called.
    """

    def __init__(self, source: WriterSource, engine: Dispatcher, ledger: SpoolLedger) -> None:
        self._source = source
        self._engine = engine
        self._ledger = ledger
        self._affinity = engine.affinity
        self._write: Callable[[Entry], None] | None = None
        # The fate of the next event, and of events before it.
        self._fate = Fate([])
        self.left_in_a_row = 1
        self.closed = False

    def accept_now(self, event: Event, envelope: bytes) -> Receipt | None:  # noqa: ARG002 - given by `EventIntake`
        """Return None, because no event can be accepted without waiting for the disk."""
        return None

    def wait_for_room(self, event: Event, envelope: bytes) -> asyncio.Future[Receipt]:
        """Pass an event to the writer; return a future that gets the event's receipt when the event is on disk."""
        admitted: asyncio.Future[Receipt] = self._affinity.enter().create_future()
        self._put(event.wire_name or event.event_name, envelope, admitted)
        return admitted

    async def accept(self, event: Event, envelope: bytes) -> Receipt:
        """Write an event, and return its receipt when the event is on disk."""
        return await self.wait_for_room(event, envelope)

    def accept_nowait(self, event: Event, envelope: bytes) -> Receipt:
        """Pass an event to the writer and return its receipt; the event is written to the disk soon after.

        Raises:
            SpoolFullError: the spool is full, or 10,000 or more events wait for the disk.
        """
        self._affinity.enter()
        writer = self._source.writer
        if writer is not None and (writer.capacity.full or writer.waiting >= _MOST_UNWRITTEN):
            raise SpoolFullError("the spool takes no more right now; wait (track), or raise its bounds")
        return self._put(event.wire_name or event.event_name, envelope, None)

    async def accept_many(self, events: Sequence[tuple[str, bytes]]) -> list[Receipt]:
        """Write events together, and return their receipts when all of them are on disk.

        Args:
            events: the name and the envelope (JSON) of each event.

        Raises:
            SpoolError, SpoolFullError: some events were not accepted.
        """
        receipts, error = await self.accept_group(events)
        if error is not None:
            raise error
        return receipts

    async def accept_group(
        self, events: Sequence[tuple[str, bytes]]
    ) -> tuple[list[Receipt], SpoolError | SpoolFullError | None]:
        """Write events together; return the receipts of the accepted events, and the error that ended the group.

        If an event is not accepted, all later events of the group are withdrawn. The method then returns the receipts
        of the earlier events, and the error of the refused event. The error is None if all events are on disk.

        Args:
            events: the name and the envelope (JSON) of each event.
        """
        loop = self._affinity.enter()
        waiting: list[asyncio.Future[Receipt]] = [loop.create_future() for _ in events]
        for (name, envelope), admitted in zip(events, waiting, strict=True):
            self._put(name, envelope, admitted)
        receipts: list[Receipt] = []
        try:
            for admitted in waiting:
                receipts.append(await admitted)  # noqa: PERF401 - an error must not lose earlier receipts
        except (SpoolError, SpoolFullError) as error:
            return receipts, error
        finally:
            # After an error, or a cancellation of this call, the remaining events are withdrawn. If a remaining event
            # was refused, its error is retrieved, because asyncio would otherwise log the error.
            for admitted in waiting[len(receipts) :]:
                if not admitted.cancel() and not admitted.cancelled():
                    admitted.exception()
        return receipts, None

    def refuse(self, event: Event, envelope: bytes, *, tell: bool) -> Receipt:
        """Count an event that `before_send` drops, and return its receipt.

        Args:
            event: the event.
            envelope: the JSON of the event.
            tell: whether `on_outcome` is called for this event.
        """
        self._affinity.enter()
        self.check_open()
        receipt = self._engine.intake.refuse(event, envelope, tell=tell)
        self._ledger.drop_direct(Dropped(reason="before_send"), [event.event_name])
        return receipt

    async def let_others_run(self) -> None:
        """Let other tasks run once."""
        await asyncio.sleep(0)

    def check_open(self) -> None:
        """Raise `ClientClosedError` if `aclose` was called, because no event is accepted after this call."""
        if self.closed:
            raise ClientClosedError("the client is closed, or is closing, and takes no new events")

    def _put(self, name: str, envelope: bytes, admitted: asyncio.Future[Receipt] | None) -> Receipt:
        if self.closed:
            self.check_open()
        write = self._write
        if write is None:
            write = self._write = self._source.started_writer().put
        if len(self._fate.names) >= _SHARED:
            self._fate = Fate([])
        fate = self._fate
        fate.names.append(name)
        receipt = Receipt(fate, len(fate.names) - 1)
        write((envelope, receipt, admitted))
        return receipt
