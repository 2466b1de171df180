"""What code that is not ours may do to us: raise anything, and call us with hardly any stack left.

Hooks, observers, limiters, transports, policy functions, mappings, time zones and log handlers are foreign code. What
they raise ends at the call, with two exceptions that are not theirs: the user's Ctrl-C, and the cancellation of the
running task.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from retailrocket_async._interrupt import is_interrupt
from retailrocket_async._runtime.running import running_task

if TYPE_CHECKING:
    import logging

_FRAMES: Final = 40
"""Frames that a change of our own state needs at most, without any foreign code that it calls."""


def ends_task(error: BaseException) -> bool:
    """Whether an awaited call raised the user's Ctrl-C, or the cancellation of the running task."""
    if isinstance(error, asyncio.CancelledError):
        # If the task was not cancelled, something was that the foreign code waited for.
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return is_interrupt(error)


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
    """Write a log record; return whether the application's log handlers and filters took it without an error."""
    try:
        logger.log(level, message, *args)
    except BaseException as error:
        if is_interrupt(error):
            raise
        return False
    return True


def ensure_stack() -> None:
    """Raise RecursionError before anything changes, if the stack has no room for a change of our own state.

    A RecursionError between two statements would leave half of the change behind.
    """
    _descend(_FRAMES)


def _descend(frames: int) -> None:
    if frames:
        _descend(frames - 1)
