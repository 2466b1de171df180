"""The user's hooks get every report, in order and one call at a time, and never delay the delivery."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest

from retailrocket_async._delivery.hooks import Hooks
from retailrocket_async._delivery.ledger import Ledger
from retailrocket_async._http.reply import Reply
from retailrocket_async._outcome import Abandoned, Delivered, Dropped, Rejected
from retailrocket_async._queue.options import Batching
from retailrocket_async._runtime.loop_affinity import LoopAffinity
from retailrocket_async._stats import StateChange, UndeliveredEvent
from tests.support.engine_state import breaker_of, hooks_ending_task, hooks_of, hooks_task, queued_for_hooks
from tests.support.fakes import (
    NEVER,
    NO_CONNECTION,
    OK,
    ROUNDING,
    Engine,
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
from tests.support.ids import shown
from tests.support.receipts import batch_with

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.support.virtual_time import CheckedLoop

REFUSED = Rejected(status=400)


def undelivered(*numbers: int) -> list[UndeliveredEvent]:
    """Return these events as refused ones, in the form that a hook gets."""
    return [
        UndeliveredEvent(
            event_name="view", envelope=b'{"view":{"sessionExternalId":"a","productId":%d}}' % n, outcome=REFUSED
        )
        for n in numbers
    ]


def change(number: int) -> StateChange:
    """Return a change of state that has the number as its status, so that tests can recognize it."""
    return StateChange(state="down", previous="sending", status=number, advice="wait")


def at_once(status: int) -> Step:
    """Return the step by which a server answers with this status and without latency."""
    return Step(reply=Reply(status=status), latency=0.0)


class RecordingHooks:
    """Runs hooks that record their calls; if `blocks`, a plain hook blocks until `release` is set.

    Attributes:
        calls: for each call, the numbers of its events and the name of its thread.
    """

    def __init__(self, *, blocks: bool = False, most: int = 10_000, hook: Callable[..., object] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.calls: list[tuple[list[int], str]] = []
        self.failures: list[tuple[str, BaseException]] = []
        self.begun = asyncio.Event()
        self.release = threading.Event()
        self.running = self.worst = 0
        if not blocks:
            self.release.set()
        self.hooks = Hooks(
            LoopAffinity(),
            hook or self.plainly,
            hook or self.plainly,
            most=most,
            failures=self,
        )

    def hook_failed(self, name: str, error: BaseException) -> None:
        """Record an error of a hook."""
        self.failures.append((name, error))

    def plainly(self, reported: Sequence[UndeliveredEvent] | StateChange) -> None:
        """Record a call, in any thread, after `release` is set."""
        self.running += 1
        self.worst = max(self.worst, self.running)
        self.loop.call_soon_threadsafe(self.begun.set)
        assert self.release.wait(60.0)
        numbers = [reported.status or 0] if isinstance(reported, StateChange) else list(map(number_of, reported))
        self.calls.append((numbers, threading.current_thread().name))
        self.running -= 1

    @property
    def numbers(self) -> list[int]:
        """All recorded numbers, in order."""
        return [number for numbers, _ in self.calls for number in numbers]


def own_threads() -> list[threading.Thread]:
    """Return the threads that hooks run in."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("retailrocket-hooks")]


# --- plain functions ---


async def test_plain_hooks_share_one_thread() -> None:
    """If a hook is a plain function, it is called in its own thread, one call at a time, in the order of events."""
    recorder = RecordingHooks(blocks=True)
    for number in range(0, 30, 3):
        recorder.hooks.notify_outcomes(undelivered(number, number + 1))
        recorder.hooks.notify_state(change(number + 2))
    await recorder.begun.wait()
    recorder.release.set()
    await recorder.hooks.drained()
    recorder.hooks.close()

    assert recorder.numbers == list(range(30))
    assert recorder.worst == 1
    assert len({thread for _, thread in recorder.calls}) == 1
    assert recorder.calls[0][1].startswith("retailrocket-hooks")
    assert recorder.failures == []


