"""The event buffer compared with a plain model: events are taken, drained, evicted and expired in random order."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from retailrocket_async._queue.buffer import EventBuffer
from retailrocket_async._queue.eviction import DEFAULT_RANKING
from retailrocket_async._queue.options import Batching, Buffer
from retailrocket_async._receipt import Receipt
from tests.support.effort import most
from tests.support.engine_state import lanes_of, ordered_batches, ranked, ready_counters, ready_lanes, uncounted_growth

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from retailrocket_async._queue.batch import Batch

LINGER = 0.125
NAMES = ["order", "addToBasket", "view", "impressionContentViewed", "somethingNew"]


@attrs.frozen
class Event:
    """Records one event as the model has it."""

    number: int
    name: str
    size: int
    came_at: float
    receipt: Receipt = attrs.field(eq=False)


@attrs.define(eq=False)
class Bundled:
    """Records one batch as the model has it."""

    lane: Hashable
    opened_at: float
    came_at: float
    generation: int
    events: list[Event] = attrs.field(factory=list)

    @property
    def size(self) -> int:
        """The bytes of the batch's body."""
        return 1 + sum(event.size for event in self.events)


class Model(RuleBasedStateMachine):
    """Compares a buffer with a list of batches after random operations."""

    out = Bundle("out")

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0
        self.came_last = 0.0
        self.count = self.generation = 0
        self.batches: list[Bundled] = []
        self.busy: set[Hashable] = set()
        self.opened: Counter[int] = Counter()
        self.closed: Counter[int] = Counter()
        self.gone: set[int] = set()

    @initialize(
        batching=st.builds(
            Batching,
            max_events=st.integers(1, 5),
            max_bytes=st.sampled_from([1024, 100_000]),
            linger=st.just(LINGER),
            ordered=st.booleans(),
            by_session=st.booleans(),
        ),
        bounds=st.builds(
            Buffer,
            max_events=st.integers(1, 12),
            max_bytes=st.sampled_from([2000, 100_000]),
            overflow=st.sampled_from(["wait", "drop_oldest", "shed", "shed"]),
            max_age=st.sampled_from([None, 1.0]),
        ),
    )
    def begin(self, batching: Batching, bounds: Buffer) -> None:
        """Create the buffer with these policies."""
        self.batching, self.bounds = batching, bounds
        self.exclusive = batching.ordered or batching.by_session
        self.buffer = EventBuffer(batching, bounds, lambda: self.time)

    # --- what happens to it ---

    @rule(eighths=st.integers(1, 3))
    def advance(self, eighths: int) -> None:
        """Let one to three sixteenths of a second pass."""
        self.time += eighths * LINGER / 2

    @rule(
        visitor=st.sampled_from("abcde"),
        name=st.sampled_from(NAMES),
        size=st.sampled_from([20, 100, 500, 1000]),
        waited=st.sampled_from([0.0, 0.0, 0.5]),
    )
    def append(self, visitor: str, name: str, size: int, waited: float) -> None:
        """Append an event, after others were evicted for it if the policy allows that."""
        envelope = json.dumps(f"{self.count:<{size - 3}}").encode()
        self.make_room(len(envelope) + 1, name)
        fits = self.fits(len(envelope) + 1)
        assert self.buffer.fits(len(envelope) + 1) == fits
        if not fits:
            return
        lane = self.buffer.lane_of(visitor)
        came_at = max(self.came_last, self.time - waited)
        receipt = Receipt(name)
        before = self.buffer.due_in()
        # This is what the intake does: it calls `append` only if `grow` does not take the event.
        sooner = (waited or not self.buffer.grow(envelope, receipt)) and self.buffer.append(
            envelope, receipt, lane, came_at=came_at if waited else None
        )
        came_at = came_at if waited else self.time
        event = Event(self.count, name, len(envelope) + 1, came_at, receipt)
        self.note(lane, event)
        assert sooner or self.buffer.due_in() == before

    def note(self, lane: Hashable, event: Event) -> None:
        """Add an event to the model."""
        last = next((batch for batch in reversed(self.batches) if batch.lane == lane), None)
        full = last is None or len(last.events) == self.batching.max_events
        if last is None or full or last.size + event.size > self.batching.max_bytes:
            last = Bundled(lane, self.time, event.came_at, self.generation)
            self.batches.append(last)
            self.opened[self.generation] += 1
        last.events.append(event)
        self.count += 1
        self.came_last = event.came_at

    @rule(visitor=st.sampled_from("abcde"), sizes=st.lists(st.sampled_from([20, 100, 500]), min_size=1, max_size=8))
    def extend(self, visitor: str, sizes: list[int]) -> None:
        """Add events of one visitor in one call, if all of them fit."""
        if self.bounds.overflow == "shed" or not self.buffer.holds(len(sizes), sum(sizes)):
            return
        envelopes = [json.dumps(f"{self.count + number:<{size - 3}}").encode() for number, size in enumerate(sizes)]
        receipts = [Receipt(NAMES[0]) for _ in sizes]
        lane = self.buffer.lane_of(visitor)
        before = self.buffer.due_in()
        sooner = self.buffer.extend(envelopes, receipts, lane)
        for envelope, receipt in zip(envelopes, receipts, strict=True):
            self.note(lane, Event(self.count, NAMES[0], len(envelope) + 1, self.time, receipt))
        assert sooner or self.buffer.due_in() == before

    def make_room(self, size: int, name: str) -> None:
        """Evict events for a new one, and compare them with those that the model evicts."""
        expected: list[int] = []
        if self.bounds.overflow in ("drop_oldest", "shed"):
            left = sorted(self.events, key=lambda event: (self.rank(event.name), event.number))
            while not self.fits_beside(left, size) and left and self.rank(left[0].name) <= self.rank(name):
                expected.append(left.pop(0).number)
            if not self.fits_beside(left, size):
                expected = []
        given_way = list(self.buffer.make_room(size, name))
        assert [number for batch in given_way for number in self.leave(batch)] == expected
        assert all(len(batch) == 1 for batch in given_way)

    @rule(age=st.sampled_from([0.0, LINGER, 1.0]))
    def expire(self, age: float) -> None:
        """Expire events that are too old: one by one if events have times, otherwise by their batch's oldest event."""
        moment = self.time - age
        timed = self.bounds.max_age is not None
        # Batches expire by the oldest event that is left in them, as earlier ones may have left.
        batches = sorted(self.batches, key=lambda batch: batch.events[0].came_at) if timed else self.batches
        expected = [
            event.number
            for batch in batches
            if batch.came_at <= moment
            for event in batch.events
            if not timed or event.came_at <= moment
        ]
        expired = [number for batch in self.buffer.expire(moment) for number in self.leave(batch)]
        assert expired == expected
        if timed:
            assert all(event.came_at > moment for event in self.events)

    @rule()
    def flush(self) -> None:
        """Begin a flush, which makes all present events due."""
        assert self.buffer.begin_flush() == self.generation
        self.generation += 1

    @rule(target=out)
    def take(self) -> Batch | None:
        """Take a batch: the first batches of ready lanes, and from each lane as many as fit together."""
        queues: dict[Hashable, list[Bundled]] = {}
        for bundled in self.ready:
            queues.setdefault(bundled.lane, []).append(bundled)
        batch = self.buffer.take()
        assert (batch is None) == (not queues)
        if batch is None:
            return None
        merging = self.batching.ordered and not self.batching.by_session
        assert len(batch.lanes) == 1 or merging
        taken: list[Bundled] = []
        for lane in batch.lanes:
            assert not taken or self.fit_together(taken, queues[lane][0])
            taken.append(queues[lane].pop(0))
            while queues[lane] and self.fit_together(taken, queues[lane][0]):
                taken.append(queues[lane].pop(0))
        left = [queue for lane, queue in queues.items() if lane not in batch.lanes]
        assert not merging or not any(self.fit_together(taken, queue[0]) for queue in left)
        assert batch.opened_at == min(bundled.opened_at for bundled in taken)
        assert batch.times == ([event.came_at for each in taken for event in each.events] if self.timed else [])
        numbers = [event.number for bundled in taken for event in bundled.events]
        assert self.leave(batch) == numbers
        assert len(batch) <= self.batching.max_events
        if self.exclusive:
            self.busy.update(batch.lanes)
        return batch

    @rule(batch=consumes(out))
    def release(self, batch: Batch | None) -> None:
        """Release a batch, after which its lanes (queues of visitors) may give events again."""
        if batch is None:
            return
        freed = self.busy.intersection(batch.lanes) if self.exclusive else set()
        self.busy -= freed
        assert self.buffer.release(batch) == any(bundled.lane in freed for bundled in self.batches)

    @rule(rarely=st.sampled_from([False] * 5 + [True]))
    def drain(self, rarely: bool) -> None:  # noqa: FBT001
        """Rarely drain the buffer, and check that all events leave, the oldest batch first."""
        if rarely:
            expected = [event.number for bundled in self.batches for event in bundled.events]
            assert [number for batch in self.buffer.drain() for number in self.leave(batch)] == expected

    def leave(self, batch: Batch) -> list[int]:
        """Remove from the model the events that have left the buffer; return their numbers."""
        numbers = [int(json.loads(envelope)) for envelope in batch.envelopes]
        by_number = {event.number: event for event in self.events}
        assert not self.gone.intersection(numbers)
        assert [by_number[number].receipt for number in numbers] == batch.receipts
        assert batch.size == 1 + sum(by_number[number].size for number in numbers)
        self.gone.update(numbers)
        for bundled in self.batches:
            bundled.events = [event for event in bundled.events if event.number not in self.gone]
        over = [bundled.generation for bundled in self.batches if not bundled.events]
        assert sorted(batch.opened_in) == sorted(over)
        self.closed.update(over)
        self.batches = [bundled for bundled in self.batches if bundled.events]
        return numbers

    # --- what should be ---

    @property
    def timed(self) -> bool:
        """Whether the buffer stores a time for each event."""
        return self.bounds.max_age is not None

    @property
    def events(self) -> list[Event]:
        """The waiting events, in order."""
        return [event for bundled in self.batches for event in bundled.events]

    @property
    def ready(self) -> list[Bundled]:
        """The batches whose lanes are not busy."""
        return [bundled for bundled in self.batches if bundled.lane not in self.busy]

    def fit_together(self, taken: list[Bundled], other: Bundled) -> bool:
        """Return whether a batch fits in one request with the batches that are already taken."""
        events = sum(len(each.events) for each in [*taken, other])
        size = 1 + sum(each.size - 1 for each in [*taken, other])
        return events <= self.batching.max_events and size <= self.batching.max_bytes

    def rank(self, name: str) -> int:
        """Return the event's rank: the lowest rank is evicted first."""
        return DEFAULT_RANKING.get(name, 1) if self.bounds.overflow == "shed" else 1

    def fits(self, size: int) -> bool:
        """Return whether an envelope of `size` bytes fits in the buffer now."""
        return self.fits_beside(self.events, size)

    def fits_beside(self, events: Iterable[Event], size: int) -> bool:
        """Return whether an envelope of `size` bytes would fit in the buffer with these events."""
        sizes = [event.size for event in events]
        return len(sizes) < self.bounds.max_events and sum(sizes) + size <= self.bounds.max_bytes

    @invariant()
    def counters_are_those_of_the_contents(self) -> None:
        """At any time, each counter agrees with the model, and nothing is stored of events that have left."""
        if not hasattr(self, "buffer"):
            return
        buffer, ready = self.buffer, self.ready
        assert (buffer.events, buffer.batches) == (len(self.events), len(self.batches))
        assert buffer.bytes == sum(event.size for event in self.events)
        # Events that `grow` has appended are counted later, and are always ready.
        grown, size = uncounted_growth(buffer)
        assert ready_counters(buffer) == {
            "events": sum(len(bundled.events) for bundled in ready) - grown,
            "bytes": sum(bundled.size - 1 for bundled in ready) - size,
            "batches": len(ready),
            "urgent": sum(bundled.generation < self.generation for bundled in ready),
        }
        assert ready_lanes(buffer) == {bundled.lane for bundled in ready}
        assert lanes_of(buffer).keys() <= {bundled.lane for bundled in self.batches} | self.busy | {None}
        assert ordered_batches(buffer) == len(self.batches)
        assert ranked(buffer) in {None, (len(self.events), buffer.bytes)}

    @invariant()
    def due_when_it_should_be(self) -> None:
        """At any time, a batch is due if enough is ready, if a flush waits, or if it was opened a linger ago."""
        if not hasattr(self, "buffer"):
            return
        ready = self.ready
        if not ready:
            assert self.buffer.due_in() is None
            return
        urgent = any(bundled.generation < self.generation for bundled in ready)
        full = sum(len(bundled.events) for bundled in ready) >= self.batching.max_events
        heavy = sum(bundled.size - 1 for bundled in ready) >= self.batching.max_bytes
        lingered = min(bundled.opened_at for bundled in ready) + LINGER - self.time
        assert self.buffer.due_in() == (0.0 if urgent or full or heavy else max(0.0, lingered))

    @invariant()
    def every_batch_is_counted_down_once(self) -> None:
        """At any time, each batch of a flush's generation has been counted as closed once, with its last event."""
        waiting = Counter(bundled.generation for bundled in self.batches)
        assert self.opened == self.closed + waiting


Model.TestCase.settings = settings(max_examples=most(200), stateful_step_count=most(50), deadline=None)
TestModel = Model.TestCase
