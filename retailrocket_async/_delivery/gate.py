"""Grants the right to make a request if the circuit breaker, the bound on requests in flight and the limiter agree."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from retailrocket_async._interrupt import is_interrupt

if TYPE_CHECKING:
    from retailrocket_async._delivery.circuit_breaker import Admission, CircuitBreaker
    from retailrocket_async._delivery.ledger import Ledger
    from retailrocket_async._delivery.rate_limiter import Limiter, Permit
    from retailrocket_async._runtime.loop_affinity import LoopAffinity


class SendGate:
    """Grants send slots, each of which is the right to make one request, one by one.

    Args:
        affinity: the loop that the client belongs to.
        ledger: counts the waits for permits; logs errors of the limiter.
        breaker: admits each request before the limiter grants a permit.
        limiter: grants a permit for every request.
        at_once: largest number of requests in flight.
    """

    def __init__(
        self, affinity: LoopAffinity, ledger: Ledger, breaker: CircuitBreaker, limiter: Limiter, *, at_once: int
    ) -> None:
        self._affinity = affinity
        self._ledger = ledger
        self._breaker = breaker
        self._limiter = limiter
        self._wire_slots = asyncio.Semaphore(at_once)

    async def next_slot(self) -> SendSlot:
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
                self.leave(admission)
                raise
            if admission is not None:
                slot = SendSlot(admission, permit, self)
                if self._breaker.still_admits(admission):
                    return slot
                # The state of the breaker has changed while this method waited for the permit, so the slot is freed and
                # the breaker is asked again.
                slot.end()
            else:
                self.leave(None)
                await self._breaker.wait()

    def leave(self, admission: Admission | None) -> None:
        """Free a request slot, and notify the circuit breaker that the request has ended or was not made."""
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

    def pause(self, until: float) -> None:
        """Tell the limiter to grant no permit before `until` (loop time)."""
        try:
            self._limiter.pause_until(until)
        except BaseException as error:  # noqa: BLE001 - an error of the limiter must not change the outcome
            self.limiter_failed(error)

    def throttled(self, departed_at: float) -> None:
        """Tell the limiter that the API throttled a request that was sent at `departed_at` (loop time)."""
        try:
            self._limiter.throttled(departed_at)
        except BaseException as error:  # noqa: BLE001 - as in `pause`
            self.limiter_failed(error)

    def limiter_failed(self, error: BaseException) -> None:
        """Log that the limiter raised `error`; if `error` is the user's Ctrl-C, raise it again."""
        if is_interrupt(error):
            raise error
        self._ledger.log_once(("limiter", type(error)), logging.ERROR, "the limiter failed: %s", type(error).__name__)


class SendSlot:
    """The right to make one request: the circuit breaker's admission, one of the request slots, and a permit.

    Args:
        admission: the circuit breaker's admission.
        permit: the limiter's permit; None if the limiter's `acquire` returns None.
        gate: the gate that granted the slot.
    """

    __slots__ = ("_gate", "_over", "_permit", "admission")

    def __init__(self, admission: Admission, permit: Permit | None, gate: SendGate) -> None:
        self.admission = admission
        self._permit = permit
        self._gate = gate
        self._over = False

    def sent(self) -> None:
        """Report to the permit that the request's body was written."""
        if self._permit is not None and not self._over:
            try:
                self._permit.sent()
            except BaseException as error:  # noqa: BLE001 - a user's limiter may raise anything
                self._gate.limiter_failed(error)

    def end(self, *, answered: bool = False) -> None:
        """Free the slot and the permit, and report whether the server answered; later calls do nothing."""
        if not self._over:
            self._over = True
            self._gate.leave(self.admission)
            if self._permit is not None:
                try:
                    self._permit.done(answered=answered)
                except BaseException as error:  # noqa: BLE001 - an error must not change the request's outcome
                    self._gate.limiter_failed(error)
