"""The file of a spool: gives access to its tables, and makes the changes that concern several tables.

All methods block, and only one thread at a time may use an object. The directory of a spool contains these files::

    events.db (-wal, -shm)    the database
    write.lock                locked by a process during each of its transactions
    drain.lock                locked by the process that sends, see `lease`
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from retailrocket_async._errors import SpoolError
from retailrocket_async._spool.database import Database
from retailrocket_async._spool.dead_letters import DeadLetters
from retailrocket_async._spool.event_table import EventTable
from retailrocket_async._spool.lease import LEASE_TIMEOUT, SenderLease
from retailrocket_async._spool.outcome_log import OutcomeLog
from retailrocket_async._spool.schema import PAGE, owner_of
from retailrocket_async._spool.system import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from retailrocket_async._spool.id_ranges import Range
    from retailrocket_async._spool.schema import Durability
    from retailrocket_async._spool.system import System

_RELEASED: Final = 500
"""Largest number of free pages that one call of `shrink` returns to the file system. 500 pages take some ms."""

_SPARE: Final = 2048
"""While events wait, `shrink` returns pages only if the file has more free pages than this (8 MiB)."""

_SPARE_WHEN_EMPTY: Final = 128
"""While no event waits, `shrink` returns pages only if the file has more free pages than this.

