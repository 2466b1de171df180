"""Defines `Receipt`, which a caller can await to get the outcome of one event."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from retailrocket_async._errors import error_for
from retailrocket_async._fate import Fate
from retailrocket_async._outcome import Delivered
from retailrocket_async._runtime.uncopyable import Uncopyable

if TYPE_CHECKING:
    from collections.abc import Generator

    from retailrocket_async._outcome import Outcome


class Receipt(Uncopyable):
    """The result of `track`: await it to get the outcome of the event.

    ``await receipt`` returns the event's `Outcome` and never raises for a failed delivery. Any number of tasks may
    await the same receipt; cancelling one of these tasks cancels neither the delivery nor another task. A receipt need
    not be awaited: the event is delivered anyway, and Python gives no warning.
    """

    _instead = "await it in its own process, and pass the outcome on"

    __slots__ = ("_fate", "_place")

    def __init__(self, fate: Fate, place: int) -> None:
        self._fate = fate
        self._place = place

    @property
    def event_name(self) -> str:
        """The event's name as the API spells it, e.g. ``"view"``."""
        return self._fate.names[self._place]

    @property
    def outcome(self) -> Outcome | None:
        """The outcome; None while the event has no outcome yet. Never blocks."""
        return self._fate.outcome_of(self._place)

    def done(self) -> bool:
        """Whether the event has its outcome; never blocks."""
        return self._fate.outcome_of(self._place) is not None

    def __await__(self) -> Generator[asyncio.Future[None], None, Outcome]:
        fate, place = self._fate, self._place
        outcome = fate.outcome_of(place)
        if outcome is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            fate.waiters[waiter] = place
            try:
                # Check again, because the outcome may have been set meanwhile in another thread.
                if fate.outcome_of(place) is None:
                    yield from waiter
            finally:
                # If this wait was cancelled, the waiter is removed here. Otherwise a caller that polls with a time-out
                # would add one more waiter each time.
                fate.waiters.pop(waiter, None)
            outcome = fate.outcome_of(place)
        assert outcome is not None  # noqa: S101 - a fate sets the outcome before it wakes a waiter
        return outcome

    async def delivered(self) -> Delivered:
        """Wait for the outcome, and return the outcome if the event was delivered.

        Raises:
            DeliveryError: the event was not delivered; the subclass corresponds to the outcome.
        """
        outcome = await self
        if isinstance(outcome, Delivered):
            return outcome
        raise error_for(outcome)

    def __repr__(self) -> str:
        return f"<Receipt {self.event_name} {self.outcome or 'pending'}>"

    @property
    def mark(self) -> object:
        """What the observer's `tracked` returned for the event; None if nothing, or if the event has its outcome."""
        return self._fate.mark_of(self._place)

    @mark.setter
    def mark(self, mark: object) -> None:
        self._fate.mark(self._place, mark)


def single_receipt(event_name: str) -> Receipt:
    """Return the receipt of an event whose outcome is set separately, not together with a group of events."""
    return Receipt(Fate([event_name]), 0)


def share_of(receipt: Receipt) -> tuple[Fate, tuple[int]]:
    """Return the `Fate` that stores the outcome of a receipt's event, and the place of the event in this fate."""
    return receipt._fate, (receipt._place,)
