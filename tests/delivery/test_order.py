"""The order of each visitor's events: a visitor's requests never overlap, and no event is sent before an earlier one.

The fake engine checks in every turn of the loop that no two requests in flight have events of one visitor.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailrocket_async._delivery.retry import RetryPolicy
from retailrocket_async._errors import BufferFullError, DeliveryError, FlushTimeoutError
from retailrocket_async._events.codec import BATCH_PATH, Codec
from retailrocket_async._events.models import CategoryViewByCategoryPath
from retailrocket_async._outcome import Delivered, Rejected
from retailrocket_async._queue.options import Batching, Buffer
from tests.support.effort import most
from tests.support.fakes import MOMENT, PARKED, Engine, Request, ScriptedTransport, Step, event, now, status, turns
from tests.support.virtual_time import CheckedLoop, run

if TYPE_CHECKING:
    from retailrocket_async._receipt import Receipt

CODEC = Codec()
SLOW = Step(latency=1.5)
RETRY = RetryPolicy(initial_backoff=1.0, max_backoff=1.0)


def test_a_busy_shop_uses_the_whole_limit() -> None:
    """If batches take 1.5 s and 4,000 visitors are active, nearly every request carries a full batch."""

    async def test() -> tuple[int, float]:
        engine = Engine(ScriptedTransport(then=SLOW), batching=Batching(linger=0.0), buffer=Buffer(max_events=100_000))
        for number in range(60_000):
            await engine.track(number, f"visitor{number % 4_000}")
        await engine.flush()
        return len(engine.transport.requests), now()

    requests, seconds = run(test())

    # 60,000 events in batches of 500 are at least 120 requests. The first batches are small, because the linger is 0 s.
    assert requests <= 150
    assert seconds <= 4 * 1.5


async def test_strangers_do_not_wait(virtual_clock: CheckedLoop) -> None:
    """If a batch waits for its answer, an event of another visitor is sent as soon as the event's linger is over."""
    engine = Engine(ScriptedTransport(PARKED))
    await engine.track(1, "busy")
    await asyncio.sleep(1.0)
    await engine.track(2, "busy")
    begin = now()
    stranger = await engine.track(3, "quiet")

    assert isinstance(await stranger, Delivered)
    assert now() - begin == pytest.approx(0.15, abs=0.01)
    assert engine.transport.sent_numbers == [1, 3]
    engine.transport.release()
    await engine.aclose()


async def test_later_events_wait_for_a_retry(virtual_clock: CheckedLoop) -> None:
    """If a batch fails and waits for its retry, later events of its visitors are sent after the batch was delivered."""
    engine = Engine(ScriptedTransport(status(503), status(503)), retry=RETRY)
    await engine.track(1, "a")
    await asyncio.sleep(0.2)
    await engine.track(2, "a")
    await engine.flush()

    assert engine.transport.sent_numbers == [1, 1, 1, 2]


async def test_visitors_of_a_divided_batch_are_released_early(virtual_clock: CheckedLoop) -> None:
    """If a batch is divided, a visitor's later events are sent as soon as the visitor's own events are settled."""
    bad = 15
    transport = ScriptedTransport(then=lambda request: 400 if bad in request.numbers else Step(latency=1.0))
    engine = Engine(transport, batching=Batching(max_events=16))
    for number in range(16):
        await engine.track(number)
    await asyncio.sleep(0.5)
    first = await engine.track(100, "visitor0")
    last = await engine.track(101, "visitor15")
    await first
    delivered_at = now()
    await last

    assert delivered_at < 3.0
    assert now() > 4.0
    assert transport.recorded_numbers.index(100) < transport.recorded_numbers.index(14)
    await engine.aclose()


@pytest.mark.parametrize("count", [6_000, 20_000])
async def test_a_crawler_delays_only_itself(virtual_clock: CheckedLoop, count: int) -> None:
    """If one visitor has more events than may wait, only calls for this visitor wait; other events are sent at once."""
    engine = Engine(ScriptedTransport(then=SLOW), batching=Batching(linger=0.0))
    crawling = [asyncio.create_task(engine.track(number, "crawler")) for number in range(count)]
    await asyncio.sleep(0.1)
    waiting = engine.stats().waiting
    begin = now()
    outcome = await (await engine.track(-1, "human"))

    assert waiting >= count - 5_000 - 600
    assert isinstance(outcome, Delivered)
    assert now() - begin <= 1.6
    for task in crawling:
        task.cancel()
    await asyncio.wait(crawling)
    await engine.aclose(0)


