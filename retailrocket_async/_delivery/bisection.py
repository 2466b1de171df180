"""Finds the events for which the API refuses a batch, by sending halves of it.

The API answers 400 to a batch as a whole and never names the bad event (contract, "Responses"). So a refused batch is
halved. The left half is sent first, and divided further if it is refused too, until each bad event is alone; then the
right half follows. This keeps the order of the events. If the left half is accepted whole, the bad event must be in
the right half, which is then halved without being sent. A single event is always sent alone before it is rejected.

For k bad events among n this takes at most ``2 * k * log2(n) + 1`` requests. After `MOST_CULPRITS` bad events the
search ends: the remaining parts, at most ``log2(n)``, are sent once as they are. If such a part is refused, all its
events are rejected together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from retailrocket_async._queue.batch import Batch

MOST_CULPRITS: Final = 8
"""Bad events that are searched for in one batch: a few are accidents, more are a mistake in the shop's code."""


class _Pending(NamedTuple):
    """A right half that is sent after its left half."""

    batch: Batch
    # Whether it must hold a bad event if its left half is accepted. False if the whole was only too large.
    blamed: bool
    left_size: int


class Bisection:
    """Chooses the part of a refused batch to send next; see the module's text."""

    __slots__ = ("_culprits", "_pending")

    def __init__(self) -> None:
        self._culprits = 0
        self._pending: list[_Pending] = []

    @property
    def pending(self) -> list[Batch]:
        """The parts that have not been sent, the next one last."""
        return [pending.batch for pending in self._pending]

    @property
    def given_up(self) -> bool:
        """Whether the search has ended because it found too many bad events."""
        return self._culprits >= MOST_CULPRITS

    def divide(self, batch: Batch, *, blames: bool) -> Batch | None:
        """Return the part of a refused `batch` to send next; None if it is not divided.

        Args:
            batch: the refused batch, or the refused part of one.
            blames: whether the refusal was for one of its events, and not for its size.
        """
        if len(batch) == 1 or self.given_up:
            self._culprits += 1
            return None
        return self._halved(batch, blames=blames)

    def fitting(self, batch: Batch, size: int) -> Batch:
        """Return the first part of `batch` whose body has at most `size` bytes, or that is a single event."""
        while batch.size > size and len(batch) > 1:
            batch = self._halved(batch, blames=False)
        return batch

    def after(self, *, accepted: int | None) -> Batch | None:
        """Return the part to send after a part that has its outcome; None if no part is left.

        Args:
            accepted: number of events in that part if the API accepted it; None if it did not.
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
        """Return the parts that have not been sent, and forget them."""
        parts = self.pending
        self._pending.clear()
        return parts
