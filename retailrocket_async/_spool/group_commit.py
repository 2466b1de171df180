"""Writes waiting events and runs waiting jobs in one transaction; refuses events that cannot be written.

A job is a function that reads or changes the file. All code of this module runs in the writer's thread.
"""

from __future__ import annotations

import functools
import itertools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from retailrocket_async._errors import SpoolError, SpoolFullError
from retailrocket_async._runtime.futures import set_exception, set_result
from retailrocket_async._runtime.loop_post import post
from retailrocket_async._spool.entries import UnwrittenEntries
from retailrocket_async._spool.file import Settlement, now
from retailrocket_async._spool.id_ranges import ranges

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator

    from retailrocket_async._queue.eviction import Overflow
    from retailrocket_async._spool.capacity import Capacity
    from retailrocket_async._spool.entries import Entry
    from retailrocket_async._spool.file import SpoolFile
    from retailrocket_async._spool.jobs import Job
    from retailrocket_async._spool.log_reader import LogReader
    from retailrocket_async._spool.reader import SpoolReader
    from retailrocket_async._spool.writer_listener import WriterListener

_LEAST_EVICTED: Final = 500
"""Least number of events that a full spool with ``overflow="drop_oldest"`` drops at a time, if so many can be
dropped."""


class GroupCommit:
    """Holds the events and jobs that wait for the next transaction; writes or refuses the events, and runs the jobs.

    Args:
        file: the open file.
        listener: notified, in the event loop, of events that were written or refused.
        loop: the event loop.
        capacity: computes how many events fit in the spool.
        log: reads the log of outcomes; notified of jobs that have run.
        overflow: what happens if the spool is full; see `Buffer.overflow`.
        overflowed: called with an event name; returns the encoded outcome of dropped events with this name.

    Attributes:
        unwritten: the events that are not written yet.
        jobs: the jobs that have not run yet.
        reader: reads the written events for the engine; None if no reader is set.
        term: number of times that this process has lost the lease, as counted in the writer's thread. A job of an
            earlier term is skipped.
        size: number of events and jobs of the last transaction.
        dirty: whether a transaction was written since `dirty` was last set to False.
        tight: whether jobs run one by one, because a transaction failed on a full disk.
    """

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        file: SpoolFile,
        listener: WriterListener,
        *,
        loop: asyncio.AbstractEventLoop,
        capacity: Capacity,
        log: LogReader,
        overflow: Overflow,
        overflowed: Callable[[str], str],
    ) -> None:
        self._file = file
        self._listener = listener
        self._loop = loop
        self._capacity = capacity
        self._log = log
        self._overflow = overflow
        self._overflowed = overflowed
        # Describes the last transaction that raised an error but may be in the file: its entries, the id of the last
        # entry, and the time that was passed to `EventTable.append`. None if there is no such transaction.
        self._unsure: tuple[list[Entry], int, float] | None = None
        self.unwritten = UnwrittenEntries()
        self.jobs: list[Job] = []
        self.reader: SpoolReader | None = None
        self.term = 0
        self.size = 0
        self.dirty = False
        self.tight = False

    def __bool__(self) -> bool:
        """Whether any event waits to be written, or any job waits to be run."""
        return bool(self.unwritten or self.jobs)

    # --- writing ------------------------------------------------------------------------------------------------------

    def write(self) -> bool:
        """Run the jobs, and write the events that fit in the spool; return False if there is no room for any event.

        The method also returns True if jobs have run, or if events were dropped to make room.

        Raises:
            SpoolFileFullError: the file or its disk has no room for the transaction.
        """
        self.jobs = [job for job in self.jobs if job.term in (None, self.term)]
        fitting = self._capacity.fitting(self.unwritten)
        if not fitting and not self.jobs:
            return not self.unwritten or (self._overflow == "drop_oldest" and self._evict())
        # Events that do not fit go on waiting, because jobs may remove other events from the file. On a full disk, jobs
        # run one by one, because there may be room for a small job, but not for all jobs together.
        entries, jobs = self.unwritten.entries[:fitting], self.jobs[:1] if self.tight else list(self.jobs)
        self.size = fitting + len(jobs)
        with self._transaction():
            # Jobs run before the events are added. Otherwise the engine would get events twice: a job of the reader
            # would read the new events, and the reader would claim the same events afterwards (pass them to the engine
            # without a read).
            results = [job.run(self._file) for job in jobs]
            last, claimed = self._append(entries)
        for job in jobs:
            job.written = True
        self.unwritten.remove_first(fitting)
        del self.jobs[: len(jobs)]
        self.dirty = True
        self._committed(entries, last, claimed=claimed)
        self.tight = self.tight and bool(self.jobs)
        for job, result in zip(jobs, results, strict=True):
            if job.then is not None:
                job.then(result)
            if job.done is not None:
                post(self._loop, set_result, job.done, result)
        self._log.wrote(jobs)
        if jobs:
            self._log.read()
        return True

    @contextmanager
    def _transaction(self) -> Generator[None]:
        try:
            with self._file.transaction():
                yield
        except BaseException:
            if not self._file.unsure:
                self._unsure = None
            raise
        self._unsure = None

    def _append(self, entries: list[Entry]) -> tuple[int, bool]:
        """Add events to the file; return the id of the last event, and whether the reader has claimed the events.

        The engine gets claimed events directly, without a read of the file; see `SpoolReader.claims`.
        """
        if not entries:
            return 0, False
        at = now()
        last = self._file.events.append([entry[0] for entry in entries], at)
        self._unsure = (entries, last, at)
        return last, self.reader is not None and self.reader.claims(self._file, last - len(entries) + 1, last)

    def _evict(self) -> bool:
        """Drop the oldest events of the file that are not in flight, and write all unwritten events.

        Return False if no event can be dropped; nothing is written then.
        """
        entries = list(self.unwritten.entries)
        events = self._file.events
        with self._transaction():
            oldest = events.oldest(events.read_to(), max(_LEAST_EVICTED, 2 * len(entries)))
            for name, ids in oldest:
                spans = [(number, number) for number in ids]
                self._file.settle(Settlement(spans, self._overflowed(name)), now())
            last, claimed = self._append(entries) if oldest else (0, False)
        if not oldest:
            return False
        self.unwritten.remove_first(len(entries))
        self._committed(entries, last, claimed=claimed)
        self._capacity.measure()
        self._log.read()
        return True

    def _committed(self, entries: list[Entry], last: int, *, claimed: bool) -> None:
        if not entries:
            return
        if claimed and self.reader is not None:
            self.reader.claimed(last)
        self._capacity.add(entries)
        post(self._loop, functools.partial(self._listener.committed, claimed=claimed), entries, last)

    # --- transactions that raised an error, but may be in the file ----------------------------------------------------

    def forget_unsure(self) -> None:
        """Forget the transaction that may be in the file, because another file is open now."""
        self._unsure = None

    def resolve_unsure(self) -> None:
        """Find out whether a transaction that raised an error is in the file, so that no event is written twice.

        If the transaction is in the file, events that were refused since then are removed from the file, and all other
        events of the transaction are treated as written.
        """
        if self._unsure is None:
            return
        entries, last, at = self._unsure
        waiting = {id(entry) for entry in self.unwritten.entries}
        numbered = list(enumerate(entries, last - len(entries) + 1))
        refused = [number for number, entry in numbered if id(entry) not in waiting]
        with self._file.transaction():
            held = self._file.events.holds(last, len(entries), at)
            if held and refused:
                self._file.events.remove(ranges(refused))
        self._unsure = None
        if not held:
            return
        accepted = [(number, entry) for number, entry in numbered if id(entry) in waiting]
        self.unwritten.discard(entry for _, entry in accepted)
        for _, run in itertools.groupby(enumerate(accepted), lambda each: each[1][0] - each[0]):
            part = [each for _, each in run]
            self._committed([entry for _, entry in part], part[-1][0], claimed=False)

    # --- refusing -----------------------------------------------------------------------------------------------------

    def refuse_overflow(self, late: float) -> None:
        """Mark the spool as full, and refuse or drop the unwritten events, depending on the setting `overflow`.

        Args:
            late: a time of the loop's clock, in seconds. With ``overflow="wait"``, only events that arrived at this
                time or before are refused; events that arrived later go on waiting.
        """
        self._capacity.full = True
        if self._overflow == "raise":
            self.refuse(len(self.unwritten), _full())
        elif self._overflow == "wait":
            self.refuse_older(late, _full())
        else:
            self.refuse(len(self.unwritten), None)

    def refuse_older(self, moment: float, error: SpoolError | SpoolFullError) -> None:
        """Refuse the unwritten events that arrived at `moment` (seconds of the loop's clock) or before."""
        self.refuse(self.unwritten.older_than(moment), error)

    def refuse(self, count: int, error: SpoolError | SpoolFullError | None) -> None:
        """Refuse the first `count` unwritten events: the callers get `error`. If `error` is None, drop these events."""
        known = set(map(id, () if self._unsure is None else self._unsure[0]))
        first = self.unwritten.entries[:count]
        certain = [entry for entry in first if id(entry) not in known]
        if certain:
            self._refused(certain, error)
        if len(certain) < len(first):
            # These events may be in the file; `resolve_unsure` removes them when the file can be read again.
            maybe = SpoolError(f"{error}; the event may be in the spool all the same")
            self._refused([entry for entry in first if id(entry) in known], maybe)
        self.unwritten.remove_first(count)

    def refuse_withdrawn(self) -> None:
        """Remove the unwritten events whose callers were cancelled."""
        withdrawn = self.unwritten.pop_withdrawn()
        if withdrawn:
            self._refused(withdrawn, None)

    def fail_jobs(self, error: SpoolError, *, keep: bool = False) -> None:
        """Remove the jobs whose results somebody awaits, and set `error` as the exception of their futures.

        Args:
            error: the exception.
            keep: whether jobs whose results nobody awaits stay, to be tried again; default False: all jobs are removed.
        """
        failed = [job.done for job in self.jobs if job.done is not None]
        self.jobs = [job for job in self.jobs if job.done is None] if keep else []
        for done in failed:
            post(self._loop, set_exception, done, error)

    def _refused(self, entries: list[Entry], error: SpoolError | SpoolFullError | None) -> None:
        post(self._loop, self._listener.refused, entries, error)


def _full() -> SpoolFullError:
    return SpoolFullError(
        "the spool is full: raise SqliteSpool.max_bytes, make room on its disk, or choose another Buffer.overflow"
    )
