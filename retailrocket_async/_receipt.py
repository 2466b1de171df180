"""`Receipt`: the awaitable that gives one event's outcome."""

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
    """An awaitable that gives the outcome of one event; `track` returns it.

    ``await receipt`` returns the event's `Outcome` and never raises for a failed delivery. Any number of tasks may
    await it; cancelling one of them cancels neither the delivery nor the others. A receipt may be thrown away: that
    costs nothing and never warns.

    Attributes:
        event_name: the event's name as the API spells it, e.g. ``"view"`` (str).
    """

    _instead = "await it in its own process, and pass the outcome on"

    # `mark` is set by an observer; without one it has no value.
    __slots__ = ("_outcome", "_waiters", "event_name", "mark")

    mark: object

    def __init__(self, event_name: str) -> None:
        self.event_name = event_name
        self._outcome: Outcome | None = None
        # A dict, as thousands of tasks may await one receipt: it removes one in constant time, and keeps their order.
        self._waiters: dict[asyncio.Future[None], None] | None = None

    @property
    def outcome(self) -> Outcome | None:
        """The outcome; None while there is none. Never blocks."""
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
                # Read again: if this is another thread's loop, the outcome may have come meanwhile.
                if self._outcome is None:
                    yield from waiter
            finally:
                # If this wait was cancelled. A caller that polls with a time-out would else leave a waiter every time.
                if self._waiters is not None:
                    self._waiters.pop(waiter, None)
        assert self._outcome is not None  # noqa: S101 - settle() sets it before it wakes anyone
        return self._outcome

    async def delivered(self) -> Delivered:
        """Wait for the outcome, and return it if the event was delivered.

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
    """Give receipts their outcome, and wake the tasks that await them; a receipt that has an outcome keeps it."""
    here: asyncio.AbstractEventLoop | None = None
    for receipt in receipts:
        if receipt._outcome is not None:
            continue
        receipt._outcome = outcome
        if receipt._waiters is not None:
            waiters, receipt._waiters = receipt._waiters, None
            here = here or running_loop()
            # A copy, as another thread may add a waiter now; that one finds the outcome itself.
            for waiter in list(waiters):
                _wake(waiter, here)


def _wake(waiter: asyncio.Future[None], here: asyncio.AbstractEventLoop | None) -> None:
    if (loop := waiter.get_loop()) is here:
        set_done(waiter)
        return
    # The waiter is of another thread's loop, which may be closed.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(set_done, waiter)