async def test_blocking_hook_does_not_block_the_loop() -> None:
    """If a plain hook blocks, events are still tracked, sent and settled."""
    loop = asyncio.get_running_loop()
    begun, delivered = asyncio.Event(), threading.Event()

    def hook(_: Sequence[UndeliveredEvent]) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert delivered.wait(60.0)

    engine = Engine(
        ScriptedTransport(at_once(400), then=at_once(200)),
        batching=Batching(linger=0.0),
        on_outcome=hook,
    )
    await (await engine.track(1))
    await begun.wait()
    assert isinstance(await (await engine.track(2)), Delivered)
    delivered.set()
    report = await engine.aclose()

    assert (report.stats.hook_errors, report.stats.rejected, report.stats.delivered) == (0, 1, 1)


async def test_no_thread_without_failures() -> None:
    """If nothing fails, or the hook is a coroutine function, no hook thread starts; after a close it has ended."""
    # Threads of other tests may end meanwhile.
    before = own_threads()
    reported: list[Sequence[UndeliveredEvent]] = []
    transport = ScriptedTransport(then=at_once(200))
    engine = Engine(transport, batching=Batching(linger=0.0), on_outcome=reported.append)
    await (await engine.track(1))
    assert set(own_threads()) <= set(before)
    transport.then = at_once(400)
    await (await engine.track(2))
    while not reported:  # noqa: ASYNC110 - the thread has no other way to tell than this list
        await asyncio.sleep(0)
    (thread,) = set(own_threads()) - set(before)
    await engine.aclose()
    thread.join(60.0)
    assert not thread.is_alive()

    engine = Engine(transport, batching=Batching(linger=0.0), on_outcome=into([]))
    await (await engine.track(3))
    await engine.aclose()
    assert set(own_threads()) <= set(before)


async def test_plain_function_that_returns_an_awaitable() -> None:
    """If a callable returns a coroutine, for example an object with an async `__call__`, the loop awaits it."""
    seen: list[bool] = []

    class Hook:
        async def __call__(self, _: object) -> None:
            seen.append(asyncio.get_running_loop() is recorder.loop)

    recorder = RecordingHooks(hook=Hook())
    recorder.hooks.notify_outcomes(undelivered(1))
    await recorder.hooks.drained()
    recorder.hooks.close()

    assert seen == [True]


# --- coroutine functions ---


async def test_coroutine_hooks_are_awaited_in_turn(virtual_clock: CheckedLoop) -> None:
    """If a hook is a coroutine function, it is awaited in the loop, one call at a time, in the order of events."""
    calls: list[tuple[float, int]] = []

    async def hook(reported: Any) -> None:
        calls.append((now(), reported.status if isinstance(reported, StateChange) else number_of(reported[0])))
        await asyncio.sleep(1.0)

    hooks = RecordingHooks(hook=hook).hooks
    for number in range(0, 6, 2):
        hooks.notify_outcomes(undelivered(number))
        hooks.notify_state(change(number + 1))
    await hooks.drained()

    assert [number for _, number in calls] == list(range(6))
    assert [at for at, _ in calls] == pytest.approx(range(6), abs=ROUNDING)
    assert threading.active_count() == 1 + len(own_threads())


async def test_hook_is_told_of_changes_of_state(virtual_clock: CheckedLoop) -> None:
    """If the state changes, `on_state_change` gets each change once, in order, with its advice."""
    changes: list[StateChange] = []

    async def hook(reported: StateChange) -> None:
        changes.append(reported)

    transport = ScriptedTransport(*[NO_CONNECTION] * 5, 401, then=200)
    engine = Engine(transport, batching=Batching(max_events=1, max_in_flight=1), renewable=True, on_state_change=hook)
    await engine.track_all(range(3))
    await engine.flush()
    await engine.aclose()

    assert [(reported.previous, reported.state, reported.status) for reported in changes] == [
        ("sending", "down", None),
        ("down", "halted", 401),
        ("halted", "sending", None),
    ]
    assert all(reported.advice for reported in changes)


# --- hooks that raise ---


def _raising(error: BaseException, *, coroutine: bool) -> Callable[[object], object]:
    def plainly(_: object) -> None:
        raise error

    async def later(_: object) -> None:
        raise error

    return later if coroutine else plainly