This number of pages is enough for the usual traffic of a shop.
"""

_PURGED: Final = 10_000
"""Number of events that `purge` removes at a time."""


class Settlement(NamedTuple):
    """The outcome of some events, as `SpoolFile.settle` writes it.

    Attributes:
        ids: the ids of the events.
        outcome: their outcome, as text from `encode_outcome`.
        dead: the reason why the events become dead letters; None if the events are removed without dead letters.
        maybe_recorded: whether the API may have recorded the events; stored in dead letters only.
    """

    ids: Sequence[Range]
    outcome: str
    dead: str | None = None
    maybe_recorded: bool = False


class Usage(NamedTuple):
    """The numbers of events and dead letters in the file, and its size.

    Attributes:
        events: number of ids from the lowest to the highest id of a waiting event. This number is quick to compute, but
            also counts settled events whose ids are between the ids of waiting events.
        bytes: number of bytes of the file that are in use.
        dead: number of dead letters.
        oldest_at: when the oldest waiting event was tracked, in seconds since the epoch; None if no event waits.
    """

    events: int
    bytes: int
    dead: int
    oldest_at: float | None


class SpoolFile:
    """Opens, reads and changes the file of a spool.

    Args:
        directory: the directory of the spool; created, with its parents, if it does not exist.
        durability: when an event is safe from a power cut; see `Durability`.
        max_bytes: largest size of the database in bytes.
        most_dead: largest number of dead letters to keep.
        dead_age: seconds after which a dead letter is removed.
        shop: the partner id of the shop that owns the spool; None to open the spool of any shop.
        patience: seconds to wait for the write lock while another process holds it.
        lease_timeout: least number of seconds without a heartbeat after which another process may take the lease.
        system: makes the calls to the operating system.
        connect: opens a connection to the database; has the parameters of `sqlite3.connect`.

    Attributes:
        events: the table of waiting events.
        dead: the table of dead letters.
        log: the log of outcomes, from which each process reads the outcomes of its events.
        lease: the right to send the events, which one process at a time has.

    Raises:
        SpoolError: raised by every method if the file cannot be used.
    """

    def __init__(  # noqa: PLR0913 - the settings of a spool
        self,
        directory: Path,
        *,
        durability: Durability = "commit",
        max_bytes: int = 1 << 40,
        most_dead: int = 1 << 40,
        dead_age: float = 1e12,
        shop: str | None = None,
        patience: float = 5.0,
        lease_timeout: float = LEASE_TIMEOUT,
        system: System = SYSTEM,
        connect: Callable[..., sqlite3.Connection] = sqlite3.connect,
    ) -> None:
        self._directory = directory
        self._system = system
        self.lease = SenderLease(directory, timeout=lease_timeout, system=system)
        self._database = Database(
            directory,
            self.lease,
            durability=durability,
            max_bytes=max_bytes,
            shop=shop,
            patience=patience,
            system=system,
            connect=connect,
        )
        self.events = EventTable(self._database, directory)
        self.dead = DeadLetters(self._database, most=most_dead, max_age=dead_age)
        self.log = OutcomeLog(self._database)

    # --- opening and closing ------------------------------------------------------------------------------------------

    def open(self, *, create: bool = True) -> None:
        """Open the file; see `Database.open`.

        Args:
            create: whether to create the file if it does not exist; default True.
        """
        self._database.open(create=create)

    def check_place(self) -> None:
        """Raise `SpoolGoneError` if the file is not at its path any more; see `Database.check_place`."""
        self._database.check_place()

    def close(self) -> None:
        """Close the file, and release the lease and all locks."""
        try:
            self._database.close()
        finally:
            self.lease.release()

    def disconnect(self) -> None:
        """Close the file, so that `open` can open it again. If this process holds the lease, it keeps the lease."""
        self._database.disconnect()

    def transaction(self) -> AbstractContextManager[None]:
        """Return a context manager that runs its block in a transaction; see `Database.transaction`."""
        return self._database.transaction()

    @property
    def unsure(self) -> bool:
        """Whether the last transaction raised an error although its changes may be in the file."""
        return self._database.unsure

    @property
    def generation(self) -> int:
        """Number of different files that have been opened at the path; 0 before the first `open`."""
        return self._database.generation

    # --- writing, in a transaction ------------------------------------------------------------------------------------

    def settle(self, settlement: Settlement, now: float) -> None:
        """Remove waiting events, or make them dead letters, and add their outcome to the log.

        Events that do not wait any more are ignored, because the log contains their outcome already. Such events occur
        if a settlement is written twice, because the first transaction raised an error although its changes are in the
        file.

        Args:
            settlement: the outcome of the events.
            now: the time, in seconds since the epoch.
        """
        waiting = self.events.still_waiting(settlement.ids)
        if settlement.dead is not None:
            self.dead.add(waiting, settlement.dead, now, maybe_recorded=settlement.maybe_recorded)
        self.events.remove(waiting)
        self.log.add(waiting, settlement.outcome, now)

    def purge(self, after: int, outcome: Callable[[str], str], now: float) -> int:
        """Remove all waiting events whose ids are greater than `after`; return how many were removed.

        Args:
            after: the id after which to begin.
            outcome: called with an event name; returns the encoded outcome of the removed events with this name.
            now: the time, in seconds since the epoch.
        """
        count = 0
        while found := self.events.oldest(after, _PURGED):
            for name, ids in found:
                self.settle(Settlement([(number, number) for number in ids], outcome(name)), now)
                count += len(ids)
        return count

    # --- sizes and counts ---------------------------------------------------------------------------------------------

    def shop(self) -> str | None:
        """Return the partner id that the events belong to; None if no client has used the spool yet."""
        with self._database.explained():
            return owner_of(self._database.connection)

    def usage(self) -> Usage:
        """Return the numbers of events, bytes and dead letters in the file; quick, because the events are not read."""
        connection = self._database.connection
        with self._database.explained():
            # `min` and `max` have a SELECT each. For a SELECT with both, SQLite would read the whole table.
            low, high, oldest_at, dead = connection.execute(
                "SELECT (SELECT min(id) FROM event), (SELECT max(id) FROM event),"
                " (SELECT at FROM event ORDER BY id LIMIT 1), (SELECT count(*) FROM dead)"
            ).fetchone()
        return Usage(0 if low is None else high - low + 1, self.bytes_used(), dead, oldest_at)

    def bytes_used(self) -> int:
        """Return the number of bytes of the file that are in use."""
        connection = self._database.connection
        with self._database.explained():
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            free = connection.execute("PRAGMA freelist_count").fetchone()[0]
        return int(pages - free) * PAGE

    def bytes_free(self) -> int:
        """Return the number of bytes that this user may still write to the file system."""
        with self._database.explained():
            found = self._system.statvfs(self._directory)
        return found.f_bavail * found.f_frsize

    # --- maintenance --------------------------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Flush committed transactions to the disk; called at intervals with `durability="interval"`."""
        with self._database.locked() as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def truncate_wal(self) -> None:
        """Copy the content of SQLite's write-ahead log to the database, and empty the log, to free disk space.

        This fails if the disk has no room for the content; errors are ignored.
        """
        with suppress(SpoolError), self._database.locked() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def shrink(self) -> bool:
        """Return some free pages to the file system. Return False if there were no pages to return."""
        connection = self._database.connection
        with self._database.explained():
            free = connection.execute("PRAGMA freelist_count").fetchone()[0]
            empty = connection.execute("SELECT NOT EXISTS (SELECT 1 FROM event)").fetchone()[0]
        if free <= (_SPARE_WHEN_EMPTY if empty else _SPARE):
            return False
        with self._database.locked():
            # `executescript` runs the statement to its end. `execute` would run one step only, which frees one page,
            # and would leave the statement open.
            connection.executescript(f"PRAGMA incremental_vacuum({_RELEASED})")
        return True


def now() -> float:
    """Return the time, in seconds since the epoch. The file uses this clock, because all processes share the clock."""
    return time.time()
