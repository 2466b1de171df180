"""Limits requests while Redis does not answer, and for a short time after Redis answers again."""

from __future__ import annotations

from typing import Final

from retailrocket_async import LocalLimiter, RateLimit

PROBE: Final = 0.5
"""Seconds between two probes of a Redis that does not answer. Each probe may last as long as the limiter's timeout."""

_SETTLE: Final = 2.0
"""Minimum number of seconds after Redis is back for which a request needs both the shared and the local permit.

All other processes send a probe within this time, so afterwards all processes use the shared limit again.
"""

_MARGIN: Final = 0.9
"""The part of the limit that all processes together use during an outage.

The part is below 1, because the processes do not begin to use their shares of the limit at the same moment.
"""


def share(rate_limit: RateLimit, replicas: int) -> RateLimit:
    """Return the limit for one process: `replicas` processes with this limit together do not exceed `rate_limit`."""
    # The number of requests is rounded down, so that all processes together keep to `rate_limit` even if all processes
    # send at the same moment.
    requests = max(1, rate_limit.requests // replicas)
    interval = rate_limit.per * replicas / (_MARGIN * rate_limit.requests)
    return RateLimit(requests=requests, per=max(rate_limit.per, requests * interval), burst=1, jitter=rate_limit.jitter)


class Outage:
    """Stores the state of one period in which Redis does not answer.

    Args:
        now: when the outage began, on the event loop's clock.
        per: the length of the rate limit's window in seconds.
        local: the limiter for this process's share; None if the process sends nothing until Redis answers.

    Attributes:
        local: the argument `local`.
        probed_at: when the last command was sent to Redis, on the event loop's clock.
        confirmed: whether a second command has failed, too.
    """

    def __init__(self, now: float, per: float, local: LocalLimiter | None) -> None:
        self.local = local
        self.probed_at = now
        self.confirmed = False
        # Seconds after Redis is back for which both limits apply: until the requests that other processes sent without
        # Redis have left the window.
        self._settle = 0.0 if local is None else max(_SETTLE, _SETTLE / 2 + per)
        self._back_since: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether Redis answers this process again. Other processes may not have noticed yet."""
        return self._back_since is not None

    def failed(self, now: float) -> None:
        """Record that one more command got no answer from Redis."""
        self.probed_at = now
        self.confirmed = True
        self._back_since = None

    def answered(self, now: float) -> bool:
        """Record that Redis answered; return True if only the shared limit applies from now on."""
        self.probed_at = now
        if self._back_since is None:
            self._back_since = now
        return now >= self._back_since + self._settle
