"""The code of the only thread that uses a spool's file: writes waiting events in groups, one transaction per group.

Events that arrive during a transaction are written together in the next transaction (group commit), so a slow disk
leads to larger groups and not to a long queue. The thread reports to the event loop by scheduling calls in the loop.
The thread waits for the loop only if a defect ends the thread.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Final

from retailrocket_async._errors import SpoolError
from retailrocket_async._runtime.futures import set_exception
from retailrocket_async._runtime.loop_post import post
from retailrocket_async._spool.capacity import Capacity
from retailrocket_async._spool.entries import size_of
from retailrocket_async._spool.failures import (
    LeaseLostError,
    SpoolBusyError,
    SpoolDamagedError,
    SpoolFileFullError,
    without_frames,
)
from retailrocket_async._spool.group_commit import GroupCommit
from retailrocket_async._spool.jobs import Job
from retailrocket_async._spool.log_reader import LogReader

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from retailrocket_async._queue.eviction import Overflow
    from retailrocket_async._spool.entries import Entry
    from retailrocket_async._spool.file import SpoolFile
    from retailrocket_async._spool.reader import SpoolReader
    from retailrocket_async._spool.writer_listener import WriterListener

_GROUP: Final = 1000
"""Largest number of events in one transaction. To return receipts to 1000 callers takes the loop one or two ms."""

_GROUP_BYTES: Final = 8 << 20

_SPACING: Final = 0.003
"""Least number of seconds between two small transactions. After a transaction with one event there is no pause, so a
single caller is not delayed."""

_LARGE: Final = 100
"""Least number of events and jobs in a large transaction; a transaction with fewer is small."""

_RETRY: Final = 0.05
"""Seconds between two attempts to write events, while the spool is full or its file cannot be used."""

_INTERVAL: Final = 0.5
"""Seconds between two rounds of maintenance. With `durability="interval"`, each round flushes the file to the disk, so
a power cut loses the events of this time at most."""

_REOPEN: Final = 0.25
"""Least number of seconds between two attempts to open the file after an error."""


class WriterThread:
    """Writes events to the file, and runs jobs; its method `run` is the function of the writer's thread.

    See `SpoolWriter` for the arguments.

    Attributes:
        queue: the events and jobs for the thread; the item None asks the thread to end.
        ended: future that is resolved, in the loop, when the thread has ended.
        capacity: computes how many events fit in the spool.
        log: reads the log of outcomes.
    """

    def __init__(  # noqa: PLR0913 - as SpoolWriter
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
        self._file = file
        self._listener = listener
        self._loop = loop
        self._clock = clock
        self._patience = patience
        self._flushes = flushes
        self.queue: queue.SimpleQueue[Entry | Job | None] = queue.SimpleQueue()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.capacity = Capacity(file, max_bytes=max_bytes, min_free=min_free)
        self.log = LogReader(file, listener, loop)
        self._group = GroupCommit(
            file,
            listener,
            loop=loop,
            capacity=self.capacity,
            log=self.log,
            overflow=overflow,
            overflowed=overflowed,
        )
        self._unwritten = self._group.unwritten
        self._is_open = False
        self._generation = 0
        self._opens_at = self._opening_took = 0.0
        self._collected_at = self._renews_at = self._maintains_at = 0.0
        self._stopping = False
        self._ends_at = 0.0
        # The error with which events and jobs are refused after the thread has ended.
        self._end_reason = SpoolError("the spool was closed")
        self._end_reported = threading.Event()

    @property
    def reader(self) -> SpoolReader | None:
        """The object that reads written events for the engine, or None. Set this attribute before `run` is called."""
        return self._group.reader

    @reader.setter
    def reader(self, reader: SpoolReader | None) -> None:
        self._group.reader = reader

    # --- the life of the thread ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Write the events and run the jobs of `queue`, until the item None arrives or a defect ends the thread."""
        defect: BaseException | None = None
        try:
            while self._step():
                pass
        except BaseException as error:  # noqa: BLE001 - without a report callers would wait for ever
            defect = error
        for last in (functools.partial(self._report_defect, defect), self._refuse_all, self._file.close):
            # All three functions must be called, even if one of them raises an error.
            with suppress(BaseException):
                last()
        post(self._loop, self.refuse_rest)

    def _step(self) -> bool:
        """Do one round of work; return False if the thread has to end. After an error, the next round tries again."""
        failed: SpoolError | None = None
        try:
            if not self._goes_on():
                if self._is_open:
                    self._shrink(most=20)
                return False
            self._collect()
            if self._opened():
                self._work()
        except BaseException as error:  # noqa: BLE001 - without this thread nothing is accepted or settled any more
            if self._stopping and not self._group:
                return False
            failed = without_frames(error)
        # `_recover` is called outside the `except` block. Inside the block, the frames of the error would still hold
        # SQL statements, which keep the file open.
        if failed is not None:
            self._recover(failed)
        return True

    def _goes_on(self) -> bool:
        if not self._stopping:
            return True
        # After `stop`, the thread goes on for a limited time only, because waiting outcomes and events can never be
        # written if the disk stays full. Events whose outcome was not written are still in the file, and events that
        # were not written are refused.
        return bool(self._group) and self._clock() < self._ends_at

    def _refuse_all(self) -> None:
        self._group.refuse(len(self._unwritten), self._end_reason)
        self._group.fail_jobs(self._end_reason)

    def refuse_rest(self) -> None:
        """Note that the thread has ended, and refuse the events and jobs that are still queued; called in the loop."""
        if not self.ended.done():
            self.ended.set_result(None)
        while not self.queue.empty():
            item = self.queue.get_nowait()
            if isinstance(item, Job):
                if item.done is not None:
                    set_exception(item.done, self._end_reason)
            elif item is not None:
                self._listener.refused([item], self._end_reason)

    def _report_defect(self, defect: BaseException | None) -> None:
        """After a defect, let the event loop stop sending, and wait until the loop has done this.

        The lease is released afterwards, and another process may then send the events.
        """
        if defect is None:
            return
        self._end_reason = SpoolError(
            f"a defect ({type(defect).__name__}) has ended the spool's thread: restart the process; what was accepted"
            " is in the spool. Please report this"
        )
        post(self._loop, self._notify_ended)
        while not self._end_reported.wait(_INTERVAL) and not self._loop.is_closed():
            pass

    def _notify_ended(self) -> None:
        try:
            self._listener.ended(self._end_reason)
        finally:
            self._end_reported.set()

    # --- collecting ---------------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Wait for an item in the queue; then take items until the queue is empty or the group is full."""
        try:
            self._take(self.queue.get(timeout=_RETRY if self._group else _INTERVAL))
            # The first item is stored already, so it is not lost if this wait raises an error.
            self._wait_for_more()
            entries = self._unwritten.entries
            size = size_of(entries)
            while len(entries) < _GROUP and size < _GROUP_BYTES:
                size += self._take(self.queue.get_nowait())
        except queue.Empty:
            pass
        finally:
            self._unwritten.stamp(self._clock())

    def _take(self, item: Entry | Job | None) -> int:
        """Store an item of the queue; return its size in bytes if the item is an event, otherwise 0."""
        if type(item) is tuple:
            self._unwritten.entries.append(item)
            return len(item[0])
        if isinstance(item, Job):
            self._group.jobs.append(item)
        else:
            self._stopping = True
            self._ends_at = self._clock() + self._patience
        return 0

    def _wait_for_more(self) -> None:
        """If the last transaction was small, wait a few milliseconds for more items.

        The wait saves transactions: one transaction costs as much as a hundred events.
        """
        if 1 < self._group.size < _LARGE and (wait := self._collected_at + _SPACING - self._clock()) > 0.0:
            time.sleep(wait)
        self._collected_at = self._clock()

    # --- working ------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Write the waiting events, and run the waiting jobs.

        Do maintenance if the maintenance is due, or if no event and no job waits.
        """
        self._group.refuse_withdrawn()
        idle = not self._group
        try:
            self._renew_lease()
            self._group.resolve_unsure()
            if not idle and not self._group.write():
                self._overflow()
            if idle or self._clock() >= self._maintains_at:
                self._maintain()
        except LeaseLostError as error:
            self._lose_lease()
            post(self._loop, self._listener.lease_lost, without_frames(error))
        except SpoolFileFullError:
            self._group.tight = True
            self._file.truncate_wal()
            self._overflow()

    def _overflow(self) -> None:
        self._group.refuse_overflow(self._clock() - self._patience)

    def _renew_lease(self) -> None:
        """If this process holds the lease (the right to send), renew the lease, at most twice a second.

        After each renewal, notify the reader.
        """
        began = self._clock()
        lease = self._file.lease
        if self.reader is not None and lease.held and began >= self._renews_at:
            # If this process was stopped, another process may take the lease at this very moment, in a transaction.
            stopped = began - self._renews_at > lease.validity - _INTERVAL
            with self._file.transaction() if stopped else nullcontext():
                lease.renew()
            self._renews_at = began + _INTERVAL
            self.reader.lease_renewed(began)

    def _lose_lease(self) -> None:
        """Release the lease (the right to send). Begin a new term, so that jobs of the old term are skipped."""
        self._group.term += 1
        if self.reader is not None:
            self.reader.lease_lost()
        self._file.lease.release()

    def _maintain(self) -> None:
        self._maintains_at = self._clock() + _INTERVAL
        self._file.check_place()
        if self._flushes and self._group.dirty:
            self._file.checkpoint()
        self._group.dirty = False
        self._shrink(most=4)
        self.log.read()
        post(self._loop, self._listener.measured, self._file.usage())

    def _shrink(self, most: int) -> None:
        with suppress(SpoolFileFullError):
            for _ in range(most):
                if not self.queue.empty() or not self._file.shrink():
                    return

    # --- opening ------------------------------------------------------------------------------------------------------

    def _opened(self) -> bool:
        """Open the file if it is closed; return False if the next attempt to open it is not due yet."""
        if self._is_open:
            return True
        began = self._clock()
        if began < self._opens_at:
            return False
        try:
            self._file.open()
            self.capacity.measure()
            replaced = self._file.generation != self._generation
            if replaced:
                if self._generation:
                    # The ids of events in the old file are ids of other events in the new file.
                    self._group.forget_unsure()
                    self._lose_lease()
                    post(self._loop, self._listener.replaced)
                self._generation = self._file.generation
            self.log.start(anew=replaced)
            self._is_open = True
        finally:
            self._opening_took = self._clock() - began
        return True

    def _recover(self, error: SpoolError) -> None:
        """Call `_failed` for an error of a step. If `_failed` fails, wait; a later step opens the file again."""
        try:
            self._failed(error)
        except BaseException:  # noqa: BLE001 - as in `_step`
            self._is_open = False
            time.sleep(_REOPEN)

    def _failed(self, error: SpoolError) -> None:
        """Report an error, and refuse the events that have waited too long.

        The file is closed and opened again later, except if another process has only held the lock for too long.
        """
        ever_open = self._generation > 0
        if not isinstance(error, SpoolBusyError):
            self._is_open = False
            # The longer it took to open the file, the longer is the pause, because opening a large damaged file slows
            # other processes that use the disk.
            self._opens_at = self._clock() + max(_REOPEN, 4 * self._opening_took)
        post(self._loop, self._listener.failed, error)
        if ever_open and not isinstance(error, SpoolDamagedError):
            self._group.refuse_older(self._clock() - self._patience, error)
        else:
            self._group.refuse(len(self._unwritten), error)
        self._group.fail_jobs(error, keep=ever_open)
        if not self._is_open:
            with suppress(SpoolError):
                self._file.disconnect()
