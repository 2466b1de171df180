"""The exact sliding window: who may pass, and how dense the arrivals were at worst."""

from __future__ import annotations

from collections import deque

__all__ = ["SlidingWindow"]


class SlidingWindow:
    """A log of moments over a window ``(t - per, t]``, with no averaging and no fixed buckets.

    Time is an argument everywhere, in seconds of any clock that never runs backwards; moments are told in
    order. A window of *per* seconds is open at its old end: two requests exactly *per* apart never share one.

    Args:
        per: the length of the window in seconds, above 0.
    """

    def __init__(self, per: float) -> None:
        self._per = per
        self._arrivals: deque[float] = deque()
        self._admitted: deque[float] = deque()
        self._worst = 0
        self._over_limit = 0

    @property
    def worst(self) -> int:
        """The largest number of arrivals, admitted or not, that any window held."""
        return self._worst

    @property
    def over_limit(self) -> int:
        """How many requests `admit` refused."""
        return self._over_limit

    def arrive(self, now: float) -> None:
        """Count an arrival at *now*, whatever becomes of it."""
        self._forget(self._arrivals, now)
        self._arrivals.append(now)
        self._worst = max(self._worst, len(self._arrivals))

    def admit(self, now: float, limit: int | None) -> bool:
        """Whether a request at *now* may pass; if so it is logged, if not it is counted in `over_limit`.

        Args:
            now: the moment, in seconds.
            limit: admitted requests the window may hold; None lets everything pass.
        """
        self._forget(self._admitted, now)
        if limit is not None and len(self._admitted) >= limit:
            self._over_limit += 1
            return False
        self._admitted.append(now)
        return True

    def clear(self) -> None:
        """Forget every moment and every count."""
        self._arrivals.clear()
        self._admitted.clear()
        self._worst = self._over_limit = 0

    def _forget(self, moments: deque[float], now: float) -> None:
        oldest = now - self._per
        while moments and moments[0] <= oldest:
            moments.popleft()
