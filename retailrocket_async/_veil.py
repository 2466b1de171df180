"""A user's function, which may raise anything, called without anybody printing what came of it.

A task prints what it waits for, and a future prints what it holds, result or error: in asyncio's debug log, in the
stacks of tasks. That may be a key, or an error that tells of a visitor.
"""

from __future__ import annotations

import asyncio
import dis
import signal
import threading
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_T = TypeVar("_T")


def veiled(function: Callable[..., _T], *arguments: object) -> Callable[[], Callable[[], _T]]:
    """Return what a thread is to call: it calls `function`, and returns one that returns, or raises, the same.

    The error comes without its traceback, whose frames have variables.
    """

    def call() -> Callable[[], _T]:
        try:
            result = function(*arguments)
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            # Not by the error's own method, which may be anybody's.
            raised = BaseException.with_traceback(error, None)
            return lambda: _raise(raised)
        return lambda: result

    return call


def must_pass(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Whether an error that came out of a user's function in the event loop is not that function's own.

    The cancellation of the task that called it, the end of that task's coroutine and what a signal's handler raised,
    as for Ctrl-C, go on to whom they are meant for. Anything else is the function's failure, `SystemExit` included.

    Args:
        error: what was caught.
        task: the task that has called the function.
    """
    match error:
        case asyncio.CancelledError():
            # Otherwise something that the function waited for was cancelled.
            return task is None or task.cancelling() > 0
        case GeneratorExit():
            # Its coroutine is closed from outside, as no loop will run it any more.
            return task is None or _current_task() is not task
        case Exception():
            return False
        case _:
            return is_from_signal(error)


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def is_from_signal(error: BaseException) -> bool:
    """Whether a signal's handler raised an error in the middle of other code, as for Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        return False
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    # A partial has `func`, and a method the code of its function.
    codes = {getattr(getattr(handler, "func", handler), "__code__", None) for handler in handlers}
    innermost: TracebackType | None = None
    traceback = error.__traceback__
    while traceback is not None:
        innermost, traceback = traceback, traceback.tb_next
        if innermost.tb_frame.f_code in codes:
            return True
    # Python's own handler for Ctrl-C has no frame: its error comes from between two instructions.
    by_default = isinstance(error, KeyboardInterrupt) and signal.default_int_handler in handlers
    return by_default and innermost is not None and not _raises(innermost)


def _raises(traceback: TracebackType) -> bool:
    return dis.opname[traceback.tb_frame.f_code.co_code[traceback.tb_lasti]] in _RAISING


_RAISING: Final = frozenset({"RAISE_VARARGS", "RERAISE"})


def _raise(error: BaseException) -> NoReturn:
    raise error
