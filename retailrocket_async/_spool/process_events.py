"""The events in a spool that this process has tracked: how many have no outcome yet, and who waits for one.

A spool may hold millions of them, so there is a record for each run of ids, not for each event, and a receipt is only
known as long as its owner keeps it.
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
    from retailrocket_async._spool.file import Range


_YOUNG: Final = 16
"""Runs whose receipts are not looked after: their callers are only just being told."""


class SpoolReceipt(Receipt):
    """A receipt that can be known without being kept alive."""

    __slots__ = ("__weakref__",)


class _Run:
    """Events whose ids follow one another.

    Attributes:
        first: the first id.
        last: the last id.
        left: how many of them have no outcome.
        known: their receipts, as long as somebody keeps them; None where nobody does any more.
    """

    __slots__ = ("first", "known", "last", "left")

    def __init__(self, first: int, known: list[weakref.ref[SpoolReceipt]]) -> None:
        self.first = first
        self.last = first + len(known) - 1
        self.left = len(known)
        self.known: list[weakref.ref[SpoolReceipt]] | None = known

    def receipts(self, first: int, last: int) -> list[SpoolReceipt]:
        """Return the receipts from one id to another that somebody still keeps."""
        if self.known is None:
            return []
        some = self.known[first - self.first : last - self.first + 1]
        return [receipt for ref in some if (receipt := ref()) is not None]

    def numbered(self) -> list[tuple[int, SpoolReceipt]]:
        """Return all receipts that somebody still keeps, each with its id."""
        return [
            (number, receipt)
            for number, ref in enumerate(self.known or (), self.first)
            if (receipt := ref()) is not None
        ]


class ProcessEvents:
    """Counts events by their outcome, settles receipts, and knows when a flush is over.

    Attributes:
        tracked: as in `Stats`.
        counts: how many events have which outcome.
        pending: how many have no outcome.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self._flushes = Flushes()
        self.counts = OutcomeCounts()
        self.tracked = 0
        self.pending = 0

    def accepted(self, receipts: Sequence[SpoolReceipt], last: int) -> None:
        """Note events that were added, the last of them with the id `last`."""
        first = last - len(receipts) + 1
        self.tracked += len(receipts)
        self.pending += len(receipts)
        self._runs.append(_Run(first, list(map(weakref.ref, receipts))))
        if len(self._runs) > _YOUNG:
            self._age(len(self._runs) - _YOUNG - 1)

    def _age(self, position: int) -> None:
        """Look after a run that is not young any more: most receipts are forgotten at once by those who got them."""
        run = self._runs[position]
        if run.known is not None and not any(ref() is not None for ref in run.known):
            run.known = None
        before = self._runs[position - 1] if position else None
        if before is not None and before.known is None and run.known is None and before.last == run.first - 1:
            before.last = run.last
            before.left += run.left
            del self._runs[position]

    def settled(self, ids: Sequence[Range], outcome: Outcome, name: str = "") -> None:
        """Give an outcome to those of `ids` that are of this process; `name` is that of events that were dropped."""
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
        """Give `outcome` to everything that does not wait any more, though nobody has told what became of it."""
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
        """Return ranges that hold all ids without an outcome, and others of this process."""
        return [(run.first, run.last) for run in self._runs]

    async def flushed(self, finished: Future[None]) -> None:
        """Return when everything that is in the file now has its outcome."""
        if not self.pending:
            return
        await self._flushes.wait(self._runs[-1].last, self.pending, finished)

    @property
    def flushing(self) -> bool:
        """Whether anybody waits for a flush."""
        return bool(self._flushes)

    def keep(self, outcome: Kept) -> None:
        """Give what is left its outcome: it stays in the file."""
        self.counts.add(outcome, self.pending, ())
        self.pending = 0
        runs, self._runs = self._runs, []
        for run in runs:
            settle(run.receipts(run.first, run.last), outcome)
        for flush in self._flushes:
            flush.end()
