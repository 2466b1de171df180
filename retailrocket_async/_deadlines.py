"""Ends what has waited too long.

Three waits are bounded by time alone, whatever the API does: that of an event in the buffer by `Buffer.max_age`, that
for a mended key, shop or address by `RetryPolicy.max_halt`, and that of a batch for an API that is down by
`RetryPolicy.max_elapsed`. Nobody else wakes up for them, so a timer does, while there is one to look after.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from retailrocket_async._outcome import Dropped, Outcome, Rejected

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from retailrocket_async._breaker import Breaker
    from retailrocket_async._buffer import EventBuffer
    from retailrocket_async._flight import Flight
    from retailrocket_async._home import Home
    from retailrocket_async._ledger import Ledger
    from retailrocket_async._retry import RetryPolicy

_EVERY: Final = 0.25
"""Seconds between two looks, and so the precision of all these bounds."""

_FRESH: Final = 5.0
"""Seconds for which a refusal is believed to hold, a quarter of `max_halt` at most, for events not sent themselves."""

_LAST_CHANCE: Final = 2.0
"""Seconds that the answer to a last question may take, before events are rejected without it."""


class Deadlines:
    """Ends what has waited too long; see the module's text.

    Args:
        home: the loop that the client belongs to.
        buffer: where events wait.
        ledger: settles them.
        breaker: tells whether sending is halted or the API is down.
        retry: the bounds.
        max_age: seconds after which an event in the buffer is dropped; None for never.
        renewable: whether the key is a function's, so that a wrong one may mend itself.
        flights: returns the batches and direct sends under way.
        end: gives one of those its outcome.
        ended: called when events have left the buffer.
    """

    def __init__(  # noqa: PLR0913 - the rooms it looks into
        self,
        home: Home,
        buffer: EventBuffer,
        ledger: Ledger,
        breaker: Breaker,
        *,
        retry: RetryPolicy,
        max_age: float | None,
        renewable: bool,
        flights: Callable[[], Sequence[Flight]],
        end: Callable[[Flight, Outcome], None],
        ended: Callable[[], None],
    ) -> None:
        self._home = home
        self._buffer = buffer
        self._ledger = ledger
        self._breaker = breaker
        self._retry = retry
        self._max_age = max_age
        self._renewable = renewable
        self._flights = flights
        self._end = end
        self._ended = ended
        self._timer: asyncio.TimerHandle | None = None
        self._closing_since = math.inf
        self._asked_at = math.inf
        self._closed = False

    def expire(self) -> None:
        """Drop what waits in the buffer and is too old."""
        if self._max_age is not None:
            self._end_buffered(self._home.now() - self._max_age, Dropped(reason="expired"))

    def arrived(self) -> None:
        """Tell that an event has come, or that a request is to be made."""
        if self._timer is None and self._bounded():
            self.watch()

    def watch(self) -> None:
        """Look after what may have to end, from now on."""
        if self._timer is None and not self._closed:
            self._timer = self._home.enter().call_later(_EVERY, self._tick)

    def close_begins(self) -> None:
        """Be short from now on: what is refused again has no time to be mended."""
        self._closing_since = self._home.now()

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def look(self) -> None:
        """End what has waited too long by now."""
        self.expire()
        now = self._home.now()
        if self._breaker.state == "halted" and self._breaker.since <= (moment := now - self._patience()):
            came_at = [self._came_at(flight) for flight in self._waiting()]
            if min(came_at, default=now) <= moment or self._buffer.oldest_age() >= now - moment:
                self._end_or_ask(moment, now)
        if self._max_age is not None:
            for flight in self._waiting():
                if flight.whole is not None and max(flight.whole.times) <= now - self._max_age:
                    self._end(flight, flight.expired(now))
        if self._breaker.state == "down":
            for flight in self._waiting():
                if now - self._breaker.counted_from(flight.tried_at) >= self._retry.max_elapsed:
                    self._end(flight, flight.give_up("retries_exhausted", now))

    def _end_or_ask(self, moment: float, now: float) -> None:
        """End what came at `moment` or before; where the last refusal is not fresh, ask once more first."""
        if (
            now - self._breaker.refused_at <= min(_FRESH, self._retry.max_halt / 4)
            or now - self._asked_at >= _LAST_CHANCE
        ):
            self._asked_at = math.inf
            self._end_halted(moment, now)
        elif math.isinf(self._asked_at):
            self._asked_at = now
            self._breaker.probe_now()

    def _bounded(self) -> bool:
        """Whether there are bounds that time alone may reach."""
        return self._max_age is not None or self._breaker.state != "sending"

    def _tick(self) -> None:
        self._timer = None
        self.look()
        if self._bounded() and (self._buffer.events or self._flights()):
            self.watch()

    def _patience(self) -> float:
        """Return how long events wait for somebody to mend what they were refused for, in seconds."""
        closing = self._home.now() - self._closing_since
        if self._renewable and self._breaker.status == 401 and closing < self._retry.max_halt:
            # There may be a new key at any time; a close without a deadline must end all the same.
            return math.inf
        return 0.0 if self._breaker.refused_at >= self._closing_since else self._retry.max_halt

    def _end_halted(self, moment: float, now: float) -> None:
        status = self._breaker.status
        assert status is not None  # noqa: S101 - a status is what has halted it
        self._end_buffered(moment, Rejected(status=status, attempts=0))
        for flight in self._waiting():
            if self._came_at(flight) <= moment:
                self._end(flight, flight.refusal or _refused(flight, status, now))

    def _end_buffered(self, moment: float, outcome: Outcome) -> None:
        ended = False
        for batch in self._buffer.expire(moment):
            self._ledger.close_batch(batch, outcome)
            ended = True
        if ended:
            self._ended()

    def _came_at(self, flight: Flight) -> float:
        return flight.started_at if flight.whole is None else flight.whole.opened_at

    def _waiting(self) -> list[Flight]:
        return [flight for flight in self._flights() if not flight.on_wire]


def _refused(flight: Flight, status: int, now: float) -> Outcome:
    """Return the outcome of a flight that waits behind one that was refused with this status."""
    if flight.maybe_recorded:
        return flight.give_up("not_retryable", now)
    return Rejected(status=status, attempts=flight.attempts, elapsed=now - flight.started_at)
