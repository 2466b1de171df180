"""The event buffer: each event that was appended leaves once, in order, and all limits hold."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from retailrocket_async._errors import ConfigurationError
from retailrocket_async._events.codec import join
from retailrocket_async._queue.batch import Batch
from retailrocket_async._queue.buffer import EventBuffer
from retailrocket_async._queue.options import Batching, Buffer
from retailrocket_async._receipt import Receipt
from tests.support.effort import most
from tests.support.engine_state import busy_lanes, lanes_of, ready_lanes

if TYPE_CHECKING:
    from collections.abc import Hashable

LINGER = 0.125
"""The linger in seconds: a power of two, so that sums of floats are exact."""


class Clock:
    """A clock that tests set by hand."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.time


def envelope(number: int, size: int) -> bytes:
    """Return JSON of exactly `size` bytes that holds `number`."""
    return json.dumps(f"{number:<{size - 2}}").encode()


def make(clock: Clock | None = None, *, buffer: Buffer | None = None, **batching: Any) -> EventBuffer:
    """Return an empty buffer that is unordered unless asked otherwise."""
    return EventBuffer(Batching(linger=LINGER, **{"ordered": False, **batching}), buffer or Buffer(), clock or Clock())


def put(buffer: EventBuffer, number: int, visitor: str = "a", size: int = 20) -> bool:
    """Append one event of `size` bytes; return whether a batch may be due sooner."""
    return buffer.append(envelope(number, size), Receipt("view"), buffer.lane_of(visitor))


def numbers(batch: Batch | None) -> list[int]:
    """Return the numbers of a batch's events."""
    assert batch is not None
    return [int(json.loads(body)) for body in batch.envelopes]


@attrs.frozen
class Waiting:
    """Records one event as the model of the buffer has it."""

    number: int
    visitor: str
    lane: Hashable
    size: int
    came_at: float
    receipt: Receipt = attrs.field(eq=False)
    generation: int = 0


