"""Reads the log of outcomes in the writer's thread, and passes new entries to the event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retailrocket_async._runtime.loop_post import post

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from retailrocket_async._spool.file import SpoolFile
    from retailrocket_async._spool.id_ranges import Range
    from retailrocket_async._spool.jobs import Job
    from retailrocket_async._spool.outcome_log import LogEntry
    from retailrocket_async._spool.writer_listener import WriterListener


class LogReader:
    """Reads the log of outcomes from where it stopped last.

    Args:
        file: the open file.
        listener: notified in the loop of entries, and of gaps between them.
        loop: the event loop.
    """

    def __init__(self, file: SpoolFile, listener: WriterListener, loop: asyncio.AbstractEventLoop) -> None:
        self._file = file
        self._listener = listener
        self._loop = loop
        self._seq: int | None = None
        # Jobs in the file whose log entries were not read yet.
        self._written: list[Job] = []

    def start(self, *, anew: bool) -> None:
        """Skip the entries that are in the log now, if nothing was read before.

        Args:
            anew: skip them in any case, as another file is open now.
        """
        if anew or self._seq is None:
            self._seq = None
            self._seq = self._file.log.last()

    def wrote(self, jobs: Sequence[Job]) -> None:
        """Add jobs that are in the file: the next `read` returns their entries, and marks them as reported."""
        self._written += jobs

    def read(self) -> None:
        """Read the log to its end, and notify the loop of new entries."""
        parts: list[list[LogEntry]] = []
        missed = False
        seq = self._seq or 0
        while part := self._file.log.after(seq):
            # Numbers follow one another, so a gap means that entries were removed before they were read.
            missed = missed or part[0].seq != seq + 1 or not all(entry.ids for entry in part)
            seq = part[-1].seq
            parts.append(part)
            if len(part) < self._file.log.part:
                break
        # All of it is read before the loop is notified of any. If a read failed after a notification, the settlements
        # of these entries would still count as pending, and `close` would settle their events a second time.
        self._seq = seq
        self._reported()
        for part in parts:
            post(self._loop, self._listener.settled, part)
        if missed:
            post(self._loop, self._listener.missed)

    def catch_up(self, spans: Sequence[Range]) -> tuple[list[int], list[LogEntry]]:
        """Return the ids of `spans` that wait, and the entries not read yet; needs a transaction for both."""
        log: list[LogEntry] = []
        while more := self._file.log.after(log[-1].seq if log else self._seq or 0):
            log += more
        return [number for span in spans for number in self._file.events.waiting_between(*span)], log

    def caught_up(self, found: tuple[list[int], list[LogEntry]]) -> None:
        """Continue after the entries that `catch_up` returned; call it when its transaction is in the file."""
        _, log = found
        if log:
            self._seq = log[-1].seq
        self._reported()

    def _reported(self) -> None:
        for job in self._written:
            job.reported = True
        self._written = []
