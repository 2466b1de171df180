"""Collects a process's reports to Redis: pauses, refusals, and the times by which requests were counted."""

from __future__ import annotations

import math
from typing import NamedTuple


class Report(NamedTuple):
    """The report that a process sends to Redis with the next command. All times are on the event loop's clock.

    Attributes:
        pause: whether the process has begun a pause that was not reported to Redis yet.
        refused_at: when the last request was sent that the API refused with a 429; None if the API has refused no
            request since the last report.
        counted: numbers of requests, each with the time by which the API has counted the request, or None if the
            request will never be sent.
    """

    pause: bool
    refused_at: float | None
    counted: list[tuple[int, float | None]]


class PendingReport:
    """Collects reports until the next command sends them to Redis.

    Attributes:
        late: True if at least one of the collected requests is counted at a later time than Redis assumes.
    """

    def __init__(self) -> None:
        self.late = False
        self._pause = False
        self._refused_at = -math.inf
        self._counted: dict[int, float | None] = {}

    @property
    def is_urgent(self) -> bool:
        """Whether the report must be sent at once, even if this process makes no reservation."""
        return self.late or self._pause or self._refused_at > -math.inf

    def add_pause(self) -> None:
        """Add a new pause of the process to the report."""
        self._pause = True

    def add_refusal(self, sent_at: float) -> None:
        """Add a refusal to the report: the API answered the request that was sent at `sent_at` with a 429."""
        self._refused_at = max(self._refused_at, sent_at)

    def add_request(self, number: int, counted_by: float | None, *, late: bool) -> None:
        """Add the time by which the API has counted a request.

        Args:
            number: the request's number.
            counted_by: the time on the event loop's clock; None if the request will never be sent.
            late: whether this time is later than Redis assumes.
        """
        self._counted[number] = counted_by
        self.late = self.late or late

    def take(self) -> Report:
        """Return the report, and start a new, empty report."""
        refused_at = self._refused_at if self._refused_at > -math.inf else None
        report = Report(self._pause, refused_at, list(self._counted.items()))
        self.late = self._pause = False
        self._refused_at = -math.inf
        self._counted.clear()
        return report