class BufferMachine(RuleBasedStateMachine):
    """Compares a buffer with a plain list of its events after random operations."""

    out = Bundle("out")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.model: list[Waiting] = []
        self.busy: dict[Hashable, int] = {}
        self.given: dict[str, int] = defaultdict(lambda: -1)
        self.flying: dict[str, int] = defaultdict(int)
        self.count = 0
        self.generation = 0

    @initialize(
        max_events=st.integers(1, 6),
        max_bytes=st.sampled_from([1024, 1500, 100_000]),
        ordered=st.booleans(),
        by_session=st.booleans(),
        bounds=st.builds(Buffer, max_events=st.integers(1, 30), max_bytes=st.integers(1024, 6000)),
    )
    def begin(self, max_events: int, max_bytes: int, ordered: bool, by_session: bool, bounds: Buffer) -> None:  # noqa: FBT001
        """Create the buffer with these policies."""
        self.batching = Batching(
            max_events=max_events, max_bytes=max_bytes, linger=LINGER, ordered=ordered, by_session=by_session
        )
        self.exclusive = ordered or by_session
        self.bounds = bounds
        self.buffer = EventBuffer(self.batching, bounds, self.clock)

    @rule(visitor=st.sampled_from("abcdefgh"), size=st.integers(5, 1022))
    def append(self, visitor: str, size: int) -> None:
        """Append an event if the bounds allow it; if `append` returns False, `due_in` must not change."""
        total = sum(waiting.size for waiting in self.model)
        fits = len(self.model) < self.bounds.max_events and total + size + 1 <= self.bounds.max_bytes

        assert self.buffer.fits(size + 1) == fits

        if not fits:
            return
        self.count += 1
        lane = self.buffer.lane_of(visitor)
        receipt = Receipt("view")
        before = self.buffer.due_in()
        # This is what the intake does: it calls `append` only if `grow` does not take the event.
        text = envelope(self.count, size)
        may_be_sooner = not self.buffer.grow(text, receipt) and self.buffer.append(text, receipt, lane)
        self.model.append(Waiting(self.count, visitor, lane, size + 1, self.clock(), receipt, self.generation))

        assert may_be_sooner or self.buffer.due_in() == before

    @rule(eighths=st.integers(0, 2))
    def advance(self, eighths: int) -> None:
        """Let up to an eighth of a second pass."""
        self.clock.time += eighths * LINGER / 2

    @rule()
    def flush(self) -> None:
        """Begin a flush, which makes all present events due."""
        assert self.buffer.begin_flush() == self.generation

        self.generation += 1

    @rule(target=out)
    def take(self) -> Batch | None:
        """Take a batch, and compare it with the events that the model expects."""
        ready = self.ready()
        batch = self.buffer.take()
        if not ready:
            assert batch is None

            return None
        assert batch is not None
        by_number = {waiting.number: waiting for waiting in self.model}
        taken = [by_number.pop(number) for number in numbers(batch)]

        assert 1 <= len(batch) == len(taken) <= self.batching.max_events
        assert len(join(batch.envelopes)) == batch.size <= self.batching.max_bytes
        assert [waiting.receipt for waiting in taken] == batch.receipts
        assert min(waiting.generation for waiting in taken) == min(batch.opened_in)
        assert len(batch.opened_in) == len(set(batch.lanes))
        assert batch.opened_at == min(waiting.came_at for waiting in taken)
        assert {waiting.lane for waiting in taken} == set(batch.lanes)
        assert all(waiting in ready for waiting in taken)
        if not self.exclusive:
            assert taken == ready[: len(taken)]
        if self.batching.by_session:
            assert len({waiting.visitor for waiting in taken}) == 1
        for waiting in taken:
            assert waiting.number > self.given[waiting.visitor]
            assert not any(
                other.visitor == waiting.visitor and other.number < waiting.number for other in by_number.values()
            )

            self.given[waiting.visitor] = waiting.number
        self.model = list(by_number.values())
        if self.exclusive:
            assert not set(batch.lanes) & self.busy.keys()

            self.busy.update(dict.fromkeys(batch.lanes, 1))
        return batch

    @rule(batch=consumes(out))
    def release(self, batch: Batch | None) -> None:
        """Release a batch, after which its lanes (queues of visitors) may give events again."""
        if batch is None:
            return
        before = len(self.ready())
        if self.exclusive:
            for lane in batch.lanes:
                self.busy.pop(lane, None)

        assert self.buffer.release(batch) == (len(self.ready()) > before)

    @precondition(lambda self: self.count % 7 == 6)
    @rule()
    def drain(self) -> None:
        """Drain the buffer, and check that all events leave, the oldest batch first."""
        drained = list(self.buffer.drain())
        gone = {number: batch for batch in drained for number in numbers(batch)}

        assert sorted(gone) == sorted(waiting.number for waiting in self.model)
        assert [batch.opened_at for batch in drained] == sorted(batch.opened_at for batch in drained)

        for waiting in self.model:
            self.given[waiting.visitor] = max(self.given[waiting.visitor], waiting.number)
        self.model = []

    @invariant()
    def counts_equal_the_contents(self) -> None:
        """At any time, the counters are those of the waiting events."""
        if not hasattr(self, "buffer"):
            return
        assert self.buffer.events == len(self.model)
        assert self.buffer.batches == sum(map(len, lanes_of(self.buffer).values()))
        assert self.buffer.bytes == sum(waiting.size for waiting in self.model)
        oldest = min((waiting.came_at for waiting in self.model), default=self.clock())
        assert self.buffer.oldest_age() == self.clock() - oldest

    @invariant()
    def due_in_is_what_it_should_be(self) -> None:
        """At any time, `due_in` is 0 if a batch is full or flushed, otherwise the oldest event's remaining linger."""
        if not hasattr(self, "buffer"):
            return
        ready = self.ready()
        if not ready:
            expected = None
        elif (
            len(ready) >= self.batching.max_events
            or sum(waiting.size for waiting in ready) >= self.batching.max_bytes
            or any(waiting.generation < self.generation for waiting in ready)
        ):
            expected = 0.0
        else:
            expected = max(0.0, min(waiting.came_at for waiting in ready) + LINGER - self.clock())
        assert self.buffer.due_in() == expected

    @invariant()
    def lanes_do_not_pile_up(self) -> None:
        """At any time, every lane holds events or is busy, except the only lane of an unordered buffer."""
        if not hasattr(self, "buffer"):
            return
        needed = {waiting.lane for waiting in self.model} | self.busy.keys() | (set() if self.exclusive else {None})
        assert lanes_of(self.buffer).keys() <= needed

    def ready(self) -> list[Waiting]:
        """Return the waiting events of lanes that are not busy, in order."""
        return [waiting for waiting in self.model if waiting.lane not in self.busy]


