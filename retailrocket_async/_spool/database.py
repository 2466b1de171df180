"""One connection to the database of a spool: opened, checked, locked, and used in transactions.

SQLite itself would let several processes write. But its waiting for locks is neither fair nor short, the first opening
can fail, and versions before 3.51.3 can damage a file if two connections write and checkpoint at the same moment. An
own lock around every transaction prevents all of these problems.
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
    """A connection to the database of a spool, under the write lock that its processes share.

    Args:
        directory: the directory of the spool; created, with its parents, if it does not exist.
        lease: checked in every transaction, so that a process that has lost the lease writes nothing.
        durability: see `Durability`.
        max_bytes: bound of the database.
        shop: the partner id that the events belong to; None skips the check of the owner.
        patience: seconds to wait for the lock while another process holds it.
        system: makes the calls to the system.
        connect: makes a connection, as `sqlite3.connect`.

    Attributes:
        unsure: whether the last transaction raised an error although its changes may be in the file.
        generation: number of different files that have been opened at the path; 0 before the first `open`.

    Raises:
        SpoolError: from every method, if the database cannot be used.
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
        # Device and inode of the files that are open; None for one that did not exist yet.
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
        """Translate what SQLite and the system raise in the block into a `SpoolError`; note damage for `open`."""
        try:
            with explained(self._directory):
                yield
        except SpoolDamagedError:
            self._suspect = True
            raise

    def damaged(self) -> None:
        """Note that the content is damaged, so that the next `open` checks all of it, however large it is."""
        self._suspect = True

    # --- opening and closing ------------------------------------------------------------------------------------------

    def open(self, *, create: bool = True) -> None:
        """Open the database and bring its tables up to date; do nothing if it is open.

        Args:
            create: make it if it does not exist; one that this object has had open before is never made again.

        Raises:
            SpoolGoneError: it was open before, and is not at its path any more.
            SpoolDamagedError: it was checked, and is damaged.
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
                    # SQLite may not create the file: one that is removed at this moment would come back empty.
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
                # Without the lock: reading is safe, and takes a moment.
                if check_for_damage(connection, self._directory, large=self._suspect):
                    self._suspect = False
            except BaseException:
                # The release of the lock may fail, too.
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
        """Raise unless the open files are those that other processes find at the path.

        Raises:
            SpoolGoneError: directory or file were removed or replaced.
        """
        with self.explained():
            for name, opened in list(self._identities.items()):
                there = self._identity(name)
                if opened is None and name != DATABASE:
                    self._identities[name] = there
                elif there != opened:
                    raise gone(self._directory)

    def close(self) -> None:
        """Close the database, and release the write lock."""
        try:
            self.disconnect()
        finally:
            self._lock.release()

    def disconnect(self) -> None:
        """Close the database, which `open` opens again; the file of the write lock stays open."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with self.explained():
                self._close(connection)

    def _close(self, connection: sqlite3.Connection) -> None:
        # The last process to close writes: SQLite makes a checkpoint then.
        try:
            with self._lock.held(self._patience):
                connection.close()
        finally:
            connection.close()

    # --- using it -----------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Run the block in a transaction, under the write lock; if the block raises, its changes are rolled back.

        Raises:
            SpoolFileFullError: the file or its disk has no space.
            SpoolGoneError: the file is not at its path any more. This is checked before and after the block, because
                events in a file that no process finds count as not written.
            LeaseLostError: this process held the lease, and another process has taken it.
            SpoolBusyError: another process does not release the lock.
        """
        connection = self.connection
        self.unsure = False
        with self.explained(), self._lock.held(self._patience):
            self.check_place()
            self._lease.check()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                # From here on the changes may be in the file even if an error is raised.
                self.unsure = True
                connection.execute("COMMIT")
            except BaseException:
                # SQLite may have rolled it back itself, as on a full disk.
                if connection.in_transaction:
                    with suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                        self.unsure = False
                raise
            self.check_place()
        self.unsure = False

    @contextmanager
    def locked(self) -> Generator[sqlite3.Connection]:
        """Hold the lock during the block, without a transaction, and yield the connection."""
        with self.explained(), self._lock.held(self._patience):
            yield self.connection
