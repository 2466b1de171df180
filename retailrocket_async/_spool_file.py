"""The file of a spool: events that wait, dead letters, and the log of what became of events. SQL lives here alone.

Everything is synchronous and belongs to one thread at a time. A directory holds all that belongs to a spool::

    events.db (-wal, -shm)    the database
    write.lock                held around every transaction, by any process
    drain.lock                held by the one process that sends

SQLite itself would let several processes write, but its waiting is neither fair nor short, opening for the first time
can fail, and versions before 3.51.3 can damage a file when two connections write and check-point at the same moment.
Under one lock none of that can happen.

Statements work on many rows at once: Python gives its global lock away and takes it back for every step of a
statement, which beside a busy event loop costs up to 5 ms each.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from retailrocket_async._errors import SpoolError
from retailrocket_async._file_lock import FileLock, open_private

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

Durability: TypeAlias = Literal["commit", "interval"]
"""When an accepted event is safe from a power cut: before `track` returns, or half a second later."""

Range: TypeAlias = tuple[int, int]
"""The first and the last of ids that follow one another."""

DATABASE: Final = "events.db"

_MIGRATIONS: Final = (
    """
    CREATE TABLE event (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, size INTEGER NOT NULL,
                        body TEXT NOT NULL);
    CREATE TABLE dead (id INTEGER PRIMARY KEY, at REAL NOT NULL, died_at REAL NOT NULL, reason TEXT NOT NULL,
                       maybe_recorded INTEGER NOT NULL, body TEXT NOT NULL);
    CREATE INDEX dead_by_time ON dead (died_at);
    CREATE TABLE settled (seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, ids TEXT NOT NULL,
                          outcome TEXT NOT NULL);
    CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    """,
)
"""What makes each version of the schema of the one before; `PRAGMA user_version` says how many have been run."""

_PAGE: Final = 4096

_HEADROOM: Final = 1 << 20
"""Bytes that the engine grants above the bound for events: what makes room must have room itself."""

_REMEMBERED: Final = 600.0
"""Seconds for which the log keeps what became of events, so that the process that tracked them learns of it."""

_VACUUMED_AT_ONCE: Final = 500
"""Pages that are given back to the file system in one go: some ms."""

_KEPT_FREE: Final = 2048
"""Free pages that the file keeps, 8 MiB, as long as events wait."""

_KEPT_EMPTY: Final = 128
"""Free pages that it keeps where none wait: those of a shop's usual traffic need not come and go."""


class Rows(NamedTuple):
    """Events as they lie in the file, oldest first."""

    ids: list[int]
    at: list[float]
    bodies: list[bytes]


class Settlement(NamedTuple):
    """What became of some events.

    Attributes:
        ids: which.
        outcome: what, as JSON.
        dead: the reason where they become dead letters; None where they are removed.
        maybe_recorded: whether the API may have recorded them, for a dead letter.
    """

    ids: Sequence[Range]
    outcome: str
    dead: str | None = None
    maybe_recorded: bool = False


class DeadRows(NamedTuple):
    """Dead letters as they lie in the file, oldest first."""

    ids: list[int]
    at: list[float]
    died_at: list[float]
    reasons: list[str]
    maybe_recorded: list[bool]
    bodies: list[bytes]


class Logged(NamedTuple):
    """A settlement as the log tells it."""

    seq: int
    ids: list[Range]
    outcome: str


class Usage(NamedTuple):
    """How much is in the file.

    Attributes:
        events: waiting events; a little more where others were settled in between.
        bytes: bytes in use.
        dead: dead letters.
        oldest_at: when the oldest waiting event came, in seconds since the epoch; None where none waits.
    """

    events: int
    bytes: int
    dead: int
    oldest_at: float | None


def ranges(ids: Iterable[int]) -> list[Range]:
    """Return `ids` as ranges, in ascending order."""
    found: list[Range] = []
    first = last = None
    for number in sorted(ids):
        if last is not None and number == last + 1:
            last = number
            continue
        if first is not None and last is not None:
            found.append((first, last))
        first = last = number
    if first is not None and last is not None:
        found.append((first, last))
    return found


