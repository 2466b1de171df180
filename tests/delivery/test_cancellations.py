"""Park a task at every await of the engine and cancel it: no event is lost or sent twice, and nothing leaks.

The last column names functions of this module that park a task there; `test_*` are tests of the modules named
`test_*_cancellations.py`, or of the module that is named.

=======================  ===========================================  ==============================================
await                    who is cancelled there                       parked by
=======================  ===========================================  ==============================================
`Intake.accept`          caller of `track`: waits for space           `track_waiting`, `track_waiting_behind`
`Intake.let_others_run`  caller of `track`: yields                    `track_yielding`
`Dispatcher.send`        caller of `send`: waits for its outcome      `send_*`, in each place where its flight waits
`Dispatcher._run_pump`   pump: first turn under eager tasks           `test_client.py`, the eager task factory
`Dispatcher._run_pump`   pump: waits for a broken limiter             `pump_with_broken_limiter`
`Dispatcher._sleep`      pump: lingers, or waits for a flight         `pump_lingering`, `pump_with_all_in_flight`
`Sender.next_turn`       pump: wire slot, permit                      `pump_without_slot`, `pump_without_permit`
`Sender.next_turn`       flight: wire slot, permit                    `send_without_*`, `retry_without_*`
`CircuitBreaker.wait`    pump: the API is down, or sending is halted  `pump_while_*`
`CircuitBreaker.wait`    flight: the API is down, or sending halted  `batch_while_*`, `send_while_*`
`CircuitBreaker.rest`    flight: backoff                              `send_backing_off`, `batch_backing_off`
`Sender._wait`           flight: the limiter is broken                `retry_with_broken_limiter`
`Sender._request`        flight: request                              `*_on_wire`
`Sender._request`        flight: request for a part of a batch        `half_on_wire`, `between_the_halves`
`Exchange.reply`         flight: the request itself, in every turn    `test_connections.py`
`Transport.renew_key`    flight: before a probe, after a 401          `*_renewing_the_key`
(none)                   before the first step                        `batch_not_started`, `pump_not_started`
`Dispatcher.flush`       caller of `flush`                            `flush_waiting`
`Ledger.flushed`         caller of `flush` or `aclose`                `flush_waiting`, `test_close_*`
`Shutdown._settle_rest`  caller of `aclose`: drops a full buffer      `test_close_cancelled_while_it_drops`
`Shutdown.close`         caller: flush, connections, hooks            `test_close_cancelled_*`
`Shutdown._join`         second caller of `aclose`                    `test_second_close_cancelled`
`Shutdown._last_words`   caller: connections, hooks                   `test_close_cancelled_while_*`
`Sender.aclose`          the task that closes the connections         `test_closing_task_cancelled`
`Hooks._run`, `._call`   the task that calls the hooks                `test_hooks.py`
`Hooks.drained`          the task that ends the hooks                 `test_ending_of_the_hooks_cancelled`
`Credentials._asked`     caller that needs the key                    `test_cancelled_while_the_key_is_asked_for`
`Credentials._ask_now`   the task that asks for the key               `test_asking_task_cancelled`
`Receipt.__await__`      caller that awaits a receipt                 `receipt_awaited`
`LocalLimiter.acquire`   pump, sender: queue, pace, window, pause     `test_local_limiter_grants_as_before`
`LocalLimiter.acquire`   flight: slowed down by a 429                 `test_retry_cancelled_in_a_throttled_limiter`
`AsyncTrackingClient.*`  caller of each method                        `test_client_method_cancelled`
`AsyncTrackingClient`    `track_many` in the caller's own iterator    `test_track_many_cancelled_in_the_feed`
=======================  ===========================================  ==============================================
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from retailrocket_async._delivery.rate_limiter import LocalLimiter, RateLimit
from retailrocket_async._delivery.retry import RetryPolicy
from retailrocket_async._outcome import Abandoned, Delivered
from retailrocket_async._queue.options import Batching, Buffer
from tests.support.cancelling import cancel
from tests.support.engine_state import flight_tasks, free_wire_slots, pump_task, waiting_at_breaker
from tests.support.fakes import (
    NO_CONNECTION,
    OK,
    PARKED,
    SLOW_RETRY,
    Engine,
    RecordingLimiter,
    ScriptedTransport,
    Step,
    check_balance,
    into,
    number_of,
    tasks,
    turns,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from retailrocket_async._receipt import Receipt
    from retailrocket_async._stats import UndeliveredEvent
    from tests.support.virtual_time import CheckedLoop

IN_FLIGHT = 2


class Scene:
    """Bundles an engine that allows few requests in flight with its limiter and its scripted server.

    Attributes:
        receipts: the receipts of tracked events, by the events' numbers.
        sends: the tasks of direct sends, by the events' numbers.
    """

    def __init__(self, *script: Step | int, then: Step | int = OK, gated: bool = False, **options: Any) -> None:
        self.transport = ScriptedTransport(*script, then=then)
        self.limiter = RecordingLimiter(*options.pop("errors", ()), gated=gated)
        options.setdefault("batching", Batching(max_events=1, max_in_flight=IN_FLIGHT))
        self.engine = Engine(self.transport, limiter=self.limiter, **options)
        self.receipts: dict[int, Receipt] = {}
        self.sends: dict[int, asyncio.Task[Any]] = {}

    async def track(self, *numbers: int) -> None:
        """Track events with these numbers."""
        for number in numbers:
            self.receipts[number] = await self.engine.track(number)

    async def send(self, *numbers: int) -> None:
        """Start direct sends of these events, and wait until they can go no further."""
        for number in numbers:
            self.sends[number] = asyncio.create_task(self.engine.send(number))
        await asyncio.sleep(1.0)

    @property
    def pump(self) -> asyncio.Task[Any]:
        """The pump: the task that takes batches from the buffer and sends them."""
        pump = pump_task(self.engine)
        assert pump is not None
        assert not pump.done()
        return pump

    @property
    def flight(self) -> asyncio.Task[Any]:
        """The task of the only batch or direct send that is under way."""
        (task,) = flight_tasks(self.engine)
        return task

    def mend(self) -> None:
        """Let the limiter grant every permit and the server answer every request from now on."""
        self.limiter.open_gate()
        self.transport.then = OK
        self.transport.keeps_key = False
        self.transport.release()


@attrs.frozen
class Parked:
    """Holds a scene whose `task` waits at the await where the test cancels it.

    Attributes:
        refused: numbers of events that were never accepted.
        abandoned: numbers of events whose own batch or send is cancelled, and whether they may be recorded.
        again: numbers of events that were in a request before, and may be sent in another.
    """

    scene: Scene
    task: asyncio.Task[Any]
    refused: frozenset[int] = frozenset()
    abandoned: dict[int, bool] = attrs.field(factory=dict)
    again: frozenset[int] = frozenset()


# --- places to cancel at ---


async def track_waiting() -> Parked:
    """A caller waits for space in the buffer."""
    scene = Scene(gated=True, buffer=Buffer(max_events=2))
    await scene.track(1, 2)
    caller = asyncio.create_task(scene.track(3))
    await asyncio.sleep(1.0)
    return Parked(scene, caller, refused=frozenset({3}))


async def track_waiting_behind() -> Parked:
    """A caller waits behind another one."""
    scene = Scene(gated=True, buffer=Buffer(max_events=2))
    await scene.track(1, 2)
    first, second = (asyncio.create_task(scene.track(number)) for number in (3, 4))
    await asyncio.sleep(1.0)
    assert not first.done()
    return Parked(scene, second, refused=frozenset({4}))


async def track_yielding() -> Parked:
    """A caller of `track` yields to other tasks after its 250th event."""
    scene = Scene(gated=True, batching=Batching(max_events=1000, max_in_flight=IN_FLIGHT))
    await scene.track(*range(1, 250))
    caller = asyncio.create_task(scene.track(250))
    await asyncio.sleep(0)
    assert scene.engine.stats().tracked == 250
    assert not caller.done()
    return Parked(scene, caller)


async def send_on_wire() -> Parked:
    """A direct send waits for its answer."""
    scene = Scene(then=PARKED)
    await scene.send(1)
    return Parked(scene, scene.sends[1], abandoned={1: True})


async def send_without_permit() -> Parked:
    """A direct send waits for its permit."""
    scene = Scene(gated=True)
    await scene.send(1, 2)
    return Parked(scene, scene.sends[1], abandoned={1: False})


async def send_without_slot() -> Parked:
    """A direct send waits for a free wire slot."""
    scene = Scene(then=PARKED)
    await scene.send(1, 2, 3, 4)
    return Parked(scene, scene.sends[3], abandoned={3: False})


async def send_backing_off() -> Parked:
    """A direct send waits for its second attempt, after a first one that may have been recorded."""
    scene = Scene(503, retry=SLOW_RETRY)
    await scene.send(1)
    return Parked(scene, scene.sends[1], abandoned={1: True})


async def send_not_started() -> Parked:
    """A direct send has been created, and its task has not run yet."""
    scene = Scene()
    caller = asyncio.create_task(scene.engine.send(1))
    await asyncio.sleep(0)
    assert scene.engine.stats().in_flight == 1
    scene.sends[1] = caller
    return Parked(scene, caller, abandoned={1: False})


async def pump_not_started() -> Parked:
    """The pump has been created, and its task has not run yet."""
    scene = Scene()
    await scene.track(1)
    return Parked(scene, scene.pump)


async def pump_lingering() -> Parked:
    """The pump waits until the oldest event's linger is over."""
    scene = Scene(batching=Batching(linger=60.0, max_in_flight=IN_FLIGHT))
    await scene.track(1, 2, 3)
    await asyncio.sleep(1.0)
    return Parked(scene, scene.pump)


