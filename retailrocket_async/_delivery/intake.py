"""Accepts events into the buffer; if the buffer is full, makes callers wait, drops events or refuses them."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from retailrocket_async._delivery.waiting_callers import closed_error
from retailrocket_async._errors import BufferFullError
from retailrocket_async._events.codec import visitor_of
from retailrocket_async._events.models import UNBATCHABLE
from retailrocket_async._outcome import Dropped
from retailrocket_async._queue.batch import Batch
from retailrocket_async._receipt import single_receipt
from retailrocket_async._runtime.foreign_code import ensure_stack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retailrocket_async._delivery.expiry import Expiry
    from retailrocket_async._delivery.ledger import Ledger
    from retailrocket_async._delivery.pump import Pump
    from retailrocket_async._delivery.waiting_callers import WaitingCallers
    from retailrocket_async._events.models import Event
    from retailrocket_async._fate import Share
    from retailrocket_async._outcome import Outcome
    from retailrocket_async._queue.buffer import EventBuffer
    from retailrocket_async._queue.eviction import Overflow
    from retailrocket_async._receipt import Receipt
    from retailrocket_async._runtime.loop_affinity import LoopAffinity

_FEW = 20
"""About how many expired events are dropped in one step to make space for a new event. After each step, the caller
checks whether the new event fits, so that one caller does not drop all expired events of the buffer."""

_FULL = 3
"""Cost, in events, of accepting an event into a full buffer, because another event is evicted and reported."""

_YIELD_EVERY = 250
"""Number of events accepted in a row before the caller's task lets other tasks run. Each KiB of JSON counts as one more
event. Accepting 250 events takes about a millisecond."""


class Intake:
    """Puts events in the buffer, in order; makes callers wait, drops events or raises an error if the buffer is full.

    Args:
        affinity: the loop that the client belongs to.
        buffer: holds the events.
        ledger: counts the events.
        callers: the queue of callers that wait for space in the buffer.
        pump: takes batches from the buffer; notified when a batch may be due sooner.
        expiry: drops events that are too old.
        overflow: what happens if the buffer is full; see `Buffer.overflow`.
        timed: whether events become too old, so that each event may start the timer of `expiry`.

    Attributes:
        left_in_a_row: number of events that may be accepted before the caller should let other tasks run; if the number
            is 0 or less, the caller should let them run now.
    """

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        affinity: LoopAffinity,
        buffer: EventBuffer,
        ledger: Ledger,
        callers: WaitingCallers,
        *,
        pump: Pump,
        expiry: Expiry,
        overflow: Overflow,
        timed: bool,
    ) -> None:
        self._affinity = affinity
        self._buffer = buffer
        self._ledger = ledger
        self._callers = callers
        self._pump = pump
        self._expiry = expiry
        self._overflow = overflow
        self._timed = timed
        self._closed = False
        self.left_in_a_row = _YIELD_EVERY

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
            raise self._full(event)
        name, key = event.wire_name or event.event_name, self._key_of(event)
        return await self._callers.wait(name, envelope, key, alone=not event.batchable)

    async def let_others_run(self) -> None:
        """Yield to other tasks if the caller has accepted enough events in a row."""
        if self.left_in_a_row <= 0:
            self.left_in_a_row = _YIELD_EVERY
            await asyncio.sleep(0)

    def accept_nowait(self, event: Event, envelope: bytes) -> Receipt:
        """Put one event in the buffer; raise `BufferFullError` if the caller would have to wait for space."""
        receipt = self.accept_now(event, envelope)
        if receipt is None:
            raise self._full(event)
        return receipt

    def refuse(self, event: Event, envelope: bytes, *, tell: bool) -> Receipt:
        """Count an event that the user's `before_send` dropped; pass the event to `on_outcome` if `tell` is true."""
        self._affinity.enter()
        self.check_open()
        ensure_stack()
        self.left_in_a_row -= 1
        receipt = single_receipt(event.event_name)
        self._ledger.count_tracked()
        self._ledger.drop(envelope, receipt, "before_send", notify=tell)
        return receipt

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
        if self._callers.any or not self._buffer.holds(len(events), size):
            return None
        keys = [self._buffer.key_of(session) for _, session, _ in events]
        if not all(itertools.starmap(self._buffer.admits, Counter(keys).items())):
            return None
        ensure_stack()
        self._expiry.arrived()
        if self._pump.idle:
            self._pump.kick()
        receipts: list[Receipt] = []
        sooner = False
        for (name, _, envelope), key in zip(events, keys, strict=True):
            receipts.append(self._buffer.append(envelope, name, key, alone=name in UNBATCHABLE))
            sooner |= self._buffer.sooner
            self._ledger.count_tracked()
        if sooner:
            self._notify()
        return receipts

    def feed(self, envelope: bytes, name: str, session: str, came_at: float, tag: object) -> None:
        """Put an event of the spool in the buffer, even if the buffer is full.

        The spool itself limits the number of its events in the buffer.

        Args:
            envelope: the event's JSON.
            name: the event's name as the API spells it.
            session: the session id of the event's visitor; ``""`` if the event has none.
            came_at: when the event was tracked (loop time).
            tag: what the spool needs to know when the event gets its outcome; see `Fate.tags`.
        """
        if self._timed:
            self._expiry.arrived()
        if self._pump.idle:
            self._pump.kick()
        key = self._buffer.key_of(session)
        # Equal names of waiting events are then one object, which saves memory.
        name = sys.intern(name)
        self._buffer.append(envelope, name, key, came_at=came_at, alone=name in UNBATCHABLE, tag=tag)
        self._ledger.count_tracked()
        if self._buffer.sooner:
            self._notify()

    def end(self, envelope: bytes, share: Share, outcome: Outcome) -> None:
        """Count and settle an event that is in the spool and was never put in the buffer."""
        self._ledger.count_tracked()
        self._ledger.end(envelope, share, outcome)

    def accept_now(self, event: Event, envelope: bytes) -> Receipt | None:
        """Put one event in the buffer, or drop it if `overflow` demands it; return None if the caller must wait."""
        self._affinity.enter()
        if self._closed:
            raise closed_error()
        # The class of a custom event has no wire name; the event itself has its name.
        name = event.wire_name or event.event_name
        key = self._key_of(event)
        # Both calls come before the event is put in the buffer, so that a RecursionError here changes nothing.
        if self._timed:
            self._expiry.arrived()
        if self._pump.idle:
            self._pump.kick()
        if self._callers.are_before(key):
            return self._accept_at_length(event, envelope, name, key)
        receipt = self._buffer.offer(envelope, name, key, alone=not event.batchable)
        if receipt is None:
            return self._accept_at_length(event, envelope, name, key)
        # `count_tracked` is not used, because this method runs for every event and each call costs time.
        self._ledger.tracked += 1
        self.left_in_a_row -= 1 + (len(envelope) >> 10)
        if self._buffer.sooner:
            self._notify()
        return receipt

    def _accept_at_length(self, event: Event, envelope: bytes, name: str, key: int | None) -> Receipt | None:
        size = len(envelope) + 1
        ensure_stack()
        self.left_in_a_row -= _FULL + 1 + (len(envelope) >> 10)
        self._expire_some(size)
        if self._overflow in ("wait", "raise"):
            if self._callers.are_before(key) or not self._has_space(size, key):
                return None
        elif not self._makes_space(size, name, key):
            receipt = single_receipt(name)
            self._ledger.count_tracked()
            self._ledger.drop(envelope, receipt, "overflow")
            return receipt
        receipt = self._buffer.append(envelope, name, key, alone=not event.batchable)
        self._ledger.count_tracked()
        if self._buffer.sooner:
            self._notify()
        return receipt

    def _has_space(self, size: int, key: int | None) -> bool:
        return self._buffer.fits(size) and self._buffer.admits(key)

    def _expire_some(self, size: int) -> None:
        while not self._expiry.expire(_FEW):
            # If other callers wait, they get the space first, so this call need not make more space.
            if self._callers.any or self._buffer.fits(size):
                return

    def _makes_space(self, size: int, event_name: str, key: int | None) -> bool:
        """Evict events until an event of `size` bytes fits; return False if this is impossible."""
        # A large event may evict very many small events, so the evicted events are settled together.
        evicted = Batch(0.0)
        of_visitor = self._buffer.make_room_of(key, event_name)
        for batch in itertools.chain(of_visitor, self._buffer.make_room(size, event_name)):
            evicted.join_end(batch)
        if evicted:
            self._ledger.close_batch(evicted, Dropped(reason="overflow"))
        return self._has_space(size, key)

    def _notify(self) -> None:
        """Wake the pump, because a batch may be due sooner than expected."""
        # At the recursion limit the event is accepted all the same. The pump checks the buffer a little later.
        with suppress(RecursionError):
            self._pump.kick()

    def _full(self, event: Event) -> BufferFullError:
        if not self._buffer.admits(self._key_of(event)):
            return BufferFullError(
                "this visitor has as many waiting events as Buffer.max_visitor_events allows; "
                "wait (track with overflow='wait'), or raise this bound"
            )
        return BufferFullError(
            f"the buffer is full: {self._buffer.events} events, {self._buffer.bytes} bytes, "
            f"{len(self._callers)} callers waiting; wait (track with overflow='wait'), or raise Buffer's bounds"
        )

    def _key_of(self, event: Event) -> int | None:
        return self._buffer.key_of(visitor_of(event))

    def check_open(self) -> None:
        """Raise `ClientClosedError` if the intake is closed."""
        if self._closed:
            raise closed_error()

    def close(self) -> None:
        """Accept no more events, and raise `ClientClosedError` in callers that wait."""
        self._closed = True
        self._callers.close()