async def test_callers_of_one_visitor_are_admitted_in_order(virtual_clock: CheckedLoop) -> None:
    """If callers of one visitor wait for space and for the visitor's bound, their events are accepted in order."""
    engine = Engine(
        ScriptedTransport(PARKED, PARKED),
        batching=Batching(linger=0.0, max_in_flight=2),
        buffer=Buffer(max_events=2, max_visitor_events=1),
    )
    await engine.track(0, "x")
    await asyncio.sleep(0.1)
    await engine.track(10, "y")
    await asyncio.sleep(0.1)
    await engine.track(11, "a")
    await engine.track(12, "b")
    calls = [(1, "x"), (2, "x"), (13, "c"), (3, "x")]
    callers = [asyncio.create_task(engine.track(number, visitor)) for number, visitor in calls]
    await turns()
    # When the batch of `y` is answered, the events 1 and 13 fill the buffer. The event 2 then waits for the visitor's
    # bound, and the event 3 for space.
    engine.transport._parked[1].set_result(None)
    await asyncio.sleep(0.01)
    engine.transport.release()
    await asyncio.wait(callers)
    await engine.aclose()

    assert [number for number in engine.transport.sent_numbers if number < 10] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("overflow", "gone"), [("drop_oldest", "oldest"), ("drop_newest", "newest"), ("shed", "oldest")]
)
async def test_overflow_of_one_visitor(virtual_clock: CheckedLoop, overflow: str, gone: str) -> None:
    """If one visitor has too many waiting events, `Buffer.overflow` drops events of this visitor only."""
    bounds = Buffer(max_visitor_events=10, overflow=overflow)  # type: ignore[arg-type]
    engine = Engine(ScriptedTransport(PARKED), batching=Batching(linger=0.0), buffer=bounds)
    await engine.track(0, "crawler")
    await asyncio.sleep(0.1)
    human = await engine.track(100, "human")
    receipts = [await engine.track(number, "crawler") for number in range(1, 16)]
    dropped = [number for number, receipt in enumerate(receipts, 1) if receipt.done()]

    assert dropped == ([*range(1, 6)] if gone == "oldest" else [*range(11, 16)])
    assert not human.done()
    engine.transport.release()
    await engine.aclose()
    assert isinstance(human.outcome, Delivered)


async def test_error_of_a_full_visitor(virtual_clock: CheckedLoop) -> None:
    """If only one visitor's bound is reached, the error of `track_nowait` has the name of this bound."""
    engine = Engine(ScriptedTransport(PARKED), batching=Batching(linger=0.0), buffer=Buffer(max_visitor_events=1))
    await engine.track(1, "crawler")
    await asyncio.sleep(0.1)
    engine.track_nowait(2, "crawler")
    with pytest.raises(BufferFullError, match=r"this visitor has as many waiting events as Buffer\.max_visitor_events"):
        engine.track_nowait(3, "crawler")
    engine.track_nowait(4, "human")
    engine.transport.release()
    await engine.aclose()


async def test_a_group_keeps_the_visitors_bound(virtual_clock: CheckedLoop) -> None:
    """If a group of envelopes has more events of one visitor than the bound allows, it is not accepted whole."""
    engine = Engine(ScriptedTransport(PARKED), batching=Batching(linger=0.0), buffer=Buffer(max_visitor_events=10))
    await engine.track_all([0])
    await asyncio.sleep(0.1)
    await engine.track(1, "visitor0")
    group = [("view", "visitor0", CODEC.encode(event(number, "visitor0"))) for number in range(2, 12)]

    assert engine.dispatcher.intake.accept_group(group) is None
    assert len(engine.dispatcher.intake.accept_group(group[:9]) or []) == 9
    engine.transport.release()
    await engine.aclose()


