"""Runs one function in a new thread.

`asyncio.to_thread` is not used, because its pool has few threads, and all may be waiting for the client: a sync view
that tracks through a `ThreadsafeHandle` blocks its thread until the buffer has room. The calls that make room must not
wait for one of these threads. The new thread is a daemon, so a call that never returns does not keep the process from
ending.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn, TypeVar

from retailrocket_async._runtime.context import detached

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def call_in_thread(function: Callable[[], T]) -> T:
    """Call `function` in a new thread; return the function's result, or raise its error.

    If no thread can be started, the function is called in the event loop. This happens while the interpreter shuts
    down, because Python 3.12 and newer start no thread then.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: T | None, error: BaseException | None) -> None:
        # If the caller was cancelled meanwhile, the future is done already.
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = context.run(function)
        except StopIteration as stop:
            # A future does not accept a `StopIteration`.
            error = RuntimeError(type(stop).__name__)
        except BaseException as raised:  # noqa: BLE001 - raised again in the caller's task
            error = raised
        # A closed loop raises RuntimeError; nobody waits for the result then.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, error)

    try:
        detached(threading.Thread(target=run, name="retailrocket-call", daemon=True).start)
    except RuntimeError:
        return context.run(function)
    return await done


def captured_call(function: Callable[..., T], *arguments: object) -> Callable[[], Callable[[], T]]:
    """Return a wrapper of `function` that can be called in a thread and never raises an error.

    The wrapper calls `function` with `arguments`. The wrapper returns another function, which returns the result or
    raises the error. The error has no traceback, because the frames of a traceback contain variables.
    """

    def call() -> Callable[[], T]:
        try:
            result = function(*arguments)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's task
            # Call the method of `BaseException`, because the error's class may override `with_traceback`.
            raised = BaseException.with_traceback(error, None)
            return lambda: _raise(raised)
        return lambda: result

    return call


def _raise(error: BaseException) -> NoReturn:
    raise error
