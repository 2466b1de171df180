"""Wraps a limiter, and records when each request got its permit and when it was written."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from acceptance.support.exact_server import Arrival
    from retailrocket_async import Limiter, Permit

# All processes of the machine share this clock. The event loop's clock is not used, because some runs set it wrong.
_now = time.monotonic


class Sending(NamedTuple):
    """When the permit of a request was granted and when the request was written, in seconds of the monotonic clock."""

    granted: float
    written: float


class RecordingLimiter:
    """Passes every call to another limiter, and records the times of each request.

    The client must send one event in each request and try it once. Then the n-th permit belongs to the n-th event.

    Args:
        limiter: the limiter that decides.
        first: the number of the first request.
        on_first: called when the first permit is granted; default None.

    Attributes:
        sendings: the times of each request by its number.
    """

    def __init__(self, limiter: Limiter, first: int = 0, on_first: Callable[[], None] | None = None) -> None:
        self._limiter = limiter
        self._on_first = on_first
        self._numbers = itertools.count(first)
        self.sendings: dict[int, Sending] = {}

    async def acquire(self) -> Permit:
        """Wait for a permit of the inner limiter."""
        permit = await self._limiter.acquire()
        if self._on_first is not None:
            self._on_first()
            self._on_first = None
        return _RecordedPermit(self.sendings, next(self._numbers), permit)

    def pause_until(self, deadline: float) -> None:
        """Pass the pause on to the inner limiter."""
        self._limiter.pause_until(deadline)

    def throttled(self, sent_at: float) -> None:
        """Pass the refusal on to the inner limiter."""
        self._limiter.throttled(sent_at)


class _RecordedPermit:
    def __init__(self, sendings: dict[int, Sending], number: int, permit: Permit | None) -> None:
        self._sendings = sendings
        self._number = number
        self._permit = permit
        self._granted = _now()

    def sent(self) -> None:
        self._sendings[self._number] = Sending(self._granted, _now())
        if self._permit is not None:
            self._permit.sent()

    def done(self, *, answered: bool = False) -> None:
        if self._permit is not None:
            self._permit.done(answered=answered)


def spread(arrivals: Sequence[Arrival], sendings: Mapping[int, Sending]) -> float:
    """Return by how many seconds the times that requests needed to the server differed.

    This is the longest time from writing a request to its arrival, minus the shortest time from its permit to its
    arrival. If it is above `RateLimit.jitter`, the machine was too busy, and the client does not promise to keep the
    limit.
    """
    longest = max(arrival.at - sendings[arrival.number].written for arrival in arrivals)
    shortest = min(arrival.at - sendings[arrival.number].granted for arrival in arrivals)
    return longest - shortest
