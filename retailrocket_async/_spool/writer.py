"""Passes events, and jobs (functions that read or change the file), from the event loop to the writer's thread."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

from retailrocket_async._errors import SpoolError
from retailrocket_async._runtime.context import detached
from retailrocket_async._spool.file import now
from retailrocket_async._spool.jobs import Job, PendingSettlements
from retailrocket_async._spool.writer_thread import WriterThread

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from retailrocket_async._queue.eviction import Overflow
    from retailrocket_async._spool.entries import Entry
    from retailrocket_async._spool.file import Settlement, SpoolFile
    from retailrocket_async._spool.id_ranges import Range
    from retailrocket_async._spool.outcome_log import LogEntry
    from retailrocket_async._spool.reader import SpoolReader
    from retailrocket_async._spool.writer_listener import WriterListener

T = TypeVar("T")


class SpoolWriter:
    """Writes events and outcomes to a spool, in a separate thread.

    Args:
        file: the file of the spool; from now on only the thread may use the file.
        listener: called in the loop with the results of the thread's work; see `WriterListener`.
        loop: the event loop.
        clock: returns the loop's time in seconds; called in the thread.
        overflow: what happens if the spool is full; see `Buffer.overflow`.
        max_bytes: largest size of the file in bytes.
        min_free: number of bytes that must stay free on the file system of the file.
        patience: seconds for which an event waits while the spool is full or its file cannot be used.
        flushes: True if commits do not flush the file to the disk, so that the thread has to do this twice a second.
        overflowed: called with an event name; returns the encoded outcome of dropped events with this name.

    Attributes:
        waiting: number of events that were passed to `put` and are neither written nor refused yet.
        capacity: computes how many events fit in the spool; `capacity.full` says whether the spool was full at the last
            check.
        term: number of times that this process has lost the lease, as counted in the event loop.
    """

    def __init__(  # noqa: PLR0913 - the settings of a writer
        self,
        file: SpoolFile,
        listener: WriterListener,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        overflow: Overflow,
        max_bytes: int,
        min_free: int,
        patience: float,
        flushes: bool,
        overflowed: Callable[[str], str],
    ) -> None:
        self._loop = loop
        self._work = WriterThread(
            file,
            listener,
            loop=loop,
            clock=clock,
            overflow=overflow,
            max_bytes=max_bytes,
            min_free=min_free,
            patience=patience,
            flushes=flushes,
            overflowed=overflowed,
        )
        self._queue = self._work.queue
        self._ended = self._work.ended
        self._settlements = PendingSettlements()
        self._thread = threading.Thread(target=self._work.run, name="retailrocket-spool", daemon=True)
        self.capacity = self._work.capacity
        self.waiting = 0
        self.term = 0

    def start(self, reader: SpoolReader | None = None) -> None:
        """Start the thread.

        Args:
            reader: reads the written events for the engine, in the thread; default None: no events are read.

        Raises:
            SpoolError: no thread can be started.
        """
        self._work.reader = reader
        try:
            detached(self._thread.start)
        except RuntimeError:
            raise SpoolError(
                "the spool needs a thread, and none can be started: the interpreter shuts down, or the system's limit "
                "is reached"
            ) from None

    def put(self, entry: Entry) -> None:
        """Let the thread write an event as soon as possible."""
        self.waiting += 1
        self._queue.put(entry)
        if self._ended.done():
            self._work.refuse_rest()

    def settle(self, settlement: Settlement) -> None:
        """Let the thread write the outcome of events.

        If this process loses the lease before the thread writes the outcome, the outcome is not written.
        """
        job = Job(lambda file: file.settle(settlement, now()), term=self.term)
        self._settlements.add(settlement, job)
        self._put_job(job)

    def pop_unsettled(self) -> list[tuple[Settlement, bool]]:
        """Remove and return the outcomes that were passed to `settle` and were not read from the log yet.

        `PendingSettlements.pop_all` describes the result.
        """
        return self._settlements.pop_all()

    def submit(self, run: Callable[[SpoolFile], T], then: Callable[[T], None] | None = None) -> asyncio.Future[T]:
        """Let the thread call a function with the file, after all earlier jobs; return a future of the result.

        Args:
            run: the function, called in the thread, in a transaction; called again if the transaction fails.
            then: called with the result, in the thread, once the transaction is in the file; default None.
        """
        done: asyncio.Future[T] = self._loop.create_future()
        self._put_job(Job(run, done, then))
        return done

    def submit_until_done(self, run: Callable[[SpoolFile], object], *, with_lease: bool = False) -> None:
        """Let the thread call a function with the file, again and again until its transaction is in the file.

        Args:
            run: the function, called in the thread, in a transaction.
            with_lease: whether the call is skipped if this process loses the lease before the call; default False.
        """
        self._put_job(Job(run, term=self.term if with_lease else None))

    def poll_log(self) -> None:
        """Let the thread read the log of outcomes, because other processes may have added outcomes."""
        self.submit_until_done(_nothing)

    def catch_up(self, spans: Sequence[Range]) -> asyncio.Future[tuple[list[int], list[LogEntry]]]:
        """Let the thread read two lists in one transaction; return a future of the lists.

        The lists are the ids in `spans` of events that still wait, and the log entries that were not read yet.
        """
        log = self._work.log
        return self.submit(lambda _: log.catch_up(spans), log.caught_up)

    def stop(self) -> asyncio.Future[None]:
        """Let the thread finish all submitted work, close the file and end; return a future of the thread's end."""
        self._queue.put(None)
        return self._ended

    @property
    def over(self) -> bool:
        """Whether the thread has ended."""
        return self._ended.done()

    def join(self) -> None:
        """If the future that `stop` returns is done, wait until the thread has ended; otherwise return at once."""
        if self._ended.done():
            self._thread.join()

    def _put_job(self, job: Job) -> None:
        self._queue.put(job)
        if self._ended.done():
            self._work.refuse_rest()


def _nothing(_: SpoolFile) -> None:
    """Do nothing. After every job the thread reads the log, so this job lets the thread read the log."""
