"""The pending faults: chooses the fault of each request, and counts how many requests each fault still applies to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from random import Random

    from ._fault import Fault

__all__ = ["FaultScript"]


@attrs.define(eq=False)
class _Pending:
    """A planned fault, and the number of requests to which the emulator still applies it (None: unlimited)."""

    fault: Fault
    left: int | None


class FaultScript:
    """Holds the pending faults, in order. A request gets only the first fault that fits the request.

    Args:
        random: the source of random numbers for faults with a *probability*.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._pending: list[_Pending] = []

    def add(self, *faults: Fault) -> None:
        """Append *faults* to the pending faults."""
        self._pending.extend(_Pending(fault, fault.times) for fault in faults)

    def take(self, path: str, body: bytes) -> Fault | None:
        """Return the fault for a request with *path* and *body*, or None if no fault fits.

        The returned fault then applies to one request fewer.
        """
        for pending in self._pending:
            fault = pending.fault
            if not fault.fits(path, body) or self._random.random() >= fault.probability:
                continue
            if pending.left is not None:
                pending.left -= 1
                if not pending.left:
                    self._pending.remove(pending)
            return fault
        return None

    def pending(self) -> list[Fault]:
        """Return the pending faults. *times* of a fault is the number of requests that the fault still applies to."""
        return [attrs.evolve(pending.fault, times=pending.left) for pending in self._pending]

    def clear(self) -> None:
        """Remove all pending faults."""
        self._pending.clear()
