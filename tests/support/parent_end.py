"""Ends a child process when its parent has ended, even if the parent was killed.

A parent that is killed by SIGKILL runs no `finally`, so the child itself has to notice the parent's end. Use
`exit_with_parent` in a child that runs Python code of the tests, and `until_parent_ends` for any other program.

Run as a script, this module starts such a program::

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
"""Seconds between two checks whether the parent still runs."""


def exit_with_parent(wait: Callable[[], object]) -> None:
    """End this process when `wait` returns. `wait` runs in a thread, and must block until the parent has ended."""

    def watch() -> None:
        wait()
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def until_parent_ends(*command: str) -> list[str]:
    """Return a command that runs `command`, and kills the program when the current process has ended.

    The started process itself becomes the program (by exec), so both have the same process id. On Windows `command` is
    returned unchanged.
    """
    if sys.platform == "win32":
        return [*command]
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def _run(parent: int, command: list[str]) -> None:
    """Start a child process that watches the process `parent`, then replace this process by `command`."""
    program = os.getpid()
    if os.fork() == 0:
        _watch(parent, program)
    os.execvp(command[0], command)


def _watch(parent: int, program: int) -> None:
    """Wait until the process `parent` or the process `program` has ended; kill `program` if the parent has."""
    # On Ctrl-C the parent ends the program as usual, so this process ignores SIGINT.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A reader of the program's output waits until every process has closed the pipe, so this process must not hold the
    # pipe open.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    # This process is a child of the program, and gets another parent when the program ends.
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