async def pump_with_all_in_flight() -> Parked:
    """The pump waits until one of the batches in flight has its outcome."""
    scene = Scene(then=PARKED)
    await scene.track(1, 2, 3, 4)
    await asyncio.sleep(1.0)
    return Parked(scene, scene.pump)


async def pump_without_slot() -> Parked:
    """The pump waits for a wire slot, because direct sends wait before it."""
    scene = Scene(then=PARKED)
    await scene.send(11, 12)
    await scene.track(1, 2)
    await asyncio.sleep(1.0)
    return Parked(scene, scene.pump)


async def pump_without_permit() -> Parked:
    """The pump waits for a permit."""
    scene = Scene(gated=True)
    await scene.track(1, 2)
    await asyncio.sleep(1.0)
    return Parked(scene, scene.pump)


async def pump_with_broken_limiter() -> Parked:
    """The pump waits before it asks a broken limiter again."""
    scene = Scene(errors=[OSError()])
    await scene.track(1, 2)
    await asyncio.sleep(0.5)
    return Parked(scene, scene.pump)


async def batch_not_started() -> Parked:
    """A batch was taken, and its task has not run yet."""
    scene = Scene(batching=Batching(linger=0.0, max_in_flight=IN_FLIGHT))
    await scene.track(1, 2)
    await asyncio.sleep(0)
    assert scene.engine.stats().in_flight == 2
    assert scene.transport.requests == []
    return Parked(scene, scene.flight, abandoned={1: False, 2: False})


