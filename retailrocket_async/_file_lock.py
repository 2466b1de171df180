"""A lock that one process at a time holds, and that the system gives back when the process dies, however it dies."""

from __future__ import annotations

import functools
import os
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


class FileLock:
    """An advisory lock on a file of its own; fair enough: who waits is woken by the system, and never polls.

    Args:
        path: the file; created for this user alone where it is not there, never removed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._mine = False
        _locks.add(self)
        _watch_forks()

    @contextmanager
    def held(self) -> Generator[None]:
        """Hold the lock; waits for whoever holds it."""
        import fcntl  # noqa: PLC0415 - Windows has none

        fcntl.flock(self._opened(), fcntl.LOCK_EX)
        try:
            yield
        finally:
            if self._file is not None:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def acquire_now(self) -> bool:
        """Take the lock, unless another process has it; return whether this one has it now."""
        import fcntl  # noqa: PLC0415 - as above

        if not self._mine:
            with suppress(BlockingIOError):
                fcntl.flock(self._opened(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._mine = True
        return self._mine

    def release(self) -> None:
        """Give the lock back; nothing happens where it is not held."""
        self._mine = False
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _opened(self) -> int:
        if self._file is None:
            self._file = open_private(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        return self._file


def open_private(path: Path, flags: int) -> int:
    """Open a file, making it for the owner of its directory alone where it is new: root may be there only to look."""
    new = not path.exists()
    file = os.open(path, flags, 0o600)
    if new and os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(file, owner.st_uid, owner.st_gid)
    return file


_locks: weakref.WeakSet[FileLock] = weakref.WeakSet()


@functools.cache
def _watch_forks() -> None:
    """Register the one handler for all locks, with the first."""
    os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    # A child shares the lock with its parent, and would hold it on when the parent dies.
    for lock in list(_locks):
        lock.release()
