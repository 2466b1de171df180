"""Reads a spool's events for the engine, in the writer's thread, while this process holds the lease.

The lease is the right of one process to send the spool's events. The events are read in the order of their ids. Before
events are sent, the highest id of these events is recorded in the file. If this process crashes, the process that sends
next therefore knows which events the API may have recorded.
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
    """Receives the reports of a reader; the methods are called in the event loop."""

    def lease_acquired(self) -> None:
        """Called when this process has acquired the lease, and so sends the events from now on."""

    def events_read(self, rows: Rows) -> None:
        """Called with events that were read from the file. The file already records that these events may be sent."""

    def damage_found(self, count: int) -> None:
        """Called when damaged events became dead letters; `count` is the number of these events."""


class SpoolReader:
    """Reads events of the file in the order of their ids, and passes them to the event loop.

    All methods except `may_send` are called in the writer's thread.

    Args:
        listener: called in the loop with the events that were read; see `ReaderListener`.
        loop: the event loop.
        window: limits how many events the engine may have at a time.
        clock: returns the loop's time in seconds, in any thread.
        lease_validity: number of seconds after each renewal of the lease in which requests may begin.

    Attributes:
        read_before: the highest id of the events that another process may have sent.
        sending: whether this process passes events to the engine; set in the event loop.
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
        # The id of the last event that was read from the file, or was passed to the engine directly (see `claims`).
        self._cursor = 0
        self._damaged = 0
        self.read_before = 0
        self.sending = False

    # --- the lease ----------------------------------------------------------------------------------------------------

    def acquire_lease(self, file: SpoolFile) -> int | None:
        """Try to acquire the lease; call this in a transaction.

        Returns:
            The highest id of the events that another process may have sent; None if this process did not get the lease.
        """
        return file.events.read_to() if file.lease.acquire() else None

    def lease_acquired(self, read_before: int | None) -> None:
        """Begin to read if `acquire_lease` acquired the lease.

        Call this method after the transaction of `acquire_lease` is in the file.

        Args:
            read_before: the result of `acquire_lease`.
        """
        if read_before is not None and not self._has_lease:
            self.read_before = read_before
            self._cursor = 0
            self._has_lease = True
            self._renewed_at = self._clock()
            post(self._loop, self._listener.lease_acquired)

    def lease_renewed(self, moment: float) -> None:
        """Note that this process held the lease (the right to send) at `moment`, in seconds of the loop's clock."""
        self._renewed_at = moment

    def lease_lost(self) -> None:
        """Stop reading, because another process holds the lease or another file is open."""
        self._has_lease = False

    def may_send(self) -> bool:
        """Whether requests may be sent; may be called in any thread.

        False if this process sends events of the spool, but renewed the lease so long ago that another process may hold
        the lease now.
        """
        return not self.sending or self._clock() - self._renewed_at <= self._lease_validity

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, file: SpoolFile) -> Rows:
        """Return the next events, and record in the file that these events may be sent; call this in a transaction.

        Damaged events are not returned, but become dead letters.
        """
        if not self._has_lease:
            return Rows([], [], [])
        events = file.events
        rows = events.read(self._cursor, *self._window.next_read())
        if rows.ids:
            events.mark_read(max(rows.ids[-1], self.read_before))
        self._damaged = len(events.damaged)
        for before in (False, True):
            # A damaged event cannot be sent, because the API would refuse the whole batch.
            ids = [number for number in events.damaged if (number <= self.read_before) is before]
            if ids:
                outcome = Abandoned(reason="damaged", maybe_recorded=before, attempts=0)
                file.settle(Settlement(ranges(ids), encode_outcome(outcome), "damaged", before), now())
        return rows

    def was_read(self, rows: Rows) -> None:
        """Pass the events that `read` returned to the loop; the next `read` begins after these events.

        Call this after the transaction of `read` is in the file.
        """
        if self._damaged:
            post(self._loop, self._listener.damage_found, self._damaged)
        if rows.ids:
            self._cursor = rows.ids[-1]
            # The writer's thread reports newly written events to the loop by `post`, too. The loop makes posted calls
            # in order, so all events reach the engine in the order of their ids.
            post(self._loop, self._listener.events_read, rows)

    def claims(self, file: SpoolFile, first: int, last: int) -> bool:
        """Claim new events: decide that the engine gets these events directly, without a read of the file.

        Events can be claimed if this process sends, all earlier events were read, and the window has space. The file
        then records that the events may be sent. Call this method in the transaction that writes the events.

        Args:
            file: the file.
            first: the id of the first new event.
            last: the id of the last new event.

        Returns:
            Whether the events were claimed.
        """
        if not (self.sending and self._has_lease) or self._cursor != first - 1:
            return False
        if not self._window.fits(last - first + 1):
            return False
        file.events.mark_read(max(last, self.read_before))
        return True

    def claimed(self, last: int) -> None:
        """Let the next `read` begin after `last`, the last claimed id; call this after the transaction of `claims`."""
        self._cursor = last
