"""The lease of a spool: the right to send the events of the spool, which one process at a time holds.

The holder of the lease has locked a file, and renews the lease by a heartbeat: the holder updates the modification time
of the file. If the holder dies, the operating system releases the lock. If the holder is only stopped (e.g. by
`SIGSTOP`), the file stays locked, but the heartbeat stops. After a time-out, another process creates and locks a new
file, and replaces the old file by the new file. From then on the other process holds the lease.

The requests of two holders must never be in flight at the same time::

    heartbeat ---- validity ----> no request begins ---- request_timeout ----> no request is in flight: take the lease

A process that was stopped cannot end its requests. So the other process waits until they have ended by themselves.
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
"""Least number of seconds without a heartbeat after which another process may take the lease."""

_LOCK: Final = "drain.lock"
"""The name of the locked file. Earlier versions of this package use the same name, so the name cannot change."""


class SenderLease:
    """Acquires, renews and releases the right of this process to send the events of a spool.

    Args:
        directory: the directory of the spool.
        timeout: least number of seconds without a heartbeat after which `acquire` takes the lease from the process that
            holds the lease.
        system: makes the calls to the operating system.

    Attributes:
        validity: number of seconds after each heartbeat in which the holder may begin requests.
        request_timeout: largest number of seconds for which a request is in flight; default 0. All processes of the
            spool should have the same.

    Raises:
        SpoolError: raised by every method except `release` if the directory cannot be used.
    """

    def __init__(self, directory: Path, *, timeout: float = LEASE_TIMEOUT, system: System = SYSTEM) -> None:
        self._timeout = timeout
        self.validity = timeout / 2
        self.request_timeout = 0.0
        self._directory = directory
        self._lock = FileLock(directory / _LOCK, system)
        # `_seen` is the value of `last_heartbeat` when `acquire` last failed. `_seen_at` is the time at which `acquire`
        # first read this value.
        self._seen: tuple[int, int] | None = None
        self._seen_at = 0.0

    @property
    def timeout(self) -> float:
        """Seconds without a heartbeat after which `acquire` takes the lease from the process that holds the lease."""
        return max(self._timeout, self.validity + self.request_timeout)

    def acquire(self) -> bool:
        """Take the lease unless another process holds and renews it; return whether this process holds the lease now.

        Call this method in a transaction, so that only one process takes the lease from a holder that is stopped.
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
        """Renew the lease by a heartbeat; the heartbeat shows other processes that this process is alive.

        If the last heartbeat is older than `validity`, call this method in a transaction. Otherwise another process
        could take the lease between the check and the heartbeat.

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
        """Whether this process has taken the lease.

        Another process may have taken the lease since then; see `check`.
        """
        return self._lock.owned

    def release(self) -> None:
        """Release the lease, so that another process can take the lease; do nothing if the lease is not held."""
        self._lock.release()
