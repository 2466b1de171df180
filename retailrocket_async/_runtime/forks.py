"""Notifies objects in the child process after a fork.

The parent's loops, threads and locks do not work in the child.
"""

from __future__ import annotations

import functools
import os
import weakref
from typing import Final, Protocol


class ForkAware(Protocol):
    """An object that must be notified in the child process after a fork."""

    def after_fork(self) -> None:
        """Drop references to loops, threads and locks of the parent process; called in the child process."""
        ...


_watched: Final[weakref.WeakSet[ForkAware]] = weakref.WeakSet()


def watch_forks(thing: ForkAware) -> None:
    """Call `thing.after_fork` in every child process that is forked while `thing` is alive."""
    _watched.add(thing)
    _register()


@functools.cache
def _register() -> None:
    """Register one fork handler for all objects, at the first call only: Python cannot unregister a fork handler."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    for thing in list(_watched):
        thing.after_fork()
