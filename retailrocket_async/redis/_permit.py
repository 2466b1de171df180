"""The right to make one request at a moment that was reserved in Redis."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from retailrocket_async._runtime.context import detached

if TYPE_CHECKING:
    from retailrocket_async import Permit, RateLimit

REPORT_WITHIN: Final = 0.25
"""Part of the window after which Redis must know that a request was not sent when it should have been."""

_TOLERATED: Final = 0.005
"""Seconds by which a request may be late without a report to Redis."""

_UNSENT: Final = 30.0
"""Seconds for which Redis counts a request that has not left yet. Its process may have died, so there is an end."""


class Reservation(NamedTuple):
    """The moment at which a request may be sent.

    Attributes:
        number: the number of the request within its process.
        at: the moment, on the event loop's clock.
    """

    number: int
    at: float


class Reporter(Protocol):
    """What a permit reports to."""

    rate_limit: RateLimit

    def report(self, number: int, counted_by: float | None, *, late: bool = False) -> None:
        """Report by when the API has counted a request."""
        ...


class SharedPermit:
    """The right to make one request; it reports by when the API has surely counted the request.

    Args:
        reporter: takes the report.
        reservation: the request's number and moment.
        local: a permit of the process's own limiter that holds besides; None if there is none.
    """

    __slots__ = ("_at", "_counted_by", "_local", "_loop", "_number", "_reporter", "_unsent")

    def __init__(self, reporter: Reporter, reservation: Reservation, local: Permit | None) -> None:
        self._reporter = reporter
        self._loop = asyncio.get_running_loop()
        self._number, self._at = reservation
        self._local = local
        self._counted_by = math.inf
        overdue = self._at + REPORT_WITHIN * reporter.rate_limit.per
        self._unsent = detached(self._loop.call_at, overdue, self._report_unsent)

    def sent(self) -> None:
        """Report that the request was written now."""
        if self._local is not None:
            self._local.sent()
        self._count(self._loop.time() + self._reporter.rate_limit.jitter)

    def done(self, *, answered: bool = False) -> None:
        """Report that the request is over, and whether the API has answered it."""
        if self._local is not None:
            self._local.done(answered=answered)
        self._count(self._loop.time() + (0.0 if answered else self._reporter.rate_limit.jitter))

    def _count(self, by: float) -> None:
        self._unsent.cancel()
        if by >= self._counted_by:
            return
        # Without a report Redis believes that the request left on time.
        late = math.isinf(self._counted_by) and by > self._at + self._reporter.rate_limit.jitter + _TOLERATED
        self._counted_by = by
        self._reporter.report(self._number, by, late=late)

    def _report_unsent(self) -> None:
        self._reporter.report(self._number, self._loop.time() + _UNSENT, late=True)
