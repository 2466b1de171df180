"""Makes one attempt to send a flight (a batch or a direct send), and decides from the reply what to do next."""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

from retailrocket_async._delivery.flight import FlightState
from retailrocket_async._delivery.rate_limiter import MAX_PAUSE
from retailrocket_async._events.codec import BATCH_PATH
from retailrocket_async._http.reply import Reply, Verdict
from retailrocket_async._interrupt import is_interrupt
from retailrocket_async._runtime.context import changes_of
from retailrocket_async._runtime.foreign_code import ends_task

if TYPE_CHECKING:
    from retailrocket_async._delivery.circuit_breaker import Admission, CircuitBreaker
    from retailrocket_async._delivery.expiry import Expiry
    from retailrocket_async._delivery.flight import Flight
    from retailrocket_async._delivery.gate import SendGate, SendSlot
    from retailrocket_async._delivery.ledger import Ledger
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


@attrs.frozen
class Done:
    """All events of the current part of a flight get this outcome.

    Attributes:
        outcome: the outcome.
    """

    outcome: Outcome


@attrs.frozen
class SettlePart:
    """Some events of a flight get their outcome; the other events are still to be sent.

    Attributes:
        part: these events, which are no longer in the flight.
        outcome: their outcome.
    """

    part: Batch
    outcome: Outcome


@attrs.frozen
class Retry:
    """The flight is to be sent again.

    Attributes:
        wait: seconds to wait before the next attempt.
        refused: whether the attempt was refused for key, shop, address, environment or proxy. The events of such
            flights wait for a correction, and `Expiry` settles the events that have waited too long.
        by_limiter: whether the limiter failed, so that no attempt was made. The wait then does not end early.
    """

    wait: float = 0.0
    refused: bool = False
    by_limiter: bool = False


Step: TypeAlias = Done | SettlePart | Retry
"""What has to be done with a flight after an attempt."""


