"""Properties of the whole engine: whatever the server does, each event has exactly one outcome, and it is true.

`Engine` and `CheckedLoop` (see `tests/support`) check after each turn of the loop, and at each request, that the
counters add up and that no bound is exceeded. The tests here therefore do not repeat these checks.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from retailrocket_async._delivery.rate_limiter import LocalLimiter, RateLimit
from retailrocket_async._delivery.retry import RetryPolicy
from retailrocket_async._errors import (
    ClientClosedError,
    DeliveryError,
)
from retailrocket_async._http.reply import Reply
from retailrocket_async._outcome import Delivered
from retailrocket_async._queue.options import Batching, Buffer
from tests.support.effort import most
from tests.support.engine_state import buffer_of, free_wire_slots, visitors_of
from tests.support.fakes import (
    NO_CONNECTION,
    OK,
    TIMED_OUT,
    Engine,
    RecordingLimiter,
    Request,
    ScriptedTransport,
    Step,
    into,
    status,
    tasks,
    turns,
)
from tests.support.virtual_time import run

if TYPE_CHECKING:
    from retailrocket_async._outcome import Outcome
    from retailrocket_async._receipt import Receipt
    from retailrocket_async._stats import UndeliveredEvent


LATENCIES = st.sampled_from([0.0, 0.001, 0.05, 0.3, 2.0])
CLEAN = st.builds(Step, latency=LATENCIES)
FAULTS = st.one_of(
    CLEAN,
    st.builds(lambda latency: status(429, latency=latency), LATENCIES),
    st.builds(lambda latency: status(429, retry_after=3.0, latency=latency), LATENCIES),
    st.builds(Step, reply=st.just(Reply(status=503)), latency=LATENCIES, recorded=st.booleans()),
    st.builds(Step, reply=st.just(TIMED_OUT.reply), latency=LATENCIES, recorded=st.booleans()),
    st.builds(Step, reply=st.just(NO_CONNECTION.reply), latency=LATENCIES),
    st.builds(status, st.sampled_from([400, 401, 301])),
    st.builds(Step, reply=st.just(ZeroDivisionError()), latency=LATENCIES, recorded=st.booleans()),
)
BATCHINGS = st.builds(
    Batching,
    max_events=st.integers(1, 5),
    max_in_flight=st.integers(1, 4),
    linger=st.sampled_from([0.0, 0.1]),
    realtime=st.booleans(),
)
TRACKED = st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from([0.0, 0.0, 0.02, 0.5])), max_size=40)


async def feed(engine: Engine, tracked: list[tuple[str, float]]) -> list[Receipt]:
    """Track an event for each pair of a visitor and the seconds to pause afterwards; return the receipts."""
    receipts = []
    for number, (visitor, pause) in enumerate(tracked):
        receipts.append(await engine.track(number, visitor))
        await asyncio.sleep(pause)
    return receipts


@settings(max_examples=most(60), deadline=None)
@given(tracked=TRACKED, steps=st.lists(CLEAN, max_size=30), batching=BATCHINGS, size=st.integers(1, 10))
def test_clean_replies_deliver_exactly_once(
    tracked: list[tuple[str, float]], steps: list[Step], batching: Batching, size: int
) -> None:
    """If every reply is clean, every event is recorded exactly once, for any latencies and policies."""

    async def test() -> list[int]:
        engine = Engine(ScriptedTransport(*steps), batching=batching, buffer=Buffer(max_events=size))
        await feed(engine, tracked)
        report = await engine.aclose(None)
        assert report.clean
        return engine.transport.recorded_numbers

    assert sorted(run(test())) == list(range(len(tracked)))


@settings(max_examples=most(60), deadline=None)
@given(
    tracked=TRACKED,
    steps=st.lists(FAULTS, max_size=30),
    batching=BATCHINGS,
)
def test_ordered_means_ordered(tracked: list[tuple[str, float]], steps: list[Step], batching: Batching) -> None:
    """If events are ordered, each visitor's events are first recorded in the order in which they were tracked."""

    async def test() -> list[tuple[str, int]]:
        engine = Engine(ScriptedTransport(*steps), batching=batching)
        await feed(engine, tracked)
        await engine.aclose(None)
        assert not visitors_of(buffer_of(engine))
        return engine.transport.recorded

    orders: dict[str, list[int]] = defaultdict(list)
    for visitor, number in run(test()):
        if number not in orders[visitor]:
            orders[visitor].append(number)

    assert all(order == sorted(order) for order in orders.values())


