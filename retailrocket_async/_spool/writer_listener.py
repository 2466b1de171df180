"""What a writer reports to the event loop."""

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
        """Events are in the file.

        Args:
            entries: the events.
            last: the id of the last of them; their ids follow one another.
            claimed: whether the reader has claimed them, see `SpoolReader.claims`.
        """

    def refused(self, entries: Sequence[Entry], error: SpoolError | SpoolFullError | None) -> None:
        """Events were not accepted, for the reason `error`; None if they are dropped."""

    def settled(self, log: Sequence[LogEntry]) -> None:
        """Events of any process have an outcome."""

    def missed(self) -> None:
        """Entries of the log were removed before they were read; `SpoolWriter.catch_up` finds their events."""

    def measured(self, usage: Usage) -> None:
        """The file can be used, and this much is in it."""

    def failed(self, error: SpoolError) -> None:
        """The file could not be used; the writer tries again."""

    def lease_lost(self, error: SpoolError) -> None:
        """Another process has taken the lease, and sends from now on."""

    def replaced(self) -> None:
        """Another file is in the place of the one that was open, whose events are lost."""

    def ended(self, error: SpoolError) -> None:
        """A defect has ended the thread, and nothing is written any more."""