BufferMachine.TestCase.settings = settings(max_examples=most(150), stateful_step_count=most(40), deadline=None)
TestBufferMachine = BufferMachine.TestCase


# --- examples ---


def test_full_batch_is_due() -> None:
    """If an event fills a batch, the batch is due, and `append` returns True."""
    buffer = make(max_events=3)
    reported = [put(buffer, number) for number in range(3)]

    assert reported == [True, False, True]
    assert buffer.due_in() == 0.0


def test_full_bytes_are_due() -> None:
    """If an event's bytes reach the limit, a batch is due, and `append` returns True."""
    buffer = make(max_bytes=1024)
    reported = [put(buffer, number, size=510) for number in range(3)]

    assert reported == [True, False, True]
    assert buffer.due_in() == 0.0
    assert numbers(buffer.take()) == [0, 1]


@pytest.mark.parametrize(("last", "due"), [(510, False), (511, True), (512, True), (1022, True)])
@pytest.mark.parametrize("how", ["append", "extend", "grow"])
def test_bytes_at_the_cap_are_due(how: str, last: int, due: bool) -> None:  # noqa: FBT001
    """If the bytes of events and commas reach the limit exactly, a batch is due, and the caller learns it."""
    buffer = make(max_bytes=1024)
    put(buffer, 0, size=511)
    if how == "append":
        reported = put(buffer, 1, size=last)
    elif how == "extend":
        reported = buffer.extend([envelope(1, last)], [Receipt("view")], None)
    else:
        # `grow` does not take the event that makes a batch due; `append` takes it and returns True.
        reported = not buffer.grow(envelope(1, last), Receipt("view")) and put(buffer, 1, size=last)

    assert (due, 0.0 if due else LINGER) == (reported, buffer.due_in())


@pytest.mark.parametrize("how", ["append", "extend", "grow"])
def test_events_at_the_cap_are_due(how: str) -> None:
    """If an event fills a batch, only this event's caller learns that it is due, by whatever method it was added."""
    buffer = make(max_events=4)
    reported = [put(buffer, 0)]
    for number in range(1, 6):
        if how == "extend":
            reported.append(buffer.extend([envelope(number, 20)], [Receipt("view")], None))
        else:
            grown = how == "grow" and buffer.grow(envelope(number, 20), Receipt("view"))
            reported.append(not grown and put(buffer, number))
        assert (0.0 if number >= 3 else LINGER) == buffer.due_in()

    assert [True, False, False, True, False, False] == reported


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_a_group_that_crosses_the_cap_is_due(count: int) -> None:
    """If events added together reach the limit in number or bytes, a batch is due, and the caller learns it."""
    for buffer in (make(max_events=5), make(max_bytes=1024)):
        for number in range(2):
            put(buffer, number, size=203)
        reported = buffer.extend([envelope(number, 203) for number in range(count)], [Receipt("view")] * count, None)
        # An event has 204 bytes with its comma, so five events have 1,020 bytes and six exceed the limit of 1,024.
        due = 2 + count >= (5 if buffer.cap.bytes > 1024 else 6)

        assert (due, 0.0 if due else LINGER) == (reported, buffer.due_in())


