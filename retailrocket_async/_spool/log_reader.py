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
    """Reads the entries of the outcome log that were added since the last call of `read`.

    Args:
        file: the open file.
        listener: called in the loop with new entries, and also if some entries were removed unread.
        loop: the event loop.
    """

    def __init__(self, file: SpoolFile, listener: WriterListener, loop: asyncio.AbstractEventLoop) -> None:
        self._file = file
        self._listener = listener
        self._loop = loop
        self._seq: int | None = None
        # Jobs whose transaction is in the file, but whose log entries were not read back yet.
        self._written: list[Job] = []

    def start(self, *, anew: bool) -> None:
        """Before the first read, skip the entries that the log already contains.

        Args:
            anew: True if another file is open now. All entries in the log of the new file are then skipped, even if
                the log of the old file was read before.
        """
        if anew or self._seq is None:
            self._seq = None
            self._seq = self._file.log.last()

    def wrote(self, jobs: Sequence[Job]) -> None:
        """Note that the transaction of `jobs` is in the file.

        The next `read` reads the log entries of these jobs, and marks the jobs as reported.
        """
        self._written += jobs

    def read(self) -> None:
        """Read the log to its end, and pass new entries to the listener in the loop."""
        parts: list[list[LogEntry]] = []
        missed = False
        seq = self._seq or 0
        while part := self._file.log.after(seq):
            # The numbers of entries are consecutive, so a gap means that some entries were removed unread. An entry
            # without ids is damaged. In both cases the listener must look up the events in the file.
            missed = missed or part[0].seq != seq + 1 or not all(entry.ids for entry in part)
            seq = part[-1].seq
            parts.append(part)
            if len(part) < self._file.log.part:
                break
        # The whole log is read before the loop gets the first entry. If a read failed after the loop had got some
        # entries, the settlements of these entries would still count as pending, and `RunningSpool.end` would settle
        # their events a second time.
        self._seq = seq
        self._reported()
        for part in parts:
            post(self._loop, self._listener.settled, part)
        if missed:
            post(self._loop, self._listener.missed)

    def catch_up(self, spans: Sequence[Range]) -> tuple[list[int], list[LogEntry]]:
        """Return the ids in `spans` of events that still wait, and the log entries that were not read yet.

        Call this method in a transaction, so that both lists describe the same state of the file.
        """
        log: list[LogEntry] = []
        while more := self._file.log.after(log[-1].seq if log else self._seq or 0):
            log += more
        return [number for span in spans for number in self._file.events.waiting_between(*span)], log

    def caught_up(self, found: tuple[list[int], list[LogEntry]]) -> None:
        """Let the next `read` begin after the entries that `catch_up` returned.

        Call this method after the transaction of `catch_up` is in the file.
        """
        _, log = found
        if log:
            self._seq = log[-1].seq
        self._reported()

    def _reported(self) -> None:
        for job in self._written:
            job.reported = True
        self._written = []