class SpoolFile:
    """One connection to a spool.

    Args:
        directory: where it is; created, with its parents, where it is not there.
        durability: see `Durability`.
        max_bytes: bound of the file.
        most_dead: dead letters kept.
        dead_age: seconds for which they are kept.
        shop: the partner id that the events belong to; None where it does not matter.

    Raises:
        SpoolError: from every method, where the file cannot be used.
    """

    def __init__(  # noqa: PLR0913 - what a spool is told
        self,
        directory: Path,
        *,
        durability: Durability = "commit",
        max_bytes: int = 1 << 40,
        most_dead: int = 1 << 40,
        dead_age: float = 1e12,
        shop: str | None = None,
    ) -> None:
        self._directory = directory
        self._durability = durability
        self._max_bytes = max_bytes
        self._most_dead = most_dead
        self._dead_age = dead_age
        self._shop = shop
        self._connection: sqlite3.Connection | None = None
        self._lock = FileLock(directory / "write.lock")
        self._drain_lock = FileLock(directory / "drain.lock")
        self._forgotten_at = 0.0

    # --- opening and closing ------------------------------------------------------------------------------------------

    def open(self, *, create: bool = True) -> None:
        """Open the file, bringing its schema up to date; `create` it where it is not there, or raise."""
        if self._connection is not None:
            return
        if not create and not (self._directory / DATABASE).exists():
            raise SpoolError(f"there is no spool in {self._directory}")
        _prepare(self._directory)
        with _explained(self._directory), self._lock.held():
            connection = sqlite3.connect(
                self._directory / DATABASE, timeout=10.0, isolation_level=None, check_same_thread=False
            )
            try:
                self._configure(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection

    def _configure(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(_MIGRATIONS):
            raise SpoolError(f"the spool was written by a newer version of this package (schema {version}): upgrade")
        # Before the first table, or it has no effect.
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={'FULL' if self._durability == 'commit' else 'NORMAL'}")
        connection.execute(f"PRAGMA journal_size_limit={16 << 20}")
        connection.execute(f"PRAGMA max_page_count={(self._max_bytes + _HEADROOM) // _PAGE}")
        for number in range(version, len(_MIGRATIONS)):
            # One transaction each: a crash in the middle leaves the version before.
            connection.executescript(f"BEGIN IMMEDIATE; {_MIGRATIONS[number]} PRAGMA user_version={number + 1}; COMMIT")
        if self._shop is not None:
            connection.execute("INSERT OR IGNORE INTO meta VALUES ('shop', ?)", (self._shop,))
            [owner] = connection.execute("SELECT value FROM meta WHERE name = 'shop'").fetchone()
            if owner != self._shop:
                raise SpoolError(f"the spool in {self._directory} belongs to partner_id {owner!r}: one spool per shop")

    def close(self) -> None:
        """Close the file and give all locks back."""
        try:
            self.disconnect()
        finally:
            self._lock.release()
            self._drain_lock.release()

    def disconnect(self) -> None:
        """Close the file, which `open` opens again; whether this is the process that sends does not change."""
        connection, self._connection = self._connection, None
        if connection is not None:
            # The last one to close check-points, which is writing.
            with _explained(self._directory), self._lock.held():
                connection.close()

    def lead(self) -> bool:
        """Become the process that sends, unless another one is; return whether this one is now."""
        return self._drain_lock.acquire_now()

    def stop_leading(self) -> None:
        """Let another process send."""
        self._drain_lock.release()

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Hold the lock and a transaction; nothing of it happens where the block raises.

        Raises:
            SpoolFileFullError: there is no room.
        """
        connection = self._opened()
        with _explained(self._directory), self._lock.held():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                connection.execute("COMMIT")
            except BaseException:
                # A full disk may have rolled it back already.
                if connection.in_transaction:
                    with suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                raise

    # --- writing, in a transaction ------------------------------------------------------------------------------------

    def append(self, envelopes: Iterable[bytes], at: float) -> int:
        """Add events; return the id of the last. Their ids follow one another."""
        connection = self._opened()
        connection.execute(
            "INSERT INTO event (at, size, body) SELECT ?, length(CAST(value AS BLOB)), value"
            " FROM json_each(CAST(? AS TEXT))",
            (at, b"[%b]" % b",".join(envelopes)),
        )
        [last] = connection.execute("SELECT last_insert_rowid()").fetchone()
        return int(last)

    def settle(self, settlement: Settlement, now: float) -> None:
        """Take events out of the waiting ones, and log what became of them."""
        connection = self._opened()
        ids = json.dumps(settlement.ids, separators=(",", ":"))
        for which, values in _chosen(settlement.ids):
            if settlement.dead is not None:
                connection.execute(
                    "INSERT OR IGNORE INTO dead (id, at, died_at, reason, maybe_recorded, body)"  # noqa: S608 - ours
                    f" SELECT id, at, ?, ?, ?, body FROM event WHERE {which}",
                    (now, settlement.dead, settlement.maybe_recorded, *values),
                )
            connection.execute(f"DELETE FROM event WHERE {which}", values)  # noqa: S608 - ours
        connection.execute("INSERT INTO settled (at, ids, outcome) VALUES (?, ?, ?)", (now, ids, settlement.outcome))
        if settlement.dead is not None:
            self._trim_dead(now)
        if now - self._forgotten_at > _REMEMBERED / 100:
            self._forgotten_at = now
            connection.execute("DELETE FROM settled WHERE at < ?", (now - _REMEMBERED,))

    def oldest(self, after: int, count: int) -> list[tuple[str, list[int]]]:
        """Return the names of the `count` oldest events after an id, and the ids of each name."""
        found = self._opened().execute(
            "SELECT substr(body, 3, instr(substr(body, 3), '\"') - 1) AS name, json_group_array(id)"
            " FROM (SELECT id, body FROM event WHERE id > ? ORDER BY id LIMIT ?) GROUP BY name",
            (after, count),
        )
        return [(name, json.loads(ids)) for name, ids in found]

    def purge(self, after: int, outcome: Callable[[str], str], at: float) -> int:
        """Remove all events after an id for good; return how many. `outcome` says what becomes of those of a name."""
        count = 0
        while found := self.oldest(after, 10_000):
            for name, ids in found:
                self.settle(Settlement([(number, number) for number in ids], outcome(name)), at)
                count += len(ids)
        return count

    def purge_dead(self) -> int:
        """Remove all dead letters for good; return how many."""
        return self._opened().execute("DELETE FROM dead").rowcount

    def replay_dead(self, most: int, at: float) -> int:
        """Let the oldest dead letters wait again, as events of now; return how many."""
        connection = self._opened()
        oldest = "SELECT id FROM dead ORDER BY died_at, id LIMIT ?"
        connection.execute(
            "INSERT INTO event (at, size, body) SELECT ?, length(CAST(body AS BLOB)), body FROM dead"  # noqa: S608 - ours
            f" WHERE id IN ({oldest}) ORDER BY died_at, id",
            (at, most),
        )
        return connection.execute(f"DELETE FROM dead WHERE id IN ({oldest})", (most,)).rowcount  # noqa: S608 - ours

    def mark_read(self, last: int) -> None:
        """Note that everything up to this id may be on its way to the API; 0 for nothing."""
        self._opened().execute("INSERT OR REPLACE INTO meta VALUES ('read_to', ?)", (last,))

    def _trim_dead(self, now: float) -> None:
        connection = self._opened()
        connection.execute("DELETE FROM dead WHERE died_at < ?", (now - self._dead_age,))
        connection.execute(
            "DELETE FROM dead WHERE id <= (SELECT id FROM dead ORDER BY id DESC LIMIT 1 OFFSET ?)", (self._most_dead,)
        )

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, after: int, most: int, most_bytes: int) -> Rows:
        """Return the oldest events after an id: at least one, if there is one, and no more than asked for."""
        connection = self._opened()
        with _explained(self._directory):
            # The size stands before the body, so that no body is read for it.
            last = connection.execute(
                "SELECT max(CASE WHEN total <= ? OR total = size THEN id END) FROM"
                " (SELECT id, size, sum(size) OVER (ORDER BY id) AS total FROM"
                "  (SELECT id, size FROM event WHERE id > ? ORDER BY id LIMIT ?))",
                (most_bytes, after, most),
            ).fetchone()[0]
            if last is None:
                return Rows([], [], [])
            ids, at, bodies = connection.execute(
                "SELECT group_concat(id), group_concat(at), CAST(group_concat(body, char(10)) AS BLOB)"
                " FROM (SELECT id, at, body FROM event WHERE id > ? AND id <= ? ORDER BY id)",
                (after, last),
            ).fetchone()
        # JSON has no raw line feed, and no list of numbers a comma in them.
        return Rows(
            [int(each) for each in ids.split(",")], [float(each) for each in at.split(",")], bodies.split(b"\n")
        )

    def read_dead(self, after: int, most: int) -> DeadRows:
        """Return dead letters after an id."""
        with _explained(self._directory):
            found = (
                self._opened()
                .execute(
                    "SELECT id, at, died_at, reason, maybe_recorded, body FROM dead WHERE id > ? ORDER BY id LIMIT ?",
                    (after, most),
                )
                .fetchall()
            )
        columns = [list(column) for column in zip(*found, strict=True)] or [[] for _ in range(6)]
        ids, at, died_at, reasons, maybe, bodies = columns
        return DeadRows(ids, at, died_at, reasons, [bool(each) for each in maybe], [body.encode() for body in bodies])

    def counts(self) -> tuple[int, dict[str, int]]:
        """Return how many events wait, and how many dead letters there are of each reason; looks at each of them."""
        with _explained(self._directory):
            [waiting] = self._opened().execute("SELECT count(*) FROM event").fetchone()
            reasons = self._opened().execute("SELECT reason, count(*) FROM dead GROUP BY reason ORDER BY 2 DESC")
            return waiting, dict(reasons.fetchall())

    def shop(self) -> str | None:
        """Return the partner id that the events belong to; None where no client has used it yet."""
        with _explained(self._directory):
            found = self._opened().execute("SELECT value FROM meta WHERE name = 'shop'").fetchone()
        return None if found is None else str(found[0])

    def log_after(self, seq: int) -> list[Logged]:
        """Return what the log tells after an entry, oldest first, 1,000 entries at most."""
        with _explained(self._directory):
            text = (
                self._opened()
                .execute(
                    "SELECT json_group_array(json_array(seq, json(ids), outcome)) FROM"
                    " (SELECT seq, ids, outcome FROM settled WHERE seq > ? ORDER BY seq LIMIT 1000)",
                    (seq,),
                )
                .fetchone()[0]
            )
        return [Logged(seq, [(first, last) for first, last in ids], outcome) for seq, ids, outcome in json.loads(text)]

    def last_logged(self) -> int:
        """Return the number of the log's last entry, 0 where there was none."""
        return self._sequence("settled")

    def last_id(self) -> int:
        """Return the id of the last event that was added, 0 where there was none."""
        return self._sequence("event")

    def read_to(self) -> int:
        """Return up to which id events may be on their way to the API, or may have been when a process died."""
        with _explained(self._directory):
            found = self._opened().execute("SELECT value FROM meta WHERE name = 'read_to'").fetchone()
        return int(found[0]) if found is not None else 0

    def waiting_among(self, first: int, last: int) -> list[int]:
        """Return the ids from `first` to `last` that still wait."""
        with _explained(self._directory):
            text = (
                self._opened()
                .execute("SELECT json_group_array(id) FROM event WHERE id BETWEEN ? AND ?", (first, last))
                .fetchone()[0]
            )
        return list(json.loads(text))

    def usage(self) -> Usage:
        """Return how much is in the file; costs the same however much it is."""
        connection = self._opened()
        with _explained(self._directory):
            # Sub-selects: min and max in one SELECT would go through the whole table.
            low, high, oldest_at, dead = connection.execute(
                "SELECT (SELECT min(id) FROM event), (SELECT max(id) FROM event),"
                " (SELECT at FROM event ORDER BY id LIMIT 1), (SELECT count(*) FROM dead)"
            ).fetchone()
        return Usage(0 if low is None else high - low + 1, self.bytes_used(), dead, oldest_at)

    def bytes_used(self) -> int:
        """Return the bytes of the file that hold something."""
        connection = self._opened()
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        free = connection.execute("PRAGMA freelist_count").fetchone()[0]
        return int(pages - free) * _PAGE

    def bytes_free(self) -> int:
        """Return the bytes that are free on the file system, for this user."""
        found = os.statvfs(self._directory)
        return found.f_bavail * found.f_frsize

    # --- keeping house ------------------------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Bring what was committed to the disk, for `durability="interval"`."""
        with _explained(self._directory), self._lock.held():
            self._opened().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def reuse(self) -> None:
        """Let the log of transactions begin anew, where there is room for what is in it."""
        with suppress(sqlite3.Error, OSError), self._lock.held():
            self._opened().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def shrink(self) -> bool:
        """Give some free pages back to the file system; return whether there are more to give."""
        connection = self._opened()
        free = connection.execute("PRAGMA freelist_count").fetchone()[0]
        empty = connection.execute("SELECT NOT EXISTS (SELECT 1 FROM event)").fetchone()[0]
        if free <= (_KEPT_EMPTY if empty else _KEPT_FREE):
            return False
        with _explained(self._directory), self._lock.held():
            # A script, since `execute` steps once, which frees one page and leaves the statement open.
            connection.executescript(f"PRAGMA incremental_vacuum({_VACUUMED_AT_ONCE})")
        return True

    def _sequence(self, table: str) -> int:
        with _explained(self._directory):
            found = self._opened().execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        return int(found[0]) if found is not None else 0

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise SpoolError("the spool is closed")
        return self._connection


class SpoolFileFullError(SpoolError):
    """There is no room for a transaction."""


_FEW_RANGES: Final = 8


def _chosen(ids: Sequence[Range]) -> list[tuple[str, tuple[object, ...]]]:
    """Return conditions, and their values, that choose `ids` together."""
    if len(ids) <= _FEW_RANGES:
        return [("id BETWEEN ? AND ?", span) for span in ids]
    each = [number for first, last in ids for number in range(first, last + 1)]
    return [("id IN (SELECT value FROM json_each(?))", (json.dumps(each),))]


@contextmanager
def _explained(directory: Path) -> Generator[None]:
    """Turn what SQLite and the system raise into an error of ours that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_FULL:
            raise SpoolFileFullError(f"the spool in {directory} has no room for more") from None
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise SpoolError(
                f"the spool in {directory} is damaged ({error}): move the directory away, and export what can be read"
            ) from None
        raise SpoolError(f"the spool in {directory} cannot be used: {error}") from None
    except OSError as error:
        raise SpoolError(f"the spool in {directory} cannot be used: {error.strerror}") from None


def _prepare(directory: Path) -> None:
    """Make the directory and the database file, for this user alone."""
    with _explained(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        found = directory.stat()
        mode = found.st_mode
        if found.st_uid != os.geteuid() != 0:
            raise SpoolError(f"the spool in {directory} belongs to another user")
        if mode & 0o077:
            raise SpoolError(
                f"the spool in {directory} could be read by others (mode {mode & 0o777:o}): chmod 700, or name a"
                " directory that is not there yet"
            )
        if (kind := _network_file_system(directory)) is not None:
            raise SpoolError(f"the spool in {directory} would be on {kind}: locks need a file system of this host")
        # Made here for its mode; SQLite gives its other files the same one. One that is there is not opened: closing
        # it would take this process's locks of it away.
        with suppress(FileExistsError):
            os.close(open_private(directory / DATABASE, os.O_CREAT | os.O_EXCL | os.O_RDWR))


_NETWORK: Final = frozenset(
    {"afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs"}
    | {"lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"}
)


def _network_file_system(directory: Path) -> str | None:
    """Return the kind of network file system that `directory` is on; None where it is on none that is recognised."""
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return network_mount(lines, directory.resolve())


def network_mount(lines: Iterable[str], path: Path) -> str | None:
    """Return the kind of the network file system at `path`, by the lines of Linux's `mountinfo`; None for another."""
    deepest, kind = -1, None
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        mount = Path(fields[4].replace("\\040", " "))
        if path.is_relative_to(mount) and len(mount.parts) >= deepest:
            deepest, kind = len(mount.parts), after.split()[0]
    return kind if kind in _NETWORK else None


def now() -> float:
    """Return the time of day, in seconds since the epoch: it has to mean something to the next process."""
    return time.time()
