"""Helps to call foreign code, which may raise any error, or call this package with hardly any stack left.

Hooks, observers, limiters, transports, policy functions, mappings, time zones and log handlers are foreign code. An
error that such code raises is caught at the call. Two errors have another origin and are raised again: the user's
Ctrl-C, and the cancellation of the running task.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from retailrocket_async._interrupt import is_interrupt
from retailrocket_async._runtime.running import running_task

if TYPE_CHECKING:
    import logging

_FRAMES: Final = 40
"""Stack frames that a change of our own state needs at most, without the foreign code that it calls."""


def ends_task(error: BaseException) -> bool:
    """Whether an awaited call raised the user's Ctrl-C, or the cancellation of the running task."""
    if isinstance(error, asyncio.CancelledError):
        # If this task was not cancelled, the foreign code waited for another task that was cancelled.
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return is_interrupt(error)


def must_pass(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Whether an error that came out of a user's function in the event loop must be raised again.

    This means: the cancellation of the task that called the function, the end of that task's coroutine, and
    the error of a signal handler (Ctrl-C). Any other error is the function's own failure, `SystemExit` included.

    Args:
        error: the error that was caught.
        task: the task that has called the function.
    """
    match error:
        case asyncio.CancelledError():
            # If this task was not cancelled, the function waited for another task or future that was cancelled.
            return task is None or task.cancelling() > 0
        case GeneratorExit():
            # The coroutine is closed from outside, because no loop will run it any more.
            return task is None or running_task() is not task
        case _:
            return is_interrupt(error)


def without_frames(error: BaseException) -> BaseException:
    """Return the error without its cause, its context and the frames below, which may hold a secret.

    Some tools print the variables of frames.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def write_log(logger: logging.Logger, level: int, message: str, *args: object) -> bool:
    """Write a log record; return whether the application's log handlers and filters raised no error."""
    try:
        logger.log(level, message, *args)
    except BaseException as error:
        if is_interrupt(error):
            raise
        return False
    return True


def ensure_stack() -> None:
    """Raise RecursionError if the stack has no room for a change of our own state.

    Call it before the change: a RecursionError in the middle would leave the change half done.
    """
    _descend(_FRAMES)


def _descend(frames: int) -> None:
    if frames:
        _descend(frames - 1)
