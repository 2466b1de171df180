"""The event buffer: each event that was appended leaves once, in order, and all bounds of the settings are kept."""

from __future__ import annotations

import functools
import json
import math
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async._errors import ConfigurationError
from retailrocket_async._events.codec import join
from retailrocket_async._fate import places_of
from retailrocket_async._outcome import Delivered, Dropped
from retailrocket_async._queue.buffer import EventBuffer
from retailrocket_async._queue.options import Batching, Buffer
from tests.support.engine_state import events_with_one_fate, visitors_of

if TYPE_CHECKING:
    from retailrocket_async._queue.batch import Batch
    from retailrocket_async._queue.eviction import Overflow
    from retailrocket_async._queue.taken_batch import TakenBatch
    from retailrocket_async._receipt import Receipt

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
    """Return a JSON text of exactly `size` bytes that contains `number`."""
    return json.dumps(f"{number:<{size - 2}}").encode()


def make(clock: Clock | None = None, *, buffer: Buffer | None = None, **batching: Any) -> EventBuffer:
    """Return an empty buffer."""
    return EventBuffer(Batching(linger=LINGER, **batching), buffer or Buffer(), clock or Clock())


def put(buffer: EventBuffer, number: int, visitor: str = "", size: int = 20, *, alone: bool = False) -> bool:
    """Append one event of `size` bytes; return whether a batch may be due sooner."""
    buffer.append(envelope(number, size), "view", buffer.key_of(visitor), alone=alone)
    return buffer.sooner


def numbers(batch: Batch | None) -> list[int]:
    """Return the numbers of a batch's events."""
    assert batch is not None
    return [int(json.loads(text)) for text in batch.envelopes]


def take(buffer: EventBuffer) -> TakenBatch:
    """Take a batch from the buffer; fail if there is no batch to take."""
    batch = buffer.take()
    assert batch is not None
    return batch


def batches_of(buffer: EventBuffer) -> list[list[int]]:
    """Take all batches, release each batch at once, and return the numbers of the events of each batch."""
    taken = []
    while (batch := buffer.take()) is not None:
        taken.append(numbers(batch))
        buffer.release(batch)
    return taken


# --- batches ---


def test_full_batch_is_due() -> None:
    """If an event fills a batch, the batch is due now, and `append` sets `sooner`."""
    buffer = make(max_events=3)
    reported = [put(buffer, number) for number in range(3)]

    assert reported == [True, False, True]
    assert buffer.due_in() == 0.0


def test_full_bytes_are_due() -> None:
    """If an event's bytes reach the limit of a batch, a batch is due now, and `append` sets `sooner`."""
    buffer = make(max_bytes=1024)
    reported = [put(buffer, number, size=510) for number in range(3)]

    assert reported == [True, False, True]
    assert buffer.due_in() == 0.0
    assert numbers(buffer.take()) == [0, 1]


def test_oldest_lingers() -> None:
    """If later events arrive, the first event is still due as soon as its own linger is over."""
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


def test_largest_possible_event_fills_a_batch() -> None:
    """If an event has two bytes less than the largest size, its body has exactly the largest size."""
    buffer = make(max_bytes=1024)
    put(buffer, 1, size=1022)
    put(buffer, 2)
    batch = buffer.take()

    assert batch is not None
    assert len(join(batch.envelopes)) == 1024 == batch.size


@pytest.mark.parametrize(("last", "due"), [(510, False), (511, True), (512, True), (1022, True)])
def test_bytes_at_the_cap_are_due(last: int, due: bool) -> None:  # noqa: FBT001
    """If the bytes of events and commas reach the limit exactly, a batch is due now, and `append` sets `sooner`."""
    buffer = make(max_bytes=1024)
    put(buffer, 0, size=511)
    reported = put(buffer, 1, size=last)

    assert (due, 0.0 if due else LINGER) == (reported, buffer.due_in())