@pytest.mark.parametrize("coroutine", [False, True])
@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError(), asyncio.CancelledError(), concurrent.futures.CancelledError(), TimeoutError()],
    ids=shown,
)
async def test_raising_hooks(caplog: pytest.LogCaptureFixture, error: BaseException, coroutine: bool) -> None:  # noqa: FBT001
    """If hooks raise, even a cancellation, errors are counted, the first is logged, and hooks are called again."""
    hook = _raising(error, coroutine=coroutine)
    script = [at_once(code) for code in (400, 401, 200, 400)]
    engine = Engine(
        ScriptedTransport(*script, then=at_once(200)),
        batching=Batching(linger=0.0),
        renewable=True,
        on_outcome=hook,
        on_state_change=hook,
    )
    engine.transport.renewals = []
    await (await engine.track(1))
    await hooks_of(engine).drained()
    receipt = await engine.track(2)
    while engine.stats().state != "halted":  # noqa: ASYNC110 - turns of the loop, not time
        await asyncio.sleep(0)
    breaker_of(engine).hurry(now())
    await receipt
    await (await engine.track(3))
    report = await engine.aclose()

    assert (report.stats.rejected, report.stats.delivered) == (2, 1)
    assert engine.stats().hook_errors == 4
    for name in ("on_outcome", "on_state_change"):
        assert sum(f"{name} raised {type(error).__name__}" in record.message for record in caplog.records) <= 1
    assert sum(" raised " in record.message for record in caplog.records) == 2


# --- hooks that are slow ---


async def test_slow_hook_misses_what_does_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    """If a hook is slow, a bounded number of events waits for it; further ones are counted, and logged once."""
    recorder = RecordingHooks(blocks=True)
    ledger = Ledger(LoopAffinity(), recorder.plainly, None, max_unreported=10)
    for size in (3, 4, 5, 6):
        batch = batch_with([kept.envelope for kept in undelivered(*range(size))])
        ledger.close_batch(batch, REFUSED)
    assert ledger.hooks.missed == 8
    recorder.release.set()
    await ledger.hooks.drained()
    ledger.hooks.close()

    assert len(recorder.numbers) == 10
    assert [record.levelno for record in caplog.records if "too slow" in record.message] == [logging.ERROR]


async def test_missed_events_are_counted_while_the_hook_runs() -> None:
    """If a hook is running, the events of its running call do not count against the bound of waiting events."""
    recorder = RecordingHooks(blocks=True, most=2)
    recorder.hooks.notify_outcomes(undelivered(1, 2))
    await recorder.begun.wait()
    recorder.hooks.notify_outcomes(undelivered(3))
    recorder.hooks.notify_outcomes(undelivered(4, 5))
    recorder.release.set()
    await recorder.hooks.drained()
    recorder.hooks.close()

    assert recorder.numbers == [1, 2, 3, 4]
    assert recorder.hooks.missed == 1


@pytest.mark.parametrize("sizes", [[2500], [1] * 2500, [600, 600, 600, 700], [999, 2, 1499]])
async def test_calls_are_filled_up_to_a_thousand(sizes: list[int]) -> None:
    """If events wait in a row, the hook gets them together, at most a thousand in one call."""
    recorder = RecordingHooks()
    begin = 0
    for size in sizes:
        recorder.hooks.notify_outcomes(undelivered(*range(begin, begin + size)))
        begin += size
    await recorder.hooks.drained()
    recorder.hooks.close()

    assert [len(numbers) for numbers, _ in recorder.calls] == [1000, 1000, 500]
    assert recorder.numbers == list(range(2500))


async def test_changes_of_state_are_bounded() -> None:
    """If a hook is slow and too many changes of state wait, the oldest are discarded, and it gets the latest."""
    recorder = RecordingHooks(blocks=True)
    recorder.hooks.notify_outcomes(undelivered(0))
    for number in range(1, 501):
        recorder.hooks.notify_state(change(number))
    assert queued_for_hooks(recorder.hooks) == 101
    recorder.release.set()
    await recorder.hooks.drained()
    recorder.hooks.close()

    assert recorder.numbers == [0, *range(401, 501)]


