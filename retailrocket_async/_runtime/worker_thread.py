"""One thread that makes calls one after the other."""

from __future__ import annotations

import asyncio
import atexit
import functools
import threading
import weakref
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from retailrocket_async._runtime.context import detached
from retailrocket_async._runtime.futures import set_result

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_Calls: TypeAlias = "SimpleQueue[Callable[[], None] | None]"


class WorkerThread:
    """Makes calls in one thread, one after the other; the first call starts the thread.

    `ThreadPoolExecutor` takes no work once the main thread has ended, but an event loop in another thread may still
    run then. The thread is a daemon: an idle one does not hold the process. A call that it makes is waited for at the
    interpreter's exit.

    Args:
        name: the thread's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: _Calls | None = None
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Have the thread call `function`, which must not raise; return the future of its result.

        Raises:
            RuntimeError: no thread can be started: the interpreter shuts down, or the system has no thread left.
        """
        loop = asyncio.get_running_loop()
        calls = self._calls = self._calls or self._started()
        done: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            result = function()
            # A closed loop has nobody who waits.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(set_result, done, result)

        calls.put(run)
        return done

    def close(self) -> None:
        """Let the thread end after the calls that it was given."""
        if self._calls is not None:
            self._calls.put(None)
            self._calls = None

    def _started(self) -> _Calls:
        calls: _Calls = SimpleQueue()
        # The thread must not keep this object, or it would never be collected and the thread never end.
        thread = threading.Thread(target=_work, args=(calls, self._thread), name=self._name, daemon=True)
        detached(thread.start)
        self._thread = thread
        weakref.finalize(self, calls.put, None).atexit = False
        return calls


def _work(calls: _Calls, before: threading.Thread | None) -> None:
    if before is not None:
        # It may still make a call that it was given before the close.
        before.join()
    at_exit = functools.partial(_finish, calls, threading.current_thread())
    atexit.register(at_exit)
    try:
        while _made_next(calls):
            pass
    finally:
        atexit.unregister(at_exit)


def _made_next(calls: _Calls) -> bool:
    # In a function of its own, so that nothing of a call is kept while the thread waits for the next one.
    call = calls.get()
    if call is None:
        return False
    call()
    return True


def _finish(calls: _Calls, thread: threading.Thread) -> None:
    """Wait for the calls that the thread was given; in a forked child, which lacks the thread, for nothing."""
    calls.put(None)
    thread.join()
