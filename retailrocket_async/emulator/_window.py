"""An exact sliding window: admits requests under a limit, and measures the most arrivals in any window."""

from __future__ import annotations

from collections import deque

__all__ = ["SlidingWindow"]


class SlidingWindow:
    """Counts requests in the window ``(t - per, t]``, exactly: without averages or fixed buckets.

    The methods take the current time as an argument, in seconds of a clock that never goes back. The time of a call
    must not be earlier than the time of the call before. The window does not contain the moment ``t - per``: two
    requests exactly *per* seconds apart are never in the same window.

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
        """The most arrivals, admitted or refused, in any window."""
        return self._worst

    @property
    def over_limit(self) -> int:
        """How many requests `admit` refused."""
        return self._over_limit

    def arrive(self, now: float) -> None:
        """Count a request that arrives at *now*, whether the request is admitted or not."""
        self._forget(self._arrivals, now)
        self._arrivals.append(now)
        self._worst = max(self._worst, len(self._arrivals))

    def admit(self, now: float, limit: int | None) -> bool:
        """Admit a request at *now* if the window has fewer than *limit* admitted requests.

        Return True if the request is admitted. Otherwise count the request in `over_limit`, and return False.

        Args:
            now: the time, in seconds.
            limit: the most admitted requests in a window; None admits every request.
        """
        self._forget(self._admitted, now)
        if limit is not None and len(self._admitted) >= limit:
            self._over_limit += 1
            return False
        self._admitted.append(now)
        return True

    def clear(self) -> None:
        """Forget all times and counts."""
        self._arrivals.clear()
        self._admitted.clear()
        self._worst = self._over_limit = 0

    def _forget(self, moments: deque[float], now: float) -> None:
        oldest = now - self._per
        while moments and moments[0] <= oldest:
            moments.popleft()