async def batch_on_wire() -> Parked:
    """A batch waits for its answer."""
    scene = Scene(then=PARKED)
    await scene.track(1)
    await asyncio.sleep(1.0)
    return Parked(scene, scene.flight, abandoned={1: True})


async def batch_backing_off() -> Parked:
    """A batch waits for its second attempt, after an answer that shows that nothing was recorded."""
    scene = Scene(429, retry=SLOW_RETRY)
    await scene.track(1)
    await asyncio.sleep(1.0)
    return Parked(scene, scene.flight, abandoned={1: False})


async def retry_without_permit() -> Parked:
    """A batch waits for the permit of its second attempt."""
    scene = Scene(429, gated=True)
    await scene.track(1)
    await asyncio.sleep(0.2)
    scene.limiter.grant()
    await asyncio.sleep(1.0)
    assert scene.limiter.asked == 2
    return Parked(scene, scene.flight, abandoned={1: False})


async def retry_without_slot() -> Parked:
    """A batch waits for a wire slot for its second attempt."""
    scene = Scene(503, then=PARKED)
    await scene.track(1)
    await asyncio.sleep(0.02)
    # The batch has the first wire slot; the direct sends take the second, and later the first.
    flight = scene.flight
    await scene.send(11, 12)
    assert scene.transport.sent_numbers == [1, 11, 12]
    return Parked(scene, flight, abandoned={1: True})


async def flush_waiting() -> Parked:
    """A flush waits until an event has its outcome."""
    scene = Scene(then=PARKED)
    await scene.track(1, 2, 3)
    flush = asyncio.create_task(scene.engine.flush(100.0))
    await asyncio.sleep(1.0)
    return Parked(scene, flush)


async def receipt_awaited() -> Parked:
    """A task awaits a receipt."""
    scene = Scene(then=PARKED)
    await scene.track(1, 2, 3)
    waiter = asyncio.create_task(scene.receipts[1].delivered())
    await asyncio.sleep(1.0)
    return Parked(scene, waiter)