def test_flush_makes_earlier_events_due_now() -> None:
    """If a flush begins, waiting events are due now; an event that is appended later is due after its linger."""
    buffer = make(max_events=2)
    put(buffer, 1)
    buffer.begin_flush()
    put(buffer, 2)
    put(buffer, 3)

    assert buffer.due_in() == 0.0
    assert numbers(buffer.take()) == [1, 2]
    assert buffer.due_in() == LINGER


@pytest.mark.parametrize("visitors", [1, 2, 50, 500])
@pytest.mark.parametrize("max_events", [1, 2, 7, 30, 499, 500])
def test_waiting_events_fill_batches(visitors: int, max_events: int) -> None:
    """If more events wait than two batches hold, the first batch is full, except for less than one run of events."""
    buffer = make(max_events=max_events)
    for number in range(3 * max_events):
        put(buffer, number, f"visitor{number % visitors}")
    batch = take(buffer)

    assert max_events - max(1, max_events // 10) < len(batch) <= max_events


def test_events_of_one_visitor_fill_a_batch() -> None:
    """If all waiting events are of one visitor, a batch has as many events as allowed, in their order."""
    buffer = make()
    for number in range(1200):
        put(buffer, number, "a")

    assert batches_of(buffer) == [[*range(500)], [*range(500, 1000)], [*range(1000, 1200)]]


# --- order ---


def test_visitor_in_flight_makes_nothing_due() -> None:
    """If a visitor's batch is in flight, its next events are not due, not even after a flush or a long time."""
    clock = Clock()
    buffer = make(clock, max_events=2)
    put(buffer, 0, "a")
    batch = take(buffer)
    reported = [put(buffer, number, "a") for number in range(1, 4)]
    buffer.begin_flush()
    clock.time = 10 * LINGER

    assert reported == [True, False, False]
    assert buffer.due_in() is None
    assert buffer.take() is None
    assert buffer.release(batch)
    assert buffer.due_in() == 0.0
    assert numbers(buffer.take()) == [1, 2]


def test_flushed_events_behind_a_batch_hurry_nobody() -> None:
    """If a flush waits for a visitor whose batch is in flight, events of other visitors are due after their linger."""
    buffer = make()
    put(buffer, 1, "a")
    buffer.take()
    put(buffer, 2, "a")
    buffer.begin_flush()
    put(buffer, 3, "b")

    assert buffer.due_in() == LINGER


def test_linger_counts_from_the_moment_an_event_is_ready() -> None:
    """If an event waits for its visitor's batch in flight, the event's linger begins when that batch is released."""
    clock = Clock()
    buffer = make(clock)
    put(buffer, 1, "a")
    batch = take(buffer)
    put(buffer, 2, "a")
    clock.time = 10 * LINGER
    buffer.release(batch)

    assert buffer.due_in() == LINGER


def test_first_ready_first_out() -> None:
    """If a visitor's event may leave later than another visitor's event, the other visitor's event is taken first."""
    buffer = make(max_events=1)
    put(buffer, 1, "a")
    batch = take(buffer)
    put(buffer, 2, "a")
    put(buffer, 3, "b")
    buffer.release(batch)

    assert batches_of(buffer) == [[3], [2]]


def test_batch_in_flight_holds_only_its_visitors() -> None:
    """If a batch of some visitors is in flight, the events of all other visitors can be taken."""
    buffer = make()
    for number in range(100):
        put(buffer, number, f"visitor{number}")
    buffer.take()
    for number in range(100, 300):
        put(buffer, number, f"visitor{number - 100}")

    assert numbers(buffer.take()) == [*range(200, 300)]
    assert buffer.take() is None


def test_some_visitors_of_a_batch_are_released_early() -> None:
    """If some visitors of a batch still have events without an outcome, other visitors' next events may leave."""
    buffer = make()
    for number, visitor in enumerate("abab"):
        put(buffer, number, visitor)
    batch = take(buffer)
    put(buffer, 4, "a")
    put(buffer, 5, "b")

    assert buffer.release(batch, held={buffer.key_of("b")})
    assert numbers(buffer.take()) == [4]
    assert buffer.take() is None
    assert buffer.release(batch)
    assert numbers(buffer.take()) == [5]


def test_visitors_are_forgotten() -> None:
    """If all events of visitors have left and are settled, the buffer keeps no data about these visitors."""
    buffer = make()
    for number in range(2000):
        put(buffer, number, f"visitor{number}")
        buffer.release(take(buffer))

    assert visitors_of(buffer) == 0


def test_event_that_no_batch_may_hold() -> None:
    """If an event must be sent alone, it is taken in a batch of its own, at its place in the visitor's order."""
    buffer = make()
    put(buffer, 0, "a")
    put(buffer, 1, "a", alone=True)
    put(buffer, 2, "a")
    put(buffer, 3, "b")

    first = take(buffer)
    assert ([0, 3], False) == (numbers(first), first.alone)
    assert buffer.take() is None
    buffer.release(first)
    second = take(buffer)
    assert ([1], True) == (numbers(second), second.alone)
    assert buffer.take() is None
    buffer.release(second)
    assert numbers(buffer.take()) == [2]


# --- bounds ---


def test_fates_are_bounded() -> None:
    """If the oldest event is evicted for each new event, no run gets more than 50 events, which share one `Fate`."""
    buffer = make(buffer=Buffer(max_events=3, overflow="drop_oldest"))
    longest = 0
    for number in range(500):
        for evicted in buffer.make_room(21, "view"):
            evicted.settle(Dropped(reason="overflow"))
        put(buffer, number)
        longest = max(longest, events_with_one_fate(buffer))

    assert longest <= 50


@pytest.mark.parametrize("most", [1, 3])
def test_receipts_stay_right_in_a_run_that_loses_events(most: int) -> None:
    """If events leave an open run early, or if the run's batch is divided, each receipt gets the right outcome."""
    clock = Clock()
    buffer = make(clock, buffer=Buffer(max_events=6, overflow="shed", max_age=100.0))
    receipts: list[Receipt | None] = []
    for number, name in enumerate(["order", "view", "order", "search", "order", "order"]):
        clock.time = float(number)
        receipts.append(buffer.offer(envelope(number, 20), name, None))
    for evicted in buffer.make_room(20, "view"):
        evicted.settle(Dropped(reason="overflow"))
    for expired in buffer.expire(2.0, most):
        expired.settle(Dropped(reason="expired"))
    receipts += [buffer.offer(envelope(number, 20), "setContact", None) for number in (6, 7)]
    batch = take(buffer)
    outcomes = [Delivered(status=200, attempts=number) for number in (1, 2, 3)]
    left, (one, rest) = batch.part(0, 2), batch.part(2, 5).parted([1])
    for part, outcome in zip((left, one, rest), outcomes, strict=True):
        part.settle(outcome)

    assert ([3, 4], [6], [5, 7]) == (numbers(left), numbers(one), numbers(rest))
    assert ["search", "order", "order", "setContact", "setContact"] == batch.names
    assert ["expired", "overflow", "expired", 1, 1, 3, 2, 3] == [
        getattr(receipt and receipt.outcome, "reason", None) or getattr(receipt and receipt.outcome, "attempts", None)
        for receipt in receipts
    ]


def test_event_after_a_part_of_a_run_was_rejected() -> None:
    """If a few events of an open run are rejected without `max_age`, a later event still has its own outcome."""
    buffer = make()
    key = buffer.key_of("a")
    receipts = [buffer.offer(envelope(number, 20), "view", key) for number in range(3)]
    next(buffer.expire(0.0, 1)).settle(Dropped(reason="expired"))
    receipts.append(buffer.offer(envelope(3, 20), "search", key))
    batch = take(buffer)
    batch.settle(Delivered(status=200))

    assert ([1, 2, 3], ["view", "view", "search"]) == (numbers(batch), batch.names)
    assert [Dropped(reason="expired"), *[Delivered(status=200)] * 3] == [each and each.outcome for each in receipts]


def test_drained_events_are_not_evicted_again() -> None:
    """If events are drained while their visitor's batch is in flight, only later events of the visitor are evicted."""
    buffer = make(max_events=10, buffer=Buffer(max_visitor_events=2, overflow="drop_oldest"))
    key = buffer.key_of("a")
    for number in range(2):
        put(buffer, number, "a", alone=number == 1)
    buffer.release(take(buffer))
    in_flight = take(buffer)
    put(buffer, 2, "a")
    assert [[2]] == [numbers(batch) for batch in buffer.drain(10)]
    for number in (3, 4):
        put(buffer, number, "a")
    evicted = [numbers(batch) for batch in buffer.make_room_of(key, "view")]

    assert ([1], [[3]]) == (numbers(in_flight), evicted)


def test_one_visitor_is_bounded() -> None:
    """If a visitor has `max_visitor_events` waiting, its next event does not fit; another visitor's event fits."""
    buffer = make(max_events=10, buffer=Buffer(max_visitor_events=7))
    put(buffer, 0, "a")
    buffer.take()
    accepted = [buffer.offer(envelope(number, 20), "view", buffer.key_of("a")) for number in range(1, 10)]

    assert [True] * 7 + [False] * 2 == [receipt is not None for receipt in accepted]
    assert not buffer.admits(buffer.key_of("a"))
    assert buffer.admits(buffer.key_of("b"))


@pytest.mark.parametrize("overflow", ["wait", "drop_oldest"])
def test_a_waiting_send_lets_no_event_beyond_the_bound(overflow: Overflow) -> None:
    """If a visitor has as many waiting events as allowed, direct sends of this visitor let no further event in."""
    buffer = make(max_events=10, buffer=Buffer(max_visitor_events=3, overflow=overflow))
    key = buffer.key_of("a")
    put(buffer, 0, "a")
    buffer.take()
    for number in range(1, 4):
        put(buffer, number, "a")
    refused = []
    for number in range(4, 8):
        buffer.hold([key], lambda: None)
        refused.append(not buffer.admits(key) and buffer.offer(envelope(number, 20), "view", key) is None)

    assert [True] * 4 == refused
    assert 3 == buffer.events
    assert ([[1]] if overflow == "drop_oldest" else []) == [numbers(gone) for gone in buffer.make_room_of(key, "view")]


def test_bytes_in_flight_count() -> None:
    """If events are in flight, their bytes count against `max_bytes` until the batch is released."""
    buffer = make(buffer=Buffer(max_bytes=1024))
    put(buffer, 0, size=1000)
    batch = take(buffer)
    before = buffer.fits(100)
    buffer.release(batch)

    assert (False, True) == (before, buffer.fits(100))


# --- direct sends ---


def test_direct_send_waits_for_earlier_events() -> None:
    """If a visitor has waiting events, a direct send is granted after their outcomes; later events wait for its end."""
    granted: list[int] = []
    buffer = make()
    put(buffer, 0, "a")
    hold = buffer.hold([buffer.key_of("a")], lambda: granted.append(1))
    put(buffer, 1, "a")

    assert buffer.due_in() == 0.0
    first = take(buffer)
    assert ([0], []) == (numbers(first), granted)
    buffer.release(first)
    assert granted == [1]
    assert buffer.take() is None
    assert buffer.end_hold(hold)
    assert numbers(buffer.take()) == [1]


def test_direct_send_of_a_new_visitor() -> None:
    """If a direct send has no visitor with earlier events, its request may be sent at once."""
    granted: list[int] = []
    buffer = make()
    put(buffer, 0, "a")
    hold = buffer.hold([buffer.key_of("b"), None], lambda: granted.append(1))

    assert (True, []) == (hold.departed, granted)
    assert not buffer.end_hold(hold)


def test_hold_that_ends_before_it_is_granted() -> None:
    """If a direct send is cancelled while it waits, `granted` is never called, and later events keep their order."""
    granted: list[int] = []
    buffer = make()
    put(buffer, 0, "a")
    first = take(buffer)
    hold = buffer.hold([buffer.key_of("a")], lambda: granted.append(1))
    put(buffer, 1, "a")
    buffer.end_hold(hold)

    assert buffer.take() is None
    assert buffer.release(first)
    assert ([1], []) == (numbers(buffer.take()), granted)


def test_hold_that_ends_lets_strangers_go() -> None:
    """If a direct send with two visitors is cancelled, neither visitor waits for events of the other visitor."""
    buffer = make()
    put(buffer, 0, "busy")
    first = take(buffer)
    hold = buffer.hold([buffer.key_of("free"), buffer.key_of("busy")], lambda: None)
    put(buffer, 1, "free")
    put(buffer, 2, "busy")

    assert buffer.take() is None
    assert buffer.end_hold(hold)
    assert numbers(buffer.take()) == [1]
    buffer.release(first)
    assert numbers(buffer.take()) == [2]


def test_holds_that_ended_leave_nothing() -> None:
    """If direct sends of a visitor with events in flight are cancelled, none of their callbacks stays in memory."""
    buffer = make()
    put(buffer, 0, "a")
    first = take(buffer)
    callbacks = [functools.partial(print, end="") for _ in range(100)]
    holds = [buffer.hold([buffer.key_of("a")], callback) for callback in callbacks]
    kept = [weakref.ref(callback) for callback in callbacks]
    for hold in holds[::2] + holds[1::2]:
        buffer.end_hold(hold)
    del hold, holds, callbacks

    assert [callback() for callback in kept] == [None] * 100
    assert not buffer.release(first)
    assert visitors_of(buffer) == 0


def test_visitors_bound_counts_events_on_both_sides_of_a_hold() -> None:
    """If a direct send waits between events of one visitor, the visitor's bound counts the events on both sides."""
    buffer = make(buffer=Buffer(max_visitor_events=3))
    put(buffer, 0, "a")
    take(buffer)
    put(buffer, 1, "a")
    put(buffer, 2, "a")
    buffer.hold([buffer.key_of("a")], lambda: None)
    put(buffer, 3, "a")

    assert not buffer.admits(buffer.key_of("a"))


# --- events that leave without a request ---


def test_an_event_that_waited_for_space_expires_at_its_own_age() -> None:
    """If an event had to wait and is older than other visitors' events, it expires first, and none of the others."""
    buffer = make(buffer=Buffer(max_age=6.0))
    for number, came_at in enumerate([1.0, 9.0, 2.0, 3.0]):
        buffer.append(envelope(number, 20), "view", buffer.key_of(f"visitor{number}"), came_at=came_at)

    assert sorted(number for batch in buffer.expire(4.0) for number in numbers(batch)) == [0, 2, 3]


def test_drained_run_by_run() -> None:
    """If the buffer is drained run by run, its counters always match the events that are still in the buffer."""
    buffer = make(max_events=20)
    for number in range(5):
        put(buffer, number)
    left = [(len(batch), buffer.events, buffer.bytes) for batch in buffer.drain(2)]

    assert left == [(2, 3, 63), (2, 1, 21), (1, 0, 0)]


def test_release_after_drain() -> None:
    """If a batch is released after the buffer was drained, no batch can be taken."""
    buffer = make()
    put(buffer, 1, "a")
    batch = take(buffer)
    put(buffer, 2, "a")
    assert [numbers(left) for left in buffer.drain(500)] == [[2]]

    assert not buffer.release(batch)
    assert visitors_of(buffer) == 0


def test_events_behind_a_hold_are_drained() -> None:
    """If events that wait for a direct send are drained, they are never taken; later events wait for the send."""
    buffer = make()
    put(buffer, 0, "a")
    first = take(buffer)
    hold = buffer.hold([buffer.key_of("a")], lambda: None)
    put(buffer, 1, "a")
    assert [numbers(left) for left in buffer.drain(500)] == [[1]]
    put(buffer, 2, "a")
    buffer.release(first)

    assert buffer.take() is None
    buffer.end_hold(hold)
    assert numbers(buffer.take()) == [2]


def test_a_hold_that_ended_before_a_drain_holds_nobody() -> None:
    """If a direct send was cancelled and then the buffer is drained, the visitor's next event can be taken."""
    buffer = make()
    put(buffer, 0, "a")
    hold = buffer.hold([buffer.key_of("a")], lambda: None)
    buffer.end_hold(hold)
    assert [numbers(left) for left in buffer.drain(500)] == [[0]]
    put(buffer, 1, "a")

    assert numbers(buffer.take()) == [1]


@pytest.mark.parametrize("overflow", ["drop_oldest", "shed"])
def test_drained_events_are_not_evicted(overflow: str) -> None:
    """If a visitor's events were drained, they are not evicted a second time to make space for later events."""
    buffer = make(buffer=Buffer(max_visitor_events=1, overflow=overflow))  # type: ignore[arg-type]
    put(buffer, 0, "a")
    take(buffer)
    put(buffer, 1, "a")
    assert [numbers(left) for left in buffer.drain(500)] == [[1]]
    put(buffer, 2, "a")

    assert [numbers(left) for left in buffer.make_room_of(buffer.key_of("a"), "view")] == [[2]]
    assert (buffer.events, buffer.bytes) == (0, 0)


@pytest.mark.parametrize("in_flight", [True, False])
def test_hold_survives_a_drain(in_flight: bool) -> None:  # noqa: FBT001
    """If events before a direct send are drained, the send waits only for earlier events that are in flight."""
    granted: list[int] = []
    buffer = make()
    put(buffer, 1, "a")
    batch = take(buffer) if in_flight else None
    put(buffer, 2, "a")
    buffer.hold([buffer.key_of("a")], lambda: granted.append(1))
    for _ in buffer.drain(500):
        pass

    assert granted == ([] if in_flight else [1])
    if batch is not None:
        buffer.release(batch)
        assert granted == [1]


def test_events_that_come_while_others_expire_are_counted() -> None:
    """If an event is appended while `expire` yields expired events, the counters are still right."""
    buffer = make(max_events=500)
    for number in range(12):
        put(buffer, number)
    gone = []
    for count, batch in zip(range(3), buffer.expire(0.0, 3), strict=False):
        gone += numbers(batch)
        assert buffer.offer(envelope(100 + count, 20), "view", None) is not None
    assert gone == [*range(9)]
    assert (buffer.events, buffer.bytes) == (6, 6 * 21)
    [batch] = buffer.drain(500)
    assert [9, 10, 11, 100, 101, 102] == numbers(batch)
    assert 6 == len(batch.names) == sum(len(list(places_of(share))) for share in batch.shares)
    assert (buffer.events, buffer.bytes, buffer.batches) == (0, 0, 0)


def test_short_batches_are_of_one_age() -> None:
    """If `short_batches` is set, as in a halt, old and new events of different visitors never share a batch."""
    clock = Clock()
    buffer = make(clock)
    buffer.short_batches = True
    opened = []
    for number in range(8):
        put(buffer, number, f"visitor{number}")
        opened.append(clock.time)
        clock.time += 0.2
    taken = batches_of(buffer)

    assert sorted(number for batch in taken for number in batch) == [*range(8)]
    assert all(opened[batch[-1]] - opened[batch[0]] <= 0.5 for batch in taken)


# --- settings ---


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
        (Batching, "max_in_flight", 1001),
        (Buffer, "max_events", 0),
        (Buffer, "max_bytes", 1023),
        (Buffer, "max_visitor_events", 0),
        (Buffer, "max_visitor_events", None),
    ],
)
def test_impossible_policy(policy: type, name: str, value: object) -> None:
    """If a setting is outside its range, the error at construction has the name of the setting."""
    with pytest.raises(ConfigurationError, match=f"{policy.__name__}.{name} must"):
        policy(**{name: value})
