"""Limits how many events of a spool are in memory: enough to fill batches, but not all events that wait on disk."""

from __future__ import annotations

from typing import Final

READ_EVENTS: Final = 500
"""Events that are read from the file at a time: feeding them takes the loop a millisecond."""

_READ_BYTES: Final = 1 << 20
"""Bytes of their JSON that are read at a time."""


class Window:
    """Counts the events that were read from the file and have no outcome yet.

    The loop changes the counts. The writer's thread reads them, and may read them a moment late.

    Args:
        most: events at most.
        most_bytes: bytes of their JSON at most; the last event may exceed it.
    """

    __slots__ = ("_bytes", "_events", "_most", "_most_bytes")

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._events = self._bytes = 0

    def add(self, events: int, size: int) -> None:
        """Note that events went to the engine; `size` is in bytes."""
        self._events += events
        self._bytes += size

    def remove(self, events: int, size: int) -> None:
        """Note that events of the engine have an outcome; `size` is in bytes."""
        self._events -= events
        self._bytes -= size

    def fits(self, events: int) -> bool:
        """Whether there is space for this number of further events."""
        return self._most - self._events >= events

    def is_worth_reading(self) -> bool:
        """Whether there is space for enough events to make a read of the file worthwhile."""
        return self.fits(min(READ_EVENTS, self._most // 2)) and self._bytes < self._most_bytes

    def next_read(self) -> tuple[int, int]:
        """Return how many events, and how many bytes of their JSON, to read at most."""
        return min(READ_EVENTS, self._most - self._events), min(_READ_BYTES, max(1, self._most_bytes - self._bytes))
