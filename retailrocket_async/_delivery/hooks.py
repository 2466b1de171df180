"""Calls the user's hooks one after the other, without delaying the delivery of events.

A plain function runs in a thread of its own, so it may block. A coroutine function runs in the event loop. Errors of
hooks are counted and logged once. Events and changes of state wait for the hook in a bounded queue. If the queue is
full, the hook misses further undelivered events; `Hooks.missed` counts these events.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from retailrocket_async._runtime.context import detached
from retailrocket_async._runtime.foreign_code import must_pass
from retailrocket_async._runtime.thread_call import captured_call
from retailrocket_async._runtime.worker_thread import WorkerThread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from retailrocket_async._runtime.loop_affinity import LoopAffinity
    from retailrocket_async._stats import StateChange, UndeliveredEvent

_AT_ONCE: Final = 1000
"""Largest number of events in one call of a hook."""

_MOST_CHANGES: Final = 100
"""Number of changes of state that may wait for the hook. If there are more, the oldest change is dropped, because
the latest state matters most."""

OutcomeHook: TypeAlias = "Callable[[Sequence[UndeliveredEvent]], object]"
StateHook: TypeAlias = "Callable[[StateChange], object]"


class HookFailures(Protocol):
    """Counts and logs the errors of hooks."""

    def hook_failed(self, name: str, error: BaseException) -> None:
        """Count an error that the hook `name` raised, and log it."""
        ...


class Hooks:
    """Queues undelivered events and changes of state, and calls `on_outcome` and `on_state_change` with them.

    Args:
        affinity: the loop that the client belongs to.
        on_outcome: called with undelivered events; None for no hook.
        on_state_change: called with changes of `Stats.state`; None for no hook.
        most: largest number of events that may wait for the hook.
        failures: counts and logs the errors of the hooks.

    Attributes:
        missed: number of undelivered events that the hook missed because the queue was full.
    """

    def __init__(
        self,
        affinity: LoopAffinity,
        on_outcome: OutcomeHook | None,
        on_state_change: StateHook | None,
        *,
        most: int,
        failures: HookFailures,
    ) -> None:
        self._affinity = affinity
        self._on_outcome = on_outcome
        self._on_state_change = on_state_change
        self._most = most
        self._failures = failures
        # Each item is a change of state, or a list of undelivered events; events that arrive with no change of state
        # between them share a list.
        self._queue: deque[StateChange | list[UndeliveredEvent]] = deque()
        self._queued = 0
        self._task: asyncio.Task[None] | None = None
        # `_thread` runs the hooks that are plain functions. `_begun` is the call that this thread runs now: the name of
        # the hook, and the future of the call.
        self._thread = WorkerThread("retailrocket-hooks")
        self._begun: tuple[str, asyncio.Future[Callable[[], object]]] | None = None
        self.missed = 0

    @property
    def wants_outcomes(self) -> bool:
        """Whether there is a hook for undelivered events."""
        return self._on_outcome is not None

    @property
    def calling(self) -> bool:
        """Whether a hook called the current code: true if the code runs in the task that calls the hooks."""
        return self._task is not None and self._task is asyncio.current_task()

    def notify_outcomes(self, events: list[UndeliveredEvent]) -> None:
        """Queue undelivered events for `on_outcome`; events that do not fit in the queue are counted in `missed`."""
        free = max(0, self._most - self._queued)
        self.missed += max(0, len(events) - free)
        events = events[:free]
        if not events:
            return
        self._queued += len(events)
        last = self._queue[-1] if self._queue else None
        if isinstance(last, list):
            last += events[: (missing := _AT_ONCE - len(last))]
            events = events[missing:]
        for start in range(0, len(events), _AT_ONCE):
            self._queue.append(events[start : start + _AT_ONCE])
        self._start()

    def notify_state(self, change: StateChange) -> None:
        """Queue a change of state for `on_state_change`."""
        if self._on_state_change is None:
            return
        waiting = [item for item in self._queue if not isinstance(item, list)]
        if len(waiting) >= _MOST_CHANGES:
            self._queue.remove(waiting[0])
        self._queue.append(change)
        self._start()

    async def drained(self) -> None:
        """Return when the queue is empty and no hook runs."""
        while self._queue or self._begun is not None or (self._task is not None and not self._task.done()):
            # Some programs cancel every task when they shut down; `_running` then starts another task for the queue.
            await asyncio.wait({self._running()})

    def close(self) -> None:
        """Let the thread end after its last call."""
        self._thread.close()

    def _start(self) -> None:
        # At the recursion limit no task can be created. The item then stays in the queue, and the next task that is
        # created calls the hook with this item.
        with suppress(RecursionError):
            self._running()

    def _running(self) -> asyncio.Task[None]:
        if self._task is None or self._task.done():
            self._task = self._affinity.create_task(self._run())
        return self._task

    async def _run(self) -> None:
        # Under an eager task factory this code runs inside the call of `notify_*`. Without this pause, that call would
        # run the first step of the hook.
        await asyncio.sleep(0)
        while self._begun is not None or self._queue:
            await self._call_next()

    async def _call_next(self) -> None:
        """Call a hook for the next item of the queue; if the thread still runs a call, wait for that call instead."""
        name = ""
        try:
            if self._begun is None:
                name, hook, argument = self._next()
                if hook is None:
                    return
                if inspect.iscoroutinefunction(hook):
                    await hook(argument)
                    return
                self._begun = name, self._in_thread(captured_call(detached, hook, argument))
            name, call = self._begun
            # If this task is cancelled here, the next task waits for the same call.
            await asyncio.wait({call})
            self._begun = None
            answer = call.result()()
            if inspect.isawaitable(answer):
                await answer
        except BaseException as error:  # a user's hook must not stop the delivery or the loop
            if must_pass(error, self._task):
                raise
            self._failures.hook_failed(name, error)

    def _next(self) -> tuple[str, Callable[..., object] | None, StateChange | list[UndeliveredEvent]]:
        item = self._queue.popleft()
        if isinstance(item, list):
            self._queued -= len(item)
            return "on_outcome", self._on_outcome, item
        return "on_state_change", self._on_state_change, item

    def _in_thread(self, call: Callable[[], Callable[[], object]]) -> asyncio.Future[Callable[[], object]]:
        try:
            return self._thread.call(call)
        except RuntimeError:
            # While the interpreter shuts down no thread can be started, so the hook runs in the loop.
            done: asyncio.Future[Callable[[], object]] = asyncio.get_running_loop().create_future()
            done.set_result(call())
            return done
