"""Computes how many more bytes a spool may use, from its largest size and the space that must stay free on its disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from retailrocket_async._spool.entries import size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retailrocket_async._spool.entries import Entry, UnwrittenEntries
    from retailrocket_async._spool.file import SpoolFile

_MEASURED: Final = 1 << 20
"""Number of bytes that may be written before the file is measured again."""


class Capacity:
    """Computes how many of the unwritten events fit in the spool.

    Args:
        file: the open file of the spool.
        max_bytes: largest size of the file in bytes.
        min_free: number of bytes that must stay free on the file system of the file.

    Attributes:
        full: True if, at the last check, the spool had no space for the next event. The event loop reads this
            attribute, too.
    """

    def __init__(self, file: SpoolFile, *, max_bytes: int, min_free: int) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self._min_free = min_free
        self._used = 0
        self._written = 0
        self.full = False

    def measure(self) -> None:
        """Measure how many bytes of the file are in use."""
        self._used, self._written = self._file.bytes_used(), 0

    def add(self, entries: Sequence[Entry]) -> None:
        """Add the size of written entries to the estimate of the used bytes; `measure` replaces the estimate."""
        self.full = False
        self._written += size_of(entries)

    def fitting(self, unwritten: UnwrittenEntries) -> int:
        """Return how many unwritten entries, counted from the first entry, fit in the spool."""
        if not unwritten:
            return 0
        if self._written > _MEASURED or self.full:
            self.measure()
        room = min(self._max_bytes - self._used - self._written, self._file.bytes_free() - self._min_free)
        return unwritten.fitting(room)
