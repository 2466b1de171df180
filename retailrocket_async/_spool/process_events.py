"""The events in a spool that this process has tracked: how many have no outcome yet, and the receipts of their callers.

A spool may hold millions of events, so there is a record for each run of ids, not for each event. Receipts are held by
weak references: most callers drop them immediately.
"""

from __future__ import annotations

import bisect
import itertools
import weakref
from typing import TYPE_CHECKING, Final

from retailrocket_async._delivery.counts import OutcomeCounts
from retailrocket_async._delivery.flushes import Flushes
from retailrocket_async._receipt import Receipt, settle

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Iterable, Sequence

    from retailrocket_async._outcome import Abandoned, Kept, Outcome
    from retailrocket_async._spool.id_ranges import Range


_YOUNG: Final = 16
"""Number of newest runs that are not compacted yet, because callers may still drop the receipts of their events."""


class SpoolReceipt(Receipt):
    """A receipt to which weak references are possible."""

    __slots__ = ("__weakref__",)


class _Run:
    """Events whose ids follow one another.

    Args:
        first: the first id.
        receipts: the receipts of the events, in the order of their ids.

    Attributes:
        first: the first id.
        last: the last id.
        left: how many of the events have no outcome.
        refs: weak references to their receipts; None once nobody holds any of these receipts.
    """

    __slots__ = ("first", "last", "left", "refs")

    def __init__(self, first: int, receipts: Sequence[SpoolReceipt]) -> None:
        self.first = first
        self.last = first + len(receipts) - 1
        self.left = len(receipts)
        self.refs: list[weakref.ref[SpoolReceipt]] | None = list(map(weakref.ref, receipts))

    def receipts(self, first: int, last: int) -> list[SpoolReceipt]:
        """Return the receipts of the ids from `first` to `last` that somebody still holds."""
        if self.refs is None:
            return []
        some = self.refs[first - self.first : last - self.first + 1]
        return [receipt for ref in some if (receipt := ref()) is not None]

    def numbered(self) -> list[tuple[int, SpoolReceipt]]:
        """Return all receipts that somebody still holds, each with its id."""
        return [
            (number, receipt)
            for number, ref in enumerate(self.refs or (), self.first)
            if (receipt := ref()) is not None
        ]


class ProcessEvents:
    """Counts the events of this process by their outcome, settles their receipts, and ends calls of `flush`.

    Attributes:
        tracked: events that were added.
        counts: how many of them have which outcome.
        pending: how many of them have no outcome.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self._flushes = Flushes()
        self.counts = OutcomeCounts()
        self.tracked = 0
        self.pending = 0

    def accepted(self, receipts: Sequence[SpoolReceipt], last: int) -> None:
        """Add events, the last of them with the id `last`."""
        first = last - len(receipts) + 1
        self.tracked += len(receipts)
        self.pending += len(receipts)
        self._runs.append(_Run(first, receipts))
        if len(self._runs) > _YOUNG:
            self._compact(len(self._runs) - _YOUNG - 1)

    def _compact(self, position: int) -> None:
        """Drop the references of a run if nobody holds its receipts, and merge it with the run before it."""
        run = self._runs[position]
        if run.refs is not None and not any(ref() is not None for ref in run.refs):
            run.refs = None
        before = self._runs[position - 1] if position else None
        if before is not None and before.refs is None and run.refs is None and before.last == run.first - 1:
            before.last = run.last
            before.left += run.left
            del self._runs[position]

    def settled(self, ids: Sequence[Range], outcome: Outcome, name: str = "") -> None:
        """Give an outcome to those of `ids` that are events of this process.

        Every event may be settled once only: the runs do not remember which of their events have an outcome.

        Args:
            ids: the events.
            outcome: their outcome.
            name: their name, if they were dropped.
        """
        for first, last in ids:
            position = bisect.bisect_left(self._runs, first, key=lambda run: run.last)
            while position < len(self._runs) and (run := self._runs[position]).first <= last:
                begin, end = max(first, run.first), min(last, run.last)
                run.left -= end - begin + 1
                if run.left:
                    position += 1
                else:
                    del self._runs[position]
                settle(run.receipts(begin, end), outcome)
                self._count(begin, end, outcome, name)

    def _count(self, first: int, last: int, outcome: Outcome, name: str) -> None:
        count = last - first + 1
        self.pending -= count
        self.counts.add(outcome, count, itertools.repeat(name, count))
        for flush in self._flushes:
            flush.count_down(max(0, min(last, flush.last) - first + 1))

    def forget(self, waiting: Iterable[int], outcome: Abandoned) -> None:
        """Give `outcome` to all events but those in `waiting`, since their true outcomes are lost."""
        left = sorted(waiting)
        for run in list(self._runs):
            still = left[bisect.bisect_left(left, run.first) : bisect.bisect_right(left, run.last)]
            gone = run.left - len(still)
            if gone <= 0:
                continue
            run.left -= gone
            self.pending -= gone
            self.counts.add(outcome, gone, ())
            waits = set(still)
            for number, receipt in run.numbered():
                if number not in waits:
                    settle([receipt], outcome)
            for flush in self._flushes:
                if run.first <= flush.last:
                    flush.count_down(min(gone, flush.last - run.first + 1))
            if not run.left:
                self._runs.remove(run)

    def spans(self) -> list[Range]:
        """Return ranges that hold all ids without an outcome, and other ids of this process."""
        return [(run.first, run.last) for run in self._runs]

    async def flushed(self, finished: Future[None]) -> None:
        """Return when every event that was added before this call has its outcome; `finished` is a new future."""
        if self.pending:
            await self._flushes.wait(self._runs[-1].last, self.pending, finished)

    def keep(self, outcome: Kept) -> None:
        """Give `outcome` to all events without one: they stay in the file."""
        self.counts.add(outcome, self.pending, ())
        self.pending = 0
        runs, self._runs = self._runs, []
        for run in runs:
            settle(run.receipts(run.first, run.last), outcome)
        for flush in self._flushes:
            flush.end()
