"""A permit to make one request at a moment that was reserved in Redis."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from retailrocket_async._runtime.context import detached

if TYPE_CHECKING:
    from retailrocket_async import Permit, RateLimit

REPORT_WITHIN: Final = 0.25
"""If a request was not sent within this time after its reserved moment, Redis gets a report. The time is stated as a
part of the window's length."""

_TOLERATED: Final = 0.005
"""Seconds. A request that is sent at most this long after the reserved moment is not reported as late."""

_UNSENT: Final = 30.0
"""Seconds for which Redis goes on counting a request that was not sent in time.

The time is limited, because the request's process may have died.
"""


class Reservation(NamedTuple):
    """The moment at which a request may be sent.

    Attributes:
        number: the request's number within its process.
        at: the moment in seconds on the event loop's clock.
    """

    number: int
    at: float


class Reporter(Protocol):
    """Receives the reports of permits; `Member` implements this protocol."""

    rate_limit: RateLimit

    def report(self, number: int, counted_by: float | None, *, late: bool = False) -> None:
        """Report the time by which the API has counted the request with this number; see `Member.report`."""
        ...


class SharedPermit:
    """Permits one request, and reports the time by which the API has certainly counted the request.

    Args:
        reporter: receives the report.
        reservation: the request's number and moment.
        local: a permit of the limiter that the process uses during an outage of Redis and shortly after; None at other
            times. Calls of `sent` and `done` are passed on to this permit.
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
        """Report that the request is being sent now."""
        if self._local is not None:
            self._local.sent()
        self._count(self._loop.time() + self._reporter.rate_limit.jitter)

    def done(self, *, answered: bool = False) -> None:
        """Report that the request has ended, and whether the API has answered."""
        if self._local is not None:
            self._local.done(answered=answered)
        self._count(self._loop.time() + (0.0 if answered else self._reporter.rate_limit.jitter))

    def _count(self, by: float) -> None:
        self._unsent.cancel()
        if by >= self._counted_by:
            return
        # Redis assumes that the request was sent at the reserved moment, until a report says otherwise.
        late = math.isinf(self._counted_by) and by > self._at + self._reporter.rate_limit.jitter + _TOLERATED
        self._counted_by = by
        self._reporter.report(self._number, by, late=late)

    def _report_unsent(self) -> None:
        self._reporter.report(self._number, self._loop.time() + _UNSENT, late=True)
