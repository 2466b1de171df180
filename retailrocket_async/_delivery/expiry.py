"""Settles events that have waited too long.

Three waits have a time limit:

- an event waits in the buffer for at most `Buffer.max_age`;
- events wait for a corrected key, shop or address for at most `RetryPolicy.max_halt`;
- while the API is down, a batch waits for at most `RetryPolicy.max_elapsed`.

A timer checks these limits. The timer runs only while a limit may be reached.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from retailrocket_async._delivery.ledger import AT_ONCE, EACH
from retailrocket_async._outcome import Dropped, Outcome

if TYPE_CHECKING:
    import asyncio

    from retailrocket_async._delivery.circuit_breaker import CircuitBreaker
    from retailrocket_async._delivery.flight import Flight
    from retailrocket_async._delivery.in_flight import InFlight
    from retailrocket_async._delivery.ledger import Ledger
    from retailrocket_async._delivery.retry import RetryPolicy
    from retailrocket_async._delivery.waiting_callers import WaitingCallers
    from retailrocket_async._queue.buffer import EventBuffer
    from retailrocket_async._runtime.loop_affinity import LoopAffinity
    from retailrocket_async._stats import State

_EVERY: Final = 0.25
"""Seconds between two checks; an event may be settled this many seconds after its limit."""

_FRESH: Final = 5.0
"""Seconds for which a refusal counts as fresh; a quarter of `max_halt` if that is shorter. While the last refusal is
fresh, overdue events are rejected without another request."""

_LAST_CHANCE: Final = 2.0
"""Seconds to wait for the answer to the last probe; overdue events are rejected after that time."""


class Expiry:
    """Settles events that have waited longer than one of the limits in the module's docstring.

    Args:
        affinity: the loop that the client belongs to.
        buffer: holds the waiting events.
        ledger: settles events.
        breaker: knows whether sending is halted or the API is down.
        retry: has the limits `max_halt` and `max_elapsed`.
        max_age: seconds after which an event in the buffer is dropped; None if events are never dropped for their age.
        renewable: whether a function returns the API key, so that the key may change without help from a person.
        in_flight: holds the flights, and settles them.
        callers: wait for space in the buffer; some of them may be admitted when events have left the buffer.
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
        in_flight: InFlight,
        callers: WaitingCallers,
    ) -> None:
        self._affinity = affinity
        self._buffer = buffer
        self._ledger = ledger
        self._breaker = breaker
        self._retry = retry
        self._max_age = max_age
        self._renewable = renewable
        self._in_flight = in_flight
        self._callers = callers
        self._timer: asyncio.TimerHandle | None = None
        self._closing_since = math.inf
        self._asked_at = math.inf
        self._closed = False

    def expire(self, most: int = AT_ONCE) -> bool:
        """Drop about `most` of the buffer's events that are too old; return whether all such events are gone now."""
        if self._max_age is None:
            return True
        return self._end_buffered(self._affinity.now() - self._max_age, Dropped(reason="expired"), most)

    def arrived(self) -> None:
        """Start the timer if a limit may be reached; called when an event was accepted, or before a request is made."""
        if self._timer is None and self._bounded():
            self.watch()

    def watch(self) -> None:
        """Start the timer, unless the timer is already running."""
        if self._timer is None and not self._closed:
            self._timer = self._affinity.call_later(_EVERY, self._tick)

    def state_changed(self, state: State) -> None:
        """Note that the circuit breaker's state has changed, and that other limits may apply now."""
        # In a halt events expire by their age, so a batch must not contain both old and young events.
        self._buffer.short_batches = state == "halted"
        self.watch()

    def close_begins(self) -> None:
        """Note that a close has begun: a refusal after this call rejects events without waiting for `max_halt`."""
        self._closing_since = self._affinity.now()

    def close(self) -> None:
        """Stop the timer for good."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def look(self) -> None:
        """Settle the events that have waited too long.

        If there are more than about `AT_ONCE` such events, the rest is settled after other tasks have run.
        """
        if self._end_overdue() or self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._affinity.call_later(0.0, self._tick)

    def _end_overdue(self) -> bool:
        """Settle about `AT_ONCE` of the events that have waited too long; return whether none of them is left."""
        now = self._affinity.now()
        if not self.expire():
            return False
        refused_by = -math.inf
        if self._breaker.state == "halted" and self._breaker.since <= (moment := now - self._patience()):
            refused_by = moment if self._may_end(moment, now) else -math.inf
            if not self._end_buffered(refused_by, self._refusal(), AT_ONCE):
                return False
        spent = 0
        for flight in self._in_flight:
            if flight.on_wire or (outcome := self._overdue(flight, refused_by, now)) is None:
                continue
            if spent >= AT_ONCE:
                return False
            spent += EACH + flight.count
            self._in_flight.end(flight, outcome)
        if not math.isinf(refused_by):
            self._asked_at = math.inf
        return True

    def _refusal(self, *, attempts: int = 0, elapsed: float = 0.0) -> Outcome:
        refusal = self._breaker.refusal(attempts=attempts, elapsed=elapsed)
        assert refusal is not None  # noqa: S101 - called only while sending is halted
        return refusal

    def _refused(self, flight: Flight, now: float) -> Outcome:
        """Return the outcome of a flight that ends because of a halt, although none of its own requests was refused."""
        if flight.maybe_recorded:
            return flight.give_up("not_retryable", now)
        return self._refusal(attempts=flight.attempts, elapsed=now - flight.started_at)

    def _may_end(self, moment: float, now: float) -> bool:
        """Whether events older than `moment` may be rejected; if the last refusal is too old, request a probe first."""
        came_at = [_came_at(flight) for flight in self._in_flight if not flight.on_wire]
        if min(came_at, default=now) > moment and self._buffer.oldest_age() < now - moment:
            # No event is older than `moment` any more, so the answer to the probe does not matter.
            self._asked_at = math.inf
            return False
        if self._asked_at < self._breaker.since:
            # The last probe was requested in an earlier halt, so its answer does not matter.
            self._asked_at = math.inf
        fresh = now - self._breaker.refused_at <= min(_FRESH, self._retry.max_halt / 4)
        if not fresh and math.isinf(self._asked_at):
            self._asked_at = now
            self._breaker.probe_now(now)
        return fresh or now - self._asked_at >= _LAST_CHANCE

    def _overdue(self, flight: Flight, refused_by: float, now: float) -> Outcome | None:
        """Return the outcome of a flight if the flight has waited too long, otherwise None."""
        if _came_at(flight) <= refused_by:
            return flight.refusal or self._refused(flight, now)
        if self._max_age is not None and flight.whole is not None and max(flight.whole.times) <= now - self._max_age:
            return flight.expired(now)
        waits_since = self._breaker.counted_from(flight.tried_at, now)
        if self._breaker.state == "down" and not self._retry.outlast and now - waits_since >= self._retry.max_elapsed:
            return flight.give_up("retries_exhausted", now)
        return None

    def _bounded(self) -> bool:
        """Whether waiting events may reach a limit although nothing else happens, so that the timer is needed."""
        return self._max_age is not None or self._breaker.state != "sending"

    def _tick(self) -> None:
        self._timer = None
        try:
            self.look()
        finally:
            # `finally`, because Ctrl-C may be raised in an observer.
            if self._bounded() and (self._buffer.events or self._in_flight):
                self.watch()

    def _patience(self) -> float:
        """Return how many seconds events wait for a corrected key, shop or address."""
        if self._retry.outlast:
            return math.inf
        closing = self._affinity.now() - self._closing_since
        if self._renewable and self._breaker.status == 401 and closing < self._retry.max_halt:
            # The function may return a new key at any time, so events wait without limit. During a close the events
            # wait for `max_halt` seconds only, because even a close without a deadline must end.
            return math.inf
        return 0.0 if self._breaker.refused_at >= self._closing_since else self._retry.max_halt

    def _end_buffered(self, moment: float, outcome: Outcome, most: int) -> bool:
        """Settle about `most` of the buffer's events that are from `moment` or before.

        Returns:
            Whether all of these events are settled now.
        """
        spent = 0
        for batch in self._buffer.expire(moment, most):
            self._ledger.close_batch(batch, outcome)
            spent += EACH + len(batch)
            if spent >= most:
                break
        if spent:
            self._callers.admit()
        return spent < most


def _came_at(flight: Flight) -> float:
    return flight.started_at if flight.whole is None else flight.whole.opened_at
