"""The limit as the server counts it: so many requests in any one second."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PER = 1.0
"""Seconds of a window `(t - PER, t]`."""


class Window:
    """Admits no more than `limit` requests in any window; None admits all."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._admitted: deque[float] = deque()

    def admit(self, at: float) -> bool:
        """Count a request that arrived `at`, no earlier than the one before; return whether it is within the limit."""
        while self._admitted and self._admitted[0] <= at - PER:
            self._admitted.popleft()
        admitted = self.limit is None or len(self._admitted) < self.limit
        if admitted:
            self._admitted.append(at)
        return admitted


def worst_window(times: Sequence[float]) -> int:
    """Return the largest number of `times`, which are sorted, in any window."""
    worst = first = 0
    for last, at in enumerate(times):
        while times[first] <= at - PER:
            first += 1
        worst = max(worst, last - first + 1)
    return worst
