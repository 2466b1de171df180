"""Sends flights (batches and direct sends): makes one attempt after the other, as the sender decides."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from retailrocket_async._delivery.sender import Done, Retry, SettlePart, Step
from retailrocket_async._outcome import Delivered
from retailrocket_async._runtime.foreign_code import ends_task

if TYPE_CHECKING:
    from retailrocket_async._delivery.expiry import Expiry
    from retailrocket_async._delivery.flight import Flight
    from retailrocket_async._delivery.in_flight import InFlight
    from retailrocket_async._delivery.ledger import Ledger
    from retailrocket_async._delivery.sender import Sender
    from retailrocket_async._outcome import Outcome
    from retailrocket_async._queue.batch import Batch
    from retailrocket_async._queue.body_limit import BodyLimit
    from retailrocket_async._runtime.loop_affinity import LoopAffinity


class Runner:
    """Sends a flight (a batch or a direct send), whole or in parts, until all its events have their outcome.

    Args:
        affinity: the loop that the client belongs to.
        ledger: logs defects.
        cap: learns the largest request body that the server accepts.
        in_flight: settles the events of flights.
        sender: makes the attempts.
        expiry: settles events that have waited too long.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - its collaborators
        self,
        affinity: LoopAffinity,
        ledger: Ledger,
        cap: BodyLimit,
        in_flight: InFlight,
        sender: Sender,
        expiry: Expiry,
    ) -> None:
        self._affinity = affinity
        self._ledger = ledger
        self._cap = cap
        self._in_flight = in_flight
        self._sender = sender
        self._expiry = expiry

    async def run(self, flight: Flight) -> None:
        """Make attempts until the flight has its outcome."""
        while flight.outcome is None:
            flight.fit(self._cap.bytes, self._affinity.now())
            match await self._attempt(flight):
                case Done(outcome):
                    self._part_done(flight, outcome)
                case SettlePart(part, outcome):
                    self._in_flight.settle_part(flight, part, outcome)
                case Retry() as retry:
                    if retry.refused:
                        self._expiry.look()
                    if flight.outcome is None:
                        await self._sender.rest(flight, retry)

    async def _attempt(self, flight: Flight) -> Step:
        try:
            step = await self._sender.attempt(flight)
        except BaseException as error:  # a defect, of ours or of a transport passed in
            if ends_task(error):
                raise
            self._ledger.log_once(("defect", type(error)), logging.ERROR, "a request ended in %s", type(error).__name__)
            return Done(flight.give_up("internal_error", self._affinity.now()))
        return step

    def _part_done(self, flight: Flight, outcome: Outcome) -> None:
        """Divide the current part of a flight, which got `outcome`, or settle the part."""
        if flight.outcome is not None:
            return
        part, now = flight.batch, self._affinity.now()
        if part is not None:
            self._learn_cap(part, outcome, now)
            if flight.divide(outcome, now):
                return
        outcome = flight.part_refused(outcome)
        if part is not None and flight.go_on(outcome, now):
            self._in_flight.settle_part(flight, part, outcome)
        else:
            self._in_flight.settle(flight, outcome)

    def _learn_cap(self, part: Batch, outcome: Outcome, now: float) -> None:
        if isinstance(outcome, Delivered):
            self._cap.accepted(part.size, now)
        elif outcome.status == 413 and len(part) > 1:
            self._cap.refused(part.size, now)
