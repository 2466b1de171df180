"""What holds while Redis does not answer, and for a moment after it is back."""

from __future__ import annotations

from typing import Final

from retailrocket_async import LocalLimiter, RateLimit

PROBE: Final = 0.5
"""Seconds between two questions whether Redis is back; each may take as long as the limiter's time-out as well."""

_SETTLE: Final = 2.0
"""Seconds at least for which both limits are kept when it is back: by then all others have asked, too."""

_MARGIN: Final = 0.9
"""What the processes use of the limit together: not all of them change sides at the same moment."""


def share(rate_limit: RateLimit, replicas: int) -> RateLimit:
    """Return the limit of one of so many processes that do not know of each other."""
    # Rounded down, so that the sum keeps the limit whatever the moments at which they send.
    requests = max(1, rate_limit.requests // replicas)
    interval = rate_limit.per * replicas / (_MARGIN * rate_limit.requests)
    return RateLimit(requests=requests, per=max(rate_limit.per, requests * interval), burst=1, jitter=rate_limit.jitter)


class Outage:
    """One time without Redis.

    Args:
        now: when it began, on the event loop's clock.
        per: the window's length in seconds.
        own: what this process may do meanwhile; None where it waits for Redis.

    Attributes:
        own: the same.
        asked_at: when Redis was asked last.
    """

    def __init__(self, now: float, per: float, own: LocalLimiter | None) -> None:
        self.own = own
        self.asked_at = now
        # What others have sent without Redis must be out of the window as well.
        self._settle = 0.0 if own is None else max(_SETTLE, _SETTLE / 2 + per)
        self._back_since: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether Redis answers again, though others may not have noticed yet."""
        return self._back_since is not None

    def failed(self, now: float) -> None:
        """Note that Redis did not answer."""
        self.asked_at = now
        self._back_since = None

    def answered(self, now: float) -> bool:
        """Note that Redis answered; return whether it alone decides from now on."""
        self.asked_at = now
        if self._back_since is None:
            self._back_since = now
        return now >= self._back_since + self._settle
