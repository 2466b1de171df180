"""Lets other threads use a client: each call runs in the client's event loop while the calling thread waits."""

from __future__ import annotations

import functools
import itertools
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from retailrocket_async._errors import FlushTimeoutError, HandleTimeoutError, WrongLoopError
from retailrocket_async._interrupt import is_interrupt
from retailrocket_async._runtime.deadline import Deadline
from retailrocket_async._runtime.loop_call import TimeIsUpError, call_in_loop, loop_ended
from retailrocket_async._runtime.running import running_loop
from retailrocket_async._runtime.uncopyable import Uncopyable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Iterable, Iterator

    from retailrocket_async._delivery.engine import Engine
    from retailrocket_async._events.models import Event
    from retailrocket_async._outcome import Outcome
    from retailrocket_async._receipt import Receipt

_PART: Final = 100
"""Number of events that one call into the event loop accepts. Such a call costs as much as accepting ten events."""

_Accept: TypeAlias = "Callable[[], Coroutine[Any, Any, Receipt]]"
_Part: TypeAlias = "list[_Accept]"


class ThreadsafeHandle(Uncopyable):
    """Tracks events from threads other than the event loop's thread; `AsyncTrackingClient.threadsafe` returns a handle.

    Any number of threads may share one handle. Every call blocks its thread until the event loop has answered, so a
    full buffer slows the callers down, as with `AsyncTrackingClient.track`. Events are checked and encoded in the
    calling thread, and `before_send` runs in that thread. The events of one thread are accepted in the order of its
    calls.

    The loop must keep running in its own thread; while something blocks the loop, callers wait. After gevent's
    ``monkey.patch_all()`` the loop's thread is a greenlet, and the loop must be asyncio's own loop. Close the client in
    the loop; the handle then raises `ClientClosedError`.
    """

    _instead = "share it between threads; another process needs a client, and a handle, of its own"

    __slots__ = ("_engine", "_loop", "_prepare")

    def __init__(self, engine: Engine, prepare: Callable[[Event], _Accept]) -> None:
        self._loop = engine.affinity.enter()
        self._engine = engine
        self._prepare = prepare

    def track(self, event: Event, *, timeout: float | None = None) -> Receipt:
        """Accept one event for delivery, and return its receipt; blocks while the buffer is full.

        Args:
            event: the event, e.g. `View(...)`.
            timeout: seconds to wait for room in the buffer; default None: no limit.

        Raises:
            HandleTimeoutError: the time-out passed first; the event was not accepted and will not be sent.
            BufferFullError: the buffer is full and `Buffer.overflow` is ``"raise"``.
            EventValidationError: `event` is not an event of this package, or is larger than `Batching.max_bytes`.
            ClientClosedError: the client is closed, or was closed while this call waited.
            WrongLoopError: called in the loop's own thread, which would wait for itself; or the loop is not running, or
                ended while this call waited; or the process was forked.
        """
        [receipt] = self.track_many((event,), timeout)
        return receipt

    def track_many(self, events: Iterable[Event], timeout: float | None = None) -> list[Receipt]:
        """Accept events one after the other, blocking while the buffer is full; return their receipts in order.

        If one event raises an error, the events before that event stay accepted.

        Args:
            events: any iterable; the calling thread iterates over the iterable.
            timeout: seconds for all events together; default None: no limit.

        Raises:
            HandleTimeoutError: the time-out passed first; the error's `accepted` is the number of accepted events.
            EventValidationError, ClientClosedError, WrongLoopError: see `track`.
        """
        deadline = Deadline(timeout)
        receipts: list[Receipt] = []
        for part in self._parts_of(events):
            self._check(accepting=True)
            try:
                call_in_loop(self._loop, functools.partial(_accept, part, receipts), deadline)
            except TimeIsUpError:
                done = len(receipts)
                raise HandleTimeoutError(
                    f"no room within {timeout} s: {done} event(s) of this call were accepted, the next was not", done
                ) from None
        return receipts

    def wait(self, receipt: Receipt, timeout: float | None = None) -> Outcome:
        """Block until the receipt's event has an outcome, and return the outcome.

        Args:
            receipt: the receipt that `track` returned.
            timeout: seconds; default None: no limit. `RetryPolicy` limits the time of each batch.

        Raises:
            HandleTimeoutError: the time-out passed first; the client continues to send the event.
            WrongLoopError: see `track`.
        """
        deadline = Deadline(timeout)
        if receipt.outcome is not None:
            return receipt.outcome
        self._check()
        try:
            return call_in_loop(self._loop, functools.partial(_outcome_of, receipt), deadline)
        except TimeIsUpError:
            raise HandleTimeoutError(f"no outcome within {timeout} s; the event goes on being sent") from None

    def flush(self, timeout: float | None = None) -> None:
        """Block until every event that was tracked before this call has an outcome.

        Args:
            timeout: seconds; default None: no limit. `RetryPolicy` limits the time of each batch.

        Raises:
            FlushTimeoutError: the time-out passed first; the client continues to send the remaining events.
            WrongLoopError: see `track`.
        """
        deadline = Deadline(timeout)
        self._check()
        try:
            call_in_loop(self._loop, functools.partial(self._engine.flush, None), deadline)
        except TimeIsUpError:
            raise FlushTimeoutError(f"not flushed within {timeout} s; the events go on being sent") from None

    def _parts_of(self, events: Iterable[Event]) -> Iterator[_Part]:
        """Prepare the events, and yield the prepared events in parts.

        If an event cannot be prepared, first yield the events before this event, and then raise the error.
        """
        size = _PART if isinstance(events, Sequence) else 1
        remaining, failure = iter(events), None
        while True:
            part: _Part = []
            try:
                for event in itertools.islice(remaining, size):
                    part.append(self._prepare(event))
            except BaseException as error:  # the caller's iterable may raise anything
                if is_interrupt(error):
                    raise
                failure = error
            if part:
                yield part
            if failure is not None:
                try:
                    raise failure
                finally:
                    # The error's traceback refers to this frame, so the variable would make a reference cycle.
                    del failure
            if len(part) < size:
                return

    def _check(self, *, accepting: bool = False) -> None:
        """Raise an error if the event loop cannot answer a call from this thread."""
        if self._engine.affinity.loop is not self._loop:
            # Only a fork resets the client's loop. `enter` then raises the error for a fork.
            self._engine.affinity.enter()
        if _runs_here(self._loop):
            raise WrongLoopError(
                "this is the event loop's own thread, which would wait for itself: await the client's own methods here"
                + _under_gevent()
            )
        if accepting:
            # `accept` also checks in the event loop whether the client is open. With the check here, the handle of a
            # closed client raises `ClientClosedError` even if the loop has ended.
            self._engine.intake.check_open()
        if not self._loop.is_running():
            raise loop_ended()


async def _accept(part: _Part, receipts: list[Receipt]) -> None:
    for accept in part:
        receipts.append(await accept())  # noqa: PERF401 - the caller needs the receipts so far if an event fails


async def _outcome_of(receipt: Receipt) -> Outcome:
    return await receipt


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether `loop` runs in this thread."""
    # gevent replaces threads by greenlets. All greenlets see the loop as running, but only one greenlet runs the loop.
    return running_loop() is loop and getattr(loop, "_thread_id", None) in (None, threading.get_ident())


def _under_gevent() -> str:
    """Return advice to append to an error if gevent has replaced threads by greenlets, otherwise ``""``."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("threading"):
        return ""
    return "; under gevent call the handle in another greenlet than the loop's, and run asyncio's own loop, not uvloop"
