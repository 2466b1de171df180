"""Defines `Receipt`, which a caller can await to get the outcome of one event."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from retailrocket_async._errors import error_for
from retailrocket_async._outcome import Delivered
from retailrocket_async._runtime.futures import set_done
from retailrocket_async._runtime.running import running_loop
from retailrocket_async._runtime.uncopyable import Uncopyable

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from retailrocket_async._outcome import Outcome


class Receipt(Uncopyable):
    """The result of `track`: await it to get the outcome of the event.

    ``await receipt`` returns the event's `Outcome` and never raises for a failed delivery. Any number of tasks may
    await the same receipt; cancelling one of these tasks cancels neither the delivery nor another task. A receipt need
    not be awaited: the event is delivered anyway, and Python gives no warning.

    Attributes:
        event_name: the event's name as the API spells it, e.g. ``"view"`` (str).
    """

    _instead = "await it in its own process, and pass the outcome on"

    # `mark` is set only if an observer returned a mark for the event; otherwise the attribute does not exist.
    __slots__ = ("_outcome", "_waiters", "event_name", "mark")

    mark: object

    def __init__(self, event_name: str) -> None:
        self.event_name = event_name
        self._outcome: Outcome | None = None
        # Thousands of tasks may await one receipt. A dict removes a waiter in constant time and preserves the order.
        self._waiters: dict[asyncio.Future[None], None] | None = None

    @property
    def outcome(self) -> Outcome | None:
        """The outcome; None while the event has no outcome yet. Never blocks."""
        return self._outcome

    def done(self) -> bool:
        """Whether the event has its outcome; never blocks."""
        return self._outcome is not None

    def __await__(self) -> Generator[asyncio.Future[None], None, Outcome]:
        if self._outcome is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if self._waiters is None:
                self._waiters = {}
            self._waiters[waiter] = None
            try:
                # Check again, because `settle` may have set the outcome meanwhile in another thread.
                if self._outcome is None:
                    yield from waiter
            finally:
                # If this wait was cancelled, the waiter is removed here. Otherwise a caller that polls with a time-out
                # would add one more waiter each time.
                if self._waiters is not None:
                    self._waiters.pop(waiter, None)
        assert self._outcome is not None  # noqa: S101 - `settle` sets the outcome before it wakes a waiter
        return self._outcome

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
        return f"<Receipt {self.event_name} {self._outcome or 'pending'}>"


def settle(receipts: Iterable[Receipt], outcome: Outcome) -> None:
    """Set the outcome of each receipt without an outcome, and wake the tasks that await those receipts."""
    here: asyncio.AbstractEventLoop | None = None
    for receipt in receipts:
        if receipt._outcome is not None:
            continue
        receipt._outcome = outcome
        if receipt._waiters is not None:
            waiters, receipt._waiters = receipt._waiters, None
            here = here or running_loop()
            # Iterate over a copy, because another thread may add a waiter now. `__await__` then finds the outcome.
            for waiter in list(waiters):
                _wake(waiter, here)


def _wake(waiter: asyncio.Future[None], here: asyncio.AbstractEventLoop | None) -> None:
    if (loop := waiter.get_loop()) is here:
        set_done(waiter)
        return
    # The waiter belongs to the event loop of another thread. That loop may be closed, which raises RuntimeError.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(set_done, waiter)