async def test_flush_names_the_longest_chain(virtual_clock: CheckedLoop) -> None:
    """If a flush times out because one visitor has many events, the error says how many events this visitor has."""
    engine = Engine(ScriptedTransport(then=SLOW))
    for number in range(2_000):
        await engine.track(number, "crawler")
    with pytest.raises(
        FlushTimeoutError, match=r"one visitor has 1500 of them, which are sent one batch after the other"
    ):
        await engine.flush(1.0)
    await engine.aclose()

    # The four batches of the visitor are sent one after the other, and each takes 1.5 s.
    assert engine.transport.times == pytest.approx([0.0, 1.5, 3.0, 4.5], abs=0.2)


# --- direct sends ---


async def test_send_comes_after_earlier_events(virtual_clock: CheckedLoop) -> None:
    """If a visitor has earlier events without outcome, `send` sends after these events, and before later events."""
    engine = Engine(ScriptedTransport(then=SLOW))
    await engine.track(1, "visitor3")
    await asyncio.sleep(0.2)
    await engine.track(2, "visitor3")
    sending = asyncio.create_task(engine.send(3))
    await turns()
    await engine.track(4, "visitor3")
    await sending
    await engine.flush()

    assert engine.transport.sent_numbers == [1, 2, 3, 4]


async def test_sends_of_one_visitor_are_made_one_by_one(virtual_clock: CheckedLoop) -> None:
    """If several calls of `send_batch` have an event of one visitor, their requests are made one after the other."""
    engine = Engine(ScriptedTransport(then=SLOW))
    sends = [asyncio.create_task(engine.send_batch([7, 100 + number])) for number in range(3)]
    await asyncio.wait(sends)

    assert engine.transport.times == pytest.approx([0.0, 1.5, 3.0], abs=0.01)
    await engine.aclose()


@pytest.mark.parametrize("turn", range(8))
async def test_a_cancelled_send_holds_nobody(virtual_clock: CheckedLoop, turn: int) -> None:
    """If a `send` is cancelled at any point, the visitor's other events are still delivered in order."""
    engine = Engine(ScriptedTransport(then=Step(latency=0.3)))
    await engine.track(1, "visitor5")
    sending = asyncio.create_task(engine.send(5))
    await engine.track(2, "visitor5")
    await asyncio.sleep(0.1 * turn)
    sending.cancel()
    await asyncio.wait({sending})
    await engine.flush()

    sent = [number for number in engine.transport.sent_numbers if number != 5]
    assert sent == [1, 2]
    assert (await engine.aclose()).stats.in_flight == 0


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("in_flight", [False, True])
async def test_recall_with_a_waiting_send(virtual_clock: CheckedLoop, *, ended: bool, in_flight: bool) -> None:
    """If all events are recalled while a `send` waits for earlier events, the visitor's next events are delivered."""
    engine = Engine(ScriptedTransport(), batching=Batching(linger=0.0 if in_flight else 5.0))
    await engine.track(1, "visitor3")
    await asyncio.sleep(0.01 if in_flight else 0.0)
    sending = asyncio.create_task(engine.send(3))
    await turns()
    await engine.track(4, "visitor3")
    if ended:
        sending.cancel()
        await turns()
    engine.dispatcher.recall()
    last = await engine.track(5, "visitor3")
    await engine.flush(10.0)

    assert isinstance(last.outcome, Delivered)
    assert [number for number in engine.transport.sent_numbers if number != 1] == ([5] if ended else [3, 5])
    await asyncio.wait({sending})
    await engine.aclose()


# --- events that must be sent in a request of their own ---


def path_view(number: int, visitor: str) -> CategoryViewByCategoryPath:
    """Return an event that must be sent in a request of its own."""
    return CategoryViewByCategoryPath(
        session_external_id=visitor, category_path="Кухня/Вилки", timestamp=MOMENT, extra={"productId": number}
    )


async def track_alone(engine: Engine, number: int, visitor: str) -> Receipt:
    """Track an event that must be sent in a request of its own."""
    what = path_view(number, visitor)
    return await engine.dispatcher.intake.accept(what, CODEC.encode(what))