# --- cancellation ---


async def test_cancelled_while_the_thread_is_busy() -> None:
    """If a shutdown cancels every task while the hook's thread is busy, each waiting report still comes, in order."""
    recorder = RecordingHooks(blocks=True)
    recorder.hooks.notify_outcomes(undelivered(1))
    await recorder.begun.wait()
    for number in range(2, 6):
        recorder.hooks.notify_outcomes(undelivered(number))
        recorder.hooks.notify_state(change(number * 10))
        await turns()
        task = hooks_task(recorder.hooks)
        assert task is not None
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
    recorder.release.set()
    await recorder.hooks.drained()
    recorder.hooks.close()

    assert recorder.numbers == [1, 2, 20, 3, 30, 4, 40, 5, 50]
    assert recorder.worst == 1


@pytest.mark.parametrize("before", range(4))
async def test_cancelled_in_a_coroutine_hook(virtual_clock: CheckedLoop, before: int) -> None:
    """If a hook's task is cancelled, in any turn, at most the call that has already begun is interrupted."""
    begun: list[int] = []

    async def hook(reported: Sequence[UndeliveredEvent]) -> None:
        begun.extend(map(number_of, reported))
        await asyncio.sleep(1.0)

    recorder = RecordingHooks(hook=hook)
    recorder.hooks.notify_outcomes(undelivered(1))
    await turns(before)
    recorder.hooks.notify_outcomes(undelivered(2))
    for task in tasks():
        task.cancel()
    await turns()
    await recorder.hooks.drained()

    assert begun == [1, 2]


async def test_close_after_everything_was_cancelled() -> None:
    """If a shutdown cancels every task and then closes the client, the hook gets the events that are still waiting."""
    reported: list[Sequence[UndeliveredEvent]] = []
    engine = Engine(
        ScriptedTransport(then=at_once(400)),
        batching=Batching(linger=0.0),
        on_outcome=reported.append,
    )
    await (await engine.track(1))
    for task in tasks():
        task.cancel()
    await turns()
    assert reported == []
    await engine.aclose()

    assert [list(map(number_of, each)) for each in reported] == [[1]]


# --- closing ---


@pytest.mark.parametrize(("takes", "timeout", "returns"), [(3.0, 10.0, 3.0), (1e6, 10.0, 10.0), (50.0, None, 50.0)])
async def test_close_waits_for_the_hook(
    virtual_clock: CheckedLoop,
    takes: float,
    timeout: float | None,  # noqa: ASYNC109
    returns: float,
) -> None:
    """If a hook is running, a close waits until the hook has got every event, but not beyond its deadline."""
    reported: list[int] = []

    async def hook(events: Sequence[UndeliveredEvent]) -> None:
        await asyncio.sleep(takes)
        reported.extend(map(number_of, events))

    engine = Engine(ScriptedTransport(then=at_once(400)), batching=Batching(linger=0.0), on_outcome=hook)
    await (await engine.track(1))
    begin = now()
    report = await engine.aclose(timeout)

    assert now() - begin == pytest.approx(returns, abs=ROUNDING)
    assert reported == ([1] if takes < 1e6 else [])
    assert report.stats.rejected == 1


async def test_close_leaves_a_blocked_thread_behind() -> None:
    """If a plain hook blocks, a close returns at its deadline, and the thread ends when the hook does."""
    release, begun = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def hook(_: Sequence[UndeliveredEvent]) -> None:
        threads.append(threading.current_thread())
        begun.set()
        assert release.wait(60.0)

    engine = Engine(ScriptedTransport(then=at_once(400)), batching=Batching(linger=0.0), on_outcome=hook)
    await (await engine.track(1))
    await asyncio.to_thread(begun.wait)
    report = await engine.aclose(0.1)
    assert not release.is_set()
    assert threads[0].is_alive()
    release.set()
    await hooks_ending_task(engine)
    threads[0].join(60.0)

    assert report.stats.rejected == 1
    assert not threads[0].is_alive()


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="needs Python 3.12")
async def test_hooks_under_an_eager_task_factory() -> None:
    """If an eager task factory is set, a hook gets all events, and only after they were settled."""
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    seen: list[tuple[int, int]] = []

    async def hook(events: Sequence[UndeliveredEvent]) -> None:
        seen.extend((number_of(each), engine.stats().in_flight) for each in events)

    engine = Engine(
        ScriptedTransport(then=at_once(400)),
        batching=Batching(max_events=1, linger=0.0),
        on_outcome=hook,
    )
    receipts = await engine.track_all(range(5))
    await engine.flush()
    await engine.aclose()

    assert sorted(number for number, _ in seen) == list(range(5))
    assert all(receipt.outcome is not None for receipt in receipts)