@pytest.mark.parametrize(("more", "together"), [(0, True), (1, False)])
@pytest.mark.parametrize("of", ["lanes", "one lane"])
def test_batches_come_together_up_to_the_very_cap(of: str, more: int, together: bool) -> None:  # noqa: FBT001
    """If two batches have exactly the largest size together, they are merged; with one byte more they are not."""
    clock = Clock()
    buffer = make(clock, max_bytes=1024, ordered=of == "lanes")
    first, second = lanes_apart(buffer) if of == "lanes" else ("a", "a")
    # While `short_batches` is set, a lane's open batch is closed by its age.
    buffer.short_batches = True
    put(buffer, 0, first, size=500)
    clock.time = 10.0
    put(buffer, 1, second, size=521 + more)
    buffer.short_batches = False
    batches = list(iter(buffer.take, None))

    assert ([[0, 1]] if together else [[0], [1]]) == [numbers(batch) for batch in batches]
    assert not together or 1024 == len(join(batches[0].envelopes)) == batches[0].size


@pytest.mark.parametrize(("more", "together"), [(0, True), (1, False)])
def test_lanes_come_together_up_to_the_very_number(more: int, together: bool) -> None:  # noqa: FBT001
    """If two lanes' batches have exactly `max_events` together, they are merged; with one more they are not."""
    buffer = make(max_events=5, ordered=True)
    first, second = lanes_apart(buffer)
    for number in range(2):
        put(buffer, number, first)
    for number in range(2, 5 + more):
        put(buffer, number, second)
    batches = [numbers(batch) for batch in iter(buffer.take, None)]

    assert ([[0, 1, 2, 3, 4]] if together else [[0, 1], [2, 3, 4, 5]]) == batches


def test_oldest_lingers() -> None:
    """If events follow, an event is still due when its own linger is over."""
    clock = Clock()
    buffer = make(clock)
    put(buffer, 1)
    clock.time = LINGER / 2
    put(buffer, 2)

    assert buffer.due_in() == LINGER / 2
    clock.time = LINGER * 3
    assert buffer.due_in() == 0.0


def test_empty_buffer_is_never_due() -> None:
    """If the buffer is empty, nothing is due, even for a flush."""
    buffer = make()
    buffer.begin_flush()

    assert buffer.due_in() is None
    assert buffer.take() is None


def test_batch_that_a_flush_waits_for_takes_company() -> None:
    """If a flush begins, earlier events are due now, and later events join their batch until it leaves."""
    buffer = make(max_events=2)
    put(buffer, 1)
    buffer.begin_flush()
    put(buffer, 2)
    put(buffer, 3)

    assert buffer.due_in() == 0.0
    assert numbers(buffer.take()) == [1, 2]
    assert buffer.due_in() == LINGER


def test_largest_possible_event_fills_a_batch() -> None:
    """If an event has two bytes less than the largest size, its body has exactly the largest size."""
    buffer = make(max_bytes=1024)
    put(buffer, 1, size=1022)
    put(buffer, 2)
    batch = buffer.take()

    assert batch is not None
    assert len(join(batch.envelopes)) == 1024 == batch.size


def test_busy_lane_makes_nothing_due() -> None:
    """If a visitor's batch is in flight, the visitor's next batch is not due, even if it is full, old or flushed."""
    clock = Clock()
    buffer = make(clock, max_events=2, by_session=True)
    put(buffer, 0)
    batch = buffer.take()
    assert batch is not None
    reported = [put(buffer, number) for number in range(1, 4)]
    buffer.begin_flush()
    clock.time = 10 * LINGER

    assert reported == [False, False, False]
    assert buffer.due_in() is None
    assert buffer.take() is None
    assert buffer.release(batch)
    assert buffer.due_in() == 0.0
    assert numbers(buffer.take()) == [1, 2]


