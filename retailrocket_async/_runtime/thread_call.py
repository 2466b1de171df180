"""One call in a thread of its own.

The event loop's own threads (`asyncio.to_thread`) are few, and may all be busy with callers who wait for us: a sync
view that tracks through a `ThreadsafeHandle` blocks one until there is room in the buffer. What makes that room must
not need one of them. The thread is a daemon, so that a call which never returns does not hold the process at its end.
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
    """Call `function` in a thread of its own and return what it returns, or raise what it raises.

    If no thread can be started it is called in the loop: while the interpreter shuts down, Python 3.12 and newer start
    none.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def tell(result: T | None, error: BaseException | None) -> None:
        # The caller may have been cancelled meanwhile.
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
            # A future takes anything but this.
            error = RuntimeError(type(stop).__name__)
        except BaseException as raised:  # noqa: BLE001 - it is the caller's, in the other thread
            error = raised
        # Where the loop is closed by now, nobody waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, result, error)

    try:
        detached(threading.Thread(target=run, name="retailrocket-call_in_thread", daemon=True).start)
    except RuntimeError:
        return context.run(function)
    return await done


def sealed_call(function: Callable[..., T], *arguments: object) -> Callable[[], Callable[[], T]]:
    """Return what a thread is to call: it calls `function`, and returns one that returns, or raises, the same.

    The error comes without its traceback, whose frames have variables.
    """

    def call() -> Callable[[], T]:
        try:
            result = function(*arguments)
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            # Not by the error's own method, which may be anybody's.
            raised = BaseException.with_traceback(error, None)
            return lambda: _raise(raised)
        return lambda: result

    return call


def _raise(error: BaseException) -> NoReturn:
    raise error
