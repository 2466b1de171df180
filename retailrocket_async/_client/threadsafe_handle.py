"""A client's handle for other threads: each call runs in the client's event loop, while its thread waits."""

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
"""Events of a list that one call into the loop accepts: a call into the loop costs about as much as ten events."""

_Accept: TypeAlias = "Callable[[], Coroutine[Any, Any, Receipt]]"
_Part: TypeAlias = "list[_Accept]"


class ThreadsafeHandle(Uncopyable):
    """Tracks events from threads other than the event loop's own; `AsyncTrackingClient.threadsafe` makes it.

    Any number of threads may share one. Every call blocks its thread until the loop has answered, so a full buffer
    slows callers down as it does with `AsyncTrackingClient.track`. Events are checked and encoded in the calling
    thread, and `before_send` runs there. The events of one thread are accepted in the order of its calls.

    The loop must go on running in its own thread; while something blocks the loop, callers wait. After gevent's
    ``monkey.patch_all()`` that thread is a greenlet, and the loop must be asyncio's own. The client is closed in the
    loop; after that the handle raises `ClientClosedError`.
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
            event: what happened.
            timeout: seconds to wait for room; default None, as long as it takes.

        Raises:
            HandleTimeoutError: the time passed first; the event was not accepted, and will not be.
            BufferFullError: the buffer is full, and ``overflow="raise"``.
            EventValidationError: not an event of this package, or larger than `Batching.max_bytes`.
            ClientClosedError: the client is closed, or was closed while this call waited.
            WrongLoopError: this is the loop's own thread, which would wait for itself; the loop does not run, or
                ended while this call waited; or the process was forked.
        """
        [receipt] = self.track_many((event,), timeout)
        return receipt

    def track_many(self, events: Iterable[Event], timeout: float | None = None) -> list[Receipt]:
        """Accept events one after the other, blocking while the buffer is full; return their receipts in order.

        If one of them raises an error, the events before it stay accepted.

        Args:
            events: any iterable; the calling thread iterates over it.
            timeout: seconds for all events together; default None, as long as it takes.

        Raises:
            HandleTimeoutError: the time passed first; its `accepted` says how many events had been accepted.
            EventValidationError, ClientClosedError, WrongLoopError: as `track`.
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
        """Block until the receipt's event has its outcome, and return it.

        Args:
            receipt: what `track` returned.
            timeout: seconds; default None, as long as it takes. `RetryPolicy` bounds each batch's time.

        Raises:
            HandleTimeoutError: the time passed first; the event goes on being sent.
            WrongLoopError: as `track`.
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
        """Block until every event tracked before this call has its outcome.

        Args:
            timeout: seconds; default None, as long as it takes. `RetryPolicy` bounds each batch's time.

        Raises:
            FlushTimeoutError: the time passed first; the events stay in the client and go on being sent.
            WrongLoopError: as `track`.
        """
        deadline = Deadline(timeout)
        self._check()
        try:
            call_in_loop(self._loop, functools.partial(self._engine.flush, None), deadline)
        except TimeIsUpError:
            raise FlushTimeoutError(f"not flushed within {timeout} s; the events go on being sent") from None

    def _parts_of(self, events: Iterable[Event]) -> Iterator[_Part]:
        """Prepare the events, and yield them in parts; raise an error only after the part with the events before it."""
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
                    # The error holds this frame, so this frame must not hold the error.
                    del failure
            if len(part) < size:
                return

    def _check(self, *, accepting: bool = False) -> None:
        """Raise an error if the loop can never answer."""
        if self._engine.affinity.loop is not self._loop:
            # Only a fork changes the loop, and `enter` raises the error that says so.
            self._engine.affinity.enter()
        if _runs_here(self._loop):
            raise WrongLoopError(
                "this is the event loop's own thread, which would wait for itself: await the client's own methods here"
                + _under_gevent()
            )
        if accepting:
            # The loop checks this too. Checked here, a handle of a closed client raises this error even if the loop
            # has ended.
            self._engine.intake.check_open()
        if not self._loop.is_running():
            raise loop_ended()


async def _accept(part: _Part, receipts: list[Receipt]) -> None:
    for accept in part:
        receipts.append(await accept())  # noqa: PERF401 - the receipts so far count if a later event fails


async def _outcome_of(receipt: Receipt) -> Outcome:
    return await receipt


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this is the thread in which the loop runs."""
    # gevent makes greenlets of threads. All of them see the loop as running, but only one of them runs it.
    return running_loop() is loop and getattr(loop, "_thread_id", None) in (None, threading.get_ident())


def _under_gevent() -> str:
    """Return advice for a process whose threads are greenlets of gevent; ``""`` for other processes."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("threading"):
        return ""
    return "; under gevent call the handle in another greenlet than the loop's, and run asyncio's own loop, not uvloop"
