"""The user's hooks for what happened, called one after the other and never in the way of the delivery.

A plain function runs in a thread of its own, so that one which writes a file or blocks otherwise costs the event loop
nothing; a coroutine function runs in the loop. What they raise is counted and logged once. What they are told waits in
a queue, which is bounded: a hook that is slower than the failures misses some, and that is counted, too.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

from retailrocket_async._runtime.context import detached
from retailrocket_async._runtime.foreign_code import must_pass
from retailrocket_async._runtime.thread_call import captured_call
from retailrocket_async._runtime.worker_thread import WorkerThread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from retailrocket_async._runtime.loop_affinity import LoopAffinity
    from retailrocket_async._stats import StateChange, UndeliveredEvent

_AT_ONCE: Final = 1000
"""Events that one call is given at most."""

_MOST_CHANGES: Final = 100
"""Changes of state that may wait to be told of; of more, the oldest say nothing of how it is now."""

OutcomeHook: TypeAlias = "Callable[[Sequence[UndeliveredEvent]], object]"
StateHook: TypeAlias = "Callable[[StateChange], object]"


class Hooks:
    """Calls `on_outcome` and `on_state_change`; see the module's text.

    Args:
        affinity: the loop that the client belongs to.
        on_outcome: told of undelivered events; None for nobody.
        on_state_change: told of changes of `Stats.state`; None for nobody.
        most: events that may wait to be told of.
        failed: told the name of a hook, and what it raised.

    Attributes:
        missed: undelivered events that were not told of.
    """

    def __init__(
        self,
        affinity: LoopAffinity,
        on_outcome: OutcomeHook | None,
        on_state_change: StateHook | None,
        *,
        most: int,
        failed: Callable[[str, BaseException], None],
    ) -> None:
        self._affinity = affinity
        self._on_outcome = on_outcome
        self._on_state_change = on_state_change
        self._most = most
        self._failed = failed
        # Each item is a state change, or undelivered events: those that come in a row are told of together.
        self._queue: deque[StateChange | list[UndeliveredEvent]] = deque()
        self._queued = 0
        self._task: asyncio.Task[None] | None = None
        # Where plain functions run, and the call that it has not answered yet.
        self._thread = WorkerThread("retailrocket-hooks")
        self._begun: tuple[str, asyncio.Future[Callable[[], object]]] | None = None
        self.missed = 0

    @property
    def wants_outcomes(self) -> bool:
        """Whether somebody wants to be told of undelivered events."""
        return self._on_outcome is not None

    @property
    def calling(self) -> bool:
        """Whether the running task is the one that calls the hooks, so that it is a hook that asks."""
        return self._task is not None and self._task is asyncio.current_task()

    def tell_outcomes(self, events: list[UndeliveredEvent]) -> None:
        """Have undelivered events told of."""
        room = max(0, self._most - self._queued)
        self.missed += max(0, len(events) - room)
        events = events[:room]
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

    def tell_state(self, change: StateChange) -> None:
        """Have a change of state told of."""
        if self._on_state_change is None:
            return
        waiting = [item for item in self._queue if not isinstance(item, list)]
        if len(waiting) >= _MOST_CHANGES:
            self._queue.remove(waiting[0])
        self._queue.append(change)
        self._start()

    async def drained(self) -> None:
        """Return when everything was told."""
        while self._queue or self._begun is not None or (self._task is not None and not self._task.done()):
            # Some shutdowns cancel every task: what is left in the queue needs another one.
            await asyncio.wait({self._running()})

    def close(self) -> None:
        """Let the thread end when it has called what it was given."""
        self._thread.close()

    def _start(self) -> None:
        # At the recursion limit no task can be made: the next one calls the hooks for this, too.
        with suppress(RecursionError):
            self._running()

    def _running(self) -> asyncio.Task[None]:
        if self._task is None or self._task.done():
            self._task = self._affinity.create_task(self._run())
        return self._task

    async def _run(self) -> None:
        # Under an eager task factory this runs inside the call that tells, which must not wait for a hook's first part.
        await asyncio.sleep(0)
        while self._begun is not None or self._queue:
            await self._call_next()

    async def _call_next(self) -> None:
        """Call a hook for what is next in the queue; if the thread still makes a call, wait for that one instead."""
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
            # Cancelled here, the next task of these hooks goes on with the call.
            await asyncio.wait({call})
            self._begun = None
            answer = call.result()()
            if inspect.isawaitable(answer):
                await answer
        except BaseException as error:  # a user's hook must not stop the delivery, nor the loop
            if must_pass(error, self._task):
                raise
            self._failed(name, error)

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
            # While the interpreter shuts down no thread can be started: the loop is the only place left.
            done: asyncio.Future[Callable[[], object]] = asyncio.get_running_loop().create_future()
            done.set_result(call())
            return done
