"""Counts of settled events, one for each outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retailrocket_async._outcome import Abandoned, Delivered, Dropped, Kept, Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable

    from retailrocket_async._outcome import Outcome


class OutcomeCounts:
    """Counts settled events by their outcome.

    Attributes:
        delivered, rejected, abandoned, dropped, kept: numbers of events, as in `Stats`.
        dropped_by: numbers of dropped events by reason and event name, as in `Stats`.
    """

    __slots__ = ("abandoned", "delivered", "dropped", "dropped_by", "kept", "rejected")

    def __init__(self) -> None:
        self.delivered = self.rejected = self.abandoned = self.dropped = self.kept = 0
        self.dropped_by: dict[str, dict[str, int]] = {}

    def add(self, outcome: Outcome, count: int, names: Iterable[str]) -> None:
        """Count `count` events as settled.

        Args:
            outcome: the outcome of all these events.
            count: number of events.
            names: the name of each event; read only if the events were dropped.
        """
        match outcome:
            case Delivered():
                self.delivered += count
            case Rejected():
                self.rejected += count
            case Abandoned():
                self.abandoned += count
            case Dropped(reason=reason):
                self.dropped += count
                by_name = self.dropped_by.setdefault(reason, {})
                for name in names:
                    by_name[name] = by_name.get(name, 0) + 1
            case Kept():
                self.kept += count

    @property
    def total(self) -> int:
        """Number of events that have an outcome."""
        return self.delivered + self.rejected + self.abandoned + self.dropped + self.kept

    def dropped_copy(self) -> dict[str, dict[str, int]]:
        """Return a copy of `dropped_by`; may be called in any thread."""
        return {reason: dict(names) for reason, names in list(self.dropped_by.items())}


def merged(one: dict[str, dict[str, int]], other: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Add two mappings of the kind of `OutcomeCounts.dropped_by`; return a new mapping."""
    sums = {reason: dict(names) for reason, names in one.items()}
    for reason, names in other.items():
        by_name = sums.setdefault(reason, {})
        for name, count in names.items():
            by_name[name] = by_name.get(name, 0) + count
    return sums
