"""The lease of a spool: the one process that holds it sends the spool's events.

The holder has locked a file, and renews the lease by a heartbeat, the time of that file's last change. The system
releases the lock if the holder dies. A holder that is stopped keeps the lock, but its heartbeat stops: after a
time-out another process replaces the locked file by a new one that it has locked, and holds the lease.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from retailrocket_async._spool.failures import LeaseLostError, explained
from retailrocket_async._spool.file_lock import FileLock
from retailrocket_async._spool.system import SYSTEM

if TYPE_CHECKING:
    from pathlib import Path

    from retailrocket_async._spool.system import System

LEASE_TIMEOUT: Final = 10.0
"""Seconds without a heartbeat after which another process may take the lease."""

_LOCK: Final = "drain.lock"
"""The name of the locked file. Earlier versions of this package use it as well, so it cannot change."""


class SenderLease:
    """The right of one process to send the events of a spool.

    Args:
        directory: the directory of the spool.
        timeout: seconds without a heartbeat of the holder after which `acquire` takes the lease from it.
        system: makes the calls to the system.

    Attributes:
        timeout: the argument `timeout`, in seconds.

    Raises:
        SpoolError: from every method but `release`, if the directory cannot be used.
    """

    def __init__(self, directory: Path, *, timeout: float = LEASE_TIMEOUT, system: System = SYSTEM) -> None:
        self.timeout = timeout
        self._directory = directory
        self._lock = FileLock(directory / _LOCK, system)
        # The heartbeat of the other process that was seen last, and when it was first seen.
        self._seen: tuple[int, int] | None = None
        self._seen_at = 0.0

    def acquire(self) -> bool:
        """Take the lease unless another process renews it; return whether this process holds it now.

        Call it in a transaction, so that only one process takes the lease from a holder that is stopped.
        """
        with explained(self._directory):
            if self._lock.acquire_now():
                self._lock.heartbeat()
                return True
            seen, now = self._lock.last_heartbeat(), time.monotonic()
            if seen != self._seen:
                self._seen, self._seen_at = seen, now
            elif now - self._seen_at >= self.timeout:
                self._lock.seize()
                return True
            return False

    def renew(self) -> None:
        """Show other processes that the holder, this process, is alive.

        Raises:
            LeaseLostError: another process has taken the lease.
        """
        with explained(self._directory):
            self.check()
            self._lock.heartbeat()

    def check(self) -> None:
        """Raise an error if another process has taken the lease from this process.

        Raises:
            LeaseLostError: another process has taken the lease.
        """
        if self._lock.owned and not self._lock.is_current():
            raise LeaseLostError(
                f"this process was stopped for more than {self.timeout:g} s: another one sends from the spool in"
                f" {self._directory} in its place"
            )

    @property
    def held(self) -> bool:
        """Whether this process holds the lease, as far as it knows."""
        return self._lock.owned

    def release(self) -> None:
        """Let another process take the lease; nothing happens if this one does not hold it."""
        self._lock.release()
