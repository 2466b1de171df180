"""Settles events that have waited too long.

Three waits have a bound in time: an event in the buffer has `Buffer.max_age`, the wait for a corrected key, shop or
address has `RetryPolicy.max_halt`, and a batch that waits for an API that is down has `RetryPolicy.max_elapsed`. A
timer checks these bounds, and runs only while one of them may be reached.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from retailrocket_async._delivery.ledger import AT_ONCE, EACH
from retailrocket_async._outcome import Dropped, Outcome

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from retailrocket_async._delivery.circuit_breaker import CircuitBreaker
    from retailrocket_async._delivery.flight import Flight
    from retailrocket_async._delivery.ledger import Ledger
    from retailrocket_async._delivery.retry import RetryPolicy
    from retailrocket_async._queue.buffer import EventBuffer
    from retailrocket_async._runtime.loop_affinity import LoopAffinity

_EVERY: Final = 0.25
"""Seconds between two checks, and so the precision of these bounds."""

_FRESH: Final = 5.0
"""Seconds for which a refusal counts as fresh (at most a quarter of `max_halt`): it then rejects events unsent."""

_LAST_CHANCE: Final = 2.0
"""Seconds that the last probe may take before events are rejected without its answer."""


class Expiry:
    """Settles events that have waited too long; see the module's text.

    Args:
        affinity: the loop that the client belongs to.
        buffer: holds the waiting events.
        ledger: settles events.
        breaker: knows whether sending is halted or the API is down.
        retry: gives the bounds `max_halt` and `max_elapsed`.
        max_age: seconds after which an event in the buffer is dropped; None for never.
        renewable: whether a function returns the key, so that another key may come without a person.
        flights: returns all flights.
        end: settles a flight.
        ended: called when events have left the buffer.
    """

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        affinity: LoopAffinity,
        buffer: EventBuffer,
        ledger: Ledger,
        breaker: CircuitBreaker,
        *,
        retry: RetryPolicy,
        max_age: float | None,
        renewable: bool,
        flights: Callable[[], Sequence[Flight]],
        end: Callable[[Flight, Outcome], None],
        ended: Callable[[], None],
    ) -> None:
        self._affinity = affinity
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

    def expire(self, most: int = AT_ONCE) -> bool:
        """Drop events of the buffer that are too old, about `most` of them; return whether none is left."""
        if self._max_age is None:
            return True
        return self._end_buffered(self._affinity.now() - self._max_age, Dropped(reason="expired"), most)

    def arrived(self) -> None:
        """Note that an event was accepted, or that a request is to be made."""
        if self._timer is None and self._bounded():
            self.watch()

    def watch(self) -> None:
        """Start the timer, unless it runs."""
        if self._timer is None and not self._closed:
            self._timer = self._affinity.call_later(_EVERY, self._tick)

    def close_begins(self) -> None:
        """Note that a close has begun: from now on a fresh refusal ends events without waiting for `max_halt`."""
        self._closing_since = self._affinity.now()

    def close(self) -> None:
        """Stop the timer for good."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def look(self) -> None:
        """Settle what has waited too long; of very many events a part now, and the rest after other tasks have run."""
        if self._end_overdue() or self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._affinity.call_later(0.0, self._tick)

    def _end_overdue(self) -> bool:
        """Settle what has waited too long, but at most some `AT_ONCE` events; return whether none is left."""
        now = self._affinity.now()
        if not self.expire():
            return False
        refused_by = -math.inf
        if self._breaker.state == "halted" and self._breaker.since <= (moment := now - self._patience()):
            refused_by = moment if self._may_end(moment, now) else -math.inf
            if not self._end_buffered(refused_by, self._refusal(), AT_ONCE):
                return False
        spent = 0
        for flight in self._flights():
            if flight.on_wire or (outcome := self._overdue(flight, refused_by, now)) is None:
                continue
            if spent >= AT_ONCE:
                return False
            spent += EACH + flight.count
            self._end(flight, outcome)
        if not math.isinf(refused_by):
            self._asked_at = math.inf
        return True

    def _refusal(self, *, attempts: int = 0, elapsed: float = 0.0) -> Outcome:
        refusal = self._breaker.refusal(attempts=attempts, elapsed=elapsed)
        assert refusal is not None  # noqa: S101 - called only while sending is halted
        return refusal

    def _refused(self, flight: Flight, now: float) -> Outcome:
        """Return the outcome of a flight that was not refused itself, while sending is halted."""
        if flight.maybe_recorded:
            return flight.give_up("not_retryable", now)
        return self._refusal(attempts=flight.attempts, elapsed=now - flight.started_at)

    def _may_end(self, moment: float, now: float) -> bool:
        """Whether events older than `moment` may be rejected; sends a probe first if the last refusal is stale."""
        came_at = [_came_at(flight) for flight in self._flights() if not flight.on_wire]
        if min(came_at, default=now) > moment and self._buffer.oldest_age() < now - moment:
            # The probe's events were settled meanwhile; forget the probe.
            self._asked_at = math.inf
            return False
        if self._asked_at < self._breaker.since:
            # That probe belonged to an earlier halt.
            self._asked_at = math.inf
        fresh = now - self._breaker.refused_at <= min(_FRESH, self._retry.max_halt / 4)
        if not fresh and math.isinf(self._asked_at):
            self._asked_at = now
            self._breaker.probe_now()
        return fresh or now - self._asked_at >= _LAST_CHANCE

    def _overdue(self, flight: Flight, refused_by: float, now: float) -> Outcome | None:
        """Return the outcome of a flight that has waited too long; None if it has not."""
        if _came_at(flight) <= refused_by:
            return flight.refusal or self._refused(flight, now)
        if self._max_age is not None and flight.whole is not None and max(flight.whole.times) <= now - self._max_age:
            return flight.expired(now)
        waits_since = self._breaker.counted_from(flight.tried_at)
        if self._breaker.state == "down" and not self._retry.outlast and now - waits_since >= self._retry.max_elapsed:
            return flight.give_up("retries_exhausted", now)
        return None

    def _bounded(self) -> bool:
        """Whether a bound may be reached just by waiting."""
        return self._max_age is not None or self._breaker.state != "sending"

    def _tick(self) -> None:
        self._timer = None
        self.look()
        if self._bounded() and (self._buffer.events or self._flights()):
            self.watch()

    def _patience(self) -> float:
        """Return the seconds that events wait for a correction of what they were refused for."""
        if self._retry.outlast:
            return math.inf
        closing = self._affinity.now() - self._closing_since
        if self._renewable and self._breaker.status == 401 and closing < self._retry.max_halt:
            # The function may return a new key at any time. A close without a deadline must end all the same.
            return math.inf
        return 0.0 if self._breaker.refused_at >= self._closing_since else self._retry.max_halt

    def _end_buffered(self, moment: float, outcome: Outcome, most: int) -> bool:
        """Settle events that came to the buffer at `moment` or before, about `most`; return whether none is left."""
        spent = 0
        for batch in self._buffer.expire(moment, most):
            self._ledger.close_batch(batch, outcome)
            spent += EACH + len(batch)
            if spent >= most:
                break
        if spent:
            self._ended()
        return spent < most


def _came_at(flight: Flight) -> float:
    return flight.started_at if flight.whole is None else flight.whole.opened_at
