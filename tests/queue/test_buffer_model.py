"""Compares the buffer with a simple model: the same random calls must have the same results in both."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from retailrocket_async._outcome import Delivered
from retailrocket_async._queue.buffer import EventBuffer
from retailrocket_async._queue.eviction import DEFAULT_RANKING
from retailrocket_async._queue.options import Batching, Buffer
from tests.support.effort import most

if TYPE_CHECKING:
    from retailrocket_async._outcome import Outcome
    from retailrocket_async._queue.batch import Batch
    from retailrocket_async._queue.taken_batch import TakenBatch
    from retailrocket_async._receipt import Receipt

LINGER = 0.125
NAMES = ["order", "addToBasket", "view", "impressionContentViewed", "somethingNew"]
VISITORS = ["", "a", "b", "c", "d", "e"]


@attrs.frozen(eq=False)
class Event:
    """An event in the model."""

    number: int
    visitor: str
    name: str
    size: int
    came_at: float
    alone: bool
    receipt: Receipt


@attrs.define(eq=False)
class Flying:
    """A batch in flight, its events without an outcome, and the number of its events with an outcome."""

    batch: TakenBatch
    events: list[Event]
    settled: int = 0


class Model(RuleBasedStateMachine):
    """Makes random calls of a buffer, and compares the results with a list of all waiting events."""

    def __init__(self) -> None:
        super().__init__()
        self.time = self.came_last = 0.0
        self.count = self.generation = 0
        self.waiting: dict[int, Event] = {}
        self.tracked: list[Event] = []
        self.outcomes: dict[int, Outcome] = {}
        self.flying: list[Flying] = []
        self.opened: Counter[int] = Counter()
        self.closed: Counter[int] = Counter()

    @initialize(
        batching=st.builds(
            Batching,
            max_events=st.sampled_from([1, 2, 3, 5, 10, 30]),
            max_bytes=st.sampled_from([1024, 100_000]),
            linger=st.just(LINGER),
            realtime=st.booleans(),
        ),
        bounds=st.builds(
            Buffer,
            max_events=st.sampled_from([1, 12, 60]),
            max_bytes=st.sampled_from([2000, 100_000]),
            max_visitor_events=st.sampled_from([1, 4, 1000]),
            overflow=st.sampled_from(["wait", "drop_oldest", "shed", "shed"]),
            max_age=st.sampled_from([None, 1.0]),
        ),
    )
    def begin(self, batching: Batching, bounds: Buffer) -> None:
        """Create the buffer with random settings."""
        self.batching, self.bounds = batching, bounds
        self.buffer = EventBuffer(batching, bounds, lambda: self.time)

    # --- the model ----------------------------------------------------------------------------------------------------

    def busy(self) -> set[str]:
        """Return the visitors who have events in flight."""
        return {event.visitor for flying in self.flying for event in flying.events if event.visitor}

    def rank(self, name: str) -> int:
        """Return the rank of an event."""
        return DEFAULT_RANKING.get(name, 1) if self.bounds.overflow == "shed" else 1

    def left(self, batch: Batch) -> list[Event]:
        """Remove the events of a batch from the model, and return these events in the order of the batch."""
        for generation in batch.opened_in:
            self.closed[generation] += 1
        events = [self.waiting.pop(int(json.loads(envelope))) for envelope in batch.envelopes]
        assert batch.names == [event.name for event in events]
        return events

    def ended(self, batch: Batch) -> list[Event]:
        """Remove the events of a batch from the model and settle them; return them in the order of the batch."""
        events = self.left(batch)
        self.settle(batch, events)
        return events

    def settle(self, batch: Batch, events: list[Event]) -> None:
        """Settle the events of a batch with an outcome that differs from all other outcomes."""
        outcome = Delivered(status=200, attempts=len(self.outcomes) + 1)
        batch.settle(outcome)
        self.outcomes |= {event.number: outcome for event in events}

    # --- the calls ----------------------------------------------------------------------------------------------------

    @rule(eighths=st.integers(1, 3))
    def advance(self, eighths: int) -> None:
        """Advance the clock."""
        self.time += eighths * LINGER / 2

    @rule(
        visitor=st.sampled_from(VISITORS),
        name=st.sampled_from(NAMES),
        size=st.sampled_from([20, 100, 500, 1000]),
        waited=st.sampled_from([None, None, 0.5]),
        times=st.sampled_from([1, 1, 8]),
        alone=st.sampled_from([False, False, False, True]),
    )
    def append(  # noqa: PLR0917 - Hypothesis passes each drawn value as an argument
        self,
        visitor: str,
        name: str,
        size: int,
        waited: float | None,
        times: int,
        alone: bool,  # noqa: FBT001
    ) -> None:
        """Append events; if the buffer is full, evict waiting events if the settings allow this."""
        for _ in range(times):
            self.append_one(visitor, name, size, waited, alone=alone)

    def append_one(self, visitor: str, name: str, size: int, waited: float | None, *, alone: bool) -> None:
        """Append one event."""
        envelope = json.dumps(f"{self.count:<{size - 3}}").encode()
        key = self.buffer.key_of(visitor)
        self.evict(key, visitor, len(envelope) + 1, name)
        if not self.buffer.fits(len(envelope) + 1) or not self.buffer.admits(key):
            assert self.buffer.offer(envelope, name, key, alone=alone) is None
            return
        came_at = self.time if waited is None else max(self.came_last, self.time - waited)
        before = self.buffer.due_in()
        if waited is None:
            receipt = self.buffer.offer(envelope, name, key, alone=alone)
        else:
            receipt = self.buffer.append(envelope, name, key, came_at=came_at, alone=alone)
        assert receipt is not None
        assert self.buffer.sooner or self.buffer.due_in() == before
        event = Event(self.count, visitor, name, len(envelope) + 1, came_at, alone, receipt)
        self.waiting[self.count] = event
        self.tracked.append(event)
        self.count += 1
        self.came_last = came_at

    def evict(self, key: int | None, visitor: str, size: int, name: str) -> None:
        """Evict events; only events of the same or a lower rank are evicted, the lowest rank and the oldest first."""
        for batch in [*self.buffer.make_room_of(key, name)]:
            [event] = self.ended(batch)
            assert event.visitor == visitor
            assert self.rank(event.name) <= self.rank(name)
        for batch in [*self.buffer.make_room(size, name)]:
            candidates = list(self.waiting.values())
            [event] = self.ended(batch)
            assert event == min(candidates, key=lambda each: (self.rank(each.name), each.number))
            assert self.rank(event.name) <= self.rank(name)

    @rule()
    def take(self) -> None:
        """Take a batch: in order, within its bounds, and only of visitors without events in flight."""
        due_in, busy = self.buffer.due_in(), self.busy()
        free = [event for event in self.waiting.values() if event.visitor not in busy]
        batch = self.buffer.take()
        if batch is None:
            assert due_in is None
            assert not free
            return
        assert due_in is not None
        first: dict[str, list[int]] = {}
        for event in self.waiting.values():
            first.setdefault(event.visitor, []).append(event.number)
        events = self.left(batch)
        assert events
        assert not {event.visitor for event in events} & busy
        single = self.batching.realtime and len(events) == 1
        assert batch.alone == (single or any(event.alone for event in events))
        assert not batch.alone or len(events) == 1
        assert not (self.buffer.singles and due_in)
        if self.buffer.singles:
            first_run = events[: len(batch.runs[0])]
            assert {event.visitor for event in events} == {event.visitor for event in first_run}
        for visitor in {event.visitor for event in events}:
            taken = [event.number for event in events if event.visitor == visitor]
            assert not visitor or taken == first[visitor][: len(taken)]
        assert len(events) <= self.batching.max_events
        assert batch.size == 1 + sum(event.size for event in events) <= self.batching.max_bytes
        self.flying.append(Flying(batch, events))

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Settle a batch, or only the first events of a batch."""
        flying = data.draw(st.sampled_from(self.flying))
        rest = data.draw(st.sampled_from([0, 0, 1, 3]))
        whole = flying.batch
        count = max(0, len(flying.events) - rest)
        part = whole if count == len(whole) else whole.part(flying.settled, flying.settled + count)
        self.settle(part, flying.events[:count])
        flying.events = flying.events[count:]
        flying.settled += count
        if not flying.events:
            self.flying.remove(flying)
            self.buffer.release(flying.batch)
        else:
            held = {self.buffer.key_of(event.visitor) for event in flying.events}
            self.buffer.release(flying.batch, held=held)

    @rule()
    def flush(self) -> None:
        """Begin a flush: if any event can be taken, a batch is due now."""
        assert self.buffer.begin_flush() == self.generation
        self.generation += 1
        busy = self.busy()
        if any(event.visitor not in busy for event in self.waiting.values()):
            assert self.buffer.due_in() == 0.0

    @rule(size=st.sampled_from([1, 5, 1000]))
    def drain(self, size: int) -> None:
        """Remove all waiting events."""
        for batch in self.buffer.drain(size):
            assert batch
            self.ended(batch)
        self.generation += 1
        assert not self.waiting

    @rule(age=st.sampled_from([0.0, 0.25, 1.0]), size=st.sampled_from([1, 1000]))
    def expire(self, age: float, size: int) -> None:
        """Remove the events that are too old."""
        moment = self.time - age
        for batch in self.buffer.expire(moment, size):
            events = self.ended(batch)
            assert len(events) <= size
            assert min(event.came_at for event in events) <= moment
        if self.bounds.max_age is not None:
            assert all(event.came_at > moment for event in self.waiting.values())

    @rule(value=st.booleans())
    def be_short(self, value: bool) -> None:  # noqa: FBT001
        """Switch `short_batches` on or off, which keeps old and new events in separate batches."""
        self.buffer.short_batches = value

    @precondition(lambda self: self.batching.realtime)
    @rule(value=st.booleans())
    def be_single(self, value: bool) -> None:  # noqa: FBT001
        """Switch `singles` on or off, so that events are sent one by one or in batches."""
        self.buffer.singles = value

    # --- true after every call ----------------------------------------------------------------------------------------

    @invariant()
    def counts(self) -> None:
        """The counters match the waiting events."""
        if not hasattr(self, "buffer"):
            return
        assert self.buffer.events == len(self.waiting)
        assert self.buffer.bytes == sum(event.size for event in self.waiting.values())
        assert (self.buffer.batches > 0) == bool(self.waiting)

    @invariant()
    def receipts(self) -> None:
        """Each receipt has the name of its event, and the outcome that the event has in the model, or None."""
        for event in self.tracked:
            assert (event.name, self.outcomes.get(event.number)) == (event.receipt.event_name, event.receipt.outcome)

    @invariant()
    def due(self) -> None:
        """A batch can be taken if, and only if, an event waits whose visitor has no events in flight."""
        if not hasattr(self, "buffer"):
            return
        busy = self.busy()
        free = [event for event in self.waiting.values() if event.visitor not in busy]
        due_in = self.buffer.due_in()
        assert (due_in is not None) == bool(free)
        assert self.buffer._ready_events == len(free)
        assert self.buffer._ready_bytes == sum(event.size for event in free)
        if len(free) >= self.batching.max_events:
            assert due_in == 0.0

    def teardown(self) -> None:
        """When all events have left, the buffer keeps no data about visitors or runs."""
        if not hasattr(self, "buffer"):
            return
        while self.waiting or self.flying:
            for flying in self.flying:
                self.buffer.release(flying.batch)
            self.flying.clear()
            self.take()
        buffer = self.buffer
        assert not any((buffer._last, buffer._order, buffer._ready))
        assert (buffer._ready_events, buffer._ready_bytes, buffer._bytes_in_flight, buffer._urgent) == (0, 0, 0, 0)


Model.TestCase.settings = settings(max_examples=most(200), stateful_step_count=60)
TestModel = Model.TestCase
