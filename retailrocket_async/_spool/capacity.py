"""Computes how many more bytes a spool may use, from its own bound and the space that must stay free on its disk."""

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
        file: the open file, which is measured.
        max_bytes: largest size of the file in bytes.
        min_free: number of bytes that must stay free on its file system.

    Attributes:
        full: whether there was no space for the next event; also read in the event loop.
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
        """Add the bytes of written entries to the estimate of the used bytes, until the next measurement."""
        self.full = False
        self._written += size_of(entries)

    def fitting(self, unwritten: UnwrittenEntries) -> int:
        """Return how many of the unwritten entries, from the first on, fit in the spool."""
        if not unwritten:
            return 0
        if self._written > _MEASURED or self.full:
            self.measure()
        room = min(self._max_bytes - self._used - self._written, self._file.bytes_free() - self._min_free)
        return unwritten.fitting(room)
