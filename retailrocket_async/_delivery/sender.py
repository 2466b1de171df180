"""Sends a flight (a batch or a direct send), and retries until the flight has an outcome.

The circuit breaker, the limiter and the retry policy decide when the next attempt may be made.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from contextvars import Context
from typing import TYPE_CHECKING, Final

import attrs

from retailrocket_async._delivery.flight import SendSlot
from retailrocket_async._delivery.rate_limiter import MAX_PAUSE
from retailrocket_async._events.codec import BATCH_PATH
from retailrocket_async._http.reply import Reply, Verdict
from retailrocket_async._interrupt import is_interrupt
from retailrocket_async._runtime.context import changes_of
from retailrocket_async._runtime.foreign_code import ends_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from retailrocket_async._delivery.circuit_breaker import Admission, CircuitBreaker
    from retailrocket_async._delivery.expiry import Expiry
    from retailrocket_async._delivery.flight import Flight
    from retailrocket_async._delivery.ledger import Ledger
    from retailrocket_async._delivery.rate_limiter import Limiter, Permit
    from retailrocket_async._delivery.retry import RetryPolicy
    from retailrocket_async._http.transport import Transport
    from retailrocket_async._observer import Watch
    from retailrocket_async._outcome import Outcome, Undelivered
    from retailrocket_async._queue.batch import Batch
    from retailrocket_async._runtime.loop_affinity import LoopAffinity

_RENEWALS: Final = 2
"""Largest number of times that a flight is sent again at once because the key has changed. The number is bounded, as
the user's function may return one wrong key after the other."""

_ANYWHERE: Final = frozenset({401, 403, 407})
"""Statuses that mean a refusal on every path. A 404 (wrong address) is missing here because it may concern a single
endpoint."""


_UNMADE: Final = frozenset({"key", "config"})
"""Failures that happen before a request is made."""


