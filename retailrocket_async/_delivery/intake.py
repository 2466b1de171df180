"""Accepts events into the buffer; if the buffer is full, makes callers wait, drops events or refuses them."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

from retailrocket_async._errors import BufferFullError, ClientClosedError
from retailrocket_async._events.models import CustomEvent
from retailrocket_async._outcome import Dropped
from retailrocket_async._receipt import Receipt
from retailrocket_async._runtime.context import detached
from retailrocket_async._runtime.foreign_code import ensure_stack

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from retailrocket_async._delivery.ledger import Ledger
    from retailrocket_async._events.models import Event
    from retailrocket_async._outcome import DropReason, Outcome
    from retailrocket_async._queue.buffer import EventBuffer
    from retailrocket_async._queue.eviction import Overflow
    from retailrocket_async._runtime.loop_affinity import LoopAffinity

_FEW = 20
"""About how many expired events are dropped in one step to make space for a new event. After each step, the caller
checks whether the new event fits, so that one caller does not drop all expired events of the buffer."""

_WOKEN_AT_ONCE = 200
"""Number of waiting callers that are admitted or refused in one step; then the loop runs their tasks and all others."""

_FULL = 3
"""Cost, in events, of accepting an event into a full buffer, because another event is evicted and reported."""

_YIELD_EVERY = 250
"""Number of events accepted in a row before the caller's task lets other tasks run. Each KiB of JSON counts as one more
event. Accepting 250 events takes about a millisecond."""


class _Arrived(Protocol):
    def __call__(self, *, due_sooner: bool) -> None: ...


class Intake:
    """Puts events in the buffer, in order; makes callers wait, drops events or raises an error if the buffer is full.

    Args:
        affinity: the loop that the client belongs to.
        buffer: holds the events.
        ledger: counts the events.
        keyed: whether the buffer has several lanes, so that each event needs a lane.
        overflow: what happens if the buffer is full; see `Buffer.overflow`.
        arrived: called with `due_sooner=True` after an event that may make a batch due sooner; if `watched`, also
            called with `due_sooner=False` before every event.
        expire: drops about the given number of events that are too old; returns whether all such events are dropped
            now.
        max_age: seconds after which an event is too old; None for never.

    Attributes:
        left_in_a_row: number of events that may be accepted before the caller should let other tasks run; if the number
            is 0 or less, the caller should let them run now.
        watched: whether `arrived` is called for every event, and not only for events that may make a batch due sooner.
    """

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        affinity: LoopAffinity,
        buffer: EventBuffer,
        ledger: Ledger,
        *,
        keyed: bool,
        overflow: Overflow,
        arrived: _Arrived,
        expire: Callable[[int], bool],
        max_age: float | None,
    ) -> None:
        self._affinity = affinity
        self._buffer = buffer
        self._ledger = ledger
        self._keyed = keyed
        self._overflow = overflow
        self._expire = expire
        self._max_age = math.inf if max_age is None else max_age
        self._arrived = arrived
        # The queue of waiting callers is an OrderedDict, because cancelled callers are removed from the middle.
        self._waiters: OrderedDict[_Waiter, None] = OrderedDict()
        self._waking: asyncio.Handle | None = None
        self._closed = False
        self.left_in_a_row = _YIELD_EVERY
        self.watched = False

    async def accept(self, event: Event, envelope: bytes) -> Receipt:
        """Put one event in the buffer; if the buffer is full, do what `overflow` says, for example wait in order."""
        receipt = self.accept_now(event, envelope)
        if receipt is None:
            return await self.wait_for_room(event, envelope)
        if self.left_in_a_row <= 0:
            await self.let_others_run()
        return receipt

    async def wait_for_room(self, event: Event, envelope: bytes) -> Receipt:
        """Put one event in the buffer as soon as there is space; raise `BufferFullError` if `overflow` is "raise"."""
        if self._overflow == "raise":
            raise self._full()
        loop = self._affinity.enter()
        waiter = _Waiter(event.event_name, envelope, self._lane_of(event), loop.time(), loop.create_future())
        self._waiters[waiter] = None
        try:
            # The event is accepted as soon as the future has its result, even if this task is cancelled afterwards.
            return await waiter.admitted
        except asyncio.CancelledError:
            self._waiters.pop(waiter, None)
            # The next event in the queue may be smaller and may fit.
            self.admit_waiters()
            raise

    async def let_others_run(self) -> None:
        """Yield to other tasks if the caller has accepted enough events in a row."""
        if self.left_in_a_row <= 0:
            self.left_in_a_row = _YIELD_EVERY
            await asyncio.sleep(0)

    def accept_nowait(self, event: Event, envelope: bytes) -> Receipt:
        """Put one event in the buffer; raise `BufferFullError` if the caller would have to wait for space."""
        receipt = self.accept_now(event, envelope)
        if receipt is None:
            raise self._full()
        return receipt

    def refuse(self, event: Event, envelope: bytes, *, tell: bool) -> Receipt:
        """Count an event that the user's `before_send` dropped; pass it to `on_outcome` if `tell` is true."""
        self._affinity.enter()
        self.check_open()
        ensure_stack()
        self.left_in_a_row -= 1
        return self._drop(envelope, Receipt(event.event_name), "before_send", notify=tell)

    def accept_group(self, events: Sequence[tuple[str, str, bytes]]) -> list[Receipt] | None:
        """Put all events in the buffer, in order, and return their receipts.

        If the buffer has no space for all of them, or if the intake is closed, accept no event and return None.

        Args:
            events: name, visitor and envelope of each event.
        """
        self._affinity.enter()
        if self._closed:
            return None
        size = sum([len(envelope) for _, _, envelope in events]) + len(events)
        if self._waiters or not self._buffer.holds(len(events), size):
            return None
        ensure_stack()
        receipts = [Receipt(name) for name, _, _ in events]
        lanes: dict[Hashable, tuple[list[bytes], list[Receipt]]] = {}
        lane_of = self._buffer.lane_of if self._keyed else _no_lane
        for receipt, (_, session, envelope) in zip(receipts, events, strict=True):
            lane = lane_of(session)
            found = lanes.get(lane)
            if found is None:
                found = lanes[lane] = ([], [])
            found[0].append(envelope)
            found[1].append(receipt)
        self._ledger.count_tracked(len(events))
        sooner = [self._buffer.extend(*found, lane) for lane, found in lanes.items()]
        if any(sooner) or self.watched:
            self._arrived(due_sooner=any(sooner))
        return receipts

    def feed(self, envelope: bytes, receipt: Receipt, session: str, came_at: float) -> None:
        """Put an event of the spool in the buffer, even if the buffer is full.

        The spool itself limits the number of its events in the buffer.
        """
        if self.watched:
            self._arrived(due_sooner=False)
        if self._buffer.grow(envelope, receipt):
            self._ledger.count_tracked()
            return
        self._put(envelope, receipt, self._buffer.lane_of(session) if self._keyed else None, came_at)

    def end(self, envelope: bytes, receipt: Receipt, outcome: Outcome) -> None:
        """Count and settle an event that is in the spool and was never put in the buffer."""
        self._ledger.count_tracked()
        self._ledger.end(envelope, receipt, outcome)

    def accept_now(self, event: Event, envelope: bytes) -> Receipt | None:
        """Put one event in the buffer, or drop it if `overflow` demands it; return None if the caller must wait."""
        self._affinity.enter()
        if self._closed:
            raise _closed_error()
        # The class of a custom event has no wire name; the event itself has its name.
        receipt = Receipt(event.wire_name or event.event_name)
        if self.watched:
            # Called before the event is put in the buffer, so that a RecursionError here changes nothing.
            self._arrived(due_sooner=False)
        if self._waiters or not self._buffer.grow(envelope, receipt):
            return self._accept_at_length(event, envelope, receipt)
        # `count_tracked` is not used, because this method runs for every event and each call costs time.
        self._ledger.tracked += 1
        return receipt

    def _accept_at_length(self, event: Event, envelope: bytes, receipt: Receipt) -> Receipt | None:
        size = len(envelope) + 1
        if self._waiters or not self._buffer.fits(size):
            ensure_stack()
            self.left_in_a_row -= _FULL + 1 + (len(envelope) >> 10)
            self._expire_some(size)
            if self._overflow in ("wait", "raise"):
                if self._waiters or not self._buffer.fits(size):
                    return None
            elif not self._makes_room(size, receipt.event_name):
                return self._drop(envelope, receipt, "overflow")
        return self._put(envelope, receipt, self._lane_of(event) if self._keyed else None)

    def _expire_some(self, size: int) -> None:
        while not self._expire(_FEW):
            # Callers that wait already come first, so this call need not make more space.
            if self._waiters or self._buffer.fits(size):
                return

    def _makes_room(self, size: int, event_name: str) -> bool:
        # A large event may evict very many small events, so these are settled together.
        given_way = None
        for batch in self._buffer.make_room(size, event_name):
            if given_way is None:
                given_way = batch
            else:
                given_way.absorb(batch)
        if given_way is not None:
            self._ledger.close_batch(given_way, Dropped(reason="overflow"))
        return self._buffer.fits(size)

    def _drop(self, envelope: bytes, receipt: Receipt, reason: DropReason, *, notify: bool = True) -> Receipt:
        self._ledger.count_tracked()
        self._ledger.drop(envelope, receipt, reason, notify=notify)
        return receipt

    def _full(self) -> BufferFullError:
        return BufferFullError(
            f"the buffer is full: {self._buffer.events} events, {self._buffer.bytes} bytes, "
            f"{len(self._waiters)} callers waiting; wait (track with overflow='wait'), or raise Buffer's bounds"
        )

    def _put(self, envelope: bytes, receipt: Receipt, lane: Hashable, came_at: float | None = None) -> Receipt:
        left = self.left_in_a_row - 1 - (len(envelope) >> 10) - self._buffer.end_growth()
        # The event after which the caller should let other tasks run must come through this method and not through
        # `EventBuffer.grow`, because only this method counts events.
        growth = (left if left > 0 else _YIELD_EVERY) - 1
        due_sooner = self._buffer.append(envelope, receipt, lane, came_at=came_at, growth=growth)
        self.left_in_a_row = left
        self._ledger.count_tracked()
        if due_sooner:
            try:  # noqa: SIM105 - suppress() is one more call
                self._arrived(due_sooner=True)
            except RecursionError:
                # The event is accepted. The pump checks the buffer by itself, a little later.
                pass
        return receipt

    def admit_waiters(self) -> None:
        """Accept the events of waiting callers, in the order of the calls, as long as the next event fits.

        If there are many callers, other tasks run after every `_WOKEN_AT_ONCE` of them.
        """
        if self._waking is None:
            self._wake_some()

    def _wake_some(self) -> None:
        self._waking = None
        if self.watched and self._waiters:
            self._arrived(due_sooner=False)
        for _ in range(_WOKEN_AT_ONCE):
            waiter = next(iter(self._waiters), None)
            if waiter is None:
                return
            if self._closed:
                waiter.refuse()
            elif not waiter.admitted.done():
                if self._affinity.now() - waiter.came_at >= self._max_age:
                    waiter.admitted.set_result(self._drop(waiter.envelope, Receipt(waiter.event_name), "expired"))
                elif self._buffer.fits(len(waiter.envelope) + 1):
                    waiter.admitted.set_result(
                        self._put(waiter.envelope, Receipt(waiter.event_name), waiter.lane, waiter.came_at)
                    )
                else:
                    return
            self._waiters.pop(waiter, None)
        self._waking = detached(self._affinity.enter().call_soon, self._wake_some)

    def _lane_of(self, event: Event) -> Hashable:
        if isinstance(event, CustomEvent):
            return self._buffer.lane_of(str(event.fields.get("sessionExternalId", "")))
        return self._buffer.lane_of(getattr(event, "session_external_id", ""))

    def check_open(self) -> None:
        """Raise `ClientClosedError` if the intake is closed."""
        if self._closed:
            raise _closed_error()

    def close(self) -> None:
        """Accept no more events, and raise `ClientClosedError` in callers that wait."""
        self._closed = True
        self.admit_waiters()

    @property
    def waiting(self) -> int:
        """Number of callers that wait for space."""
        return 0 if self._closed else len(self._waiters)


class _Waiter:
    """A caller that waits for space in the buffer."""

    __slots__ = ("admitted", "came_at", "envelope", "event_name", "lane")

    def __init__(
        self, event_name: str, envelope: bytes, lane: Hashable, came_at: float, admitted: asyncio.Future[Receipt]
    ) -> None:
        self.came_at = came_at
        self.event_name = event_name
        self.envelope = envelope
        self.lane = lane
        self.admitted = admitted

    def refuse(self) -> None:
        if not self.admitted.done():
            self.admitted.set_exception(_closed_error())


def _no_lane(_: str) -> Hashable:
    return None


def _closed_error() -> ClientClosedError:
    return ClientClosedError("the client is closed, or is closing, and takes no new events")
