"""Waits until all events tracked so far have their outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retailrocket_async._delivery.in_flight import InFlight
    from retailrocket_async._delivery.ledger import Ledger
    from retailrocket_async._delivery.pump import Pump
    from retailrocket_async._queue.buffer import EventBuffer
    from retailrocket_async._runtime.loop_affinity import LoopAffinity


class Flusher:
    """Sends all waiting events as soon as permits are granted, and waits for their outcomes.

    Args:
        affinity: the loop that the client belongs to.
        buffer: holds the waiting events.
        ledger: knows when the last of these events is settled.
        in_flight: holds the flights.
        pump: takes batches from the buffer.
    """

    def __init__(
        self, affinity: LoopAffinity, buffer: EventBuffer, ledger: Ledger, in_flight: InFlight, pump: Pump
    ) -> None:
        self._affinity = affinity
        self._buffer = buffer
        self._ledger = ledger
        self._in_flight = in_flight
        self._pump = pump

    def hurry(self) -> None:
        """Send all waiting events as soon as permits are granted, without waiting for the linger."""
        if self._buffer.events:
            self._buffer.begin_flush()
            self._pump.kick()

    async def flushed(self) -> None:
        """Return when every event tracked before this call has its outcome."""
        still_open = self._buffer.batches + sum(len(flight.opened_in) for flight in self._in_flight)
        generation = self._buffer.begin_flush()
        if not still_open:
            return
        if self._buffer.events:
            self._pump.kick()
        await self._ledger.flushed(generation, still_open, self._affinity.enter().create_future())
