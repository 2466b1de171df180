"""Holds the events that the writer's thread has taken from its queue, but has not written to the file yet."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Sequence

    from retailrocket_async._receipt import Receipt

Entry: TypeAlias = "tuple[bytes, Receipt, asyncio.Future[Receipt] | None]"
"""An event to write: its JSON, its receipt, and the future that the caller awaits (None if the caller does not wait).

Every event needs such an entry, so the entry is a plain tuple, which is fast to create. If the future is cancelled
before the thread begins to write the event, the event is not written.
"""

_ROW: Final = 32
"""Approximate number of bytes that the file needs for an event in addition to the event's JSON."""


def size_of(entries: Sequence[Entry]) -> int:
    """Return the approximate number of bytes that the file needs for these events."""
    return sum([len(entry[0]) for entry in entries]) + _ROW * len(entries)


class UnwrittenEntries:
    """Holds the unwritten entries in the order of their arrival, and the time of arrival of each entry.

    Attributes:
        entries: the entries. The writer's thread appends entries to this list, and calls `stamp` afterwards.
    """

    __slots__ = ("_came_at", "entries")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._came_at: list[float] = []

    def __len__(self) -> int:
        return len(self.entries)

    def stamp(self, moment: float) -> None:
        """Record `moment` (seconds of the loop's clock) as the time of arrival of all entries that have no time yet."""
        self._came_at += [moment] * (len(self.entries) - len(self._came_at))

    def fitting(self, room: int) -> int:
        """Return the largest number of entries, counted from the first entry, that together fit in `room` bytes."""
        if size_of(self.entries) <= room:
            return len(self.entries)
        return sum(total <= room for total in itertools.accumulate(size_of([entry]) for entry in self.entries))

    def older_than(self, moment: float) -> int:
        """Return how many entries, counted from the first entry, arrived at `moment` or before."""
        return sum(came_at <= moment for came_at in self._came_at)

    def remove_first(self, count: int) -> None:
        """Remove the first `count` entries."""
        del self.entries[:count], self._came_at[:count]

    def discard(self, entries: Iterable[Entry]) -> None:
        """Remove the given entries; entries that were removed before are ignored."""
        chosen = set(map(id, entries))
        self._keep([number for number, entry in enumerate(self.entries) if id(entry) not in chosen])

    def pop_withdrawn(self) -> list[Entry]:
        """Remove and return the entries whose callers have cancelled their futures."""
        gone = [entry for entry in self.entries if entry[2] is not None and entry[2].cancelled()]
        if gone:
            self.discard(gone)
        return gone

    def _keep(self, positions: list[int]) -> None:
        self.entries[:] = [self.entries[position] for position in positions]
        self._came_at[:] = [self._came_at[position] for position in positions]
