"""Counts the events in a spool that this process has tracked, and sets the outcomes of their receipts.

A spool may hold millions of events, so there is one record for each run of consecutive ids, not for each event. The
records have only weak references to the fates of the events, so a fate uses no memory once the callers drop its
receipts. Most callers drop receipts immediately.
"""

from __future__ import annotations

import bisect
import itertools
import weakref
from typing import TYPE_CHECKING, Final

from retailrocket_async._delivery.counts import OutcomeCounts
from retailrocket_async._delivery.flushes import Flushes
from retailrocket_async._receipt import share_of

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Iterable, Sequence

    from retailrocket_async._fate import Fate
    from retailrocket_async._outcome import Abandoned, Kept, Outcome
    from retailrocket_async._receipt import Receipt
    from retailrocket_async._spool.id_ranges import Range


_YOUNG: Final = 32
"""Number of newest runs that `_compact` is not called for, because callers often still hold the receipts of new
events. The number is larger than the number of events that share a fate, because the next event may get that fate."""


class _Run:
    """A run: events of this process whose ids are consecutive.

    Args:
        first: the id of the first event.
        receipts: the receipts of the events, in the order of their ids.

    Attributes:
        first: the id of the first event.
        last: the id of the last event.
        left: number of events in the run that have no outcome.
        parts: the fates and the places of the events, in the order of their ids, with weak references to the fates.
            None once no caller holds any of the receipts.
    """

    __slots__ = ("first", "last", "left", "parts")

    def __init__(self, first: int, receipts: Sequence[Receipt]) -> None:
        self.first = first
        self.last = first + len(receipts) - 1
        self.left = len(receipts)
        self.parts: list[tuple[weakref.ref[Fate], list[int]]] | None = []
        last: Fate | None = None
        for fate, [place] in map(share_of, receipts):
            if fate is not last:
                last = fate
                self.parts.append((weakref.ref(fate), []))
            self.parts[-1][1].append(place)

    @property
    def held(self) -> bool:
        """Whether a caller holds a receipt of one of these fates."""
        return any(fate() is not None for fate, _ in self.parts or ())

    def settle(self, first: int, last: int, outcome: Outcome) -> None:
        """Set the outcome of the events with the ids from `first` to `last`."""
        start, stop = first - self.first, last - self.first + 1
        for reference, places in self.parts or ():
            if stop <= 0:
                return
            if start < len(places) and (fate := reference()) is not None:
                fate.settle(outcome, places[max(0, start) : stop])
            start -= len(places)
            stop -= len(places)


class ProcessEvents:
    """Counts the events of this process by outcome, sets the outcomes of their receipts, and lets `flush` return.

    Attributes:
        tracked: number of events that were added.
        counts: numbers of these events by outcome.
        pending: number of these events that have no outcome.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self._flushes = Flushes()
        self.counts = OutcomeCounts()
        self.tracked = 0
        self.pending = 0

    def accepted(self, receipts: Sequence[Receipt], last: int) -> None:
        """Add events that are in the file now.

        Args:
            receipts: the receipts of the events, in the order of their ids; the ids are consecutive.
            last: the id of the last event.
        """
        first = last - len(receipts) + 1
        self.tracked += len(receipts)
        self.pending += len(receipts)
        self._runs.append(_Run(first, receipts))
        if len(self._runs) > _YOUNG:
            self._compact(len(self._runs) - _YOUNG - 1)

    def _compact(self, position: int) -> None:
        """Save memory: drop the references of the run at `position` if no caller holds receipts of the run any more.

        If the previous run has no references either, and the run begins with the next id, merge the two runs.
        """
        run = self._runs[position]
        if run.parts is not None and not run.held:
            run.parts = None
        before = self._runs[position - 1] if position else None
        if before is not None and before.parts is None and run.parts is None and before.last == run.first - 1:
            before.last = run.last
            before.left += run.left
            del self._runs[position]

    def settled(self, ids: Sequence[Range], outcome: Outcome, name: str = "") -> None:
        """Set the outcome of those of the given events that this process has tracked.

        Call this method only once for each event, because a run (events with consecutive ids) does not record which of
        its events have an outcome.

        Args:
            ids: the ids of the events; events of other processes may be among these events.
            outcome: the outcome of the events.
            name: the name of the events if they were dropped.
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
                run.settle(begin, end, outcome)
                self._count(begin, end, outcome, name)

    def _count(self, first: int, last: int, outcome: Outcome, name: str) -> None:
        count = last - first + 1
        self.pending -= count
        self.counts.add(outcome, count, itertools.repeat(name, count))
        for flush in self._flushes:
            flush.count_down(max(0, min(last, flush.last) - first + 1))

    def forget(self, waiting: Iterable[int], outcome: Abandoned) -> None:
        """Set an outcome for the events that are not in the file any more, and whose true outcomes are not known.

        Args:
            waiting: the ids of the events that still wait in the file; these events are not settled.
            outcome: the outcome for all other events that have no outcome yet.
        """
        left = sorted(waiting)
        for run in list(self._runs):
            still = left[bisect.bisect_left(left, run.first) : bisect.bisect_right(left, run.last)]
            gone = run.left - len(still)
            if gone <= 0:
                continue
            run.left -= gone
            self.pending -= gone
            self.counts.add(outcome, gone, ())
            begin = run.first
            for number in [*still, run.last + 1]:
                run.settle(begin, number - 1, outcome)
                begin = number + 1
            for flush in self._flushes:
                if run.first <= flush.last:
                    flush.count_down(min(gone, flush.last - run.first + 1))
            if not run.left:
                self._runs.remove(run)

    def spans(self) -> list[Range]:
        """Return ranges of ids that contain all events without an outcome, and perhaps events with an outcome."""
        return [(run.first, run.last) for run in self._runs]

    async def flushed(self, finished: Future[None]) -> None:
        """Return when every event that was added before this call has an outcome.

        The call waits on `finished`, a new future of the event loop.
        """
        if self.pending:
            await self._flushes.wait(self._runs[-1].last, self.pending, finished)

    def keep(self, outcome: Kept) -> None:
        """Set `outcome` as the outcome of all events without an outcome, because these events stay in the file."""
        self.counts.add(outcome, self.pending, ())
        self.pending = 0
        runs, self._runs = self._runs, []
        for run in runs:
            run.settle(run.first, run.last, outcome)
        for flush in self._flushes:
            flush.end()
