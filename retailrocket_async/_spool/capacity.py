"""How many more bytes a spool may take: bounded by its own size, and by what must stay free on its file system."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from retailrocket_async._spool.entries import size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retailrocket_async._spool.entries import Entry, UnwrittenEntries
    from retailrocket_async._spool.file import SpoolFile

_MEASURED: Final = 1 << 20
"""Bytes that may be written between two measurements of the file."""


class Capacity:
    """The room that a spool has for events.

    Args:
        file: the open file, which is measured.
        max_bytes: bound of the file.
        min_free: bytes that stay free on its file system.

    Attributes:
        full: whether there was no room for the next event; the event loop reads it as well.
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
        """Note that entries were written: the estimate grows until the next measurement."""
        self.full = False
        self._written += size_of(entries)

    def fitting(self, unwritten: UnwrittenEntries) -> int:
        """Return how many of the first unwritten entries there is room for."""
        if not unwritten:
            return 0
        if self._written > _MEASURED or self.full:
            self.measure()
        room = min(self._max_bytes - self._used - self._written, self._file.bytes_free() - self._min_free)
        return unwritten.fitting(room)
