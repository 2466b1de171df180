"""`Wakeup` lets one task wait for a call or for a moment, whatever happens to the task, the stack and the loop."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailrocket_async._runtime.wakeup import Wakeup
from tests.runtime.test_foreign_code import at_depth_left
from tests.support.cancelling import cancel, cancel_everywhere
from tests.support.engine_state import scheduled_timers
from tests.support.fakes import near, now, turns
from tests.support.virtual_time import VirtualTimeLoop, run

if TYPE_CHECKING:
    from tests.support.virtual_time import CheckedLoop

visitor: ContextVar[object] = ContextVar("visitor")


async def waiting(wakeup: Wakeup, until: float | None = None) -> asyncio.Task[None]:
    """Start a task that waits on `wakeup`, and return the task when it waits."""
    task = asyncio.create_task(wakeup.wait(until))
    await turns(1)
    assert not task.done()
    return task


def timers() -> int:
    """Return the number of timers of the running loop that are not cancelled."""
    return sum(not timer.cancelled() for timer in scheduled_timers())


# --- what wakes the task ---


@pytest.mark.parametrize("until", [None, math.inf, 50.0])
async def test_a_call_wakes_the_task(virtual_clock: CheckedLoop, until: float | None) -> None:
    """If `set` is called, the waiting task continues in the next turn of the loop; further calls change nothing."""
    wakeup = Wakeup()
    task = await waiting(wakeup, until)
    await asyncio.sleep(2.0)
    wakeup.set()
    wakeup.set()
    wakeup.set_at(100.0)
    await turns(1)

    assert (True, near(2.0)) == (task.done(), now())


@pytest.mark.parametrize(("until", "woken_at"), [(50.0, 50.0), (10.0, 10.0), (9.0, 10.0), (-math.inf, 10.0)])
async def test_a_moment_wakes_the_task(virtual_clock: CheckedLoop, until: float, woken_at: float) -> None:
    """If `set` is not called, the task continues at the given moment, or at once if the moment has passed."""
    await asyncio.sleep(10.0)
    await Wakeup().wait(until)

    assert near(woken_at) == now()


async def test_a_moment_that_has_passed_lets_other_tasks_run(virtual_clock: CheckedLoop) -> None:
    """If the moment has passed already, other tasks still run before the wait ends."""
    wakeup, other = Wakeup(), asyncio.create_task(asyncio.sleep(0))
    await wakeup.wait(0.0)

    assert other.done()


@pytest.mark.parametrize(
    ("until", "moment", "woken_at"),
    [
        pytest.param(None, 7.0, 7.0, id="from no moment"),
        pytest.param(50.0, 7.0, 7.0, id="earlier"),
        pytest.param(6.0, 50.0, 50.0, id="later"),
        pytest.param(50.0, 1.0, 5.0, id="to the past"),
        pytest.param(50.0, None, 90.0, id="to no moment"),
        pytest.param(50.0, math.inf, 90.0, id="to infinity"),
    ],
)
async def test_the_moment_can_be_changed(
    virtual_clock: CheckedLoop, until: float | None, moment: float | None, woken_at: float
) -> None:
    """If `set_at` is called during a wait, the task continues at the new moment instead of the old moment."""
    wakeup = Wakeup()
    ended: list[float] = []
    task = await waiting(wakeup, until)
    task.add_done_callback(lambda _: ended.append(now()))
    await asyncio.sleep(5.0)
    wakeup.set_at(moment)
    await asyncio.sleep(85.0)
    wakeup.set()
    await task
    await turns(1)

    assert [near(woken_at)] == ended


async def test_calls_that_find_no_task_are_forgotten(virtual_clock: CheckedLoop) -> None:
    """If `set` or `set_at` is called while no task waits, the call does not change the next wait."""
    wakeup = Wakeup()
    for _ in range(2):
        wakeup.set()
        wakeup.set_at(now() + 1.0)
        begin = now()
        await wakeup.wait(begin + 10.0)

        assert near(10.0) == now() - begin
    assert timers() == 0


Script = list[tuple[str, float | None]]
MOMENTS = st.none() | st.just(math.inf) | st.integers(-3, 12).map(lambda moment: moment + 0.5)


def expected(script: Script) -> list[tuple[str, float]]:
    """Return how and when each wait ends by a model that only stores a deadline, None while no task waits."""
    ends: list[tuple[str, float]] = []
    deadline: float | None = None
    for at, (call, moment) in enumerate([*script, ("set", None)]):
        if deadline is not None and deadline < at:
            ends.append(("woken", deadline))
            deadline = None
        target = max(at, math.inf if moment is None else moment)
        if deadline is None:
            deadline = target if call == "wait" else None
        elif call == "set_at":
            deadline = target
        elif call in ("set", "cancel"):
            ends.append(("woken" if call == "set" else "cancelled", at))
            deadline = None
        if deadline == at:
            ends.append(("woken", at))
            deadline = None
    return ends


@given(st.lists(st.tuples(st.sampled_from(["wait", "set", "set_at", "cancel"]), MOMENTS), max_size=12))
def test_every_wait_ends_as_the_model_says(script: Script) -> None:
    """If any calls are made, one each second, every wait ends how and when the model says, and no timer is left."""
    ends: list[tuple[str, float]] = []

    async def wait(wakeup: Wakeup, until: float | None) -> None:
        how = "cancelled"
        try:
            await wakeup.wait(until)
            how = "woken"
        finally:
            ends.append((how, near(now())))

    async def play() -> int:
        wakeup = Wakeup()
        task: asyncio.Task[None] | None = None
        for call, moment in [*script, ("set", None)]:
            if call == "wait":
                if task is None or task.done():
                    task = asyncio.create_task(wait(wakeup, moment))
            elif call == "cancel":
                if task is not None:
                    task.cancel()
            elif call == "set":
                wakeup.set()
            else:
                wakeup.set_at(moment)
            await asyncio.sleep(1.0)
        return timers()

    assert (0, expected(script)) == (run(play()), ends)


# --- cancellation ---


@pytest.mark.parametrize("passed", range(5))
@pytest.mark.parametrize("wakes", [True, False])
async def test_a_wait_may_be_cancelled_in_every_turn(
    virtual_clock: CheckedLoop,
    passed: int,
    wakes: bool,  # noqa: FBT001
) -> None:
    """If a task is cancelled, in any turn before or after it is woken, no timer is left and the next wait works."""
    wakeup = Wakeup()
    task = asyncio.create_task(wakeup.wait(100.0))
    await turns(min(passed, 2))
    if wakes and passed >= 2:
        wakeup.set()
    await turns(passed - 2)
    task.cancel()
    await asyncio.wait({task})
    assert (wakes and passed > 2) == (not task.cancelled())
    assert timers() == 0
    await wakeup.wait(5.0)

    assert near(5.0) == now()


async def test_a_cancelled_wait_leaves_the_object_free(virtual_clock: CheckedLoop) -> None:
    """If a wait is cancelled at each of its awaits, a further wait ends normally, and no timer is left."""
    wakeup = Wakeup()
    await cancel_everywhere(lambda: wakeup.wait(now() + 0.0005))

    assert timers() == 0


async def test_a_task_cancelled_a_moment_ago_does_not_stand_in_the_way(virtual_clock: CheckedLoop) -> None:
    """If a waiting task is cancelled but has not run since, another task may wait, and its wait is not disturbed."""
    wakeup = Wakeup()
    first = await waiting(wakeup, 100.0)
    second = asyncio.create_task(wakeup.wait(50.0))
    # The second task begins to wait in the next turn of the loop, before the cancelled first task runs.
    first.cancel()
    await turns(3)
    assert (True, False) == (first.cancelled(), second.done())
    await second

    assert near(50.0) == now()


async def test_one_task_waits_at_a_time(virtual_clock: CheckedLoop) -> None:
    """If a second task calls `wait`, it gets an error, and the first task still waits."""
    wakeup = Wakeup()
    task = await waiting(wakeup, 50.0)
    with pytest.raises(RuntimeError, match="another task waits already"):
        await wakeup.wait()
    await task

    assert near(50.0) == now()


# --- contexts, memory, stack, loops ---


class Visit:
    """An object that belongs to a visitor's request, such as a context variable's value."""


async def test_timers_keep_no_visitor(virtual_clock: CheckedLoop) -> None:
    """If code of a visitor's request sets the time or wakes the task, the request's context variables are not kept."""
    wakeup = Wakeup()
    task = await waiting(wakeup)

    def visit() -> weakref.ref[Visit]:
        visit = Visit()
        visitor.set(visit)
        wakeup.set_at(1000.0)
        return weakref.ref(visit)

    reference = copy_context().run(visit)
    gc.collect()

    assert reference() is None
    await cancel(task)


async def test_a_wait_leaves_nothing_in_memory(virtual_clock: CheckedLoop) -> None:
    """If waits end by `set`, by a moment or by cancellation, no future stays in memory and no timer in the loop."""
    wakeup = Wakeup()

    def futures() -> int:
        gc.collect()
        return sum(type(each) is asyncio.Future for each in gc.get_objects())

    before = futures()
    for _ in range(10):
        task = await waiting(wakeup, now() + 1000.0)
        wakeup.set()
        await task
        task = await waiting(wakeup, now() + 1000.0)
        wakeup.set_at(now() + 2000.0)
        await cancel(task)
        await wakeup.wait(now() + 1.0)
    del task
    await turns()

    assert (before, 0) == (futures(), timers())


async def test_a_call_at_any_depth_wakes_the_task_or_changes_nothing(virtual_clock: CheckedLoop) -> None:
    """If the stack is almost full, `set` and `set_at` either work or change nothing, so a later call wakes the task."""
    done, refused = 0, 0
    for left in range(1, 80):
        for use in (lambda wakeup: wakeup.set(), lambda wakeup: wakeup.set_at(0.0)):
            wakeup = Wakeup()
            task = await waiting(wakeup, 1e6)
            try:
                at_depth_left(left, lambda use=use, wakeup=wakeup: use(wakeup))  # type: ignore[misc]
                done += 1
            except RecursionError:
                refused += 1
                await turns()
                assert not task.done()
                wakeup.set()
            await turns()
            assert task.done()

    assert (True, True) == (done > 80, refused > 4)
    assert timers() == 0


@pytest.mark.parametrize("until", [None, 50.0])
def test_the_task_of_a_closed_loop_is_left_alone(until: float | None) -> None:
    """If a loop was closed during a wait, `set` and `set_at` do nothing, and a task of another loop can wait."""
    wakeup = Wakeup()

    async def leave_waiting() -> asyncio.Task[None]:
        return await waiting(wakeup, until)

    async def wait_again(left_behind: asyncio.Task[Any]) -> float:
        task = await waiting(wakeup, 10.0)
        # The task of the closed loop ends only now. asyncio must not log that this task was destroyed while it waited.
        left_behind._log_destroy_pending = False  # type: ignore[attr-defined]
        left_behind.get_coro().close()
        await task
        return now()

    loop = VirtualTimeLoop()
    try:
        left_behind = loop.run_until_complete(leave_waiting())
    finally:
        loop.close()
    wakeup.set()
    wakeup.set_at(1.0)

    assert near(10.0) == run(wait_again(left_behind))