# An interval between probes that is longer than the scenes below take, and shorter than the test waits.
WHILE_DOWN = RetryPolicy(initial_backoff=20.0, max_backoff=20.0, max_elapsed=1e9)


async def outage(then: Step | int, state: str) -> Scene:
    """Return a scene in which event 1 waits for its next attempt, while the API is down or sending is halted."""
    scene = Scene(then=then, retry=WHILE_DOWN)
    await scene.track(1)
    while scene.engine.stats().state != state:  # noqa: ASYNC110 - on a virtual clock
        await asyncio.sleep(0.01)
    await turns()
    assert scene.transport.in_flight == 0
    return scene


async def pump_while_down() -> Parked:
    """The pump waits until the API is available again."""
    scene = await outage(NO_CONNECTION, "down")
    await scene.track(2)
    await asyncio.sleep(0.5)
    assert len(waiting_at_breaker(scene.engine)) == 2
    return Parked(scene, scene.pump, again=frozenset({1}))


async def pump_while_halted() -> Parked:
    """The pump waits while sending is halted."""
    scene = await outage(401, "halted")
    await scene.track(2)
    await asyncio.sleep(0.5)
    assert len(waiting_at_breaker(scene.engine)) == 2
    return Parked(scene, scene.pump, again=frozenset({1}))


async def batch_while_down() -> Parked:
    """A batch waits until the API is available again, and the pump waits after it with another event."""
    scene = await outage(NO_CONNECTION, "down")
    flight = scene.flight
    await scene.track(2)
    await asyncio.sleep(0.5)
    return Parked(scene, flight, abandoned={1: False}, again=frozenset({1}))


async def batch_while_halted() -> Parked:
    """A batch that was refused for its key waits for its next attempt; the pump waits after it with another event."""
    scene = await outage(401, "halted")
    flight = scene.flight
    await scene.track(2)
    await asyncio.sleep(0.5)
    return Parked(scene, flight, abandoned={1: False}, again=frozenset({1}))


async def send_while_down() -> Parked:
    """A direct send waits until the API is available again."""
    scene = await outage(NO_CONNECTION, "down")
    scene.sends[11] = asyncio.create_task(scene.engine.send(11))
    await asyncio.sleep(0.5)
    return Parked(scene, scene.sends[11], abandoned={11: False}, again=frozenset({1}))


async def send_while_halted() -> Parked:
    """A direct send waits while sending is halted."""
    scene = await outage(401, "halted")
    scene.sends[11] = asyncio.create_task(scene.engine.send(11))
    await asyncio.sleep(0.5)
    return Parked(scene, scene.sends[11], abandoned={11: False}, again=frozenset({1}))


async def probe_on_wire() -> Parked:
    """The probe is in flight, and other requests wait for its result."""
    scene = await outage(NO_CONNECTION, "down")
    scene.transport.answer_next(PARKED)
    scene.transport.then = OK
    flight = scene.flight
    await scene.track(2)
    await asyncio.sleep(21.0)
    assert scene.transport.parked == 1
    return Parked(scene, flight, abandoned={1: True}, again=frozenset({1}))


async def probe_renewing_the_key() -> Parked:
    """The probe has its send slot, and asks for the key before its request is sent."""
    scene = await outage(401, "halted")
    scene.transport.keeps_key = True
    flight = scene.flight
    await scene.track(2)
    await asyncio.sleep(1.5)
    assert scene.transport.parked == 1
    assert (scene.transport.in_flight, scene.limiter.open) == (0, 1)
    return Parked(scene, flight, abandoned={1: False}, again=frozenset({1}))


async def batch_renewing_the_key() -> Parked:
    """A batch was refused for its key, and waits for another key."""
    scene = Scene(401)
    scene.transport.keeps_key = True
    await scene.track(1, 2)
    await asyncio.sleep(1.0)
    assert scene.transport.parked == 1
    return Parked(scene, scene.flight, abandoned={1: False}, again=frozenset({1}))


async def half_on_wire() -> Parked:
    """The first half of a refused batch waits for its answer."""
    scene = Scene(400, then=PARKED, batching=Batching(max_events=4, max_in_flight=IN_FLIGHT))
    await scene.track(1, 2, 3, 4)
    await asyncio.sleep(1.0)
    assert scene.transport.requests[-1].numbers == [1, 2]
    return Parked(scene, scene.flight, abandoned={1: True, 2: True, 3: False, 4: False}, again=frozenset({1, 2, 3, 4}))


