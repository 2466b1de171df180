"""Holds the events that wait for a permit to be sent: events are appended one by one, and taken in batches.

The API limits the number of requests, not of events, so a batch is taken *after* its permit is granted. Until then the
batch grows up to its largest size. If permits are scarce, batches are large; if permits are free, an event is sent
after the linger.

Events wait in lanes. A lane is a queue of batches; new events are added to its last batch. By default (`ordered`) each
visitor belongs to one of a fixed number of lanes; with `by_session` each visitor has an own lane. While a batch of a
lane is in flight, the lane is busy and no other batch is taken from it, so a visitor's events are never in two requests
at once. Without ordering there is one lane, which is never busy.

No code here awaits, and the clock is an argument.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
import sys
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from retailrocket_async._queue.batch import Batch
from retailrocket_async._queue.body_limit import BodyLimit
from retailrocket_async._queue.lane import Lane
from retailrocket_async._runtime.foreign_code import ensure_stack

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Hashable, Iterator

    from retailrocket_async._queue.options import Batching, Buffer
    from retailrocket_async._receipt import Receipt

_SHORT_BATCH_SPAN = 0.25
"""Seconds after its opening in which a batch takes new events, if `short_batches` is set."""

_LANES = 512
"""Number of lanes for ordered batching. The number is large, so that enough lanes are not busy when the next batch is
filled."""

_LOOKED_AT = 32
"""Number of lanes that one call checks when it fills a batch or looks for the oldest batch."""


class EventBuffer:
    """Holds the waiting events in lanes, and returns them in batches; the module's docstring explains how.

    Args:
        batching: largest size of a batch, and whether visitors' events keep their order.
        buffer: bounds of the number and of the bytes of all waiting events.
        clock: returns the time in seconds; only the difference between two times matters.

    Attributes:
        cap: the current limit of a request body; see `BodyLimit`.
        generation: number of flushes that have begun.
        batches: number of waiting batches.
    """

    def __init__(self, batching: Batching, buffer: Buffer, clock: Callable[[], float]) -> None:
        self._max_events = batching.max_events
        self._linger = batching.linger
        self._exclusive = batching.ordered or batching.by_session
        self._merging = batching.ordered and not batching.by_session
        self._by_session = batching.by_session
        self._bounds = buffer
        self._clock = clock
        self._timed = buffer.max_age is not None
        self._ranks = buffer.ranks()
        self.cap = BodyLimit(batching.max_bytes)
        self._lanes: dict[Hashable, Lane] = {}
        # All waiting batches, oldest first, with the time of their first event. Unlike a dict, an OrderedDict finds and
        # removes its first entry in constant time.
        self._order: OrderedDict[Batch, float] = OrderedDict()
        # A heap of the batches by the time of their first event, for `max_age`. The heap may still contain batches that
        # have left the buffer.
        self._ages: list[tuple[float, int, Batch]] = []
        self._opened = itertools.count()
        self._busy: set[Hashable] = set()
        # Lanes from which a batch may be taken, in the order in which they became ready.
        self._ready: dict[Hashable, Lane] = {}
        self._ready_events = 0
        self._ready_bytes = 0
        # Number of ready batches, and number of ready batches that a flush waits for.
        self._ready_batches = 0
        self._urgent_batches = 0
        # A lower bound of the times at which ready batches were opened.
        self._oldest_ready = math.inf
        # `_growing` is the batch that `grow` appends to. `_full_events` and `_full_size` are the sizes up to which
        # `grow` may fill this batch. `_counted_events` and `_counted_size` say how much of the batch is included in the
        # counters.
        self._growing: Batch | None = None
        self._full_events = self._full_size = 0
        self._counted_events = self._counted_size = 0
        self._plain = not self._timed and self._ranks is None
        self._short_batches = False
        self.generation = 0
        self.batches = 0
        self._events = 0
        self._bytes = 0

    def lane_of(self, session: str) -> Hashable:
        """Return the key of the lane that a visitor's events go to."""
        if not self._exclusive:
            return None
        return session if self._by_session else hash(session) % _LANES

    @property
    def events(self) -> int:
        """Number of waiting events."""
        batch = self._growing
        return self._events if batch is None else self._events + len(batch.receipts) - self._counted_events

    @property
    def bytes(self) -> int:
        """Number of bytes of the JSON of the waiting events."""
        batch = self._growing
        return self._bytes if batch is None else self._bytes + batch.size - self._counted_size

    @property
    def short_batches(self) -> bool:
        """Whether each batch holds only events of a short time span, so that old events can be rejected alone."""
        return self._short_batches

    @short_batches.setter
    def short_batches(self, value: bool) -> None:
        self._short_batches = value
        self.end_growth()

    def fits(self, size: int) -> bool:
        """Whether one more envelope of `size` bytes is within the buffer's bounds."""
        return self.events < self._bounds.max_events and self.bytes + size <= self._bounds.max_bytes

    def holds(self, count: int, size: int) -> bool:
        """Whether `count` more events, of `size` bytes together, are within the buffer's bounds."""
        return self.events + count <= self._bounds.max_events and self.bytes + size <= self._bounds.max_bytes

    def grow(self, envelope: builtins.bytes, receipt: Receipt) -> bool:
        """Append one event to the current batch, if nothing else has to be done; return whether the event was appended.

        Other work has to be done if a batch must be opened, or if the event may make a batch due.

        This is the fast path for nearly every event; even the counters are updated later, by `end_growth`. Every other
        change of the buffer disables the fast path until `append` enables it again.
        """
        batch = self._growing
        # `Intake` counts a large event as several events, so a large event must go through `append`.
        if batch is None or (length := len(envelope)) >= 1024:
            return False
        size, receipts = batch.size + length + 1, batch.receipts
        count = len(receipts)
        if size > self._full_size or count >= self._full_events:
            return False
        try:
            batch.envelopes.append(envelope)
            receipts.append(receipt)
        except RecursionError:
            del batch.envelopes[count:]
            raise
        batch.size = size
        return True

    def _let_grow(self, batch: Batch, most: int) -> None:
        """Let `grow` append up to `most` events to `batch`, as long as they fill no batch and make no batch due."""
        events, size = len(batch.receipts), batch.size
        self._counted_events, self._counted_size = events, size
        most_events = min(self._max_events - events, self._bounds.max_events - self._events, most)
        most_bytes = min(self.cap.bytes - size, self._bounds.max_bytes - self._bytes)
        # The event that makes a batch due must go through `append`. If a batch is due already, no further event makes
        # it due.
        if self._ready_events < self._max_events and self._ready_bytes < self.cap.bytes:
            most_events = min(most_events, self._max_events - self._ready_events - 1)
            most_bytes = min(most_bytes, self.cap.bytes - self._ready_bytes - 1)
        self._full_events, self._full_size = events + most_events, size + most_bytes
        self._growing = batch

    def end_growth(self) -> int:
        """Disable `grow`, and add the events that it appended to the counters; return the number of these events."""
        batch = self._growing
        if batch is None:
            return 0
        events, size = len(batch.receipts) - self._counted_events, batch.size - self._counted_size
        lane = self._lanes[None]
        self._growing = None
        lane.events += events
        lane.bytes += size
        self._ready_events += events
        self._ready_bytes += size
        self._events += events
        self._bytes += size
        return events

    def append(
        self,
        envelope: builtins.bytes,
        receipt: Receipt,
        lane: Hashable = None,
        *,
        came_at: float | None = None,
        growth: int = sys.maxsize,
    ) -> bool:
        """Append one event; return whether a batch may be due sooner than before, so that `due_in` changes.

        Args:
            envelope: the JSON of the event.
            receipt: the receipt of the event.
            lane: key of its lane, see `lane_of`.
            came_at: when the event was tracked, if the event had to wait for space; must not be earlier than the time
                of the event that was appended last. Default: now.
            growth: number of events that `grow` may then append to the same batch; default any number.
        """
        self.end_growth()
        size = len(envelope) + 1
        batches = self._lanes.get(lane)
        batch = None if batches is None else next(reversed(batches), None)
        ready = lane not in self._busy
        if batches is None or batch is None or self._is_closed(batch, size):
            ensure_stack()
            if batches is None:
                batches = self._lanes[lane] = Lane()
            batch = self._open(batches, lane, self._clock() if came_at is None else came_at, ready=ready)
        count = len(batch.receipts)
        try:
            batch.envelopes.append(envelope)
            batch.receipts.append(receipt)
            if self._timed:
                batch.times.append(self._clock() if came_at is None else came_at)
            if self._ranks is not None:
                self._ranks.add(batch, receipt, size)
        except RecursionError:
            del batch.envelopes[count:], batch.receipts[count:], batch.times[count:]
            raise
        batch.size += size
        batches.events += 1
        batches.bytes += size
        self._events += 1
        self._bytes += size
        if not ready:
            return False
        self._ready_events += 1
        self._ready_bytes += size
        if growth > 0 and self._plain and lane is None and not self._short_batches:
            try:  # noqa: SIM105 - suppress() is one more call
                self._let_grow(batch, growth)
            except RecursionError:
                # The event is in the buffer. Only the fast path is not enabled, so the next event uses `append`, too.
                pass
        if lane not in self._ready:
            self._make_ready(lane, batches)
            return True
        return self._ready_events == self._max_events or 0 <= self._ready_bytes - self.cap.bytes < size

    def extend(self, envelopes: list[builtins.bytes], receipts: list[Receipt], lane: Hashable) -> bool:
        """Append many events of one lane faster than calls of `append`; return what `append` would return."""
        if self._timed or self._ranks is not None:
            sooner = [self.append(*event, lane) for event in zip(envelopes, receipts, strict=True)]
            return any(sooner)
        self.end_growth()
        sooner_by_events, sooner_by_bytes = self._ready_events, self._ready_bytes
        batches = self._lanes.get(lane)
        if batches is None:
            batches = self._lanes[lane] = Lane()
        ready, position, added = lane not in self._busy, 0, 0
        while position < len(envelopes):
            batch = next(reversed(batches), None)
            if batch is None or self._is_closed(batch, len(envelopes[position]) + 1):
                batch = self._open(batches, lane, self._clock(), ready=ready)
            count, size = self._fitting(batch, envelopes, position)
            batch.envelopes += envelopes[position : position + count]
            batch.receipts += receipts[position : position + count]
            batch.size += size
            position += count
            added += size
        batches.events += position
        batches.bytes += added
        self._events += position
        self._bytes += added
        if not ready:
            return False
        self._ready_events += position
        self._ready_bytes += added
        if lane not in self._ready:
            self._make_ready(lane, batches)
            return True
        by_events = sooner_by_events < self._max_events <= self._ready_events
        return by_events or sooner_by_bytes < self.cap.bytes <= self._ready_bytes

    def _is_closed(self, batch: Batch, size: int) -> bool:
        """Whether an event of `size` bytes must not be added to `batch`, the last batch of its lane."""
        return (
            len(batch.receipts) >= self._max_events
            or batch.size + size > self.cap.bytes
            or (self._short_batches and self._clock() - batch.opened_at > _SHORT_BATCH_SPAN)
        )

    def _open(self, batches: Lane, lane: Hashable, came_at: float, *, ready: bool) -> Batch:
        batch = Batch(self._clock(), self.generation, lane)
        batches.open(batch)
        self._order[batch] = came_at
        if self._timed:
            heapq.heappush(self._ages, (came_at, next(self._opened), batch))
        self.batches += 1
        self._ready_batches += ready
        return batch

    def _fitting(self, batch: Batch, envelopes: list[builtins.bytes], position: int) -> tuple[int, int]:
        """Return the number of envelopes from `position` on that fit in `batch` (at least 1), and their bytes."""
        most = envelopes[position : position + self._max_events - len(batch.receipts)]
        free = self.cap.bytes - batch.size
        size = sum(map(len, most)) + len(most)
        while size > free and len(most) > 1:
            size -= len(most.pop()) + 1
        return len(most), size

    def due_in(self) -> float | None:
        """Return the seconds until a batch should be taken (0 means now), or None if no batch is ready.

        With many lanes the result may be too small, so call this method again after that time.
        """
        if not self._ready:
            return None
        if self._urgent_batches or self._ready_events >= self._max_events or self._ready_bytes >= self.cap.bytes:
            return 0.0
        now = self._clock()
        # The ready lanes are not sorted by age, and checking many of them takes time. So with many lanes, they are
        # checked only when the oldest batch may be due.
        if len(self._ready) <= _LOOKED_AT or self._oldest_ready + self._linger <= now:
            self._oldest_ready = min(batches.first.opened_at for batches in self._ready.values())
        return max(0.0, self._oldest_ready + self._linger - now)

    def take(self) -> Batch | None:
        """Remove and return the next batch; None if every lane is empty or busy.

        With ordering, the lanes of the batch are busy until `release` is called.
        """
        if not self._ready:
            return None
        self.end_growth()
        batch = self._take_from(next(iter(self._ready)))
        if self._merging:
            # The loop works on a copy because taking a batch changes the dict. The dict has at most `_LANES` entries.
            misses, opened_at = 0, batch.opened_at
            for lane, batches in list(self._ready.items()):
                # While sending is halted, all events of a batch are rejected together when they have become too old, so
                # a batch must not contain both old and new events.
                alike = not self._short_batches or abs(batches.first.opened_at - opened_at) <= _SHORT_BATCH_SPAN
                if alike and self._fit_together(batch, batches.first):
                    self._take_from(lane, batch)
                elif (misses := misses + 1) >= _LOOKED_AT:
                    break
        return batch

    def release(self, batch: Batch) -> bool:
        """Free the lanes of a batch that is settled; return whether another batch can be taken because of this."""
        if not self._exclusive:
            return False
        became_ready = False
        for lane in batch.lanes:
            self._busy.discard(lane)
            if batches := self._lanes.get(lane):
                self._make_ready(lane, batches)
                self._count_ready(batches, 1)
                became_ready = True
            else:
                self._lanes.pop(lane, None)
        return became_ready

    def begin_flush(self) -> int:
        """Make all waiting batches due now; return the generation of the newest batch."""
        self.generation += 1
        self._urgent_batches = self._ready_batches
        return self.generation - 1

    def drain(self, most: int | None = None) -> Iterator[Batch]:
        """Remove and yield all waiting events, oldest first, in batches of at most `most` events.

        Events count as waiting until they are yielded. If `most` is given, small batches are merged, because settling
        thousands of small batches takes three times as long. If `most` is None, each batch is yielded as it is.
        """
        self.end_growth()
        self._lanes.clear()
        self._ready.clear()
        self._ready_events = self._ready_bytes = self._ready_batches = self._urgent_batches = 0
        while self._order:
            batch = next(iter(self._order))
            if most is not None and len(batch) > most:
                head = batch.cut_head(most)
                self._events -= most
                self._bytes -= head.size - 1
                if self._ranks is not None:
                    self._ranks.forget(head)
                yield head
            else:
                self._forget(batch)
                while most and self._order and len(batch) + len(following := next(iter(self._order))) <= most:
                    self._forget(following)
                    batch.join_end(following)
                yield batch

    def oldest_age(self) -> float:
        """Return the age of the oldest waiting event in seconds; 0 if no event waits."""
        # Another thread may call this method while the loop's thread changes the batches.
        with suppress(RuntimeError, IndexError):
            for oldest in self._order:
                came_at = oldest.times[0] if self._timed else oldest.opened_at
                return max(0.0, self._clock() - came_at)
        return 0.0

    # --- events that leave without being taken ------------------------------------------------------------------------

    def make_room(self, size: int, event_name: str) -> Iterator[Batch]:
        """Evict and yield events, one by one, until an envelope of `size` bytes fits.

        If the envelope would not fit even after all evictions, evict no event.
        """
        ranks = self._ranks
        # If the new event cannot fit even after all evictions, the new event will be dropped, so no waiting event is
        # evicted.
        if ranks is None or self.bytes - ranks.yielding(event_name) + size > self._bounds.max_bytes:
            return
        while not self.fits(size) and (found := ranks.first(event_name)) is not None:
            batch, position = found
            yield self._remove(batch, batch.pop(position))

    def expire(self, moment: float, most: int = sys.maxsize) -> Iterator[Batch]:
        """Remove and yield events that were tracked at `moment` or before, in batches of at most `most` events.

        Without `max_age` the time of each event is not known, so each event of a batch is treated as if it were as old
        as the oldest event of the batch.
        """
        while (batch := self._oldest_by(moment)) is not None:
            # Called in each round, because code that ran after the last `yield` may have tracked another event.
            self.end_growth()
            count = bisect.bisect_right(batch.times, moment) if self._timed else len(batch)
            yield self._remove(batch, batch.cut_head(min(count, most)))

    def _oldest_by(self, moment: float) -> Batch | None:
        """Return the batch with the oldest waiting event if that event came at `moment` or before, otherwise None."""
        if not self._timed:
            batch, came_at = next(iter(self._order.items()), (None, math.inf))
            return batch if came_at <= moment else None
        while self._ages and self._ages[0][0] <= moment:
            _, number, batch = self._ages[0]
            if batch not in self._order:
                heapq.heappop(self._ages)
            elif batch.times[0] <= moment:
                return batch
            else:
                # The first events of this batch have left the buffer, so the entry in the heap is updated.
                heapq.heapreplace(self._ages, (batch.times[0], number, batch))
        return None

    def _remove(self, batch: Batch, removed: Batch) -> Batch:
        """Subtract `removed`, the events that were cut out of a waiting batch, from the counters; return `removed`."""
        lane = batch.lanes[0]
        batches = self._lanes[lane]
        size = removed.size - 1
        batches.events -= len(removed)
        batches.bytes -= size
        self._events -= len(removed)
        self._bytes -= size
        if self._ranks is not None:
            self._ranks.forget(removed)
        if ready := lane not in self._busy:
            self._ready_events -= len(removed)
            self._ready_bytes -= size
        if batch:
            return removed
        removed.opened_in = batch.opened_in
        self._forget(batch)
        batches.remove(batch)
        if ready:
            self._ready_batches -= 1
            self._urgent_batches -= batch.generation != self.generation
            if not batches:
                del self._ready[lane], self._lanes[lane]
        return removed

    def _forget(self, batch: Batch) -> None:
        """Subtract a batch that has left the buffer from the counters."""
        del self._order[batch]
        if self._ranks is not None:
            self._ranks.forget(batch)
        if len(self._ages) > 2 * len(self._order) + _LOOKED_AT:
            self._ages = [age for age in self._ages if age[2] in self._order]
            heapq.heapify(self._ages)
        self.batches -= 1
        self._events -= len(batch)
        self._bytes -= batch.size - 1

    def _fit_together(self, batch: Batch, other: Batch) -> bool:
        return len(batch) + len(other) <= self._max_events and batch.size + other.size - 1 <= self.cap.bytes

    def _take_from(self, lane: Hashable, batch: Batch | None = None) -> Batch:
        """Take the first batch of a lane and further batches that fit; merge them into `batch` if it is given."""
        batches = self._ready[lane]
        # The lane becomes busy here. Until `release` is called, the other batches of the lane cannot be taken, so these
        # batches do not count as ready.
        if self._exclusive:
            self._count_ready(batches, -1)
        first = self._take_first(batches)
        if batch is None:
            batch = first
        else:
            batch.absorb(first)
        # A batch may be small because events were evicted or because the batch was closed early. Small batches are
        # merged.
        while not self.short_batches and batches and self._fit_together(batch, batches.first):
            batch.absorb(self._take_first(batches))
        if self._exclusive:
            self._busy.add(lane)
        if self._exclusive or not batches:
            del self._ready[lane]
        return batch

    def _take_first(self, batches: Lane) -> Batch:
        batch = batches.first
        if not self._exclusive:
            self._ready_events -= len(batch)
            self._ready_bytes -= batch.size - 1
            self._ready_batches -= 1
            self._urgent_batches -= batch.generation != self.generation
        batches.remove(batch)
        self._forget(batch)
        return batch

    def _make_ready(self, lane: Hashable, batches: Lane) -> None:
        self._ready[lane] = batches
        self._oldest_ready = min(self._oldest_ready, batches.first.opened_at)

    def _count_ready(self, batches: Lane, sign: Literal[1, -1]) -> None:
        self._ready_events += sign * batches.events
        self._ready_bytes += sign * batches.bytes
        self._ready_batches += sign * len(batches)
        self._urgent_batches += sign * batches.urgent(self.generation)
