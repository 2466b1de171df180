"""The bisection divides a refused batch until each bad event is alone: few requests, no other event is lost."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retailrocket_async._delivery.bisection import MOST_CULPRITS, Bisection
from retailrocket_async._delivery.retry import RetryPolicy
from retailrocket_async._errors import BadRequestError
from retailrocket_async._outcome import Abandoned, Delivered, Outcome, Rejected
from retailrocket_async._queue.options import Batching
from tests.support.fakes import OK, Engine, RecordingLimiter, Request, ScriptedTransport, Step, now, status
from tests.support.receipts import batch_with
from tests.support.strategies import PROPERTY
from tests.support.virtual_time import CheckedLoop, run

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from retailrocket_async._queue.batch import Batch


def batch_of(count: int) -> Batch:
    """Return a batch of `count` events, each of whose envelopes (its JSON) is only its number."""
    return batch_with([b"%d" % number for number in range(count)])


def numbers(batch: Batch) -> list[int]:
    """Return the numbers of the batch's events."""
    return [int(envelope) for envelope in batch.envelopes]


@attrs.frozen
class Search:
    """Records a bisection: events accepted, refused alone and refused together, in order, and the requests' events."""

    accepted: list[int] = attrs.field(factory=list[int])
    alone: list[int] = attrs.field(factory=list[int])
    together: list[int] = attrs.field(factory=list[int])
    requests: list[list[int]] = attrs.field(factory=list[list[int]])

    @property
    def all(self) -> list[int]:
        """The sorted numbers of all events that were accepted or refused."""
        return sorted(self.accepted + self.alone + self.together)


def search(count: int, culprits: Collection[int]) -> Search:
    """Bisect a refused batch of `count` events in which `culprits` are bad, and return the record."""
    done = Search()
    bisection = Bisection()
    part: Batch | None = batch_of(count)
    first = True
    while part is not None:
        inside = numbers(part)
        if not first:
            done.requests.append(inside)
        first = False
        if not set(inside) & set(culprits):
            done.accepted.extend(inside)
            part = bisection.after(accepted=len(part))
            continue
        divided = bisection.divide(part, blames=True)
        if divided is None:
            (done.alone if len(inside) == 1 else done.together).extend(inside)
            divided = bisection.after(accepted=None)
        part = divided
    return done


CASES = st.integers(1, 700).flatmap(
    lambda count: st.tuples(st.just(count), st.sets(st.integers(0, count - 1), min_size=1, max_size=12))
)


@given(CASES)
@example((500, {0}))
@example((500, {499}))
@example((5, {2, 4}))
@example((700, set(range(600, 608))))
@PROPERTY
def test_it_finds_all_of_few_culprits(case: tuple[int, set[int]]) -> None:
    """If a batch has up to `MOST_CULPRITS` bad events, each is refused alone, and each other event is accepted once."""
    count, culprits = case
    done = search(count, culprits)

    assert done.all == list(range(count))
    if len(culprits) <= MOST_CULPRITS:
        assert (set(done.alone), done.together) == (culprits, [])
    assert set(done.accepted) <= set(range(count)) - culprits


@given(CASES)
@example((500, {250}))
@example((3, {2}))
@example((5, {4}))
@PROPERTY
def test_it_takes_few_requests(case: tuple[int, set[int]]) -> None:
    """If k of n events are bad, the bisection takes at most 2 k log2(n) + 1 requests, wherever the bad events are."""
    count, culprits = case

    assert len(search(count, culprits).requests) <= 2 * len(culprits) * math.log2(count) + 1


@pytest.mark.parametrize("count", [1, 2, 7, 64, 500, 2000])
def test_bad_throughout(count: int) -> None:
    """If all events are bad, the bisection stops after eight bad events and refuses each remaining part as a whole."""
    done = search(count, range(count))

    assert done.all == list(range(count))
    assert len(done.alone) <= MOST_CULPRITS + 1
    assert len(done.requests) <= 2 * (MOST_CULPRITS + math.ceil(math.log2(count)) + 1)


def test_culprits_side_by_side_cost_nobody_else() -> None:
    """If the first eight of 500 events are bad, the other 492 are all accepted."""
    done = search(500, range(8))

    assert (len(done.accepted), len(done.together)) == (492, 0)


@given(CASES)
@PROPERTY
def test_it_keeps_the_order(case: tuple[int, set[int]]) -> None:
    """If a batch is bisected, its events are accepted in the order in which they were tracked."""
    accepted = search(*case).accepted

    assert accepted == sorted(accepted)


