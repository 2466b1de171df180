"""A client's door for other threads: a call crosses over to the client's loop, and its thread waits for the answer.

::

    thread   encode, post ──┐                                      ┌──▶ result, or error
    loop                    └──▶ begin, wait for room like others ─┘
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from retailrocket_async._errors import ConfigurationError, FlushTimeoutError, HandleTimeoutError, WrongLoopError
from retailrocket_async._interrupt import is_interrupt
from retailrocket_async._runtime.context import detached
from retailrocket_async._runtime.uncopyable import Uncopyable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator

    from retailrocket_async._delivery.engine import Engine
    from retailrocket_async._events.models import Event
    from retailrocket_async._outcome import Outcome
    from retailrocket_async._receipt import Receipt

T = TypeVar("T")

_LOOK_EVERY = 0.5
"""Seconds between two looks of a waiting thread at its loop; a loop that ends in order answers at once."""


_PART = 100
"""Events that cross over together where there is a list of them: one crossing costs about as much as ten events."""

_Accept: TypeAlias = "Callable[[], Coroutine[Any, Any, Receipt]]"
_Part: TypeAlias = "list[_Accept]"


class ThreadsafeHandle(Uncopyable):
    """Tracks events from other threads than the event loop's own; `AsyncTrackingClient.threadsafe` makes it.

    Any number of threads may share one. Every call blocks its thread until the loop has answered, so a full buffer
    slows its callers down just as `AsyncTrackingClient.track` does. Events are checked and encoded in the calling
    thread, and `before_send` runs there. The events of one thread are accepted in the order of its calls.

    The loop must go on running in its own thread, which after gevent's ``monkey.patch_all()`` is a greenlet of its own,
    and then must be asyncio's own loop; while something blocks it, callers wait. The client is closed in
    the loop, as ever; from then on the handle raises `ClientClosedError`.
    """

    _instead = "share it between threads; another process needs a client, and a handle, of its own"

    __slots__ = ("_engine", "_loop", "_prepare")

    def __init__(self, engine: Engine, prepare: Callable[[Event], _Accept]) -> None:
        self._loop = engine.affinity.enter()
        self._engine = engine
        self._prepare = prepare

    def track(self, event: Event, *, timeout: float | None = None) -> Receipt:
        """Put one event in the buffer and return its receipt; blocks while the buffer is full.

        Args:
            event: what happened.
            timeout: seconds to wait for room; default None, as long as it takes.

        Raises:
            HandleTimeoutError: the time passed first; the event was not accepted, and will not be.
            BufferFullError: the buffer is full, and ``overflow="raise"``.
            EventValidationError: not an event of this package, or larger than `Batching.max_bytes`.
            ClientClosedError: the client is closed, or was closed while this call waited.
            WrongLoopError: called in the loop's own thread, which would wait for itself; the loop does not run, or
                ended while this call waited; or the process was forked.
        """
        [receipt] = self.track_many((event,), timeout)
        return receipt

    def track_many(self, events: Iterable[Event], timeout: float | None = None) -> list[Receipt]:
        """Put events in the buffer one after the other, blocking while it is full; return their receipts in order.

        An error in mid-way leaves the events before it accepted.

        Args:
            events: any iterable; the calling thread goes through it.
            timeout: seconds for all of them; default None, as long as it takes.

        Raises:
            HandleTimeoutError: the time passed first; its `accepted` says how many had been accepted.
            EventValidationError, ClientClosedError, WrongLoopError: as `track`.
        """
        deadline = _Deadline(timeout)
        receipts: list[Receipt] = []
        for part in self._parts_of(events):
            self._check(accepting=True)
            try:
                self._run(functools.partial(_accept, part, receipts), deadline)
            except _TimeIsUpError:
                done = len(receipts)
                raise HandleTimeoutError(
                    f"no room within {timeout} s: {done} event(s) of this call were accepted, the next was not", done
                ) from None
        return receipts

    def wait(self, receipt: Receipt, timeout: float | None = None) -> Outcome:
        """Block until the receipt's event has its outcome, and return it.

        Args:
            receipt: what `track` returned.
            timeout: seconds; default None, as long as it takes. `RetryPolicy` bounds each batch's time.

        Raises:
            HandleTimeoutError: the time passed first; the event goes on being sent.
            WrongLoopError: as `track`.
        """
        deadline = _Deadline(timeout)
        if receipt.outcome is not None:
            return receipt.outcome
        self._check()
        try:
            return self._run(functools.partial(_outcome_of, receipt), deadline)
        except _TimeIsUpError:
            raise HandleTimeoutError(f"no outcome within {timeout} s; the event goes on being sent") from None

    def flush(self, timeout: float | None = None) -> None:
        """Block until every event tracked before this call has its outcome.

        Args:
            timeout: seconds; default None, as long as it takes. `RetryPolicy` bounds each batch's time.

        Raises:
            FlushTimeoutError: the time passed first; the events stay in the client and go on being sent.
            WrongLoopError: as `track`.
        """
        deadline = _Deadline(timeout)
        self._check()
        try:
            self._run(functools.partial(self._engine.flush, None), deadline)
        except _TimeIsUpError:
            raise FlushTimeoutError(f"not flushed within {timeout} s; the events go on being sent") from None

    def _parts_of(self, events: Iterable[Event]) -> Iterator[_Part]:
        """Do the callers' part for the events, and give them in parts; an error comes after what stands before it."""
        size = _PART if isinstance(events, Sequence) else 1
        remaining, failure = iter(events), None
        while True:
            part: _Part = []
            try:
                for event in itertools.islice(remaining, size):
                    part.append(self._prepare(event))
            except BaseException as error:  # the iterable is the caller's, and may raise anything
                if is_interrupt(error):
                    raise
                failure = error
            if part:
                yield part
            if failure is not None:
                try:
                    raise failure
                finally:
                    # An error must not be held by a frame that it holds.
                    del failure
            if len(part) < size:
                return

    def _check(self, *, accepting: bool = False) -> None:
        """Raise where the loop can never answer."""
        if self._engine.affinity.loop is not self._loop:
            # Only a fork changes it; this raises, and says so.
            self._engine.affinity.enter()
        if _runs_here(self._loop):
            raise WrongLoopError(
                "this is the event loop's own thread, which would wait for itself: await the client's own methods here"
                + _under_gevent()
            )
        if accepting:
            # The loop asks this as well; but where it has ended after a close, this is the better reason.
            self._engine.intake.check_open()
        if not self._loop.is_running():
            raise _ended()

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]], deadline: _Deadline) -> T:
        """Do the work in the loop; return what it returns, or raise what it raises.

        Raises:
            _TimeIsUpError: the deadline passed first; the work took no effect, and never will.
            WrongLoopError: the loop ended first.
        """
        call = _Call(self._loop, work)
        late = False
        try:
            call.post(call.begin)
            while not call.answered_within(deadline.next_look()):
                if not self._loop.is_running():
                    raise _ended()
                if late and call.answer.cancel():
                    # Something blocks the loop, which has not even begun.
                    raise _TimeIsUpError
                if deadline.passed():
                    # Now the loop decides: it answers that the work is withdrawn, or done in the same moment.
                    late, deadline = True, _Deadline(None)
                    call.post(call.withdraw)
            return call.answer.result()
        finally:
            if not call.answer.cancel() and not call.answer.done():
                # The loop ended, or the handler of a signal raised in this thread: nobody waits any more.
                call.post(call.withdraw)
            # An error holds the frames that it passed, and the call holds the error.
            del call