class Sender:
    """Makes the requests of all flights, and evaluates the replies.

    Args:
        affinity: the loop that the client belongs to.
        ledger: counts requests, retries and waits.
        breaker: admits each request before the limiter grants a permit; gets the reply to each request.
        limiter: grants a permit for every attempt.
        retry: decides whether and when a failed request is tried again.
        transport: makes the requests.
        at_once: largest number of requests under way at the same time.
        max_age: seconds after which an event is not sent again; None for never.
        part_over: called with a flight, some of its events and their outcome; settles these events. The other events of
            the flight are still to be sent.
        expiry: settles the events that have waited too long, for example for a corrected key.
        watch: called for every request; None without an observer.
    """

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        affinity: LoopAffinity,
        ledger: Ledger,
        *,
        breaker: CircuitBreaker,
        limiter: Limiter,
        retry: RetryPolicy,
        transport: Transport,
        at_once: int,
        max_age: float | None,
        part_over: Callable[[Flight, Batch, Outcome], None],
        expiry: Expiry,
        watch: Watch | None = None,
    ) -> None:
        self._affinity = affinity
        self._ledger = ledger
        self._breaker = breaker
        self._limiter = limiter
        self._retry = retry
        self._transport = transport
        self._wire_slots = asyncio.Semaphore(at_once)
        self._max_age = max_age
        self._part_over = part_over
        self._expiry = expiry
        self._watch = watch
        self._refused_serial = 0

    async def outcome_of(self, flight: Flight) -> Outcome:
        """Make attempts until the current part of the flight has its outcome; return that outcome."""
        while True:
            answer = await self._request(flight)
            if not isinstance(answer, tuple):
                return answer
            admission, reply = answer
            if flight.outcome is not None:
                # The flight was settled and its task cancelled meanwhile, but other code, such as a user's limiter,
                # caught the cancellation.
                return flight.outcome
            outcome = flight.judge(reply, self._affinity.now())
            again = reply.status == 401 and await self._renewed_for(flight, admission, reply)
            if admission is not None and not again:
                self._report(flight, admission, reply)
            if reply.verdict is Verdict.BLOCKED and not again and flight.batch is not None:
                # The batch will be sent again when the flight gets its next send slot, unless the flight has waited too
                # long: then `Expiry` settles the flight.
                flight.tries -= 1
                self._expiry.look()
                again = True
            if flight.outcome is not None:
                return flight.outcome
            if not again:
                outcome = outcome or self._doomed(flight, reply) or await self._wait(flight, reply)
                if outcome is not None:
                    return outcome

    def _report(self, flight: Flight, admission: Admission, reply: Reply) -> None:
        batches = flight.path == BATCH_PATH
        # If sending was halted because the address of the batch endpoint is wrong (e.g. a 404), an answer from another
        # endpoint does not prove that the address of the batch endpoint is correct now.
        conclusive = batches or self._breaker.status is None or self._breaker.status in _ANYWHERE
        anywhere = reply.status is None or reply.status in _ANYWHERE
        now = self._affinity.now()
        change = self._breaker.report(admission, reply, now, halts=batches or anywhere, conclusive=conclusive)
        if change is not None:
            self._expiry.state_changed(change.state)
            self._ledger.report_state(change)

    def _doomed(self, flight: Flight, reply: Reply) -> Outcome | None:
        """Settle the events of `retry.at_most_once` that the API may have recorded; these events are not sent again.

        Returns:
            The outcome of these events if the flight is a direct send or has no other events; otherwise None.
        """
        once = self._retry.once_names
        if not (once and reply.maybe_recorded and any(name in once for name in flight.names)):
            return None
        outcome = flight.give_up("at_most_once", self._affinity.now())
        # A direct send has one outcome for all its events, so one event of this kind settles all its events.
        doomed = [position for position, name in enumerate(flight.names) if name in once]
        return self._without(flight, doomed, outcome)

    def _expired(self, flight: Flight) -> Undelivered | None:
        """Settle the events that have become too old; return their outcome if no other events are left."""
        if self._max_age is None or flight.batch is None:
            return None
        now = self._affinity.now()
        expired = [position for position, at in enumerate(flight.batch.times) if at <= now - self._max_age]
        return self._without(flight, expired, flight.expired(now)) if expired else None

    def _too_late(self, flight: Flight) -> bool:
        now = self._affinity.now()
        return now - self._breaker.counted_from(flight.tried_at, now) > self._retry.max_elapsed

    def _without(self, flight: Flight, positions: list[int], outcome: Undelivered) -> Undelivered | None:
        if flight.batch is None or len(positions) == len(flight.batch):
            return outcome
        self._part_over(flight, flight.take_out(positions), outcome)
        return None

    async def _wait(self, flight: Flight, reply: Reply) -> Outcome | None:
        """Wait before the next attempt; return the outcome if the retry policy allows no further attempt."""
        now = self._affinity.now()
        if reply.retry_after is not None:
            # The wait is at most `MAX_PAUSE` seconds, like the limiter's pause. Without this bound, a server that asks
            # for a wait of a day would end the retries, because the wait would exceed `max_elapsed`.
            pause = min(reply.retry_after, MAX_PAUSE)
            reply = attrs.evolve(reply, retry_after=pause)
            self._notify_limiter(lambda: self._limiter.pause_until(now + pause))
        if reply.verdict is Verdict.THROTTLED:
            self._notify_limiter(lambda: self._limiter.throttled(flight.departed_at))
        if self._is_excused(flight, reply):
            # `flight.tries` still counts the attempt, so the next wait is longer.
            flight.excused += 1
            flight.tried_at = now
        flight.failed_at = now
        elapsed = now - self._breaker.counted_from(flight.tried_at, now)
        wait = self._retry.wait_before_next(reply, attempt=flight.tries, elapsed=elapsed, excused=flight.excused)
        if wait is None:
            return flight.give_up("retries_exhausted", now)
        if reply.failure == "limiter":
            await asyncio.sleep(wait)
        else:
            await self._breaker.rest(now + wait)
        return flight.outcome

    def _is_excused(self, flight: Flight, reply: Reply) -> bool:
        """Whether a failed attempt is not counted: `retry.outlast` is set, and the failure is part of an outage."""
        if not self._retry.outlast:
            return False
        if reply.verdict is Verdict.THROTTLED or reply.failure == "limiter" or self._breaker.state != "sending":
            return True
        # An outage may have begun although the state is still `sending`, because the state changes after several
        # failures only. If another request was answered since the previous failure of this flight, there is no outage,
        # and this flight itself is the cause of the failure.
        return self._breaker.answered_at < max(flight.failed_at, flight.tried_at)

    async def _request(self, flight: Flight) -> tuple[Admission | None, Reply] | Undelivered:
        """Make one request as soon as breaker and limiter allow it.

        Returns:
            The admission and the reply; or, if no request is to be made any more, the outcome of the flight.
        """
        if flight.turn is None:
            try:
                flight.turn = await self.next_turn()
            except BaseException as error:  # a user's limiter may raise anything
                if ends_task(error):
                    raise
                self.limiter_failed(error)
                # No attempt was made, but the limiter's failure counts as a try. Otherwise the flight would ask a
                # broken limiter for ever.
                flight.tries += 1
                return None, Reply(failure="limiter", detail=type(error).__name__, sent=False)
        turn = flight.turn
        answered = False
        try:
            if turn.admission.probe and self._breaker.status == 401:
                await self._renewed(self._refused_serial)
            # The flight may have waited long for its send slot, so some events may be too old now.
            if flight.outcome is None and (stale := self._expired(flight)) is not None:
                return stale
            if flight.outcome is not None:
                return None, Reply(failure="closed", sent=False)
            if turn.admission.probe and flight.tries and self._too_late(flight):
                # While the API is down, the breaker sets the time of a probe. This time may be later than the retry
                # policy allows.
                return flight.give_up("retries_exhausted", self._affinity.now())
            flight.depart(self._affinity.now())
            self._ledger.count_request(part=flight.divided)
            if self._watch is None:
                reply = await self._transport.post(flight.path, flight.body, on_sent=turn.sent)
            else:
                reply = await self._watched(self._watch, flight, turn)
            answered = reply.status is not None
        finally:
            turn.end(answered=answered)
            flight.turn = None
        if reply.failure in _UNMADE:
            self._uncount(flight, reply)
            return turn.admission, reply
        kind = reply.status if reply.status is not None else str(reply.failure)
        self._ledger.count_reply(kind, retry=flight.attempts > 1)
        # The body of the answer is dropped, because the body is not needed any more and may repeat the request with its
        # key.
        return turn.admission, attrs.evolve(self._as_declared(reply), body=b"")

    def _uncount(self, flight: Flight, reply: Reply) -> None:
        """Undo the counts of a request that failed before it was made."""
        flight.attempts -= 1
        self._ledger.uncount_request(part=flight.divided)
        if reply.failure == "key":
            self._key_failed(reply.detail)

    async def _watched(self, watch: Watch, flight: Flight, turn: SendSlot) -> Reply:
        """Make the request, and report its beginning and its end to the observer."""
        # The observer runs in a copy of the context of the caller of `send`, so context variables that the observer
        # sets are valid for this request only.
        context = Context() if flight.context is None else flight.context.copy()
        before = context.copy()
        begun = context.run(
            watch.began,
            flight.path,
            attempt=flight.attempts,
            events=len(flight.names),
            size=len(flight.body),
            receipts=None if flight.batch is None else flight.batch.receipts,
        )
        status: int | None = None
        failure: str | None = "cancelled"
        try:
            with changes_of(context, before):
                reply = await self._transport.post(flight.path, flight.body, on_sent=turn.sent)
            status, failure = reply.status, reply.failure
            return reply
        finally:
            context.run(watch.ended, begun, status=status, failure=failure)

    def _as_declared(self, reply: Reply) -> Reply:
        """Return the reply, marked as throttled if the user's `is_throttled` says so."""
        ask = self._retry.is_throttled
        if ask is None or reply.status is None or 200 <= reply.status <= 299:
            return reply
        try:
            throttled = bool(ask(reply.status, reply.body))
        except BaseException as error:  # a user's function may raise anything
            if is_interrupt(error):
                raise
            name = type(error).__name__
            self._ledger.log_once(("is_throttled",), logging.ERROR, "RetryPolicy.is_throttled raised %s", name)
            return reply
        return attrs.evolve(reply, throttled=True) if throttled else reply

    async def _renewed_for(self, flight: Flight, admission: Admission | None, reply: Reply) -> bool:
        """After a 401, get the key again; return whether the key has changed, so that the flight can be sent again."""
        self._refused_serial = reply.serial
        if admission is None or flight.renewals >= _RENEWALS:
            return False
        if admission.probe and self._breaker.status == 401:
            # `_request` fetched the key right before this probe: to fetch it again would not help.
            return False
        self._breaker.hold(admission)
        try:
            changed = await self._renewed(reply.serial)
        finally:
            self._breaker.over(admission)
        flight.renewals += changed
        return changed

    async def _renewed(self, serial: int) -> bool:
        changed, failure = await self._transport.renew_key(serial)
        if failure is not None:
            self._key_failed(failure)
        return changed

    async def next_turn(self) -> SendSlot:
        """Wait for the right to make one request, and return this right. Raises the errors that the limiter raises."""
        while True:
            # The request slot is acquired before the permit. In the other order, requests that already have permits
            # could wait for slots and would then be sent all at once.
            await self._wire_slots.acquire()
            admission: Admission | None = None
            try:
                admission = self._breaker.admit(self._affinity.now())
                permit = await self._permit() if admission is not None else None
            except BaseException:
                self._leave(admission)
                raise
            if admission is not None:
                turn = SendSlot(admission, permit, functools.partial(self._leave, admission), self.limiter_failed)
                if self._breaker.still_admits(admission):
                    return turn
                # The state of the breaker has changed while this method waited for the permit.
                turn.end()
            else:
                self._leave(None)
                await self._breaker.wait()

    def _leave(self, admission: Admission | None) -> None:
        self._wire_slots.release()
        if admission is not None:
            self._breaker.over(admission)
        else:
            self._breaker.nudge()

    async def _permit(self) -> Permit | None:
        asked_at = self._affinity.now()
        try:
            return await self._limiter.acquire()
        finally:
            self._ledger.count_limiter_wait(self._affinity.now() - asked_at)

    def _notify_limiter(self, call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - an error of the limiter must not change the outcome
            self.limiter_failed(error)

    def limiter_failed(self, error: BaseException) -> None:
        """Log that the limiter raised `error`; if `error` is the user's Ctrl-C, raise it again."""
        if is_interrupt(error):
            raise error
        self._ledger.log_once(("limiter", type(error)), logging.ERROR, "the limiter failed: %s", type(error).__name__)

    def _key_failed(self, name: str) -> None:
        self._ledger.log_once(("key", name), logging.ERROR, "the api_key function failed: %s", name)

    async def aclose(self) -> None:
        """Close the connections; an error is only logged, because all events have their outcome already."""
        try:
            await self._transport.aclose()
        except BaseException as error:  # every event has its outcome already
            if ends_task(error):
                raise
            name = type(error).__name__
            self._ledger.log_once(("transport",), logging.WARNING, "closing the connections failed: %s", name)
