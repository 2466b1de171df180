"""Counts requests in a sliding window of one second, as a server does that enforces the limit."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PER = 1.0
"""Length of the window `(t - PER, t]` in seconds."""


class Window:
    """Admits at most `limit` requests in any window of one second; if `limit` is None, it admits all requests."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._admitted: deque[float] = deque()

    def admit(self, at: float) -> bool:
        """Return True and count the request if a request at the time `at` is within the limit; otherwise return False.

        Times are in seconds and must not decrease from call to call.
        """
        while self._admitted and self._admitted[0] <= at - PER:
            self._admitted.popleft()
        admitted = self.limit is None or len(self._admitted) < self.limit
        if admitted:
            self._admitted.append(at)
        return admitted


def worst_window(times: Sequence[float]) -> int:
    """Return the largest number of the sorted `times` that lie in one window."""
    worst = first = 0
    for last, at in enumerate(times):
        while times[first] <= at - PER:
            first += 1
        worst = max(worst, last - first + 1)
    return worst
