"""Callers of `track` that wait until the buffer has space for their events."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from retailrocket_async._errors import ClientClosedError
from retailrocket_async._receipt import single_receipt
from retailrocket_async._runtime.context import detached

if TYPE_CHECKING:
    from retailrocket_async._delivery.ledger import Ledger
    from retailrocket_async._queue.buffer import EventBuffer
    from retailrocket_async._receipt import Receipt
    from retailrocket_async._runtime.loop_affinity import LoopAffinity
    from retailrocket_async._runtime.wakeup import Wakeup

_WOKEN_AT_ONCE: Final = 200
"""Number of waiting callers that are admitted or refused in one step; then the loop runs their tasks and all others."""


class WaitingCallers:
    """Queues callers while the buffer is full, and accepts their events in the order of the calls.

    A caller whose visitor has too many waiting events (`Buffer.max_visitor_events`) waits in a queue of this visitor.
    So this caller delays no caller of another visitor.

    Args:
        affinity: the loop that the client belongs to.
        buffer: gets the events.
        ledger: counts the events.
        wakeup: wakes the pump, which takes batches from the buffer.
        max_age: seconds after which an event is too old; None for never.
    """

    def __init__(
        self, affinity: LoopAffinity, buffer: EventBuffer, ledger: Ledger, wakeup: Wakeup, *, max_age: float | None
    ) -> None:
        self._affinity = affinity
        self._buffer = buffer
        self._ledger = ledger
        self._wakeup = wakeup
        self._max_age = math.inf if max_age is None else max_age
        # The queues are OrderedDicts, because cancelled callers are removed from the middle.
        self._queue: OrderedDict[_Caller, None] = OrderedDict()
        self._by_visitor: dict[int | None, OrderedDict[_Caller, None]] = {}
        self._admitting: asyncio.Handle | None = None
        self._closed = False

    def __len__(self) -> int:
        return 0 if self._closed else len(self._queue) + sum(map(len, self._by_visitor.values()))

    def are_before(self, key: int | None) -> bool:
        """Whether a new event of this visitor must wait, because events of waiting callers come first.

        Args:
            key: the key of the visitor; see `EventBuffer.key_of`.
        """
        return bool(self._queue) or (bool(self._by_visitor) and key in self._by_visitor)

    @property
    def any(self) -> bool:
        """Whether any caller waits."""
        return bool(self._queue or self._by_visitor)

    async def wait(self, event_name: str, envelope: bytes, key: int | None, *, alone: bool) -> Receipt:
        """Wait until the buffer has accepted an event; return its receipt.

        Args:
            event_name: the event's name as the API spells it.
            envelope: the event's JSON.
            key: the key of the event's visitor; see `EventBuffer.key_of`.
            alone: whether the event must be sent in a request of its own.

        Raises:
            ClientClosedError: the client was closed while the caller waited.
        """
        loop = self._affinity.enter()
        caller = _Caller(event_name, envelope, key, loop.time(), loop.create_future(), alone=alone)
        # An earlier caller of the same visitor may be in the common queue, so this caller must not overtake that queue.
        if not self._queue and self._must_wait_for_visitor(key):
            self._by_visitor.setdefault(key, OrderedDict())[caller] = None
        else:
            self._queue[caller] = None
        try:
            # The event is accepted as soon as the future has its result, even if this task is cancelled afterwards.
            return await caller.admitted
        except asyncio.CancelledError:
            self._remove(caller)
            # The next event in the queue may be smaller and may fit.
            self.admit()
            raise

    def admit(self) -> None:
        """Accept the events of waiting callers, in the order of the calls, as long as the next event fits.

        If there are many callers, other tasks run after every `_WOKEN_AT_ONCE` of them.
        """
        if self._admitting is None and (self._queue or self._by_visitor):
            self._admit_some()

    def close(self) -> None:
        """Raise `ClientClosedError` in all waiting callers."""
        self._closed = True
        self.admit()

    def _admit_some(self) -> None:
        self._admitting = None
        left = _WOKEN_AT_ONCE
        for queue in (self._queue, *self._by_visitor.values()):
            while queue and left and self._answer(next(iter(queue))):
                left -= 1
        if not left:
            self._admitting = detached(self._affinity.enter().call_soon, self._admit_some)

    def _answer(self, caller: _Caller) -> bool:
        """Accept or refuse the event of the first caller of a queue; return False if the caller has to wait longer."""
        if self._closed:
            caller.refuse()
        elif not caller.admitted.done():
            if self._affinity.now() - caller.came_at >= self._max_age:
                receipt = single_receipt(caller.event_name)
                self._ledger.count_tracked()
                # The caller has its result before code of users may raise Ctrl-C, so that the event is counted once.
                caller.admitted.set_result(receipt)
                self._ledger.drop(caller.envelope, receipt, "expired")
            elif not self._buffer.fits(len(caller.envelope) + 1):
                return False
            elif caller in self._queue and self._must_wait_for_visitor(caller.key):
                # Only this caller's visitor has too many events. The callers after this caller can be admitted.
                del self._queue[caller]
                self._by_visitor.setdefault(caller.key, OrderedDict())[caller] = None
                return True
            elif self._buffer.admits(caller.key):
                caller.admitted.set_result(self._put(caller))
            else:
                return False
        self._remove(caller)
        return True

    def _must_wait_for_visitor(self, key: int | None) -> bool:
        """Whether a caller must wait in the queue of its visitor."""
        return key in self._by_visitor or not self._buffer.admits(key)

    def _put(self, caller: _Caller) -> Receipt:
        receipt = self._buffer.append(
            caller.envelope, caller.event_name, caller.key, came_at=caller.came_at, alone=caller.alone
        )
        self._ledger.count_tracked()
        self._wakeup.set()
        return receipt

    def _remove(self, caller: _Caller) -> None:
        self._queue.pop(caller, None)
        of_visitor = self._by_visitor.get(caller.key)
        if of_visitor is not None:
            of_visitor.pop(caller, None)
            if not of_visitor:
                del self._by_visitor[caller.key]


class _Caller:
    """A caller that waits, with its event.

    Attributes:
        admitted: future that gets the event's receipt.
    """

    __slots__ = ("admitted", "alone", "came_at", "envelope", "event_name", "key")

    def __init__(  # noqa: PLR0913 - a record
        self,
        event_name: str,
        envelope: bytes,
        key: int | None,
        came_at: float,
        admitted: asyncio.Future[Receipt],
        *,
        alone: bool,
    ) -> None:
        self.event_name = event_name
        self.envelope = envelope
        self.key = key
        self.came_at = came_at
        self.admitted = admitted
        self.alone = alone

    def refuse(self) -> None:
        """Raise `ClientClosedError` in the caller."""
        if not self.admitted.done():
            self.admitted.set_exception(closed_error())


def closed_error() -> ClientClosedError:
    """Return the error for an event that arrives after a close has begun."""
    return ClientClosedError("the client is closed, or is closing, and takes no new events")
