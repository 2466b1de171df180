"""Events between `track` and the disk: what the writer's thread has taken from its queue and has not written yet."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Sequence

    from retailrocket_async._receipt import Receipt
    from retailrocket_async._spool.process_events import SpoolReceipt

Entry: TypeAlias = "tuple[bytes, SpoolReceipt, asyncio.Future[Receipt] | None]"
"""An event to write: its JSON, its receipt, and the future of its caller; None if the caller does not wait.

It is a plain tuple because there is one for each event. If the future is cancelled before the event is being written,
the event is not written.
"""

_ROW: Final = 32
"""Bytes that an event takes in the file beside its JSON, roughly."""


def size_of(entries: Sequence[Entry]) -> int:
    """Return the bytes that events take in the file, roughly."""
    return sum([len(entry[0]) for entry in entries]) + _ROW * len(entries)


class UnwrittenEntries:
    """The entries that the thread has taken, in the order in which they came.

    Attributes:
        entries: the entries; `stamp` must be called after entries were appended.
    """

    __slots__ = ("_came_at", "entries")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._came_at: list[float] = []

    def __len__(self) -> int:
        return len(self.entries)

    def stamp(self, moment: float) -> None:
        """Note that the entries that were appended since the last call came at `moment`."""
        self._came_at += [moment] * (len(self.entries) - len(self._came_at))

    def fitting(self, room: int) -> int:
        """Return how many entries, from the first on, fit in `room` bytes together."""
        if size_of(self.entries) <= room:
            return len(self.entries)
        return sum(total <= room for total in itertools.accumulate(size_of([entry]) for entry in self.entries))

    def older_than(self, moment: float) -> int:
        """Return how many of the first entries came at `moment` or before."""
        return sum(came_at <= moment for came_at in self._came_at)

    def remove_first(self, count: int) -> None:
        """Remove the first entries."""
        del self.entries[:count], self._came_at[:count]

    def discard(self, entries: Iterable[Entry]) -> None:
        """Remove those of `entries` that are here."""
        chosen = set(map(id, entries))
        self._keep([number for number, entry in enumerate(self.entries) if id(entry) not in chosen])

    def pop_withdrawn(self) -> list[Entry]:
        """Remove and return the entries whose callers were cancelled."""
        gone = [entry for entry in self.entries if entry[2] is not None and entry[2].cancelled()]
        if gone:
            self.discard(gone)
        return gone

    def _keep(self, positions: list[int]) -> None:
        self.entries[:] = [self.entries[position] for position in positions]
        self._came_at[:] = [self._came_at[position] for position in positions]