class _Deadline:
    """How long a thread waits, by the one clock that a thread has.

    Args:
        timeout: seconds from now; None for as long as it takes.
    """

    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and (type(timeout) not in (int, float) or not timeout >= 0):
            raise ConfigurationError(f"timeout must be None or a number of seconds, 0 or more, not {timeout!r}")
        self._at = math.inf if timeout is None else time.monotonic() + timeout

    def passed(self) -> bool:
        return time.monotonic() >= self._at

    def next_look(self) -> float:
        """Return the seconds until the thread must look around."""
        return min(_LOOK_EVERY, max(0.0, self._at - time.monotonic()))


class _TimeIsUpError(Exception):
    """The work was withdrawn, and took no effect."""


class _Call(Generic[T]):
    """One call on its way from a thread to a task of the loop and back.

    Args:
        loop: the loop.
        work: makes the coroutine; never called where the call is withdrawn before the loop comes to it.

    Attributes:
        answer: what the thread waits for.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self.answer: Future[T] = Future()
        self._loop = loop
        self._work = _Watched(work)
        self._task: asyncio.Task[T] | None = None
        self._withdrawn = False

    # --- in the thread ---

    def post(self, step: Callable[[], None]) -> None:
        """Have the loop take a step; a closed loop takes none, which whoever waits will notice."""
        with suppress(RuntimeError):
            detached(self._loop.call_soon_threadsafe, step)

    def answered_within(self, seconds: float) -> bool:
        """Wait for the answer, an error included."""
        try:
            self.answer.exception(seconds)
        except TimeoutError:
            return False
        return True

    # --- in the loop ---

    def begin(self) -> None:
        """Start the work, unless nobody waits any more."""
        if self.answer.set_running_or_notify_cancel():
            self._task = self._loop.create_task(self._work.run())
            self._task.add_done_callback(self._end)

    def withdraw(self) -> None:
        """Cancel the work where it waits; where it is about to go on, what it waited for has come: let it."""
        if self._task is None or self._task.done():
            return
        if self._work.waits():
            self._withdrawn = True
            self._task.cancel()
        else:
            self._loop.call_soon(self.withdraw)

    def _end(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            # If not by us, by the end of the loop, which cancels all tasks.
            self.answer.set_exception(_TimeIsUpError() if self._withdrawn else _ended())
        elif (error := task.exception()) is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(task.result())


class _Watched(Generic[T]):
    """Work whose every stop is seen, so that it can be cancelled where it waits, and nowhere else.

    A task that is cancelled between the coming of what it waits for and its next step loses it: for an event, the
    receipt that says that it was accepted.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self._waits_for: asyncio.Future[Any] | None = None

    def waits(self) -> bool:
        """Whether the work has stopped for something that has not come yet."""
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
                # Before it leaves: an error holds this frame, and must not be held by it.
                thrown = None
            try:
                yield self._waits_for
            except BaseException as error:  # noqa: BLE001 - handed on to where it belongs
                thrown = error


async def _accept(part: _Part, receipts: list[Receipt]) -> None:
    for accept in part:
        receipts.append(await accept())  # noqa: PERF401 - what is accepted is so, whatever comes next


async def _outcome_of(receipt: Receipt) -> Outcome:
    return await receipt


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this is the thread in which the loop runs."""
    with suppress(RuntimeError):
        if asyncio.get_running_loop() is loop:
            # gevent makes greenlets of threads: all of them find the loop of their one thread, and one of them runs it.
            return getattr(loop, "_thread_id", None) in (None, threading.get_ident())
    return False


def _under_gevent() -> str:
    """Return what to do in a process whose threads gevent has made greenlets of; "" elsewhere."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("threading"):
        return ""
    return "; under gevent call the handle in another greenlet than the loop's, and run asyncio's own loop, not uvloop"


def _ended() -> WrongLoopError:
    return WrongLoopError(
        "the client's event loop does not run, or has just ended: nothing is accepted or sent without it"
    )
