"""The interface through which a writer's thread reports to the event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retailrocket_async._errors import SpoolError, SpoolFullError
    from retailrocket_async._spool.entries import Entry
    from retailrocket_async._spool.file import Usage
    from retailrocket_async._spool.outcome_log import LogEntry


class WriterListener(Protocol):
    """Receives the reports of a writer: its methods are called in the event loop, in the order of the reports."""

    def committed(self, entries: Sequence[Entry], last: int, *, claimed: bool) -> None:
        """Called when events are in the file.

        Args:
            entries: the events; their ids are consecutive.
            last: the id of the last event.
            claimed: whether the engine must get these events now, without a read; see `SpoolReader.claims`.
        """

    def refused(self, entries: Sequence[Entry], error: SpoolError | SpoolFullError | None) -> None:
        """Called when events were not accepted; `error` is the reason, or None if the events are to be dropped."""

    def settled(self, log: Sequence[LogEntry]) -> None:
        """Called with new entries of the outcome log, which have outcomes of events of any process."""

    def missed(self) -> None:
        """Called if log entries were removed unread or are damaged: the listener looks up the events in the file."""

    def measured(self, usage: Usage) -> None:
        """Called regularly while the file can be used; `usage` has the numbers of events and bytes in the file."""

    def failed(self, error: SpoolError) -> None:
        """Called when the file could not be used; the writer tries again."""

    def lease_lost(self, error: SpoolError) -> None:
        """Called when another process has taken the lease; the other process sends the events from now on."""

    def replaced(self) -> None:
        """Called when another file has replaced the file that was open; the events of the old file are lost."""

    def ended(self, error: SpoolError) -> None:
        """Called when a defect has ended the writer's thread; nothing is written any more."""