async def test_client_calls_both_hooks() -> None:
    """If a client is built with both hooks, both are called."""
    outcomes: list[UndeliveredEvent] = []
    changes: list[StateChange] = []

    async def changed(reported: StateChange) -> None:
        changes.append(reported)

    transport = ScriptedTransport(then=at_once(403))
    client = make_client(transport, on_outcome=into(outcomes), on_state_change=changed)
    await client.track(event(1))
    report = await client.aclose(5.0)

    assert [number_of(reported) for reported in outcomes] == [1]
    assert [reported.status for reported in changes] == [403]
    assert report.stats.hook_errors == 0


# --- through the engine ---


async def test_hook_gets_every_undelivered_event_once(virtual_clock: CheckedLoop) -> None:
    """If events are rejected, abandoned or dropped, the hook gets each of them once, and no delivered event."""
    # Events that come together, or while the hook runs, are passed in one call.
    reported: list[list[int]] = []
    kinds: list[type] = []

    async def hook(events: Sequence[UndeliveredEvent]) -> None:
        reported.append([kept.event.product_id for kept in events])  # type: ignore[attr-defined]
        kinds.extend(type(kept.outcome) for kept in events)
        engine.check()

    transport = ScriptedTransport(200, 400, 400, 400, 501, then=NEVER)
    engine = Engine(transport, batching=Batching(max_events=2, max_in_flight=1), on_outcome=hook)
    await engine.track_all(range(12))
    await asyncio.sleep(1.0)
    report = await engine.aclose(1.0)

    assert kinds == [Rejected] * 2 + [Abandoned] * 4 + [Dropped] * 4
    # `engine.check()` in the hook found no error, so the counters add up in each call.
    assert report.stats.hook_errors == 0

    assert (reported, len(report.undelivered)) == ([[2], [3], [4, 5], [6, 7, 8, 9, 10, 11]], 6)


async def test_raising_hook_stops_nothing(virtual_clock: CheckedLoop, caplog: pytest.LogCaptureFixture) -> None:
    """If a hook always raises, each error is counted and the first is logged; every event still has its outcome."""

    async def hook(_: Sequence[UndeliveredEvent]) -> None:
        raise ZeroDivisionError

    engine = Engine(ScriptedTransport(400, 400, OK, then=NEVER), batching=Batching(max_events=1), on_outcome=hook)
    receipts = []
    for number in range(4):
        receipts.append(await engine.track(number))
        await asyncio.sleep(1.0)
    report = await engine.aclose(1.0)

    assert [type(receipt.outcome) for receipt in receipts] == [Rejected, Rejected, Delivered, Abandoned]
    assert engine.stats().hook_errors == 3
    assert len(report.undelivered) == 1

    assert sum("on_outcome raised ZeroDivisionError" in record.message for record in caplog.records) == 1


async def test_hook_may_use_the_client(virtual_clock: CheckedLoop) -> None:
    """If a hook tracks refused events again, they are delivered."""

    async def hook(events: Sequence[UndeliveredEvent]) -> None:
        for kept in events:
            engine.track_nowait(kept.event.product_id + 100)  # type: ignore[attr-defined]

    transport = ScriptedTransport(then=lambda request: 400 if min(request.numbers) < 100 else 200)
    engine = Engine(transport, batching=Batching(linger=0.0), on_outcome=hook)
    await engine.track_all(range(3))
    await asyncio.sleep(1.0)

    assert sorted(transport.recorded_numbers) == [100, 101, 102]