@pytest.mark.parametrize("mode", ["ordered", "by_session"])
def test_flushed_events_of_a_busy_lane_hurry_nobody(mode: str) -> None:
    """If flushed events wait for their busy lane, events of other lanes still linger."""
    buffer = make(**{mode: True})
    visitors = iter("abcdefghijklmnopqrstuvwxyz")
    first = next(visitors)
    other = next(visitor for visitor in visitors if buffer.lane_of(visitor) != buffer.lane_of(first))
    put(buffer, 1, first)
    buffer.take()
    put(buffer, 2, first)
    buffer.begin_flush()
    put(buffer, 3, other)

    assert buffer.due_in() == LINGER


def test_released_lane_has_lingered_meanwhile() -> None:
    """If an event became old in a busy lane, it is due at the release, even if a younger one was ready before."""
    clock = Clock()
    buffer = make(clock, by_session=True)
    put(buffer, 1, "a")
    batch = buffer.take()
    assert batch is not None
    put(buffer, 2, "a")
    clock.time = LINGER
    put(buffer, 3, "b")
    buffer.release(batch)

    assert buffer.due_in() == 0.0


def test_lanes_merge_within_the_caps() -> None:
    """If many visitors have events, one request carries events of several visitors, within the limits."""
    buffer = make(max_events=10, ordered=True)
    for number in range(100):
        put(buffer, number, f"visitor{number}")
    batches = []
    while (batch := buffer.take()) is not None:
        batches.append(batch)

    assert sum(map(len, batches)) + buffer.events == 100
    assert max(map(len, batches)) <= 10
    assert len(batches) <= 20


def test_lanes_merge_within_the_bytes() -> None:
    """If a lane's events would make the body too large, they wait for the next batch."""
    buffer = make(max_bytes=1024, ordered=True)
    visitors = [f"visitor{number}" for number in range(40)]
    lanes = {buffer.lane_of(visitor): visitor for visitor in visitors}
    for number, visitor in enumerate(list(lanes.values())[:4]):
        put(buffer, number, visitor, size=400)
    batches = [buffer.take(), buffer.take()]

    assert [numbers(batch) for batch in batches] == [[0, 1], [2, 3]]
    assert [len(join(batch.envelopes)) for batch in batches if batch is not None] == [803, 803]


@pytest.mark.parametrize("by", ["events", "bytes"])
def test_what_other_lanes_give_together_is_within_the_caps(by: str) -> None:
    """If several batches of one lane are merged into a batch of another lane, the result is within the limits."""
    caps: dict[str, Any] = {"max_events": 3} if by == "events" else {"max_bytes": 1024}
    clock = Clock()
    buffer = make(clock, buffer=Buffer(max_age=1.0), ordered=True, **caps)
    size = 20 if by == "events" else 339
    first, second = lanes_apart(buffer)
    put(buffer, 0, first, size)
    put(buffer, 1, second, size)
    put(buffer, 2, second, size)
    clock.time = 0.75
    for number, visitor in enumerate([first, second, second, first], 3):
        put(buffer, number, visitor, size)
    # Each of the four batches now has one event left, so three of them fit together.
    expired = [number for batch in buffer.expire(0.0) for number in numbers(batch)]
    assert expired == [0, 1, 2]
    batches = [numbers(batch) for batch in iter(buffer.take, None)]
    assert all(len(batch) <= 3 for batch in batches)
    assert sum(map(len, batches)) + buffer.events == 4


def lanes_apart(buffer: EventBuffer) -> tuple[str, str]:
    """Return two visitors that do not share a lane."""
    first, *others = map(str, range(64))
    return first, next(other for other in others if buffer.lane_of(other) != buffer.lane_of(first))


