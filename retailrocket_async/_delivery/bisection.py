"""Finds the events for which the API refuses a batch, by sending halves of the batch.

The API answers 400 to a batch as a whole and never names the bad event (contract, "Responses"). So a refused batch is
halved. The left half is sent first. If the API refuses the left half too, that half is divided further, until each bad
event is alone; then the right half follows. This keeps the order of the events. If the left half is accepted whole, the
bad event must be in the right half, so the right half is halved at once and not sent as a whole. A single event is
always sent alone before it is rejected.

For k bad events among n this takes at most ``2 * k * log2(n) + 1`` requests. After `MOST_CULPRITS` bad events the
search ends: each of the remaining parts, at most ``log2(n)``, is sent once and is not divided. If a remaining part is
refused, all events of that part are rejected together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from retailrocket_async._queue.batch import Batch

MOST_CULPRITS: Final = 8
"""Number of bad events after which the search in one batch ends. A few bad events are accidents; more of them come from
a mistake in the shop's code."""


class _Pending(NamedTuple):
    """A right half that is sent after its left half."""

    batch: Batch
    # True if the API refused both halves together for a bad event: if the left half is then accepted, this half must
    # contain the bad event. False if the API refused both halves together only for their size.
    blamed: bool
    left_size: int


class Bisection:
    """Divides a refused batch into halves, and chooses the part to send next; the module's docstring explains how."""

    __slots__ = ("_culprits", "_pending")

    def __init__(self) -> None:
        self._culprits = 0
        self._pending: list[_Pending] = []

    @property
    def pending(self) -> list[Batch]:
        """The parts that have not been sent; the last part in the list is sent next."""
        return [pending.batch for pending in self._pending]

    @property
    def given_up(self) -> bool:
        """Whether the search has ended because it found too many bad events."""
        return self._culprits >= MOST_CULPRITS

    def divide(self, batch: Batch, *, blames: bool) -> Batch | None:
        """Return the part of a refused `batch` to send next, or None if `batch` is not divided.

        Args:
            batch: the refused batch, or the refused part of a batch.
            blames: True if the API refused the batch for a bad event; False if the API refused the batch for its size.
        """
        if len(batch) == 1 or self.given_up:
            self._culprits += 1
            return None
        return self._halved(batch, blames=blames)

    def fitting(self, batch: Batch, size: int) -> Batch:
        """Halve `batch` until its first part has at most `size` bytes or is a single event; return that part."""
        while batch.size > size and len(batch) > 1:
            batch = self._halved(batch, blames=False)
        return batch

    def after(self, *, accepted: int | None) -> Batch | None:
        """Return the part to send next, after the current part got its outcome; None if no part is left.

        Args:
            accepted: number of events in the current part if the API accepted the part; None if the part has
                another outcome.
        """
        if not self._pending:
            return None
        pending = self._pending.pop()
        batch = pending.batch
        to_blame = pending.blamed and accepted == pending.left_size
        return self._halved(batch, blames=True) if to_blame and len(batch) > 1 and not self.given_up else batch

    def _halved(self, batch: Batch, *, blames: bool) -> Batch:
        middle = len(batch) // 2
        left, right = batch.part(0, middle), batch.part(middle, len(batch))
        self._pending.append(_Pending(right, blames, len(left)))
        return left

    def clear(self) -> list[Batch]:
        """Return the parts that have not been sent, and remove them from this object."""
        parts = self.pending
        self._pending.clear()
        return parts