@settings(max_examples=most(150), deadline=None)
@given(
    tracked=TRACKED,
    steps=st.lists(FAULTS, max_size=30),
    batching=BATCHINGS,
    size=st.integers(1, 20),
    attempts=st.integers(1, 4),
    closed_after=st.none() | st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    limit=st.none() | st.builds(RateLimit, requests=st.integers(1, 10)),
    cancelled=st.lists(st.sampled_from([0.0, 0.05, 0.4, 1.5]), max_size=5),
    broken=st.integers(0, 2),
)
def test_every_outcome_is_true(  # noqa: C901, PLR0915, PLR0917 - everything at once
    tracked: list[tuple[str, float]],
    steps: list[Step],
    batching: Batching,
    size: int,
    attempts: int,
    closed_after: float | None,
    limit: RateLimit | None,
    cancelled: list[float],
    broken: int,
) -> None:
    """If requests fail, sends are cancelled and the client closes, each event's one outcome agrees with the server."""

    async def test() -> tuple[dict[int, Outcome], Counter[int]]:
        script = iter(steps)

        def answer(request: Request) -> Step:
            step = next(script, OK)
            # A server that has already recorded the events does not answer 400 to the same request.
            malformed = isinstance(step.reply, Reply) and step.reply.status == 400
            return OK if malformed and set(request.numbers) & set(transport.recorded_numbers) else step

        transport = ScriptedTransport(then=answer)
        reported: list[UndeliveredEvent] = []
        local = LocalLimiter(limit)
        engine = Engine(
            transport,
            limiter=RecordingLimiter(*[OSError()] * broken) if broken else local,
            batching=batching,
            buffer=Buffer(max_events=size),
            retry=RetryPolicy(max_attempts=attempts),
            on_outcome=into(reported),
        )
        receipts: dict[int, Receipt] = {}
        outcomes: dict[int, Outcome] = {}

        async def feeder() -> None:
            for number, (visitor, pause) in enumerate(tracked):
                try:
                    receipts[number] = await engine.track(number, visitor)
                except ClientClosedError:
                    return
                await asyncio.sleep(pause)

        async def sender(number: int, patience: float) -> None:
            try:
                async with asyncio.timeout(patience):
                    outcomes[number] = await engine.send(number)
            except DeliveryError as error:
                outcomes[number] = error.outcome
            except (TimeoutError, ClientClosedError):
                pass

        feeding = asyncio.create_task(feeder())
        sends = [asyncio.create_task(sender(1000 + index, after)) for index, after in enumerate(cancelled)]
        if closed_after is None:
            await feeding
        else:
            await asyncio.sleep(closed_after)
        report = await engine.aclose(closed_after)
        await asyncio.wait({feeding, *sends})
        assert (report.stats.pending, report.stats.in_flight) == (0, 0)
        for number, receipt in receipts.items():
            assert receipt.outcome is not None
            outcomes[number] = receipt.outcome
        undelivered = Counter(kept.event.product_id for kept in reported)  # type: ignore[attr-defined]
        assert undelivered == Counter(n for n in receipts if not isinstance(outcomes[n], Delivered))
        await turns(5)
        assert tasks() == set()
        assert transport.in_flight == 0
        assert free_wire_slots(engine) == batching.max_in_flight
        return outcomes, Counter(transport.recorded_numbers)

    outcomes, recorded = run(test())

    for number, outcome in outcomes.items():
        times = recorded[number]
        if isinstance(outcome, Delivered):
            assert times >= 1
            assert times == 1 or outcome.maybe_duplicate
        else:
            assert times == 0 or outcome.maybe_recorded
        assert outcome.attempts >= times
