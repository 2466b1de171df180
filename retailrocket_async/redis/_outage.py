"""What holds while Redis does not answer, and for a short time after it answers again."""

from __future__ import annotations

from typing import Final

from retailrocket_async import LocalLimiter, RateLimit

PROBE: Final = 0.5
"""Seconds between two probes of a Redis that does not answer. Each probe may last as long as the limiter's timeout."""

_SETTLE: Final = 2.0
"""Least seconds for which both limits are kept after Redis is back: by then all other processes have probed, too."""

_MARGIN: Final = 0.9
"""Part of the limit that the processes use together: they do not change to their shares at the same moment."""


def share(rate_limit: RateLimit, replicas: int) -> RateLimit:
    """Return the limit of one process, so that `replicas` processes together keep `rate_limit` without Redis."""
    # Rounded down, so that the sum keeps the limit at whatever moments the processes send.
    requests = max(1, rate_limit.requests // replicas)
    interval = rate_limit.per * replicas / (_MARGIN * rate_limit.requests)
    return RateLimit(requests=requests, per=max(rate_limit.per, requests * interval), burst=1, jitter=rate_limit.jitter)


class Outage:
    """One period in which Redis does not answer.

    Args:
        now: when it began, on the event loop's clock.
        per: the window's length in seconds.
        local: the limiter of this process's share; None if the process sends nothing until Redis answers.

    Attributes:
        local: the same.
        probed_at: when Redis was last sent a command, on the event loop's clock.
        confirmed: whether a second command has failed as well.
    """

    def __init__(self, now: float, per: float, local: LocalLimiter | None) -> None:
        self.local = local
        self.probed_at = now
        self.confirmed = False
        # The requests that others have sent without Redis must have left the window as well.
        self._settle = 0.0 if local is None else max(_SETTLE, _SETTLE / 2 + per)
        self._back_since: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether Redis answers this process again; other processes may not know yet."""
        return self._back_since is not None

    def failed(self, now: float) -> None:
        """Record that Redis did not answer again."""
        self.probed_at = now
        self.confirmed = True
        self._back_since = None

    def answered(self, now: float) -> bool:
        """Record that Redis answered; return whether the shared limit alone holds from now on."""
        self.probed_at = now
        if self._back_since is None:
            self._back_since = now
        return now >= self._back_since + self._settle
