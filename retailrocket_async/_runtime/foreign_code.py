"""Helpers for calling foreign code, which may raise any error and may call this package close to the recursion limit.

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
"""How many stack frames this package needs at most to change its own state, not counting foreign code."""


def ends_task(error: BaseException) -> bool:
    """Whether an error of an awaited call is the user's Ctrl-C or the cancellation of the running task."""
    if isinstance(error, asyncio.CancelledError):
        # If this task was not cancelled, the foreign code waited for another task that was cancelled.
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return is_interrupt(error)


def must_pass(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Whether an error that a user's function raised in the event loop must be raised again.

    Three errors must be raised again: the cancellation of the task that called the function, `GeneratorExit` if that
    task's coroutine is closed, and the error of a signal handler (Ctrl-C). Any other error, even `SystemExit`, is a
    failure of the function.

    Args:
        error: the error that was caught.
        task: the task that has called the function.
    """
    match error:
        case asyncio.CancelledError():
            # If this task was not cancelled, the function waited for another task or future that was cancelled.
            return task is None or task.cancelling() > 0
        case GeneratorExit():
            # The task's coroutine is closed from outside, because no loop will run the task any more.
            return task is None or running_task() is not task
        case _:
            return is_interrupt(error)


def without_frames(error: BaseException) -> BaseException:
    """Remove the cause, the context and the traceback of an error, and return the error.

    The removed parts may contain a secret: a traceback refers to frames, and some tools print the variables of frames.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def write_log(logger: logging.Logger, level: int, message: str, *args: object) -> bool:
    """Write a log record. Return False if a log handler or filter of the application raised an error, else True."""
    try:
        logger.log(level, message, *args)
    except BaseException as error:
        if is_interrupt(error):
            raise
        return False
    return True


def ensure_stack(frames: int = _FRAMES) -> None:
    """Raise RecursionError if too few stack frames are left to change the state of this package.

    Call this function before a change: a RecursionError in the middle would leave the change half done.

    Args:
        frames: number of frames that the change needs.
    """
    _descend(frames)


def _descend(frames: int) -> None:
    if frames:
        _descend(frames - 1)