@given(CASES)
@PROPERTY
def test_what_was_accepted_is_not_sent_again(case: tuple[int, set[int]]) -> None:
    """If a request was accepted, none of its events is in a later request."""
    done = search(*case)
    seen: set[int] = set()
    for request in done.requests:
        assert not seen & set(request)
        if not set(request) & case[1]:
            seen |= set(request)


def test_a_part_too_large_is_halved_as_often_as_needed() -> None:
    """If a batch is above the size limit, it is sent in order in parts that fit; no part is refused for its size."""
    bisection = Bisection()
    parts = [bisection.fitting(batch_of(100), 40)]
    while (part := bisection.after(accepted=len(parts[-1]))) is not None:
        parts.append(bisection.fitting(part, 40))

    assert [number for part in parts for number in numbers(part)] == list(range(100))
    assert all(part.size <= 40 for part in parts)
    assert len(parts) <= 16


# --- through the engine ---


def refusing(*culprits: int, status: int = 400) -> Callable[[Request], Step | int]:
    """Return a server that refuses every request that contains one of these events."""
    return lambda request: status if set(request.numbers) & set(culprits) else OK


def outcomes(
    count: int, then: Callable[[Request], Step | int], *, visitor: str | None = None, **options: object
) -> tuple[list[Outcome], Engine]:
    """Track `count` events together; return their outcomes and the engine.

    If `visitor` is None, each event has another visitor.
    """

    async def test() -> tuple[list[Outcome], Engine]:
        engine = Engine(ScriptedTransport(then=then), **options)  # type: ignore[arg-type]
        receipts = [await engine.track(number, visitor) for number in range(count)]
        return [await receipt for receipt in receipts], engine

    return run(test())


def test_one_bad_event_does_not_poison_its_batch() -> None:
    """If one event is bad, only that event is rejected, by a request of its own; all others are recorded once."""
    reported, engine = outcomes(500, refusing(77))

    assert [number for number, outcome in enumerate(reported) if not isinstance(outcome, Delivered)] == [77]
    assert isinstance(reported[77], Rejected)
    assert (reported[77].status, reported[77].isolated, reported[77].maybe_recorded) == (400, True, False)
    assert engine.transport.recorded_numbers == [number for number in range(500) if number != 77]
    assert [77] in [request.numbers for request in engine.transport.requests]
    assert len(engine.transport.requests) - 1 == engine.stats().splits <= 2 * math.log2(500) + 1


def test_attempts_are_those_of_the_event() -> None:
    """If a batch is divided, an event's `attempts` are the requests that carried this event."""
    reported, engine = outcomes(8, refusing(7))
    carried = [sum(number in request.numbers for request in engine.transport.requests) for number in range(8)]

    assert [outcome.attempts for outcome in reported] == carried


def test_a_batch_bad_throughout_is_given_up_early() -> None:
    """If every event is refused, the number of requests is bounded: most events are rejected together."""
    reported, engine = outcomes(500, lambda _: 400)

    assert all(isinstance(outcome, Rejected) for outcome in reported)
    assert engine.stats().rejected == 500
    # The search stops after MOST_CULPRITS bad events. One of the parts that are left may be a single event, which also
    # counts as isolated.
    assert sum(outcome.isolated for outcome in reported if isinstance(outcome, Rejected)) <= MOST_CULPRITS + 1
    assert len(engine.transport.requests) <= 2 * (MOST_CULPRITS + 9)


async def test_other_batches_keep_flowing(virtual_clock: CheckedLoop) -> None:
    """If a batch is bisected, other batches are delivered meanwhile, because it has one request in flight at most."""
    engine = Engine(ScriptedTransport(then=refusing(3)), batching=Batching(max_events=10, max_in_flight=2))
    receipts = await engine.track_all(range(100))
    await receipts[99]
    others = now()
    await receipts[3]
    searched = now()

    # The bad batch takes 7 requests in sequence; the nine other batches take nine, at the same time.
    assert others < 0.5
    assert 0.3 < searched < 0.5


@pytest.mark.parametrize("failure", [503, Step(latency=0.01, reply=OK.reply, recorded=True)])
def test_a_part_that_fails_is_retried_alone(failure: Step | int) -> None:
    """If a part fails for another reason, only this part is sent again, and only its own attempts count."""
    script = iter([400, failure])

    def then(request: Request) -> Step | int:
        return next(script, 400 if 3 in request.numbers else OK)

    reported, engine = outcomes(4, then)

    assert [type(outcome) for outcome in reported] == [Delivered, Delivered, Delivered, Rejected]
    duplicates = [outcome.maybe_duplicate for outcome in reported if isinstance(outcome, Delivered)]
    assert duplicates == [failure == 503, failure == 503, False]
    assert len(engine.transport.recorded) == 3