async def test_alone_at_its_place(virtual_clock: CheckedLoop) -> None:
    """If no batch may hold an event, the event is sent to its own endpoint, between the visitor's other events."""
    engine = Engine(ScriptedTransport(then=SLOW))
    for number in (0, 2):
        await engine.track(number, "a")
        await track_alone(engine, number + 1, "a")
    await engine.track(9, "b")
    await engine.flush()
    own = "categoryViewByCategoryPath"

    assert [request.path for request in engine.transport.requests] == [BATCH_PATH, own, BATCH_PATH, own]
    assert [request.numbers for request in engine.transport.requests] == [[0, 9], [1], [2], [3]]
    assert engine.transport.requests[1].body == CODEC.encode_bare(path_view(1, "a"))


async def test_alone_is_retried_at_its_place(virtual_clock: CheckedLoop) -> None:
    """If the request of an event that no batch may hold fails, it is repeated before the visitor's later events."""
    engine = Engine(ScriptedTransport(status(503)), retry=RETRY)
    receipt = await track_alone(engine, 1, "a")
    await engine.track(2, "a")
    await engine.flush()

    assert engine.transport.sent_numbers == [1, 1, 2]
    assert isinstance(receipt.outcome, Delivered)
    assert receipt.outcome.attempts == 2


@pytest.mark.parametrize("realtime", [False, True])
@pytest.mark.parametrize("refusal", [400, 404])
async def test_alone_that_is_refused(virtual_clock: CheckedLoop, refusal: int, realtime: bool) -> None:  # noqa: FBT001
    """If the API refuses an event sent alone, for the event or for its endpoint, only this event is rejected."""

    def then(request: Request) -> Step | int:
        return refusal if request.path == CategoryViewByCategoryPath.wire_name else 200

    engine = Engine(ScriptedTransport(then=then), batching=Batching(realtime=realtime))
    receipt = await track_alone(engine, 1, "a")
    other = await engine.track(2, "a")
    await engine.flush()

    assert isinstance(receipt.outcome, Rejected)
    assert (refusal, True) == (receipt.outcome.status, receipt.outcome.isolated)
    assert isinstance(other.outcome, Delivered)
    assert engine.stats().state == "sending"


# --- properties ---


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["track", "track", "track", "alone", "send", "send_batch", "cancelled"]),
        st.sampled_from("abc"),
        st.sampled_from([0.0, 0.0, 0.05, 0.4]),
    ),
    max_size=40,
)
REPLIES = st.lists(
    st.builds(
        Step,
        latency=st.sampled_from([0.0, 0.05, 1.0]),
        reply=st.sampled_from([status(200).reply, status(503).reply, status(429).reply, status(400).reply]),
    ),
    max_size=30,
)


@settings(max_examples=most(100), deadline=None)
@given(
    calls=CALLS,
    replies=REPLIES,
    batching=st.builds(Batching, max_events=st.integers(1, 6), max_in_flight=st.integers(1, 4), realtime=st.booleans()),
)
def test_every_mixture_of_calls_keeps_the_order(
    calls: list[tuple[str, str, float]], replies: list[Step], batching: Batching
) -> None:
    """If `track`, `send` and cancellations are mixed in any way, each visitor's events are first sent in order."""

    async def test() -> None:
        transport = ScriptedTransport(*replies)
        engine = Engine(transport, batching=batching, retry=RETRY)
        numbers: dict[str, list[int]] = {"a": [], "b": [], "c": []}
        sends: list[asyncio.Task[Delivered]] = []
        for number, (how, visitor, pause) in enumerate(calls):
            if how == "track":
                await engine.track(number, visitor)
            elif how == "alone":
                await track_alone(engine, number, visitor)
            else:
                sends.append(asyncio.create_task(engine.send_as(number, visitor, alone=how == "send")))
                await turns(1)
                if how == "cancelled":
                    sends[-1].cancel()
            numbers[visitor].append(number)
            await asyncio.sleep(pause)
        await asyncio.gather(*sends, return_exceptions=True)
        await engine.aclose(None)
        assert all(
            task.cancelled() or task.exception() is None or isinstance(task.exception(), DeliveryError)
            for task in sends
        )
        for visitor, tracked in numbers.items():
            sent = [
                number
                for who, number in (pair for each in transport.requests for pair in each.events)
                if who == visitor
            ]
            first = list(dict.fromkeys(sent))
            assert first == [number for number in tracked if number in set(sent)]

    run(test())
