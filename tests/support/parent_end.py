"""Ends a child process when its parent has ended, even if the parent was killed.

A parent that is killed by SIGKILL runs no `finally`, so the child has to notice it. `exit_with_parent` is for a child
that runs our code, `until_parent_ends` for any other program.

Run as a script, this module is the launcher of such a program::

    python parent_end.py PARENT_ID PROGRAM [ARGUMENT ...]
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_POLL = 0.2
"""Seconds between two looks at the parent."""


def exit_with_parent(wait: Callable[[], object]) -> None:
    """End this process as soon as `wait`, which blocks a thread of its own, returns because the parent has ended."""

    def watch() -> None:
        wait()
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def until_parent_ends(*command: str) -> list[str]:
    """Return a command that runs `command` and kills it when this process has ended.

    The started process becomes `command`, so its id is that of the program. On Windows the command is returned
    unchanged.
    """
    if sys.platform == "win32":
        return [*command]
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def _run(parent: int, command: list[str]) -> None:
    """Become `command`, with a child process that watches `parent`."""
    program = os.getpid()
    if os.fork() == 0:
        _watch(parent, program)
    os.execvp(command[0], command)


def _watch(parent: int, program: int) -> None:
    """Kill `program` when `parent` has ended; exit when either is gone."""
    # Ctrl-C is for the parent, which then ends the program as usual.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The reader of a pipe waits until every process has closed it.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    # When the program ends, this process gets another parent.
    while os.getppid() == program:
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os.kill(program, signal.SIGKILL)
            break
        time.sleep(_POLL)
    os._exit(0)


if __name__ == "__main__":
    _run(int(sys.argv[1]), sys.argv[2:])
