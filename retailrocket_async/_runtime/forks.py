"""Notifies objects in a child process after a fork: the loops, threads and locks of the parent do not work there."""

from __future__ import annotations

import functools
import os
import weakref
from typing import Final, Protocol


class ForkAware(Protocol):
    """An object that belongs to one process."""

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
    """Register one handler for all objects, with the first of them: Python has no way to unregister it."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    for thing in list(_watched):
        thing.after_fork()
