"""The file of a spool: its tables, and the changes that concern several of them.

Everything is synchronous and belongs to one thread at a time. The directory of a spool holds::

    events.db (-wal, -shm)    the database
    write.lock                held around every transaction, by any process
    drain.lock                held by the process that sends, see `lease`
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
"""Number of pages that one call of `shrink` returns to the file system; this takes some ms."""

_SPARE: Final = 2048
"""Free pages that the file keeps while events wait: 8 MiB."""

_SPARE_WHEN_EMPTY: Final = 128
"""Free pages that the file keeps while no event waits: enough for the usual traffic of a shop."""

_PURGED: Final = 10_000
"""Events that `purge` reads at a time."""


class Settlement(NamedTuple):
    """The outcome of some events, to be written.

    Attributes:
        ids: the events.
        outcome: the text that `decode_outcome` reads.
        dead: the reason why they become dead letters; None if they are removed.
        maybe_recorded: whether the API may have recorded them; for dead letters.
    """

    ids: Sequence[Range]
    outcome: str
    dead: str | None = None
    maybe_recorded: bool = False


class Usage(NamedTuple):
    """The numbers of events and dead letters in the file, and its size.

    Attributes:
        events: number of waiting events; slightly too high if events between the oldest and the newest were settled.
        bytes: number of bytes in use.
        dead: number of dead letters.
        oldest_at: when the oldest waiting event was tracked, in seconds since the epoch; None if none waits.
    """

    events: int
    bytes: int
    dead: int
    oldest_at: float | None


class SpoolFile:
    """A connection to a spool.

    Args:
        directory: the directory of the spool; created, with its parents, if it does not exist.
        durability: see `Durability`.
        max_bytes: bound of the database.
        most_dead: dead letters kept.
        dead_age: seconds for which they are kept.
        shop: the partner id that the events belong to; None if it does not matter.
        patience: seconds to wait for the lock while another process holds it.
        lease_timeout: seconds without a heartbeat after which another process may take the lease.
        system: makes the calls to the system.
        connect: makes a connection to the database, as `sqlite3.connect`.

    Attributes:
        events: the waiting events.
        dead: the dead letters.
        log: the log of outcomes.
        lease: the right to send the events.

    Raises:
        SpoolError: from every method, if the file cannot be used.
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
            create: make it if it does not exist; default True.
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
        """Close the file; `open` opens it again. If this process holds the lease, it keeps the lease."""
        self._database.disconnect()

    def transaction(self) -> AbstractContextManager[None]:
        """Hold the lock and a transaction; see `Database.transaction`."""
        return self._database.transaction()

    @property
    def unsure(self) -> bool:
        """Whether the last transaction raised although it may be in the file."""
        return self._database.unsure

    @property
    def generation(self) -> int:
        """How many files there have been at the path, this one included; 0 before the first `open`."""
        return self._database.generation

    # --- writing, in a transaction ------------------------------------------------------------------------------------

    def settle(self, settlement: Settlement, now: float) -> None:
        """Remove waiting events, or make them dead letters, and log their outcome.

        Events that do not wait any more keep the outcome that is logged: a transaction that raised may be in the file
        nevertheless, so a settlement may be written twice, and must count once.

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
        """Remove all events after an id for good; return how many they were.

        Args:
            after: the id.
            outcome: returns the text of the outcome of events with a name.
            now: the time, in seconds since the epoch.
        """
        count = 0
        while found := self.events.oldest(after, _PURGED):
            for name, ids in found:
                self.settle(Settlement([(number, number) for number in ids], outcome(name)), now)
                count += len(ids)
        return count

    # --- how much there is --------------------------------------------------------------------------------------------

    def shop(self) -> str | None:
        """Return the partner id that the events belong to; None if no client has used the spool yet."""
        with self._database.explained():
            return owner_of(self._database.connection)

    def usage(self) -> Usage:
        """Return the numbers of events, bytes and dead letters in the file, without going through all events."""
        connection = self._database.connection
        with self._database.explained():
            # Sub-selects: min and max in one SELECT would go through the whole table.
            low, high, oldest_at, dead = connection.execute(
                "SELECT (SELECT min(id) FROM event), (SELECT max(id) FROM event),"
                " (SELECT at FROM event ORDER BY id LIMIT 1), (SELECT count(*) FROM dead)"
            ).fetchone()
        return Usage(0 if low is None else high - low + 1, self.bytes_used(), dead, oldest_at)

    def bytes_used(self) -> int:
        """Return the bytes of the file that are in use."""
        connection = self._database.connection
        with self._database.explained():
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            free = connection.execute("PRAGMA freelist_count").fetchone()[0]
        return int(pages - free) * PAGE

    def bytes_free(self) -> int:
        """Return the bytes that this user may still write to the file system."""
        with self._database.explained():
            found = self._system.statvfs(self._directory)
        return found.f_bavail * found.f_frsize

    # --- maintenance --------------------------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Flush committed transactions to the disk, for `durability="interval"`."""
        with self._database.locked() as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def truncate_wal(self) -> None:
        """Empty SQLite's write-ahead log if the database has room for its content; errors are ignored."""
        with suppress(SpoolError), self._database.locked() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def shrink(self) -> bool:
        """Give some free pages back to the file system; return whether there are more to give."""
        connection = self._database.connection
        with self._database.explained():
            free = connection.execute("PRAGMA freelist_count").fetchone()[0]
            empty = connection.execute("SELECT NOT EXISTS (SELECT 1 FROM event)").fetchone()[0]
        if free <= (_SPARE_WHEN_EMPTY if empty else _SPARE):
            return False
        with self._database.locked():
            # A script: `execute` makes one step, which frees one page and leaves the statement open.
            connection.executescript(f"PRAGMA incremental_vacuum({_RELEASED})")
        return True


def now() -> float:
    """Return the time of day, in seconds since the epoch: the only clock that the next process shares."""
    return time.time()
