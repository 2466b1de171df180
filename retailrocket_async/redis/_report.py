"""Collects what a process has to report to Redis: pauses, refusals, and when requests were counted."""

from __future__ import annotations

import math
from typing import NamedTuple


class Report(NamedTuple):
    """What goes to Redis with the next command; times are those of the event loop.

    Attributes:
        pause: whether the process has a pause that Redis does not know.
        refused_at: when the last request was sent that the API refused with a 429; None if there was none.
        counted: numbers of requests, each with the time by which the API has counted it; None if the request will
            never be sent.
    """

    pause: bool
    refused_at: float | None
    counted: list[tuple[int, float | None]]


class PendingReport:
    """Collects what Redis does not know yet, until a command takes it along.

    Attributes:
        late: whether Redis believes of a request that it was counted earlier than it really is.
    """

    def __init__(self) -> None:
        self.late = False
        self._pause = False
        self._refused_at = -math.inf
        self._counted: dict[int, float | None] = {}

    @property
    def is_urgent(self) -> bool:
        """Whether Redis must know it even if this process reserves nothing."""
        return self.late or self._pause or self._refused_at > -math.inf

    def add_pause(self) -> None:
        """Add that the process has a new pause."""
        self._pause = True

    def add_refusal(self, sent_at: float) -> None:
        """Add that the API refused, with a 429, a request that was sent at `sent_at`."""
        self._refused_at = max(self._refused_at, sent_at)

    def add_request(self, number: int, counted_by: float | None, *, late: bool) -> None:
        """Add by when the API has counted a request; None if the request will never be sent.

        Args:
            number: the request's number.
            counted_by: the time.
            late: whether that is later than Redis believes.
        """
        self._counted[number] = counted_by
        self.late = self.late or late

    def take(self) -> Report:
        """Return the report, and begin an empty one."""
        refused_at = self._refused_at if self._refused_at > -math.inf else None
        report = Report(self._pause, refused_at, list(self._counted.items()))
        self.late = self._pause = False
        self._refused_at = -math.inf
        self._counted.clear()
        return report
