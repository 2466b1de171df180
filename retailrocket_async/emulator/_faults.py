"""The script of faults: which of them strikes a request, and how often it still may."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from random import Random

    from ._fault import Fault

__all__ = ["FaultScript"]


@attrs.define(eq=False)
class _Pending:
    """A fault of the script and how often it may still strike."""

    fault: Fault
    left: int | None


class FaultScript:
    """The faults still to come, in order: a request gets the first one that fits it, and no more than one.

    Args:
        random: where the chance of a fault with a *probability* comes from.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._pending: list[_Pending] = []

    def add(self, *faults: Fault) -> None:
        """Append *faults* to the script."""
        self._pending.extend(_Pending(fault, fault.times) for fault in faults)

    def take(self, path: str, body: bytes) -> Fault | None:
        """Return the fault that strikes a request with *path* and *body*, and count it; None if none does."""
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
        """Return the faults still to come, *times* being what is left of each."""
        return [attrs.evolve(pending.fault, times=pending.left) for pending in self._pending]

    def clear(self) -> None:
        """Drop every fault still to come."""
        self._pending.clear()