def test_an_ordered_visitor_stays_in_order() -> None:
    """If events are ordered, a refused batch is recorded in the order of tracking, and before all later events."""
    options = {"batching": Batching(max_events=8)}
    _, engine = outcomes(40, refusing(2, 13, 30), visitor="visitor", **options)

    assert engine.transport.recorded_numbers == [number for number in range(40) if number not in (2, 13, 30)]


async def test_a_flush_waits_for_all_parts(virtual_clock: CheckedLoop) -> None:
    """If a batch is divided, a flush returns only when the last part has its outcome."""
    engine = Engine(ScriptedTransport(then=refusing(5)))
    await engine.track_all(range(6))
    await engine.flush()

    assert engine.stats().in_flight == 0

    assert engine.stats().delivered == 5


async def test_a_close_gives_every_part_its_outcome(virtual_clock: CheckedLoop) -> None:
    """If a close interrupts a bisection, only events whose own request was in flight may have been recorded."""
    script = iter([400])
    transport = ScriptedTransport(then=lambda _: next(script, OK))
    engine = Engine(transport)
    receipts = await engine.track_all(range(8))
    await engine.flush()
    assert all(isinstance(receipt.outcome, Delivered) for receipt in receipts)
    script = iter([400, 400, Step(latency=1e9)])
    receipts = await engine.track_all(range(8))
    report = await engine.aclose(1.0)
    reported = [receipt.outcome for receipt in receipts]

    assert [(type(outcome).__name__, outcome.maybe_recorded) for outcome in reported if outcome] == (
        [("Abandoned", True)] * 2 + [("Abandoned", False)] * 6
    )
    assert len(report.undelivered) == 8


@pytest.mark.parametrize("step", [Step(reply=ZeroDivisionError()), status(503)])
async def test_what_one_part_meets_is_not_told_of_another(virtual_clock: CheckedLoop, step: Step) -> None:
    """If the second half of a batch was never sent alone, its outcome is not affected by the first half's failure."""
    limiter = RecordingLimiter(gated=True)
    engine = Engine(ScriptedTransport(400, step), limiter=limiter, retry=RetryPolicy(max_attempts=1))
    receipts = await engine.track_all(range(4))
    for _ in range(2):
        await asyncio.sleep(0.2)
        limiter.grant()
    await asyncio.sleep(0.2)
    await engine.aclose(0.0)
    for receipt, known in zip(receipts, [True, True, False, False], strict=True):
        assert isinstance(receipt.outcome, Abandoned)
        assert receipt.outcome.maybe_recorded is known
        if not known:
            assert (receipt.outcome.attempts, receipt.outcome.status, receipt.outcome.failure) == (1, None, None)


def test_too_large_is_divided_without_blame() -> None:
    """If a batch is refused with 413 and both halves fit, both are delivered by two further requests."""

    def then(request: Request) -> Step | int:
        return 413 if len(request.body) > 600 else OK

    reported, engine = outcomes(8, then)

    assert all(isinstance(outcome, Delivered) for outcome in reported)
    assert len(engine.transport.requests) == 3
    assert engine.transport.recorded_numbers == list(range(8))


def test_an_event_too_large_alone_is_rejected() -> None:
    """If a single event is too large, this event is rejected, and the other events of its batch are delivered."""
    reported, _ = outcomes(5, refusing(4, status=413))

    assert [type(outcome) for outcome in reported] == [Delivered] * 4 + [Rejected]
    assert reported[4].status == 413


async def test_later_batches_stay_below_what_was_too_large(virtual_clock: CheckedLoop) -> None:
    """If a body was refused with 413, every later body is smaller, even with events batched before the refusal."""
    transport = ScriptedTransport(then=lambda request: 413 if len(request.body) > 3000 else OK)
    engine = Engine(transport, batching=Batching(max_events=50, max_in_flight=1))
    receipts = await engine.track_all(range(500))
    for receipt in receipts:
        assert isinstance(await receipt, Delivered)
    assert sorted(transport.recorded_numbers) == list(range(500))
    sizes = [len(request.body) for request in transport.requests]

    too_large = [size for size in sizes if size > 3000]

    assert len(too_large) <= 2
    assert sizes.index(too_large[-1]) <= 2


async def test_direct_sends_are_not_divided(virtual_clock: CheckedLoop) -> None:
    """If `send_batch` is refused, its events are refused together: it promises one request, so nothing is divided."""
    engine = Engine(ScriptedTransport(then=refusing(1)))
    with pytest.raises(BadRequestError) as caught:
        await engine.send_batch([0, 1, 2])

    assert isinstance(caught.value.outcome, Rejected)
    assert not caught.value.outcome.isolated

    assert (len(engine.transport.requests), engine.stats().rejected) == (1, 3)