def test_million_visitors_leave_no_lanes() -> None:
    """If all events of visitors have left, no lane stays in memory."""
    buffer = make(by_session=True)
    for number in range(2000):
        put(buffer, number, f"visitor{number}")
        batch = buffer.take()
        assert batch is not None
        buffer.release(batch)

    assert (len(lanes_of(buffer)), len(busy_lanes(buffer)), len(ready_lanes(buffer))) == (0, 0, 0)


def test_drained_batch_by_batch() -> None:
    """If the buffer is drained, its counters are those of the events still in it."""
    buffer = make(max_events=2)
    for number in range(5):
        put(buffer, number)
    left = [(len(batch), buffer.events, buffer.bytes) for batch in buffer.drain()]

    assert left == [(2, 3, 63), (2, 1, 21), (1, 0, 0)]


def test_release_after_drain() -> None:
    """If a batch is released after the buffer was drained, nothing becomes ready."""
    buffer = make(by_session=True)
    put(buffer, 1)
    batch = buffer.take()
    assert batch is not None
    put(buffer, 2)
    assert [numbers(left) for left in buffer.drain()] == [[2]]

    assert not buffer.release(batch)
    assert lanes_of(buffer) == {}


def test_batch_pairs_envelopes_and_receipts() -> None:
    """If a batch is iterated over, it yields each event's JSON with its receipt."""
    batch = Batch(0.0, 0, None)
    receipt = Receipt("view")
    batch.envelopes.append(b"{}")
    batch.receipts.append(receipt)

    assert list(batch) == [(b"{}", receipt)]


@pytest.mark.parametrize(
    ("policy", "name", "value"),
    [
        (Batching, "max_events", 0),
        (Batching, "max_events", True),
        (Batching, "max_events", 5.0),
        (Batching, "max_bytes", 1023),
        (Batching, "linger", -0.1),
        (Batching, "linger", math.nan),
        (Batching, "linger", math.inf),
        (Batching, "linger", "1"),
        (Batching, "max_in_flight", 0),
        (Batching, "max_in_flight", 101),
        (Batching, "by_session", 1),
        (Batching, "ordered", None),
        (Buffer, "max_events", 0),
        (Buffer, "max_bytes", 1023),
    ],
)
def test_impossible_policy(policy: type, name: str, value: object) -> None:
    """If a setting is outside its range, the error at construction has the name of the setting."""
    with pytest.raises(ConfigurationError, match=f"{policy.__name__}.{name} must"):
        policy(**{name: value})


def test_events_that_come_while_others_expire_are_counted() -> None:
    """If code that gets an expired event tracks another one in the same step, the counters are still right."""
    buffer = make(max_events=50)
    for number in range(12):
        put(buffer, number)
    gone = []
    for count, batch in zip(range(3), buffer.expire(0.0, 3), strict=False):
        gone += numbers(batch)
        put(buffer, 100 + count)
        assert buffer.grow(envelope(200 + count, 20), Receipt("view"))
    assert gone == [*range(9)]
    assert (buffer.events, buffer.bytes) == (9, 9 * 21)
    assert [numbers(batch) for batch in buffer.drain()] == [[9, 10, 11, 100, 200, 101, 201, 102, 202]]
    assert (buffer.events, buffer.bytes, buffer.batches) == (0, 0, 0)


@pytest.mark.parametrize("batching", [{"ordered": True}, {"by_session": True}, {}])
def test_while_fine_is_wanted_no_batch_is_of_several_ages(batching: dict[str, Any]) -> None:
    """If `short_batches` is set, as in a halt, old and young events of different visitors are not batched together."""
    clock = Clock()
    buffer = make(clock, **batching)
    buffer.short_batches = True
    for number in range(8):
        # The events use lanes 0 to 7, so no two visitors share a lane.
        buffer.append(envelope(number, 20), Receipt("view"), None if batching == {} else number)
        clock.time += 0.2
    taken = []
    while (batch := buffer.take()) is not None:
        taken.append(numbers(batch))

    assert [number for batch in taken for number in batch] == list(range(8))
    assert max(map(len, taken)) <= 2
