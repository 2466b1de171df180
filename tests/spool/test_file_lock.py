"""The file lock: while one process holds the lock, no other process can get it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from retailrocket_async._spool.file import SpoolFile
from retailrocket_async._spool.file_lock import FileLock, LockTimeoutError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_lock_that_came_too_late_is_given_back(tmp_path: Path) -> None:
    """If the system grants a lock after the caller's time-out, the lock is released, so other callers can get it."""
    one, two = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    with one.held():
        with pytest.raises(LockTimeoutError), two.held(0.05):
            pass
        with pytest.raises(LockTimeoutError), two.held(0.05):
            pass
    for _ in range(20):
        with two.held(10.0), pytest.raises(LockTimeoutError), one.held(0.01):
            pass
        with one.held(10.0):
            pass


def test_a_lock_counts_while_its_file_is_there(tmp_path: Path) -> None:
    """If the file of a lock is replaced, the process that held the lock does not hold it any more."""
    one, two = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert one.acquire_now()
    assert not two.acquire_now()
    two.seize()
    assert two.acquire_now()
    assert not one.is_current()
    assert not one.acquire_now()
    two.release()
    assert one.acquire_now()


def test_a_forked_child_does_not_hold_the_lock(tmp_path: Path) -> None:
    """If the lease's holder forks and closes its file, another process can take the lease although the child runs."""
    file = SpoolFile(tmp_path / "spool")
    file.open()
    assert file.lease.acquire()
    read, write = os.pipe()
    ready, is_ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(is_ready, b"x")
        os.read(read, 1)
        os._exit(0)
    os.read(ready, 1)
    file.close()
    other = SpoolFile(tmp_path / "spool")
    other.open()
    acquired = other.lease.acquire()
    os.write(write, b"x")
    os.waitpid(child, 0)
    other.close()
    assert acquired