class Sender:
    """Makes requests, and evaluates the replies.

    Args:
        affinity: the loop that the client belongs to.
        ledger: counts requests and retries.
        breaker: gets the reply to each request.
        gate: grants the right to make each request.
        retry: decides whether and when a failed request is tried again.
        transport: makes the requests.
        max_age: seconds after which an event is not sent again; None for never.
        expiry: notified when a reply changes the circuit breaker's state.
        watch: called for every request; None without an observer.
    """

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        affinity: LoopAffinity,
        ledger: Ledger,
        breaker: CircuitBreaker,
        gate: SendGate,
        *,
        retry: RetryPolicy,
        transport: Transport,
        max_age: float | None,
        expiry: Expiry,
        watch: Watch | None = None,
    ) -> None:
        self._affinity = affinity
        self._ledger = ledger
        self._breaker = breaker
        self._gate = gate
        self._retry = retry
        self._transport = transport
        self._max_age = max_age
        self._expiry = expiry
        self._watch = watch
        self._refused_serial = 0

    async def attempt(self, flight: Flight) -> Step:
        """Make one attempt as soon as circuit breaker and limiter allow a request; return what has to be done next."""
        if (failed := flight.failed) is not None:
            flight.failed = None
            return self._next_try(flight, failed)
        answer = await self._request(flight)
        if not isinstance(answer, tuple):
            return answer
        admission, reply = answer
        if flight.outcome is not None:
            # The flight was settled and its task cancelled meanwhile, but other code, such as a user's limiter, caught
            # the cancellation.
            return Done(flight.outcome)
        outcome = flight.judge(reply, self._affinity.now())
        again = reply.status == 401 and await self._renewed_for(flight, admission, reply)
        if flight.outcome is not None:
            return Done(flight.outcome)
        return Retry() if again else self._after(flight, admission, reply, outcome)

    def _after(self, flight: Flight, admission: Admission | None, reply: Reply, outcome: Outcome | None) -> Step:
        """Return what to do after a reply, unless the request is sent again with a new key.

        Args:
            flight: the flight.
            admission: the circuit breaker's admission of the request; None if no request was made.
            reply: the reply, or the failure.
            outcome: the outcome that the reply means; None if a retry may succeed.
        """
        halts = self._halts(flight, reply)
        if admission is not None:
            self._report(flight, admission, reply, halts=halts)
        if reply.verdict is Verdict.BLOCKED and halts and flight.batch is not None:
            # The batch will be sent again when the flight gets its next send slot.
            flight.tries -= 1
            return Retry(refused=True)
        if reply.verdict is Verdict.BLOCKED and not halts and flight.move_to_batch():
            # Either the API has no endpoint for this event, or the configured address is wrong. The reply of the batch
            # endpoint will show which of the two is true.
            flight.tries -= 1
            return Retry()
        if outcome is not None:
            return Done(outcome)
        doomed = self._doomed(flight, reply)
        if doomed is None:
            return self._next_try(flight, reply)
        if isinstance(doomed, SettlePart):
            flight.failed = reply
        return doomed

    async def rest(self, flight: Flight, retry: Retry) -> None:
        """Wait before the next attempt of a flight."""
        if not retry.wait and not retry.by_limiter:
            return
        flight.become(FlightState.RETRYING)
        if retry.by_limiter:
            await asyncio.sleep(retry.wait)
        else:
            await self._breaker.rest(self._affinity.now() + retry.wait)
        if flight.outcome is None:
            flight.become(FlightState.QUEUED)

    @staticmethod
    def _halts(flight: Flight, reply: Reply) -> bool:
        """Whether a refusal for key, shop or address means that all other requests would be refused, too."""
        return flight.path == BATCH_PATH or reply.status is None or reply.status in _ANYWHERE

    def _report(self, flight: Flight, admission: Admission, reply: Reply, *, halts: bool) -> None:
        # If sending was halted because the address of the batch endpoint is wrong (e.g. a 404), an answer from another
        # endpoint does not prove that the address of the batch endpoint is correct now.
        batches = flight.path == BATCH_PATH
        conclusive = batches or self._breaker.status is None or self._breaker.status in _ANYWHERE
        change = self._breaker.report(admission, reply, self._affinity.now(), halts=halts, conclusive=conclusive)
        if change is not None:
            self._expiry.state_changed(change.state)
            self._ledger.report_state(change)

    def _doomed(self, flight: Flight, reply: Reply) -> Done | SettlePart | None:
        """Return how to settle the events of `retry.at_most_once` that the API may have recorded.

        These events are not sent again. None if the flight has no such events.
        """
        once = self._retry.once_names
        if not (once and reply.maybe_recorded and any(name in once for name in flight.names)):
            return None
        outcome = flight.give_up("at_most_once", self._affinity.now())
        # A direct send has one outcome for all its events. So if one event must not be sent again, none is sent again.
        doomed = [position for position, name in enumerate(flight.names) if name in once]
        return self._without(flight, doomed, outcome)

    def _expired(self, flight: Flight) -> Done | SettlePart | None:
        """Return how to settle the events that have become too old; None if there are no such events."""
        if self._max_age is None or flight.batch is None:
            return None
        now = self._affinity.now()
        expired = [position for position, at in enumerate(flight.batch.times) if at <= now - self._max_age]
        return self._without(flight, expired, flight.expired(now)) if expired else None

    def _too_late(self, flight: Flight) -> bool:
        return (
            self._affinity.now() - self._breaker.counted_from(flight.tried_at, self._affinity.now())
            > self._retry.max_elapsed
        )

    @staticmethod
    def _without(flight: Flight, positions: list[int], outcome: Undelivered) -> Done | SettlePart:
        if flight.batch is None or len(positions) == len(flight.batch):
            return Done(outcome)
        return SettlePart(flight.take_out(positions), outcome)

    def _next_try(self, flight: Flight, reply: Reply) -> Done | Retry:
        """Return how long to wait before the next attempt, or the outcome if the retry policy allows no attempt."""
        now = self._affinity.now()
        if reply.retry_after is not None:
            # The wait is at most `MAX_PAUSE` seconds, like the limiter's pause. Without this bound, a server that asks
            # for a wait of a day would end the retries, because the wait would exceed `max_elapsed`.
            pause = min(reply.retry_after, MAX_PAUSE)
            reply = attrs.evolve(reply, retry_after=pause)
            self._gate.pause(now + pause)
        if reply.verdict is Verdict.THROTTLED:
            self._gate.throttled(flight.departed_at)
        if self._is_excused(flight, reply):
            # `flight.tries` still counts the attempt, so the next wait is longer.
            flight.excused += 1
            flight.tried_at = now
        flight.failed_at = now
        elapsed = now - self._breaker.counted_from(flight.tried_at, now)
        wait = self._retry.wait_before_next(reply, attempt=flight.tries, elapsed=elapsed, excused=flight.excused)
        if wait is None:
            return Done(flight.give_up("retries_exhausted", now))
        return Retry(wait, by_limiter=reply.failure == "limiter")

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

    async def _request(self, flight: Flight) -> tuple[Admission | None, Reply] | Done | SettlePart:
        """Make one request as soon as the circuit breaker and the limiter allow a request.

        Returns:
            The admission and the reply; or, if no request was made, what has to be done instead.
        """
        if flight.slot is None:
            try:
                flight.slot = await self._gate.next_slot()
            except BaseException as error:  # a user's limiter may raise anything
                if ends_task(error):
                    raise
                self._gate.limiter_failed(error)
                # No attempt was made, but the limiter's failure counts as a try. Otherwise the flight would ask a
                # broken limiter for ever.
                flight.tries += 1
                return None, Reply(failure="limiter", detail=type(error).__name__, sent=False)
        slot = flight.slot
        answered = keeps_slot = False
        try:
            if slot.admission.probe and self._breaker.status == 401:
                await self._renewed(self._refused_serial)
            if flight.outcome is not None:
                return None, Reply(failure="closed", sent=False)
            if (instead := self._too_old(flight, slot)) is not None:
                # The other events of the flight are sent with the same slot.
                keeps_slot = isinstance(instead, SettlePart)
                return instead
            flight.depart(self._affinity.now())
            self._ledger.count_request(part=flight.divided)
            if self._watch is None:
                reply = await self._transport.post(flight.path, flight.body, on_sent=slot.sent)
            else:
                reply = await self._watched(self._watch, flight, slot)
            answered = reply.status is not None
        finally:
            if not keeps_slot:
                slot.end(answered=answered)
                flight.slot = None
        return slot.admission, self._counted(flight, reply)

    def _too_old(self, flight: Flight, slot: SendSlot) -> Done | SettlePart | None:
        """Return what to do instead of a request for events that are too old; None if the request can be made."""
        # The flight may have waited long for its send slot, so some events may be too old now.
        if (expired := self._expired(flight)) is not None:
            return expired
        if slot.admission.probe and flight.tries and self._too_late(flight):
            # While the API is down, the breaker sets the time of a probe. This time may be later than the retry policy
            # allows.
            return Done(flight.give_up("retries_exhausted", self._affinity.now()))
        return None

    def _counted(self, flight: Flight, reply: Reply) -> Reply:
        """Count how a request ended; return the reply, marked as throttled if the user's `is_throttled` says so."""
        if reply.failure in _UNMADE:
            self._uncount(flight, reply)
            return reply
        kind = reply.status if reply.status is not None else str(reply.failure)
        self._ledger.count_reply(kind, retry=flight.attempts > 1)
        # The body of the answer is dropped, because the body is not needed any more and may repeat the request with its
        # key.
        return attrs.evolve(self._as_declared(reply), body=b"")

    def _uncount(self, flight: Flight, reply: Reply) -> None:
        """Undo the counts of a request that failed before it was made."""
        flight.attempts -= 1
        self._ledger.uncount_request(part=flight.divided)
        if reply.failure == "key":
            self._key_failed(reply.detail)

    async def _watched(self, watch: Watch, flight: Flight, slot: SendSlot) -> Reply:
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
            shares=None if flight.batch is None else flight.batch.shares,
        )
        status: int | None = None
        failure: str | None = "cancelled"
        try:
            with changes_of(context, before):
                reply = await self._transport.post(flight.path, flight.body, on_sent=slot.sent)
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
            # `_request` fetched the key right before this probe, so fetching the key again would not help.
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
