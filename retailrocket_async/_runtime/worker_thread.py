"""Runs functions in one thread, one after the other."""

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

    `ThreadPoolExecutor` is not used, because it accepts no work after the main thread has ended, although an event loop
    in another thread may still run. The thread is a daemon, so an idle thread does not keep the process from ending. At
    exit, the interpreter waits until the thread has made all calls that were passed to `call`.

    Args:
        name: the thread's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: _Calls | None = None
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Call `function` in the thread, and return the future of its result. `function` must not raise an error.

        Raises:
            RuntimeError: no thread can be started: the interpreter shuts down, or the system has no thread left.
        """
        loop = asyncio.get_running_loop()
        calls = self._calls = self._calls or self._started()
        done: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            result = function()
            # A closed loop raises RuntimeError; nobody waits for the result then.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(set_result, done, result)

        calls.put(run)
        return done

    def close(self) -> None:
        """End the thread after all calls that were passed to `call`; a later `call` starts a new thread."""
        if self._calls is not None:
            self._calls.put(None)
            self._calls = None

    def _started(self) -> _Calls:
        calls: _Calls = SimpleQueue()
        # The thread holds no reference to this object: otherwise the object would never be collected, and the thread
        # would never end.
        thread = threading.Thread(target=_work, args=(calls, self._thread), name=self._name, daemon=True)
        detached(thread.start)
        self._thread = thread
        weakref.finalize(self, calls.put, None).atexit = False
        return calls


def _work(calls: _Calls, before: threading.Thread | None) -> None:
    if before is not None:
        # The earlier thread, which `close` has ended, may still be making its last calls: wait for its end.
        before.join()
    at_exit = functools.partial(_finish, calls, threading.current_thread())
    atexit.register(at_exit)
    try:
        while _made_next(calls):
            pass
    finally:
        atexit.unregister(at_exit)


def _made_next(calls: _Calls) -> bool:
    # This is a separate function, so that no variable refers to a call while the thread waits for the next call.
    call = calls.get()
    if call is None:
        return False
    call()
    return True


def _finish(calls: _Calls, thread: threading.Thread) -> None:
    """Wait until the thread has made its calls. A forked child has no such thread, so `join` returns at once there."""
    calls.put(None)
    thread.join()
