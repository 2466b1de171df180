"""What code that is not ours may do to us: raise anything, and call us with hardly any stack left.

Hooks, observers, limiters, transports, policy functions, mappings, time zones and log handlers are foreign code. What
they raise ends at the call, with two exceptions that are not theirs: the user's Ctrl-C, and the cancellation of the
running task.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import Final

_FRAMES: Final = 40
"""Frames that a change of our own state needs at most, without any foreign code that it calls."""


def is_interrupt(error: BaseException) -> bool:
    """Whether a plain call raised the user's Ctrl-C, which must end the program.

    Python raises it in the main thread only, and only while its own handler of SIGINT is installed. `asyncio.run`
    installs another one, which cancels the main task.
    """
    return (
        isinstance(error, KeyboardInterrupt)
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


def ends_task(error: BaseException) -> bool:
    """Whether an awaited call raised the user's Ctrl-C, or the cancellation of the running task."""
    if isinstance(error, asyncio.CancelledError):
        # If the task was not cancelled, something was that the foreign code waited for.
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return is_interrupt(error)


def ensure_stack() -> None:
    """Raise RecursionError before anything changes, if the stack has no room for a change of our own state.

    A RecursionError between two statements would leave half of the change behind.
    """
    _descend(_FRAMES)


def _descend(frames: int) -> None:
    if frames:
        _descend(frames - 1)
