"""Requests: asks the limiter, uses the transport, follows the retry policy, until a flight has its outcome."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import attrs

from retailrocket_async._flight import Turn
from retailrocket_async._limiter import MAX_PAUSE
from retailrocket_async._reply import Reply

if TYPE_CHECKING:
    from retailrocket_async._flight import Flight
    from retailrocket_async._home import Home
    from retailrocket_async._ledger import Ledger
    from retailrocket_async._limiter import Limiter
    from retailrocket_async._outcome import Outcome
    from retailrocket_async._retry import RetryPolicy
    from retailrocket_async._transport import Transport


class Sender:
    """Makes the requests of all flights.

    Args:
        home: the loop that the client belongs to.
        ledger: counts requests, retries and waits.
        limiter: asked once for every attempt.
        retry: when to try again.
        transport: carries the requests.
        at_once: requests on the wire at most.
    """

    def __init__(  # noqa: PLR0913 - the rooms it brings together
        self, home: Home, ledger: Ledger, *, limiter: Limiter, retry: RetryPolicy, transport: Transport, at_once: int
    ) -> None:
        self._home = home
        self._ledger = ledger
        self._limiter = limiter
        self._retry = retry
        self._transport = transport
        self._wire_slots = asyncio.Semaphore(at_once)

    async def outcome_of(self, flight: Flight) -> Outcome:
        """Attempt, judge and wait until there is an outcome."""
        while True:
            reply = await self._attempt(flight)
            now = self._home.now()
            if flight.outcome is not None:
                # It was cut short, and something that it awaited swallowed the cancellation.
                return flight.outcome
            if (outcome := flight.judge(reply, now)) is not None:
                return outcome
            if reply.retry_after is not None:
                # As the pause is capped, so is the wait: a day asked for must not use up `max_elapsed` at once.
                pause = min(reply.retry_after, MAX_PAUSE)
                reply = attrs.evolve(reply, retry_after=pause)
                self._pause_until(now + pause)
            # Without a turn there was no attempt; it still counts as a try, or a broken limiter is asked for ever.
            attempt, elapsed = max(1, flight.attempts), now - flight.started_at
            wait = self._retry.wait_before_next(reply, attempt=attempt, elapsed=elapsed)
            if wait is None:
                return flight.give_up("retries_exhausted", now)
            await asyncio.sleep(wait)

    async def _attempt(self, flight: Flight) -> Reply:
        """Make one request, as soon as the limiter allows it."""
        if flight.turn is None:
            try:
                flight.turn = await self.next_turn()
            except Exception as error:  # noqa: BLE001 - a limiter may be anybody's
                self.limiter_failed(error)
                return Reply(failure="limiter", detail=type(error).__name__, sent=False)
            if flight.outcome is not None:
                flight.turn.end()
                return Reply(failure="closed", sent=False)
        flight.depart()
        self._ledger.requested += 1
        answered = False
        try:
            reply = await self._transport.post(flight.path, flight.body, on_sent=flight.turn.sent)
            answered = reply.status is not None
        finally:
            flight.turn.end(answered=answered)
            flight.turn = None
        self._ledger.requests[reply.status if reply.status is not None else str(reply.failure)] += 1
        self._ledger.retries += flight.attempts > 1
        return reply

    async def next_turn(self) -> Turn:
        """Wait for the right to make one request; raises what the limiter raises."""
        # The place on the wire first: a permit that then waited for one would let requests bunch.
        await self._wire_slots.acquire()
        asked_at = self._home.now()
        try:
            permit = await self._limiter.acquire()
        except BaseException:
            self._wire_slots.release()
            raise
        finally:
            self._ledger.limiter_wait += self._home.now() - asked_at
        return Turn(permit, self._wire_slots.release, self.limiter_failed)

    def _pause_until(self, deadline: float) -> None:
        try:
            self._limiter.pause_until(deadline)
        except Exception as error:  # noqa: BLE001 - the batch must not pay for it
            self.limiter_failed(error)

    def limiter_failed(self, error: Exception) -> None:
        """Tell that a limiter raised."""
        self._ledger.tell_once(("limiter", type(error)), logging.ERROR, "the limiter failed: %s", type(error).__name__)

    async def aclose(self) -> None:
        """Close the connections; raises nothing, as nothing is left that could fail."""
        try:
            await self._transport.aclose()
        except Exception as error:  # noqa: BLE001 - every event has its outcome already
            name = type(error).__name__
            self._ledger.tell_once(("transport",), logging.WARNING, "closing the connections failed: %s", name)
