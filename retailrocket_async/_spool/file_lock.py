"""A lock that one process at a time can hold; the system releases the lock when the process dies for any reason."""

from __future__ import annotations

import errno
import os
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from retailrocket_async._runtime.forks import watch_forks
from retailrocket_async._spool.system import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from retailrocket_async._spool.system import System

_SHORT: Final = 0.0005
"""Seconds by which each pause between the first attempts is longer than the previous pause; about the duration of a
transaction."""

_ATTEMPTS: Final = 5
"""Number of attempts to take the lock before a caller waits in the system's queue for the lock. The queue is fair, but
waiting in the queue needs a thread."""

_CHANGES: Final = 5
"""Number of times that the file may be replaced during one call; after that the call fails."""


class LockTimeoutError(OSError):
    """Another process has held the lock for longer than the caller waits."""


class FileLock:
    """Locks a file that is used only for this purpose, so that one process at a time holds the lock.

    The lock is fair, because a caller that has waited for some ms enters the queue of the operating system. The lock is
    valid only while the locked file is at `path`: if the file is removed or replaced, the holder of the lock has lost
    the lock (see `is_current`).

    Args:
        path: the file. If the file does not exist, it is created for this user alone. The file is never removed.
        system: makes the calls to the operating system.

    Attributes:
        owned: whether this process has taken the lock by `acquire_now` or `seize`. Another process may have replaced
            the file since then, see `is_current`.
    """

    def __init__(self, path: Path, system: System = SYSTEM) -> None:
        self._path = path
        self._system = system
        self._file: int | None = None
        self._queue: _Queue | None = None
        self.owned = False
        watch_forks(self)

    @contextmanager
    def held(self, timeout: float | None = None) -> Generator[None]:
        """Hold the lock during the block.

        Args:
            timeout: seconds to wait for the lock; default None, for no limit.

        Raises:
            LockTimeoutError: another process has held the lock for `timeout` seconds.
        """
        self._take(timeout)
        try:
            yield
        finally:
            self._unlock()

    def _take(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        for _ in range(_CHANGES):
            file = self._opened()
            if not self._taken(file, deadline):
                raise LockTimeoutError(
                    errno.ETIMEDOUT, f"another process has held {self._path.name} for {timeout:g} s: is it stopped?"
                )
            try:
                if self.is_current():
                    return
            except BaseException:
                self.release()
                raise
            # Another file has replaced the locked file. Other processes lock the new file, so release the old file; the
            # next attempt locks the new file.
            self.release()
        raise LockTimeoutError(errno.ETIMEDOUT, f"{self._path.name} is replaced again and again")

    def _taken(self, file: int, deadline: float | None) -> bool:
        import fcntl  # noqa: PLC0415 - Windows has no `fcntl`

        # A thread that an earlier call has started may still wait for the lock. Then this call must not take the lock
        # by itself: the thread uses the same open file, and would release the lock when its own wait ends.
        queued = self._queue is not None and self._queue.pending
        for attempt in range(0 if queued else _ATTEMPTS):
            try:
                self._system.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._system.sleep(_SHORT * attempt)
            else:
                return True
        if self._queue is None:
            self._queue = _Queue(file, self._system)
        return self._queue.wait(None if deadline is None else deadline - time.monotonic())

    def _unlock(self) -> None:
        """Release the lock. If the system call fails, close the file: closing the file releases the lock, too.

        No error is raised, because the transaction under this lock is committed already.
        """
        import fcntl  # noqa: PLC0415 - as above

        if self._file is not None:
            try:
                self._system.flock(self._file, fcntl.LOCK_UN)
            except OSError:
                self.release()

    def acquire_now(self) -> bool:
        """Take the lock unless another process holds the lock; return whether this process holds the lock now."""
        import fcntl  # noqa: PLC0415 - as above

        for _ in range(_CHANGES):
            if self.owned and self.is_current():
                return True
            held = True
            try:
                self._system.flock(self._opened(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held = False
            try:
                if self.is_current():
                    self.owned = held
                    return held
            except BaseException:
                self.release()
                raise
            self.release()
        return False

    def seize(self) -> None:
        """Take the lock from a stopped process: replace the file that this process has locked by a new, locked file.

        Call this method only under another lock, so that one process at a time replaces the file.
        """
        import fcntl  # noqa: PLC0415 - as above

        self.release()
        new = self._path.with_name(f"{self._path.name}.new")
        file = open_private(new, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, self._system)
        try:
            self._system.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._system.replace(new, self._path)
        except BaseException:
            self._close(file)
            raise
        self._file, self.owned = file, True

    def is_current(self) -> bool:
        """Whether the open file is still the file at `path`."""
        if self._file is None:
            return False
        try:
            there = self._system.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        here = self._system.fstat(self._file)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def heartbeat(self) -> None:
        """Show other processes that this process is alive; see `last_heartbeat`."""
        if self._file is not None:
            self._system.touch(self._file)

    def last_heartbeat(self) -> tuple[int, int]:
        """Return a value that changes whenever the process that holds the lock calls `heartbeat`."""
        found = self._system.stat(self._path)
        return found.st_ino, found.st_mtime_ns

    def release(self) -> None:
        """Release the lock and close its file; do nothing if the file is not open."""
        file, self._file, self.owned = self._file, None, False
        queue, self._queue = self._queue, None
        # If a thread still waits for the lock, the thread closes the file afterwards.
        if file is not None and (queue is None or queue.leave()):
            self._close(file)

    def after_fork(self) -> None:
        """Close the file in a forked child process.

        The child shares the lock of its parent, and would still hold the lock after the parent has died.
        """
        file, self._file, self.owned, self._queue = self._file, None, False, None
        if file is not None:
            self._close(file)

    def _close(self, file: int) -> None:
        with suppress(OSError):
            self._system.close(file)

    def _opened(self) -> int:
        if self._file is None:
            self._file = open_private(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, self._system)
        return self._file


class _Queue:
    """Waits for a lock with a time-out: the system call has no time-out, so a separate thread makes the call."""

    def __init__(self, file: int, system: System) -> None:
        self._file = file
        self._system = system
        self._changed = threading.Condition()
        # _asked: the thread waits for the lock. _wanted: the caller waits for the thread. _left: the caller has called
        # `leave`. _taken: the thread has taken the lock for the caller.
        self._asked = self._wanted = self._left = self._taken = False
        self._error: BaseException | None = None

    @property
    def pending(self) -> bool:
        """Whether the thread waits for the lock or releases the lock."""
        with self._changed:
            return self._asked

    def wait(self, timeout: float | None) -> bool:
        """Wait for the lock for `timeout` seconds (None: no limit); return whether this process holds the lock now."""
        with self._changed:
            self._wanted = True
            if not self._asked:
                threading.Thread(target=self._run, name="retailrocket-lock", daemon=True).start()
                self._asked = True
            self._changed.wait_for(
                lambda: self._taken or self._error is not None, None if timeout is None else max(0.0, timeout)
            )
            self._wanted = False
            taken, self._taken = self._taken, False
            error, self._error = self._error, None
        if error is not None:
            raise error
        return taken

    def leave(self) -> bool:
        """Note that the caller never waits for the lock again.

        Returns:
            True if the caller has to close the file; False if a thread still waits for the lock, because that thread
            closes the file.
        """
        with self._changed:
            self._left = True
            return not self._asked

    def _run(self) -> None:
        import fcntl  # noqa: PLC0415 - Windows has no `fcntl`

        error: BaseException | None = None
        try:
            self._system.flock(self._file, fcntl.LOCK_EX)
        except BaseException as raised:  # noqa: BLE001 - raised for the caller
            error = raised
        with self._changed:
            self._asked = False
            if self._wanted and not self._left:
                self._taken, self._error = error is None, error
                self._changed.notify_all()
                return
            # The caller does not wait any more, so the thread itself releases the lock.
            with suppress(OSError):
                if self._left:
                    self._system.close(self._file)
                elif error is None:
                    self._system.flock(self._file, fcntl.LOCK_UN)


def open_private(path: Path, flags: int, system: System = SYSTEM) -> int:
    """Open a file and return its descriptor. If the file is created, only this user may read and write the file.

    If root creates the file, the owner of the directory becomes the owner of the file.
    """
    new = not exists(path, system)
    file = system.open(path, flags, 0o600)
    if new and os.geteuid() == 0:
        try:
            owner = system.stat(path.parent)
            system.fchown(file, owner.st_uid, owner.st_gid)
        except BaseException:
            with suppress(OSError):
                system.close(file)
            raise
    return file


def exists(path: Path, system: System = SYSTEM) -> bool:
    """Return whether there is a file at `path`."""
    try:
        system.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
