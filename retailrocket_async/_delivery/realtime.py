"""Decides, with `Batching.realtime`, whether events are sent one by one or in batches.

An event's own endpoint answers in about 0.1 s, a batch takes 1.5 s and more. But a single event needs a permit of its
own. So events are sent one by one until permits are scarce. Permits are scarce if one of these is true:

- the event that became ready first has waited `SCARCE_WAIT` seconds for its permit;
- more than `SCARCE_VISITORS` visitors have events that are ready.

Both can be seen in the queue without asking the limiter, so any limiter can be used. Both also become true in an
outage, in a pause after a 429, and while the largest number of requests is in flight; so the events that have waited
for the end of such a time leave in batches, too.

========= ========================================== =========
Mode      Signal                                     Next mode
========= ========================================== =========
SINGLES   SLACK: permits are not scarce              SINGLES
SINGLES   SCARCE                                     BATCHES
BATCHES   SCARCE: the dwell time begins again        BATCHES
BATCHES   SLACK: the dwell time is not over          BATCHES
BATCHES   RESTED: the dwell time is over             SINGLES
========= ========================================== =========

How many permits single events would get is not known, so the return to SINGLES is a trial. If permits become scarce
again within `LONGEST_DWELL`, the next dwell time is twice as long, up to `LONGEST_DWELL`; otherwise the dwell time is
`FIRST_DWELL` again. So under any load the mode soon changes at most twice in `LONGEST_DWELL`.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

SCARCE_WAIT: Final = 0.5
"""Seconds of waiting for a permit from which on permits are scarce. This is a third of the time of a batch, so a single
event is still much faster. At 50 requests a second, an event waits 0.5 s if 25 events are before it. If 40 events a
second come at random times, there are practically never 25 waiting events."""

SCARCE_VISITORS: Final = 100
"""Number of visitors above which permits are scarce at once. At 50 requests a second, single events of so many visitors
would take 2 s, longer than one batch. Without this bound a stream of 24,000 events a second would be queued for 0.5 s.
"""

FIRST_DWELL: Final = 2.0
"""Seconds without scarcity after which single events are tried again; a little more than a batch takes."""

LONGEST_DWELL: Final = 32.0
"""Largest number of seconds without scarcity after which single events are tried again."""


class Mode(enum.Enum):
    """How events are sent; the module's docstring has the transitions."""

    SINGLES = "singles"
    """Each event is sent at once to its own endpoint."""
    BATCHES = "batches"
    """Events are collected into batches."""


class Signal(enum.Enum):
    """Whether permits are scarce, and for how long they have not been scarce."""

    SCARCE = enum.auto()
    """Permits are scarce."""
    SLACK = enum.auto()
    """Permits are not scarce."""
    RESTED = enum.auto()
    """Permits were not scarce for the dwell time."""


TRANSITIONS: Final[Mapping[Mode, Mapping[Signal, Mode]]] = {
    Mode.SINGLES: {Signal.SLACK: Mode.SINGLES, Signal.SCARCE: Mode.BATCHES},
    Mode.BATCHES: {Signal.SCARCE: Mode.BATCHES, Signal.SLACK: Mode.BATCHES, Signal.RESTED: Mode.SINGLES},
}
"""The next mode for each mode and signal. The signal RESTED is not given in the mode SINGLES."""


class Realtime:
    """Watches the queue, and decides whether events are sent one by one.

    Attributes:
        mode: how events are sent now.
        dwell: seconds without scarcity after which the mode BATCHES ends.
    """

    def __init__(self) -> None:
        self.mode = Mode.SINGLES
        self.dwell = FIRST_DWELL
        self._began_at = self._scarce_at = -math.inf

    def look(self, now: float, *, waited: float, visitors: int) -> bool:
        """Choose the mode from the present state of the queue; return whether events are to be sent one by one.

        Args:
            now: the loop's time in seconds.
            waited: seconds that the first ready event has waited since its linger was over.
            visitors: number of visitors with events that may be sent; a number above `SCARCE_VISITORS` need not be
                exact.
        """
        signal = self._signal(now, waited, visitors)
        if signal is Signal.SCARCE:
            self._scarce_at = now
        mode = TRANSITIONS[self.mode][signal]
        if mode is not self.mode:
            if mode is Mode.BATCHES:
                soon = now - self._began_at < LONGEST_DWELL
                self.dwell = min(2 * self.dwell, LONGEST_DWELL) if soon else FIRST_DWELL
            self.mode, self._began_at = mode, now
        return mode is Mode.SINGLES

    def _signal(self, now: float, waited: float, visitors: int) -> Signal:
        if waited >= SCARCE_WAIT or visitors > SCARCE_VISITORS:
            return Signal.SCARCE
        rested = self.mode is Mode.BATCHES and now - self._scarce_at >= self.dwell
        return Signal.RESTED if rested else Signal.SLACK
