"""The search for the events that make the API refuse a batch.

The API answers 400 to a batch as a whole and never says which event it minds (contract, "Responses"). So a refused
batch is halved, and its halves are sent, the left one first and to its end, until the culprits stand alone. That keeps
the order of the events. Where the left half is accepted as it is, the right one must be to blame: it is halved without
being sent. A single event is always sent alone before it is called a culprit.

For k culprits among n events this takes at most ``2 * k * log2(n) + 1`` requests. After `MOST_CULPRITS` the batch
counts as bad throughout: the parts that are left, at most ``log2(n)``, are sent once as they are, and where one is
refused its events are rejected together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from retailrocket_async._queue.batch import Batch

MOST_CULPRITS: Final = 8
"""Culprits of one batch that are looked for: a few are an accident, more are a mistake in the shop's code."""


class _Pending(NamedTuple):
    """A right half that waits for its left one."""

    batch: Batch
    # Whether it is bad for certain once its left half is accepted: not where the whole was too large, no more.
    blamed: bool
    left_size: int


class Bisection:
    """Which part of a refused batch is sent next; see the module's text."""

    __slots__ = ("_culprits", "_pending")

    def __init__(self) -> None:
        self._culprits = 0
        self._pending: list[_Pending] = []

    @property
    def pending(self) -> list[Batch]:
        """The parts that wait for their turn, the next one last."""
        return [pending.batch for pending in self._pending]

    @property
    def given_up(self) -> bool:
        """Whether no more culprits are looked for."""
        return self._culprits >= MOST_CULPRITS

    def divide(self, batch: Batch, *, blames: bool) -> Batch | None:
        """Return the part of a refused `batch` to send next; None where it is not divided.

        Args:
            batch: what was refused.
            blames: whether an event in it must be to blame.
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
        """Return the part to send after one that is done with; None where there is no other.

        Args:
            accepted: events of a part that the API accepted; None where it did not.
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
        """Return the parts that wait, and forget them."""
        parts = self.pending
        self._pending.clear()
        return parts
