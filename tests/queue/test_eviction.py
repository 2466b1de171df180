"""A full buffer: callers wait or are refused, or events are evicted, settled, counted and reported."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailrocket_async._errors import BufferFullError, ConfigurationError
from retailrocket_async._events.models import (
    AddToBasket,
    CustomEvent,
    Event,
    ImpressionContentViewed,
    Order,
    Search,
    View,
)
from retailrocket_async._outcome import Delivered, Dropped
from retailrocket_async._queue.eviction import DEFAULT_RANKING, Overflow
from retailrocket_async._queue.options import Batching, Buffer
from tests.support.effort import most
from tests.support.engine_state import callers_waiting_for_space
from tests.support.fakes import (
    CODEC,
    PARKED,
    ROUNDING,
    Engine,
    RecordingLimiter,
    ScriptedTransport,
    Step,
    event,
    into,
    make_client,
    now,
    number_of,
    tasks,
    turns,
)
from tests.support.virtual_time import CheckedLoop, run

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from retailrocket_async._receipt import Receipt
    from retailrocket_async._stats import UndeliveredEvent

OVERFLOWED = Dropped(reason="overflow")

KINDS: dict[str, type[Event]] = {
    "i": ImpressionContentViewed,
    "v": View,
    "s": Search,
    "b": AddToBasket,
    "o": Order,
}
"""The event class that each letter stands for, from the least to the most valuable."""

LANES = [Batching(), Batching(max_events=2)]


@attrs.define
class Crowd:
    """An engine whose limiter grants no permit yet, with the receipts and the reports of its events."""

    engine: Engine
    limiter: RecordingLimiter
    reported: list[UndeliveredEvent]
    receipts: dict[int, Receipt] = attrs.field(factory=dict)

    @classmethod
    def of(cls, batching: Batching = Batching(), **bounds: Any) -> Crowd:  # noqa: B008 - frozen
        """Return a `Crowd` whose engine has these settings of batches and of the buffer."""
        reported: list[UndeliveredEvent] = []
        limiter = RecordingLimiter(gated=True)
        engine = Engine(
            ScriptedTransport(), limiter=limiter, batching=batching, buffer=Buffer(**bounds), on_outcome=into(reported)
        )
        return cls(engine, limiter, reported)

    async def come(self, kinds: str, visitors: str = "", *, nowait: bool = False) -> None:
        """Track one event for each letter of `kinds`, by the visitor at the same position of `visitors`."""
        for place, kind in enumerate(kinds):
            number = len(self.receipts)
            whose = (number, visitors[place] if visitors else "a", KINDS[kind])
            self.receipts[number] = self.engine.track_nowait(*whose) if nowait else await self.engine.track(*whose)

    @property
    def gone(self) -> list[int]:
        """The numbers of the evicted events."""
        return [number for number, receipt in self.receipts.items() if receipt.outcome == OVERFLOWED]

    async def end(self) -> set[int]:
        """Grant all permits and close the engine; check the counters; return the numbers of the delivered events."""
        self.limiter.open_gate()
        report = await self.engine.aclose()
        stats = report.stats
        names = Counter(self.receipts[number].event_name for number in self.gone)
        assert stats.dropped_by == ({"overflow": names} if names else {})
        assert (stats.dropped, stats.delivered) == (len(self.gone), len(self.receipts) - len(self.gone))
        assert sorted(map(number_of, self.reported)) == self.gone
        assert all(kept.outcome == OVERFLOWED for kept in self.reported)
        recorded = self.engine.transport.recorded_numbers
        assert len(recorded) == len(set(recorded))
        assert tasks() == set()
        return set(recorded)


# --- "wait" ---


class Counted:
    """Awaits a coroutine and counts how often it is resumed."""

    def __init__(self, coroutine: Any) -> None:
        self._steps = coroutine.__await__()
        self.resumed = 0

    def __await__(self) -> Generator[Any, None, Any]:
        while True:
            self.resumed += 1
            try:
                awaited = self._steps.send(None)
            except StopIteration as stop:
                return stop.value
            yield awaited


async def test_waiters_are_woken_once_and_in_order(virtual_clock: CheckedLoop) -> None:
    """If many callers wait for space, each caller is woken once, when its event fits, in the order of the calls."""
    transport = ScriptedTransport()
    engine = Engine(transport, batching=Batching(max_events=1, linger=0.0), buffer=Buffer(max_events=2))
    calls = [Counted(engine.track(number)) for number in range(300)]

    async def wait_for(call: Counted) -> None:
        await call

    async with asyncio.TaskGroup() as group:
        for call in calls:
            group.create_task(wait_for(call))
    await engine.aclose()

    assert transport.sent_numbers == list(range(300))
    assert {call.resumed for call in calls[2:]} == {2}


async def test_callers_who_give_up_leave_nothing(virtual_clock: CheckedLoop) -> None:
    """If callers time out while an earlier caller still waits, their events do not stay in memory."""
    crowd = Crowd.of(max_events=1)
    await crowd.come("v")
    patient = asyncio.create_task(crowd.engine.track(1))
    await turns()
    for number in range(2, 50):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(crowd.engine.track(number), 0.1)
    assert callers_waiting_for_space(crowd.engine) == crowd.engine.stats().waiting == 1
    crowd.limiter.open_gate()
    await (await patient)
    await crowd.engine.aclose()

    assert crowd.engine.transport.recorded_numbers == [0, 1]


# --- "raise" ---


@pytest.mark.parametrize("nowait", [False, True])
async def test_raise(virtual_clock: CheckedLoop, nowait: bool) -> None:  # noqa: FBT001
    """If the policy is "raise" and the buffer is full, an error is raised at once, and the event is not counted."""
    crowd = Crowd.of(overflow="raise", max_events=2)
    await crowd.come("vv", nowait=nowait)
    with pytest.raises(BufferFullError, match="2 events"):
        await crowd.come("o", nowait=nowait)

    assert now() < ROUNDING
    assert crowd.engine.stats().tracked == 2
    assert await crowd.end() == {0, 1}


# --- evictions ---


@pytest.mark.parametrize("nowait", [False, True])
@pytest.mark.parametrize("batching", LANES)
@pytest.mark.parametrize(
    ("overflow", "kinds", "gone"),
    [
        ("drop_newest", "vvv|vo", [3, 4]),
        ("drop_oldest", "ovi|ii", [0, 1]),
        ("drop_oldest", "ovi|iiii", [0, 1, 2, 3]),
        # The least valuable event is evicted first; of events of equal value, the oldest is evicted first.
        ("shed", "oiv|o", [1]),
        ("shed", "obvsi|ooooo", [4, 2, 3, 1, 0]),
        ("shed", "ivi|v", [0]),
        ("shed", "isv|vbbb", [0, 1, 2, 3]),
        ("shed", "vvv|v", [0]),
        # If the new event is less valuable than all waiting events, the new event is dropped.
        ("shed", "vsb|i", [3]),
        ("shed", "ooo|bvi", [3, 4, 5]),
        ("shed", "ioo|ivb", [0, 3, 4]),
    ],
)
async def test_what_gives_way(  # noqa: PLR0917
    virtual_clock: CheckedLoop,
    overflow: Overflow,
    kinds: str,
    gone: list[int],
    batching: Batching,
    nowait: bool,  # noqa: FBT001
) -> None:
    """If space is needed, the events that the policy names are evicted at once, settled, counted and reported."""
    before, after = kinds.split("|")
    crowd = Crowd.of(batching, overflow=overflow, max_events=len(before))
    await crowd.come(before + after, "abcabdefghkl", nowait=nowait)

    assert now() < ROUNDING
    assert crowd.gone == sorted(gone)
    assert await crowd.end() == set(range(len(kinds) - 1)) - set(gone)


async def test_order_of_giving_way(virtual_clock: CheckedLoop) -> None:
    """If events must be evicted, the event of the lowest rank is evicted first; of equal ranks, the oldest event."""
    crowd = Crowd.of(overflow="shed", max_events=10)
    await crowd.come("ovbisovbis")
    order = []
    for _ in range(10):
        before = set(crowd.gone)
        await crowd.come("o")
        order += sorted(set(crowd.gone) - before)
    assert order == [3, 8, 1, 4, 6, 9, 2, 7, 0, 5]
    await crowd.end()


async def test_own_ranking(virtual_clock: CheckedLoop) -> None:
    """If a ranking is given, the default ranking does not apply; events that the given ranking omits have rank 1."""
    crowd = Crowd.of(overflow="shed", max_events=4, ranking={"order": 0, "impressionContentViewed": 9, "view": 1})
    await crowd.come("oivsiiio")
    assert crowd.gone == [0, 2, 3, 7]
    await crowd.end()


async def test_event_of_an_unknown_type(virtual_clock: CheckedLoop) -> None:
    """If an event is not in the default ranking, it is evicted like a view."""
    crowd = Crowd.of(overflow="shed", max_events=2)
    await crowd.come("b")
    unknown = CustomEvent(name="wishlist", fields={"sessionExternalId": "a", "productId": 9})
    receipt = crowd.engine.dispatcher.intake.accept_nowait(unknown, CODEC.encode(unknown))
    await crowd.come("v")

    assert receipt.outcome == OVERFLOWED
    assert crowd.engine.stats().dropped_by == {"overflow": {"wishlist": 1}}


@pytest.mark.parametrize("batching", LANES)
@pytest.mark.parametrize("overflow", ["drop_oldest", "shed"])
async def test_oldest_of_all_lanes(virtual_clock: CheckedLoop, batching: Batching, overflow: Overflow) -> None:
    """If events have the same rank, they are evicted in the order of tracking, whoever their visitors are."""
    crowd = Crowd.of(batching, overflow=overflow, max_events=6)
    await crowd.come("vvvvvv", "abcabc")
    for gone in range(6):
        assert crowd.gone == list(range(gone))
        await crowd.come("v", "d")

    assert await crowd.end() == set(range(6, 12))


@pytest.mark.parametrize("overflow", ["drop_oldest", "shed"])
@pytest.mark.parametrize("batching", LANES)
async def test_events_of_a_visitor_under_way(
    virtual_clock: CheckedLoop, batching: Batching, overflow: Overflow
) -> None:
    """If a batch is in flight, its events are not evicted, but waiting events of the same visitor may be evicted."""
    crowd = Crowd.of(batching, overflow=overflow, max_events=3)
    crowd.limiter.open_gate()
    crowd.engine.transport.then = PARKED
    await crowd.come("v")
    await asyncio.sleep(1.0)
    assert crowd.engine.stats().in_flight == 1
    await crowd.come("vvvooo", "aaaaaa")
    assert crowd.gone == [1, 2, 3]
    assert crowd.engine.stats().in_flight == 1
    crowd.engine.transport.then = Step()
    crowd.engine.transport.release()

    assert await crowd.end() == {0, 4, 5, 6}


# --- bytes ---


def custom(name: str, number: int, size: int) -> CustomEvent:
    """Return an event whose envelope takes `size` bytes of the buffer."""
    what = CustomEvent(name=name, fields={"productId": number, "sessionExternalId": "a", "x": ""})
    missing = size - len(CODEC.encode(what)) - 1
    return CustomEvent(name=name, fields={"productId": number, "sessionExternalId": "a", "x": "x" * missing})


@pytest.mark.parametrize(
    ("overflow", "sizes", "newcomer", "gone"),
    [
        ("drop_oldest", [400, 400], 224, []),
        ("drop_oldest", [400, 400], 225, [0]),
        ("drop_oldest", [300, 300, 300], 600, [0, 1]),
        ("drop_newest", [400, 400], 225, [2]),
        ("shed", [300, 300, 300], 1024, [0, 1, 2]),
    ],
)
async def test_bytes_give_way(
    virtual_clock: CheckedLoop, overflow: Overflow, sizes: list[int], newcomer: int, gone: list[int]
) -> None:
    """If the buffer is full by its bytes, only as many events are evicted as the new event needs space."""
    crowd = Crowd.of(overflow=overflow, max_bytes=1024)
    receipts = []
    for number, size in enumerate([*sizes, newcomer]):
        what = custom("thing", number, size)
        receipts.append(await crowd.engine.dispatcher.intake.accept(what, CODEC.encode(what)))

    assert [number for number, receipt in enumerate(receipts) if receipt.done()] == gone
    assert crowd.engine.stats().pending_bytes <= 1024


async def test_nothing_gives_way_in_vain(virtual_clock: CheckedLoop) -> None:
    """If evicting all less valuable events would not make enough space, only the new event is dropped."""
    ranking = {"cheap": 0, "good": 1, "dear": 2}
    crowd = Crowd.of(overflow="shed", max_bytes=1024, ranking=ranking)
    receipts = []
    for number, (name, size) in enumerate([("cheap", 100), ("dear", 800), ("good", 100), ("good", 300)]):
        what = custom(name, number, size)
        receipts.append(await crowd.engine.dispatcher.intake.accept(what, CODEC.encode(what)))

    assert [receipt.outcome for receipt in receipts] == [None, None, None, OVERFLOWED]


# --- flushes ---


@pytest.mark.parametrize("overflow", ["drop_oldest", "shed"])
async def test_flush_ends_with_the_last_that_gives_way(virtual_clock: CheckedLoop, overflow: Overflow) -> None:
    """If the last events that a flush waits for are evicted, the flush ends in the same step."""
    crowd = Crowd.of(overflow=overflow, max_events=3)
    await crowd.come("vvv", "abc")
    # The flush begins before the new events are tracked, so the flush does not wait for the new events.
    flush = asyncio.create_task(crowd.engine.flush())
    await asyncio.sleep(1.0)
    await crowd.come("oo", "de")
    await turns()
    assert not flush.done()
    await crowd.come("o", "f")
    await turns()
    assert flush.done()
    later = asyncio.create_task(crowd.engine.flush())
    await turns()
    assert not later.done()
    await crowd.end()
    await later
    await flush


@given(
    overflow=st.sampled_from(["drop_newest", "drop_oldest", "shed"]),
    batching=st.builds(
        Batching,
        max_events=st.integers(1, 4),
        max_in_flight=st.integers(1, 3),
    ),
    room=st.integers(1, 8),
    come=st.lists(
        st.tuples(st.sampled_from("ivsbo"), st.sampled_from("abc"), st.sampled_from([0.0, 0.0, 0.0, 0.04, 0.3])),
        max_size=40,
    ),
    flushes=st.sets(st.integers(0, 40), max_size=3),
    latencies=st.lists(st.sampled_from([0.0, 0.05, 1.0]), max_size=10),
)
@settings(max_examples=most(150), deadline=None)
def test_whatever_gives_way_is_accounted_for(  # noqa: PLR0917 - everything at once
    overflow: Overflow,
    batching: Batching,
    room: int,
    come: list[tuple[str, str, float]],
    flushes: set[int],
    latencies: list[float],
) -> None:
    """If events arrive, leave and are evicted in any order, each event is sent once or dropped, and each flush ends."""

    async def test() -> None:
        crowd = Crowd.of(batching, overflow=overflow, max_events=room)
        crowd.limiter.open_gate()
        crowd.engine.transport.answer_next(*(Step(latency=latency) for latency in latencies))
        waiting = []

        async def flush(before: Sequence[Receipt]) -> None:
            await crowd.engine.flush()
            assert all(receipt.done() for receipt in before)

        for place, (kind, visitor, pause) in enumerate(come):
            await crowd.come(kind, visitor)
            if place in flushes:
                waiting.append(asyncio.create_task(flush(list(crowd.receipts.values()))))
            await asyncio.sleep(pause)
        for task in waiting:
            await task
        await crowd.engine.flush()
        for receipt in crowd.receipts.values():
            assert receipt.outcome == OVERFLOWED or isinstance(receipt.outcome, Delivered)
        arrived = await crowd.end()
        assert arrived == crowd.receipts.keys() - set(crowd.gone)

    run(test())


# --- the client ---


@pytest.mark.parametrize("way", ["track", "track_nowait", "track_many"])
@pytest.mark.parametrize(
    ("overflow", "gone"), [("drop_newest", [2, 3]), ("drop_oldest", [0, 1]), ("shed", [1, 2]), ("raise", [])]
)
async def test_client_at_its_bounds(virtual_clock: CheckedLoop, overflow: Overflow, gone: list[int], way: str) -> None:
    """If the buffer is full, each method of a client follows the policy, and the receipt has the outcome."""
    reported: list[UndeliveredEvent] = []
    client = make_client(
        ScriptedTransport(),
        limiter=(limiter := RecordingLimiter(gated=True)),
        buffer=Buffer(max_events=2, overflow=overflow),
        on_outcome=into(reported),
    )
    kinds = [Order, View, ImpressionContentViewed, Order] if overflow == "shed" else [View] * 4
    events = [event(number, "a", kind) for number, kind in enumerate(kinds)]
    receipts: list[Receipt] = []
    try:
        if way == "track_many":
            receipts += await client.track_many(events)
        else:
            for each in events:
                receipts.append(await client.track(each) if way == "track" else client.track_nowait(each))
    except BufferFullError:
        assert overflow == "raise"
    assert [number for number, receipt in enumerate(receipts) if receipt.outcome == OVERFLOWED] == gone
    limiter.open_gate()
    report = await client.aclose()

    assert report.stats.dropped == len(gone) == len(reported)
    assert report.stats.delivered == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("overflow", "drop"),
        ("overflow", None),
        ("ranking", ["view"]),
        ("ranking", {"view": "1"}),
        ("ranking", {"view": True}),
        ("ranking", {View: 1}),
        ("max_age", 0),
        ("max_age", -1.0),
        ("max_age", float("nan")),
        ("max_age", float("inf")),
        ("max_age", True),
        ("max_age", "1"),
    ],
)
def test_impossible_bounds(option: str, value: object) -> None:
    """If a policy, ranking or age is invalid, the error at construction has the name of the setting."""
    with pytest.raises(ConfigurationError, match=f"Buffer.{option} must"):
        Buffer(**{option: value})  # type: ignore[arg-type]


def test_ranking_is_a_copy() -> None:
    """If the owner of a ranking changes it later, the buffer's copy does not change; the default cannot be changed."""
    mine = {"view": 5}
    buffer = Buffer(ranking=mine)
    mine["view"] = 0

    assert buffer.ranking == {"view": 5}
    with pytest.raises(TypeError):
        DEFAULT_RANKING["view"] = 0  # type: ignore[index]


def test_default_ranking_names_every_event() -> None:
    """The default ranking has a rank for every event type, and the rank of orders is the highest."""
    from retailrocket_async._events.models import EVENT_TYPES

    assert DEFAULT_RANKING.keys() == EVENT_TYPES.keys()
    assert max(DEFAULT_RANKING, key=DEFAULT_RANKING.__getitem__) == "order"
