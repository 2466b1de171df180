"""Limits how many events of a spool are in memory: enough to fill batches, but not all events that wait on disk."""

from __future__ import annotations

from typing import Final

READ_EVENTS: Final = 500
"""Largest number of events that are read from the file at a time. 500 events take the event loop 1 ms."""

_READ_BYTES: Final = 1 << 20
"""Largest number of bytes of JSON that are read from the file at a time."""


class Window:
    """Counts the events that were read from the file and have no outcome yet.

    The event loop changes the counts. The writer's thread reads the counts, and may read slightly outdated values.

    Args:
        most: largest number of events.
        most_bytes: largest number of bytes of the events' JSON; only the last event that is read may exceed this
            number.
    """

    __slots__ = ("_bytes", "_events", "_most", "_most_bytes")

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._events = self._bytes = 0

    def add(self, events: int, size: int) -> None:
        """Add events that were passed to the engine; `size` is the number of bytes of their JSON."""
        self._events += events
        self._bytes += size

    def remove(self, events: int, size: int) -> None:
        """Remove events that have an outcome; `size` is the number of bytes of their JSON."""
        self._events -= events
        self._bytes -= size

    def fits(self, events: int) -> bool:
        """Return whether there is space for `events` further events."""
        return self._most - self._events >= events

    def is_worth_reading(self) -> bool:
        """Return whether there is space for so many events that a read of the file is worthwhile."""
        return self.fits(min(READ_EVENTS, self._most // 2)) and self._bytes < self._most_bytes

    def next_read(self) -> tuple[int, int]:
        """Return the largest number of events, and of bytes of JSON, for the next read."""
        return min(READ_EVENTS, self._most - self._events), min(_READ_BYTES, max(1, self._most_bytes - self._bytes))