async def between_the_halves() -> Parked:
    """The first half of a refused batch is delivered, and the second half waits for its permit."""
    scene = Scene(400, gated=True, batching=Batching(max_events=4, max_in_flight=IN_FLIGHT))
    await scene.track(1, 2, 3, 4)
    for _ in range(2):
        await asyncio.sleep(0.2)
        scene.limiter.grant()
    await asyncio.sleep(1.0)
    assert scene.transport.recorded_numbers == [1, 2]
    return Parked(scene, scene.flight, abandoned={3: False, 4: False}, again=frozenset({1, 2, 3, 4}))


async def retry_with_broken_limiter() -> Parked:
    """A batch waits before it asks a broken limiter again."""
    scene = Scene(503, errors=[None, OSError(), OSError()], retry=WHILE_DOWN)
    await scene.track(1)
    while scene.limiter.asked < 2:  # noqa: ASYNC110 - on a virtual clock
        await asyncio.sleep(0.01)
    return Parked(scene, scene.flight, abandoned={1: True}, again=frozenset({1}))


PLACES = [
    pump_while_down,
    pump_while_halted,
    batch_while_down,
    batch_while_halted,
    send_while_down,
    send_while_halted,
    probe_on_wire,
    probe_renewing_the_key,
    batch_renewing_the_key,
    half_on_wire,
    between_the_halves,
    retry_with_broken_limiter,
    track_waiting,
    track_waiting_behind,
    track_yielding,
    send_on_wire,
    send_without_permit,
    send_without_slot,
    send_backing_off,
    send_not_started,
    pump_not_started,
    pump_lingering,
    pump_with_all_in_flight,
    pump_without_slot,
    pump_without_permit,
    pump_with_broken_limiter,
    batch_not_started,
    batch_on_wire,
    batch_backing_off,
    retry_without_permit,
    retry_without_slot,
    flush_waiting,
    receipt_awaited,
]


@pytest.mark.untraced
@pytest.mark.parametrize("mended_first", [False, True])
@pytest.mark.parametrize("place", PLACES)
async def test_cancelled(
    virtual_clock: CheckedLoop,
    place: Callable[[], Coroutine[Any, Any, Parked]],
    mended_first: bool,  # noqa: FBT001
) -> None:
    """If a task is cancelled here, even in the turn that ends its wait, no event, wire slot or permit is lost."""
    parked = await place()
    scene, engine, transport = parked.scene, parked.scene.engine, parked.scene.transport
    if mended_first:
        # The awaited result comes in the same turn as the cancellation, right before it.
        scene.mend()
        parked.task.cancel()
        await asyncio.wait({parked.task})
    else:
        await cancel(parked.task)
        await turns()
        scene.mend()
    await asyncio.sleep(1.0)

    # No event is lost: events that the cancelled task did not send go with the next batch.
    await scene.track(1000)
    await engine.flush(60.0)
    for number, receipt in scene.receipts.items():
        outcome = receipt.outcome
        if number in parked.abandoned and not isinstance(outcome, Delivered):
            assert isinstance(outcome, Abandoned)
            assert (outcome.reason, outcome.maybe_recorded) == ("cancelled", parked.abandoned[number])
        else:
            assert isinstance(outcome, Delivered)
            assert transport.recorded_numbers.count(number) == 1
    await asyncio.sleep(1.0)
    for number, send in scene.sends.items():
        assert send.done()
        assert send is parked.task or isinstance(send.result(), Delivered), number

    # No batch is sent twice, and only accepted events are sent.
    counts = Counter(transport.sent_numbers)
    assert {number for number, count in counts.items() if count > 1} <= parked.again
    assert max(Counter(transport.recorded_numbers).values()) == 1
    if not mended_first:
        assert not parked.refused & counts.keys()
    accepted = scene.receipts.keys() | scene.sends.keys() | parked.refused | {250}
    assert counts.keys() <= accepted

    # All wire slots and permits are available again.
    transport.then = PARKED
    await scene.send(*range(2000, 2000 + IN_FLIGHT + 1))
    assert transport.in_flight == transport.parked == IN_FLIGHT
    assert scene.limiter.open == IN_FLIGHT
    scene.mend()
    await asyncio.sleep(1.0)
    report = await engine.aclose(60.0)
    assert report.clean
    assert scene.limiter.open == scene.limiter.waiting == 0
    check_balance(report.stats)

    assert report.stats.abandoned <= len(parked.abandoned)
    assert tasks() == set()


