"""A connection to the database of a spool: opens and checks the file, and runs transactions under a lock.

SQLite lets several processes write to one database, but this has three problems. Waiting for SQLite's locks is slow and
not fair. The first opening of a new database can fail if several processes open the database at the same moment.
Versions before 3.51.3 can damage the file if two connections write and checkpoint at the same moment. Every transaction
is therefore protected by a lock of this package, which prevents all three problems.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from retailrocket_async._errors import SpoolError
from retailrocket_async._spool.directory import DATABASE, prepare
from retailrocket_async._spool.failures import SpoolDamagedError, explained, gone
from retailrocket_async._spool.file_lock import FileLock, exists
from retailrocket_async._spool.schema import check_for_damage, claim, configure

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from retailrocket_async._spool.lease import SenderLease
    from retailrocket_async._spool.schema import Durability
    from retailrocket_async._spool.system import System


class Database:
    """Opens the database of a spool, and runs transactions under the write lock that all processes share.

    Args:
        directory: the directory of the spool; created, with its parents, if it does not exist.
        lease: the right to send the events. Every transaction checks whether another process has taken the lease from
            this process, and fails in this case. A process that has lost the lease therefore writes nothing.
        durability: when an event is safe from a power cut; see `Durability`.
        max_bytes: largest size of the database in bytes; SQLite may use 1 MiB more when it removes events.
        shop: the partner id of the shop that owns the spool; None to open the spool of any shop.
        patience: seconds to wait for the write lock while another process holds it.
        system: makes the calls to the operating system.
        connect: opens a connection; has the parameters of `sqlite3.connect`.

    Attributes:
        unsure: whether the last transaction raised an error although its changes may be in the file.
        generation: number of different files that have been opened at the path; 0 before the first `open`.

    Raises:
        SpoolError: raised by every method if the database cannot be used.
    """

    def __init__(  # noqa: PLR0913 - the settings of a spool
        self,
        directory: Path,
        lease: SenderLease,
        *,
        durability: Durability,
        max_bytes: int,
        shop: str | None,
        patience: float,
        system: System,
        connect: Callable[..., sqlite3.Connection],
    ) -> None:
        self._directory = directory
        self._lease = lease
        self._durability: Durability = durability
        self._max_bytes = max_bytes
        self._shop = shop
        self._patience = patience
        self._system = system
        self._connect = connect
        self._lock = FileLock(directory / "write.lock", system)
        self._connection: sqlite3.Connection | None = None
        # Maps the name of each open file to its device and inode, or to None if the file did not exist when the
        # database was opened.
        self._identities: dict[str, tuple[int, int] | None] = {}
        self._suspect = False
        self.unsure = False
        self.generation = 0

    @property
    def connection(self) -> sqlite3.Connection:
        """The open connection.

        Raises:
            SpoolError: the database is closed.
        """
        if self._connection is None:
            raise SpoolError("the spool is closed")
        return self._connection

    @contextmanager
    def explained(self) -> Generator[None]:
        """Turn errors of SQLite and of the operating system in the block into a `SpoolError`.

        If the error shows that the database is damaged, the next `open` checks the whole database.
        """
        try:
            with explained(self._directory):
                yield
        except SpoolDamagedError:
            self._suspect = True
            raise

    def damaged(self) -> None:
        """Note that the database is damaged: the next `open` checks the whole database, even a large one."""
        self._suspect = True

    # --- opening and closing ------------------------------------------------------------------------------------------

    def open(self, *, create: bool = True) -> None:
        """Open the database and bring its tables up to date; do nothing if the database is open already.

        Args:
            create: whether to create the database if it does not exist; default True. A database that this object has
                opened before is never created again.

        Raises:
            SpoolGoneError: this object has opened the database before, and the file is not at its path any more.
            SpoolDamagedError: the check of the database has found damage.
        """
        if self._connection is not None:
            return
        with self.explained():
            there = exists(self._directory / DATABASE, self._system)
        if not there and self.generation:
            raise gone(self._directory)
        if not there and not create:
            raise SpoolError(f"there is no spool in {self._directory}")
        prepare(self._directory, self._system, create=not there)
        connection: sqlite3.Connection | None = None
        with self.explained():
            try:
                with self._lock.held(self._patience):
                    # `mode=rw` keeps SQLite from creating the file. Otherwise SQLite would create an empty database
                    # if another process removed the file at this moment.
                    connection = self._connect(
                        f"{(self._directory / DATABASE).as_uri()}?mode=rw",
                        uri=True,
                        timeout=10.0,
                        isolation_level=None,
                        check_same_thread=False,
                    )
                    try:
                        configure(connection, self._durability, self._max_bytes)
                        if self._shop is not None:
                            claim(connection, self._shop, self._directory)
                        identities = {name: self._identity(name) for name in (DATABASE, f"{DATABASE}-wal")}
                    except BaseException:
                        connection.close()
                        connection = None
                        raise
                # The check only reads, so the lock is not needed. A check under the lock would block other processes.
                if check_for_damage(connection, self._directory, large=self._suspect):
                    self._suspect = False
            except BaseException:
                # The connection is open here if the check or the release of the lock has failed.
                if connection is not None:
                    self._close(connection)
                raise
        if not self.generation or identities[DATABASE] != self._identities[DATABASE]:
            self.generation += 1
            self.unsure = False
        self._connection, self._identities = connection, identities

    def _identity(self, name: str) -> tuple[int, int] | None:
        try:
            found = self._system.stat(self._directory / name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_dev, found.st_ino

    def check_place(self) -> None:
        """Check that the open files are still at their paths, where other processes find them.

        Raises:
            SpoolGoneError: the directory or a file was removed or replaced.
        """
        with self.explained():
            for name, opened in list(self._identities.items()):
                there = self._identity(name)
                if opened is None and name != DATABASE:
                    self._identities[name] = there
                elif there != opened:
                    raise gone(self._directory)

    def close(self) -> None:
        """Close the database, and close the file of the write lock."""
        try:
            self.disconnect()
        finally:
            self._lock.release()

    def disconnect(self) -> None:
        """Close the database, so that `open` can open it again; the file of the write lock stays open."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with self.explained():
                self._close(connection)

    def _close(self, connection: sqlite3.Connection) -> None:
        # Closing needs the lock, because SQLite writes a checkpoint when the last connection is closed.
        try:
            with self._lock.held(self._patience):
                connection.close()
        finally:
            connection.close()

    # --- transactions -------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Run the block in a transaction, under the write lock; roll its changes back if the block raises an error.

        Raises:
            SpoolFileFullError: the file or its disk has no space.
            SpoolGoneError: the file is not at its path any more. The path is checked before and after the block: no
                process would find events in a file that was moved away, so these events must not be reported as
                written.
            LeaseLostError: another process has taken the lease from this process.
            SpoolBusyError: another process has held the write lock for `patience` seconds.
        """
        connection = self.connection
        self.unsure = False
        with self.explained(), self._lock.held(self._patience):
            self.check_place()
            self._lease.check()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                # If COMMIT raises an error, the changes may be in the file all the same.
                self.unsure = True
                connection.execute("COMMIT")
            except BaseException:
                # The transaction may have ended already: SQLite itself rolls a transaction back after some errors, for
                # example if the disk is full.
                if connection.in_transaction:
                    with suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                        self.unsure = False
                raise
            self.check_place()
        self.unsure = False

    @contextmanager
    def locked(self) -> Generator[sqlite3.Connection]:
        """Hold the write lock during the block, without a transaction, and yield the connection."""
        with self.explained(), self._lock.held(self._patience):
            yield self.connection
