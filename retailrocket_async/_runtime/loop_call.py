"""Runs a coroutine in an event loop for another thread, which waits for the result.

::

    thread   post ──┐                                  ┌──▶ result, or error
    loop            └──▶ begin, run the work in a task ─┘

If a call is cancelled, `asyncio.run_coroutine_threadsafe` may lose a result that has just arrived. This module does not
lose such a result.
"""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from retailrocket_async._errors import WrongLoopError
from retailrocket_async._runtime.context import detached
from retailrocket_async._runtime.deadline import Deadline

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Generator

T = TypeVar("T")

_CHECK_EVERY: Final = 0.5
"""Interval, in seconds, at which a waiting thread checks that the loop still runs. The check is for a loop that stops
without cancelling its tasks: if the task is cancelled, the thread gets an error at once."""


class TimeIsUpError(Exception):
    """The deadline passed, and the work was withdrawn without any effect."""


def call_in_loop(loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, T]], deadline: Deadline) -> T:
    """Run a coroutine in an event loop of another thread; return the coroutine's result, or raise its error.

    Args:
        loop: the event loop.
        work: called in the loop to make the coroutine; not called if the call is withdrawn first.
        deadline: until when to wait.

    Raises:
        TimeIsUpError: the deadline passed before the work was done. The work had no effect, and will have no effect.
        WrongLoopError: the loop ended before the work was done.
    """
    call = LoopCall(loop, work)
    late = False
    try:
        call.post(call.begin)
        while not call.answered_within(min(_CHECK_EVERY, deadline.remaining())):
            if not loop.is_running():
                raise loop_ended()
            if late and call.answer.cancel():
                # The loop has not begun the work, because something blocks the loop.
                raise TimeIsUpError
            if deadline.passed():
                # The loop withdraws the work, unless the work is done by then. The answer says which of the two
                # happened, so wait for the answer without a deadline.
                late, deadline = True, Deadline(None)
                call.post(call.withdraw)
        return call.answer.result()
    finally:
        if not call.answer.cancel() and not call.answer.done():
            # The loop ended, or a signal handler raised an error in this thread. Withdraw the work, because no thread
            # waits for the answer any more.
            call.post(call.withdraw)
        # Break a reference cycle: the error's traceback refers to this frame, and `call` refers to the error.
        del call


def loop_ended() -> WrongLoopError:
    """Return the error for a call into an event loop that does not run."""
    return WrongLoopError(
        "the client's event loop does not run, or has just ended: nothing is accepted or sent without it"
    )


class LoopCall(Generic[T]):
    """Runs a coroutine in a task of the loop, and passes the result to the waiting thread.

    Args:
        loop: the event loop.
        work: called in the loop to make the coroutine; not called if the call is withdrawn first.

    Attributes:
        answer: the future for which the thread waits.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self.answer: Future[T] = Future()
        self._loop = loop
        self._work = _WatchedWork(work)
        self._task: asyncio.Task[T] | None = None
        self._withdrawn = False

    # --- in the thread ---

    def post(self, step: Callable[[], None]) -> None:
        """Have the loop call `step`, which is `begin` or `withdraw`.

        A closed loop does not call `step`; the waiting thread notices by itself that the loop does not run.
        """
        with suppress(RuntimeError):
            detached(self._loop.call_soon_threadsafe, step)

    def answered_within(self, seconds: float) -> bool:
        """Wait for the answer, which may be an error, and return whether the answer arrived within `seconds`."""
        try:
            self.answer.exception(seconds)
        except TimeoutError:
            return False
        return True

    # --- in the loop ---

    def begin(self) -> None:
        """Start the work in a task, unless the thread has stopped waiting."""
        if self.answer.set_running_or_notify_cancel():
            self._task = self._loop.create_task(self._work.run())
            self._task.add_done_callback(self._end)

    def withdraw(self) -> None:
        """Cancel the work, but only while the work waits for a future.

        If the future is done, a cancellation would lose the future's result. So let the work take its next step, and
        try again.
        """
        if self._task is None or self._task.done():
            return
        if self._work.waits():
            self._withdrawn = True
            self._task.cancel()
        else:
            self._loop.call_soon(self.withdraw)

    def _end(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            # If `withdraw` did not cancel the task, the shutdown of the loop did: a shutdown cancels all tasks.
            self.answer.set_exception(TimeIsUpError() if self._withdrawn else loop_ended())
        elif (error := task.exception()) is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(task.result())


class _WatchedWork(Generic[T]):
    """Runs a coroutine, and records for which future the coroutine waits.

    The coroutine is cancelled only while it waits. If a task is cancelled after its future is done, but before the
    task's next step, the future's result is lost. Here the lost result would be the receipt of an accepted event.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self._waits_for: asyncio.Future[Any] | None = None

    def waits(self) -> bool:
        """Whether the work waits for a future that is not done."""
        return self._waits_for is not None and not self._waits_for.done()

    async def run(self) -> T:
        return await self

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._work().__await__()
        thrown: BaseException | None = None
        while True:
            try:
                self._waits_for = next(steps) if thrown is None else steps.throw(thrown)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            finally:
                # Drop the reference to the error: an error refers to this frame, so both would form a reference cycle.
                thrown = None
            try:
                yield self._waits_for
            except BaseException as error:  # noqa: BLE001 - thrown into the work
                thrown = error