# --- cancelling in every turn ---


@pytest.mark.untraced
@pytest.mark.parametrize("turn", [*range(40), *range(40, 400, 9)])
async def test_everyone_cancelled_in_any_turn(virtual_clock: CheckedLoop, turn: int) -> None:
    """If all tasks are cancelled in one turn of the event loop, a close gives each accepted event one outcome."""
    limiter = LocalLimiter(RateLimit(requests=20, jitter=0.0))
    transport = ScriptedTransport(503, 200, 429, then=lambda request: 503 if len(transport.requests) % 5 == 0 else 200)
    engine = Engine(
        transport,
        limiter=limiter,
        buffer=Buffer(max_events=4),
        batching=Batching(max_events=2, max_in_flight=IN_FLIGHT),
        retry=RetryPolicy(initial_backoff=0.1, max_backoff=0.1),
    )
    receipts: list[Receipt] = []

    async def caller(first: int) -> None:
        for number in range(first, first + 10):
            receipts.append(await engine.track(number, f"v{number % 3}"))  # noqa: PERF401 - kept one by one

    async def sender() -> None:
        for number in range(100, 110):
            await engine.send(number)

    work = [asyncio.create_task(each) for each in (caller(0), caller(10), sender(), engine.flush())]
    for _ in range(turn):
        await asyncio.sleep(0 if turn < 40 else 0.002)
    for task in tasks():
        task.cancel()
    await asyncio.wait(work)
    report = await engine.aclose(None)
    stats = report.stats
    assert (stats.pending, stats.in_flight, stats.dropped, stats.rejected) == (0, 0, 0, 0)
    recorded = Counter(transport.recorded_numbers)
    for receipt in receipts:
        assert receipt.outcome is not None
    assert max(recorded.values(), default=0) <= 1
    assert stats.delivered <= sum(recorded.values()) <= stats.delivered + stats.abandoned
    await turns(5)

    assert free_wire_slots(engine) == IN_FLIGHT
    assert tasks() == set()


FAULTS: list[Step | int] = [400, 401, 200, 413, *[NO_CONNECTION] * 8, 429, 400, 403]


@pytest.mark.untraced
@pytest.mark.parametrize("turn", [*range(0, 60, 2), *range(60, 460, 16)])
async def test_everyone_cancelled_amid_faults(virtual_clock: CheckedLoop, turn: int) -> None:
    """If every task is cancelled amid refusals, outage and halt, each event is settled and each loss is reported."""
    reported: list[UndeliveredEvent] = []
    transport = ScriptedTransport(*FAULTS, then=lambda request: 400 if 3 in request.numbers else 200)
    limiter = RecordingLimiter()
    engine = Engine(
        transport,
        limiter=limiter,
        buffer=Buffer(max_events=6, max_age=60.0),
        batching=Batching(max_events=4, max_in_flight=IN_FLIGHT),
        retry=RetryPolicy(initial_backoff=0.1, max_backoff=0.1),
        on_outcome=into(reported),
    )
    receipts: dict[int, Receipt] = {}

    async def caller(first: int) -> None:
        for number in range(first, first + 8):
            receipts[number] = await engine.track(number, f"v{number % 3}")

    work = [asyncio.create_task(each) for each in (caller(0), caller(10), engine.flush())]
    for _ in range(turn):
        await asyncio.sleep(0 if turn < 60 else 0.01)
    for task in tasks():
        task.cancel()
    await asyncio.wait(work)
    transport.answer_next()
    report = await engine.aclose(None)
    recorded = Counter(transport.recorded_numbers)
    assert max(recorded.values(), default=0) <= 1
    for number, receipt in receipts.items():
        outcome = receipt.outcome
        assert outcome is not None
        assert number in recorded or not isinstance(outcome, Delivered)
        assert number not in recorded or outcome.maybe_recorded
    undelivered = {number for number, receipt in receipts.items() if not isinstance(receipt.outcome, Delivered)}
    # If the tracking call was cancelled in the turn in which its event was accepted, the test has no receipt of it.
    assert undelivered <= set(map(number_of, reported))
    assert len(reported) == report.stats.tracked - report.stats.delivered
    await turns(5)

    assert free_wire_slots(engine) == IN_FLIGHT
    assert limiter.open == 0
    assert tasks() == set()
