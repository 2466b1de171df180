"""Reads a spool's events for the engine, in the writer's thread, while this process holds the lease.

Ids rise, and the reader's cursor is recorded in the file before any event up to it is sent: after a crash the next
process knows which events may have been recorded.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from retailrocket_async._outcome import Abandoned
from retailrocket_async._runtime.loop_post import post
from retailrocket_async._spool.event_table import Rows
from retailrocket_async._spool.file import Settlement, now
from retailrocket_async._spool.id_ranges import ranges
from retailrocket_async._spool.outcome_codec import encode_outcome

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

    from retailrocket_async._spool.file import SpoolFile
    from retailrocket_async._spool.window import Window


class ReaderListener(Protocol):
    """Is notified by a reader: called in the event loop."""

    def lease_acquired(self) -> None:
        """This process holds the lease, and sends from now on."""

    def events_read(self, rows: Rows) -> None:
        """Events were read, and their ids are recorded as read."""

    def damage_found(self, count: int) -> None:
        """Damaged events became dead letters; `count` is their number."""


class SpoolReader:
    """Reads events in the order of their ids; all methods but `may_send` are called in the writer's thread.

    Args:
        listener: notified in the loop.
        loop: the event loop.
        window: limits how many events the engine may have at a time.
        clock: returns the loop's time in seconds, in any thread.
        lease_validity: seconds after a renewal of the lease for which no other process can have it.

    Attributes:
        read_before: the highest id of the events that another process may have sent.
        sending: whether this process passes events to the engine; set by the loop.
    """

    def __init__(
        self,
        listener: ReaderListener,
        *,
        loop: AbstractEventLoop,
        window: Window,
        clock: Callable[[], float],
        lease_validity: float,
    ) -> None:
        self._listener = listener
        self._loop = loop
        self._window = window
        self._clock = clock
        self._lease_validity = lease_validity
        self._has_lease = False
        self._renewed_at = -math.inf
        # The id up to which events were read, or claimed without reading.
        self._cursor = 0
        self._damaged = 0
        self.read_before = 0
        self.sending = False

    # --- the lease ----------------------------------------------------------------------------------------------------

    def acquire_lease(self, file: SpoolFile) -> int | None:
        """Take the lease if it is free; return the id up to which others may have sent, None without the lease."""
        return file.events.read_to() if file.lease.acquire() else None

    def lease_acquired(self, read_before: int | None) -> None:
        """Begin to read unless `read_before`, the result of `acquire_lease`, is None; call it after the transaction."""
        if read_before is not None and not self._has_lease:
            self.read_before = read_before
            self._cursor = 0
            self._has_lease = True
            self._renewed_at = self._clock()
            post(self._loop, self._listener.lease_acquired)

    def lease_renewed(self, moment: float) -> None:
        """Note that this process held the lease at `moment`, by the clock."""
        self._renewed_at = moment

    def lease_lost(self) -> None:
        """Stop reading: another process holds the lease, or another file is open."""
        self._has_lease = False

    def may_send(self) -> bool:
        """Whether this process surely holds the lease, because it was renewed recently; may be called in any thread."""
        return not self.sending or self._clock() - self._renewed_at <= self._lease_validity

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, file: SpoolFile) -> Rows:
        """Return the next events, record them as read, and make damaged ones dead letters; needs a transaction."""
        if not self._has_lease:
            return Rows([], [], [])
        events = file.events
        rows = events.read(self._cursor, *self._window.next_read())
        if rows.ids:
            events.mark_read(max(rows.ids[-1], self.read_before))
        self._damaged = len(events.damaged)
        for before in (False, True):
            # A damaged event cannot be sent: the API would refuse its whole batch.
            ids = [number for number in events.damaged if (number <= self.read_before) is before]
            if ids:
                outcome = Abandoned(reason="damaged", maybe_recorded=before, attempts=0)
                file.settle(Settlement(ranges(ids), encode_outcome(outcome), "damaged", before), now())
        return rows

    def was_read(self, rows: Rows) -> None:
        """Pass the result of `read` to the loop, and move the cursor behind it; call it after that transaction."""
        if self._damaged:
            post(self._loop, self._listener.damage_found, self._damaged)
        if rows.ids:
            self._cursor = rows.ids[-1]
            # Posted here, in the writer's thread, so that events that are written later reach the engine later.
            post(self._loop, self._listener.events_read, rows)

    def claims(self, file: SpoolFile, first: int, last: int) -> bool:
        """Claim events that are being written, if the engine may get them without a read; return whether it may.

        Claimed events are recorded as read; needs a transaction.

        Args:
            file: the file.
            first: the id of the first of these events.
            last: the id of the last.
        """
        if not (self.sending and self._has_lease) or self._cursor != first - 1:
            return False
        if not self._window.fits(last - first + 1):
            return False
        file.events.mark_read(max(last, self.read_before))
        return True

    def claimed(self, last: int) -> None:
        """Move the cursor behind claimed events, the last with the id `last`; call it after their transaction."""
        self._cursor = last
