"""Reads the counters of an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retailrocket_async._stats import consistent

if TYPE_CHECKING:
    from retailrocket_async._delivery.circuit_breaker import CircuitBreaker
    from retailrocket_async._delivery.in_flight import InFlight
    from retailrocket_async._delivery.ledger import Ledger
    from retailrocket_async._delivery.waiting_callers import WaitingCallers
    from retailrocket_async._queue.buffer import EventBuffer
    from retailrocket_async._runtime.loop_affinity import LoopAffinity
    from retailrocket_async._stats import Stats


class Snapshot:
    """Collects the counters that `Stats` has.

    Args:
        affinity: the loop that the client belongs to.
        buffer: counts the waiting events.
        ledger: counts events by outcome, and requests.
        callers: the callers that wait for space in the buffer.
        in_flight: counts the events in flight.
        breaker: knows the state of sending.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the objects that count
        self,
        affinity: LoopAffinity,
        buffer: EventBuffer,
        ledger: Ledger,
        callers: WaitingCallers,
        in_flight: InFlight,
        breaker: CircuitBreaker,
    ) -> None:
        self._affinity = affinity
        self._buffer = buffer
        self._ledger = ledger
        self._callers = callers
        self._in_flight = in_flight
        self._breaker = breaker

    def read(self) -> Stats:
        """Return a consistent snapshot of the counters; may be called in any thread."""
        return self.read_here() if self._affinity.here() else consistent(self.read_here)

    def read_here(self) -> Stats:
        """Return the counters; in another thread than the loop's, the sum of the counters may be wrong."""
        return self._ledger.stats(
            self._buffer,
            in_flight=self._in_flight.events,
            waiting=len(self._callers),
            state=self._breaker.state,
        )
