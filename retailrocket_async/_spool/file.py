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

import itertools
import json
import sqlite3
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from retailrocket_async._errors import SpoolError
from retailrocket_async._spool.file_lock import FileLock, exists
from retailrocket_async._spool.place import (
    DATABASE,
    LeadLostError,
    SpoolDamagedError,
    SpoolFileFullError,
    damaged,
    explained,
    gone,
    network_mount,
    prepare,
)
from retailrocket_async._spool.system import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from pathlib import Path

    from retailrocket_async._spool.system import System

__all__ = ["DATABASE", "SpoolFile", "SpoolFileFullError", "network_mount", "ranges"]

Durability: TypeAlias = Literal["commit", "interval"]
"""When an accepted event is safe from a power cut: before `track` returns, or half a second later."""

Range: TypeAlias = tuple[int, int]
"""The first and the last of ids that follow one another."""

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

LOG_PART: Final = 1000
"""Entries of the log that are read at once."""

_EXAMINED: Final = 32 << 20
"""Bytes of the largest file that is examined whenever it is opened: some 5 ms a MiB."""

SILENCE: Final = 10.0
"""Seconds without a sign of life after which another process takes the place of the one that sends."""

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
        patience: seconds to wait for the lock while another process holds it.
        silence: seconds without a sign of life after which `lead` takes the place of the process that sends.
        system: makes the calls to the system.
        connect: makes a connection to the database, as `sqlite3.connect`.

    Attributes:
        silence: as given.
        damaged: ids of damaged events that the last `read` has left out.
        unsure: whether the last transaction raised although it may be in the file.
        generation: how many files there have been at the path, this one included; 0 before the first `open`.

    Raises:
        SpoolError: from every method, if the file cannot be used.
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
        patience: float = 5.0,
        silence: float = SILENCE,
        system: System = SYSTEM,
        connect: Callable[..., sqlite3.Connection] = sqlite3.connect,
    ) -> None:
        self._directory = directory
        self._durability = durability
        self._max_bytes = max_bytes
        self._most_dead = most_dead
        self._dead_age = dead_age
        self._shop = shop
        self._connection: sqlite3.Connection | None = None
        self._patience = patience
        self.silence = silence
        self._system = system
        self._connect = connect
        self._lock = FileLock(directory / "write.lock", system)
        self._drain_lock = FileLock(directory / "drain.lock", system)
        self._forgotten_at = 0.0
        # Device and inode of the files that are open; None for one that was not made yet.
        self._found: dict[str, tuple[int, int] | None] = {}
        self._suspect = False
        self._beat: tuple[int, int] | None = None
        self._beat_at = 0.0
        self.damaged: list[int] = []
        self.unsure = False
        self.generation = 0

    # --- opening and closing ------------------------------------------------------------------------------------------

    def open(self, *, create: bool = True) -> None:
        """Open the file and bring its schema up to date.

        Args:
            create: make it if it does not exist; one that this object has had open before is never made again.

        Raises:
            SpoolGoneError: it was open before, and is not there any more.
            SpoolDamagedError: it was examined, and is damaged.
        """
        if self._connection is not None:
            return
        with self._explained():
            there = exists(self._directory / DATABASE, self._system)
        if not there and self.generation:
            raise gone(self._directory)
        if not there and not create:
            raise SpoolError(f"there is no spool in {self._directory}")
        prepare(self._directory, self._system, create=not there)
        connection: sqlite3.Connection | None = None
        with self._explained():
            try:
                with self._lock.held(self._patience):
                    # Never made by SQLite: a file that is removed at this moment would come back empty.
                    connection = self._connect(
                        f"{(self._directory / DATABASE).as_uri()}?mode=rw",
                        uri=True,
                        timeout=10.0,
                        isolation_level=None,
                        check_same_thread=False,
                    )
                    try:
                        self._configure(connection)
                        found = {name: self._identity(name) for name in (DATABASE, f"{DATABASE}-wal")}
                    except BaseException:
                        connection.close()
                        connection = None
                        raise
                # Without the lock: reading is safe, and takes a moment.
                self._examine(connection)
            except BaseException:
                # The release of the lock may fail, too.
                if connection is not None:
                    self._close(connection)
                raise
        if not self.generation or found[DATABASE] != self._found[DATABASE]:
            self.generation += 1
            self.unsure = False
        self._connection, self._found = connection, found

    def _configure(self, connection: sqlite3.Connection) -> None:
        connection.text_factory = _decoded
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(_MIGRATIONS):
            raise SpoolError(f"the spool was written by a newer version of this package (schema {version}): upgrade")
        if not version:
            # Before the first table, or it has no effect; later it would write to a file that may be damaged.
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={'FULL' if self._durability == 'commit' else 'NORMAL'}")
        connection.execute(f"PRAGMA journal_size_limit={16 << 20}")
        connection.execute(f"PRAGMA max_page_count={(self._max_bytes + _HEADROOM) // _PAGE}")
        # A damaged page is noticed when it is read, at the cost of a look at each of its cells.
        connection.execute("PRAGMA cell_size_check=ON")
        for number in range(version, len(_MIGRATIONS)):
            # One transaction each: a crash in the middle leaves the version before.
            connection.executescript(f"BEGIN IMMEDIATE; {_MIGRATIONS[number]} PRAGMA user_version={number + 1}; COMMIT")
        if self._shop is not None:
            connection.execute("INSERT OR IGNORE INTO meta VALUES ('shop', ?)", (self._shop,))
            [owner] = connection.execute("SELECT value FROM meta WHERE name = 'shop'").fetchone()
            if owner != self._shop:
                raise SpoolError(f"the spool in {self._directory} belongs to partner_id {owner!r}: one spool per shop")

    def _examine(self, connection: sqlite3.Connection) -> None:
        """Look for damage: always in a small file, in a large one if reading it has failed."""
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        if self._suspect or pages * _PAGE <= _EXAMINED:
            [finding] = connection.execute("PRAGMA quick_check(1)").fetchone()
            if finding != "ok":
                raise damaged(self._directory, finding.splitlines()[-1])
            self._suspect = False

    def _identity(self, name: str) -> tuple[int, int] | None:
        try:
            found = self._system.stat(self._directory / name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_dev, found.st_ino

    def check_place(self) -> None:
        """Raise unless what is written goes to the files that others find at the path.

        Raises:
            SpoolGoneError: directory or file were removed or replaced.
        """
        with self._explained():
            for name, opened in list(self._found.items()):
                there = self._identity(name)
                if opened is None and name != DATABASE:
                    self._found[name] = there
                elif there != opened:
                    raise gone(self._directory)

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
            with self._explained():
                self._close(connection)

    def _close(self, connection: sqlite3.Connection) -> None:
        # The last one to close check-points, which is writing.
        try:
            with self._lock.held(self._patience):
                connection.close()
        finally:
            connection.close()

    # --- the process that sends ---------------------------------------------------------------------------------------

    def lead(self) -> bool:
        """Become the process that sends; return whether this one is now.

        Another one keeps its place as long as it calls `beat`. If it has not for `silence` seconds, as this process has
        seen, it is stopped, and this one takes its place; call it in a transaction, so that one process does.
        """
        with self._explained():
            if self._drain_lock.acquire_now():
                self._drain_lock.beat()
                return True
            seen, now = self._drain_lock.last_beat(), time.monotonic()
            if seen != self._beat:
                self._beat, self._beat_at = seen, now
            elif now - self._beat_at >= self.silence:
                self._drain_lock.seize()
                return True
            return False

    def beat(self) -> None:
        """Show that this process, which sends, is alive.

        Raises:
            LeadLostError: another one has taken its place.
        """
        with self._explained():
            self._check_lead()
            self._drain_lock.beat()

    def _check_lead(self) -> None:
        if self._drain_lock.mine and not self._drain_lock.is_current():
            raise LeadLostError(
                f"this process was stopped for more than {self.silence:g} s: another one sends from the spool in"
                f" {self._directory} in its place"
            )

    @property
    def leads(self) -> bool:
        """Whether this process is the one that sends, as far as it knows."""
        return self._drain_lock.mine

    def stop_leading(self) -> None:
        """Let another process send."""
        self._drain_lock.release()

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Hold the lock and a transaction; nothing of it happens if the block raises.

        Raises:
            SpoolFileFullError: there is no room.
            SpoolGoneError: the file is not at its path any more. Checked before and after: what was written to a file
                that nobody finds counts as not written.
            LeadLostError: this process was the one that sends, and is not any more.
            SpoolBusyError: another process does not give the lock back.
        """
        connection = self._opened()
        self.unsure = False
        with self._explained(), self._lock.held(self._patience):
            self.check_place()
            self._check_lead()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                # From here on it may be in the file whatever is raised.
                self.unsure = True
                connection.execute("COMMIT")
            except BaseException:
                # A full disk may have rolled it back already.
                if connection.in_transaction:
                    with suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                        self.unsure = False
                raise
            self.check_place()
        self.unsure = False

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            with explained(self._directory):
                yield
        except SpoolDamagedError:
            self._suspect = True
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
        """Take events out of the waiting ones, and log what became of them; those that are gone already stay as logged.

        A transaction that raised may be in the file all the same, and is done again: it must not count twice.
        """
        connection = self._opened()
        there = self._waiting(settlement.ids)
        for which, values in _chosen(there):
            if settlement.dead is not None:
                connection.execute(
                    "INSERT OR IGNORE INTO dead (id, at, died_at, reason, maybe_recorded, body)"  # noqa: S608 - ours
                    f" SELECT id, at, ?, ?, ?, body FROM event WHERE {which}",
                    (now, settlement.dead, settlement.maybe_recorded, *values),
                )
            connection.execute(f"DELETE FROM event WHERE {which}", values)  # noqa: S608 - ours
        if there:
            ids = json.dumps(there, separators=(",", ":"))
            connection.execute(
                "INSERT INTO settled (at, ids, outcome) VALUES (?, ?, ?)", (now, ids, settlement.outcome)
            )
        if settlement.dead is not None:
            self._trim_dead(now)
        if now - self._forgotten_at > _REMEMBERED / 100:
            self._forgotten_at = now
            connection.execute("DELETE FROM settled WHERE at < ?", (now - _REMEMBERED,))

    def _waiting(self, ids: Sequence[Range]) -> Sequence[Range]:
        """Return those of `ids` that wait: nearly always all of them."""
        connection = self._opened()
        count = sum(
            connection.execute(f"SELECT count(*) FROM event WHERE {which}", values).fetchone()[0]  # noqa: S608 - ours
            for which, values in _chosen(ids)
        )
        if count == sum(last - first + 1 for first, last in ids):
            return ids
        found: list[int] = []
        for which, values in _chosen(ids):
            text = connection.execute(f"SELECT json_group_array(id) FROM event WHERE {which}", values).fetchone()[0]  # noqa: S608 - ours
            found += json.loads(text)
        return ranges(found)

    def holds(self, last: int, count: int, at: float) -> bool:
        """Return whether the `count` events up to `last` that were added at this time are in the file."""
        found = self._opened().execute(
            "SELECT count(*) FROM event WHERE id BETWEEN ? AND ? AND at = ?", (last - count + 1, last, at)
        )
        return bool(found.fetchone()[0])

    def withdraw(self, ids: Sequence[int]) -> None:
        """Remove events that their callers were told were not accepted."""
        for which, values in _chosen(ranges(ids)):
            self._opened().execute(f"DELETE FROM event WHERE {which}", values)  # noqa: S608 - ours

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
        """Return the oldest events after an id: at least one, if there is one, and no more than asked for.

        Those whose JSON is damaged are left out; `damaged` holds their ids.
        """
        self.damaged = []
        while True:
            found = self._read(after, most, most_bytes)
            if found is None:
                return Rows([], [], [])
            rows, after = found
            if rows.ids:
                return rows

    def _read(self, after: int, most: int, most_bytes: int) -> tuple[Rows, int] | None:
        """Return the sound ones of the oldest events after an id, and the id of the last one; None if none waits."""
        connection = self._opened()
        with self._explained():
            # The size stands before the body, so that no body is read for it.
            last = connection.execute(
                "SELECT max(CASE WHEN total <= ? OR total = size THEN id END) FROM"
                " (SELECT id, size, sum(size) OVER (ORDER BY id) AS total FROM"
                "  (SELECT id, size FROM event WHERE id > ? ORDER BY id LIMIT ?))",
                (most_bytes, after, most),
            ).fetchone()[0]
            if last is None:
                return None
            ids, at, bodies, sound = connection.execute(
                "SELECT group_concat(id), group_concat(CASE WHEN sound THEN at ELSE 0.0 END),"
                " CAST(group_concat(CASE WHEN sound THEN body ELSE '' END, char(10)) AS BLOB), group_concat(sound, '')"
                " FROM (SELECT id, at, body, typeof(at) = 'real' AND typeof(body) = 'text'"
                "  AND length(CAST(body AS BLOB)) = size AND json_valid(body) AS sound"
                "  FROM event WHERE id > ? AND id <= ? ORDER BY id)",
                (after, last),
            ).fetchone()
        numbers = [int(each) for each in ids.split(",")]
        if any(second <= first for first, second in itertools.pairwise(numbers)):
            self._suspect = True
            raise damaged(self._directory, "ids out of order")
        # JSON has no raw line feed, and no list of numbers a comma in them.
        rows = Rows(numbers, [float(each) for each in at.split(",")], bodies.split(b"\n"))
        if "0" in sound or not _is_text(bodies):
            rows = self._without_damage(rows, sound)
        return rows, last

    def _without_damage(self, rows: Rows, sound: str) -> Rows:
        good = [
            each
            for each, is_sound in zip(zip(*rows, strict=True), sound, strict=True)
            if is_sound == "1" and _is_text(each[2])
        ]
        kept = {number for number, _, _ in good}
        self.damaged += [number for number in rows.ids if number not in kept]
        return Rows([each[0] for each in good], [each[1] for each in good], [each[2] for each in good])

    def read_dead(self, after: int, most: int) -> DeadRows:
        """Return dead letters after an id."""
        with self._explained():
            found = (
                self._opened()
                .execute(
                    "SELECT id, at, died_at, reason, maybe_recorded, CAST(body AS BLOB) FROM dead WHERE id > ?"
                    " ORDER BY id LIMIT ?",
                    (after, most),
                )
                .fetchall()
            )
        columns = [list(column) for column in zip(*found, strict=True)] or [[] for _ in range(6)]
        ids, at, died_at, reasons, maybe, bodies = columns
        return DeadRows(ids, at, died_at, reasons, [bool(each) for each in maybe], bodies)

    def counts(self) -> tuple[int, dict[str, int]]:
        """Return how many events wait, and how many dead letters there are of each reason; looks at each of them."""
        with self._explained():
            [waiting] = self._opened().execute("SELECT count(*) FROM event").fetchone()
            reasons = self._opened().execute("SELECT reason, count(*) FROM dead GROUP BY reason ORDER BY 2 DESC")
            return waiting, dict(reasons.fetchall())

    def shop(self) -> str | None:
        """Return the partner id that the events belong to; None where no client has used it yet."""
        with self._explained():
            found = self._opened().execute("SELECT value FROM meta WHERE name = 'shop'").fetchone()
        return None if found is None else str(found[0])

    def log_after(self, seq: int) -> list[Logged]:
        """Return what the log tells after an entry, oldest first, `LOG_PART` at most; a damaged one names no ids."""
        with self._explained():
            text = (
                self._opened()
                .execute(
                    "SELECT json_group_array(json_array(seq, ids, outcome)) FROM"
                    " (SELECT seq, ids, outcome FROM settled WHERE seq > ? ORDER BY seq LIMIT ?)",
                    (seq, LOG_PART),
                )
                .fetchone()[0]
            )
        return [Logged(seq, _spans(ids), outcome) for seq, ids, outcome in json.loads(text)]

    def last_logged(self) -> int:
        """Return the number of the log's last entry, 0 where there was none."""
        return self._sequence("settled")

    def last_id(self) -> int:
        """Return the id of the last event that was added, 0 where there was none."""
        return self._sequence("event")

    def read_to(self) -> int:
        """Return up to which id events may be on their way to the API, or may have been when a process died."""
        with self._explained():
            found = self._opened().execute("SELECT value FROM meta WHERE name = 'read_to'").fetchone()
            return int(found[0]) if found is not None else 0

    def waiting_among(self, first: int, last: int) -> list[int]:
        """Return the ids from `first` to `last` that still wait."""
        with self._explained():
            text = (
                self._opened()
                .execute("SELECT json_group_array(id) FROM event WHERE id BETWEEN ? AND ?", (first, last))
                .fetchone()[0]
            )
        return list(json.loads(text))

    def usage(self) -> Usage:
        """Return how much is in the file; costs the same however much it is."""
        connection = self._opened()
        with self._explained():
            # Sub-selects: min and max in one SELECT would go through the whole table.
            low, high, oldest_at, dead = connection.execute(
                "SELECT (SELECT min(id) FROM event), (SELECT max(id) FROM event),"
                " (SELECT at FROM event ORDER BY id LIMIT 1), (SELECT count(*) FROM dead)"
            ).fetchone()
        return Usage(0 if low is None else high - low + 1, self.bytes_used(), dead, oldest_at)

    def bytes_used(self) -> int:
        """Return the bytes of the file that hold something."""
        connection = self._opened()
        with self._explained():
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            free = connection.execute("PRAGMA freelist_count").fetchone()[0]
        return int(pages - free) * _PAGE

    def bytes_free(self) -> int:
        """Return the bytes that are free on the file system, for this user."""
        with self._explained():
            found = self._system.statvfs(self._directory)
        return found.f_bavail * found.f_frsize

    # --- keeping house ------------------------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Bring what was committed to the disk, for `durability="interval"`."""
        with self._explained(), self._lock.held(self._patience):
            self._opened().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def reuse(self) -> None:
        """Let the log of transactions begin anew, where there is room for what is in it."""
        with suppress(SpoolError), self._explained(), self._lock.held(self._patience):
            self._opened().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def shrink(self) -> bool:
        """Give some free pages back to the file system; return whether there are more to give."""
        connection = self._opened()
        with self._explained():
            free = connection.execute("PRAGMA freelist_count").fetchone()[0]
            empty = connection.execute("SELECT NOT EXISTS (SELECT 1 FROM event)").fetchone()[0]
        if free <= (_KEPT_EMPTY if empty else _KEPT_FREE):
            return False
        with self._explained(), self._lock.held(self._patience):
            # A script, since `execute` steps once, which frees one page and leaves the statement open.
            connection.executescript(f"PRAGMA incremental_vacuum({_VACUUMED_AT_ONCE})")
        return True

    def _sequence(self, table: str) -> int:
        with self._explained():
            found = self._opened().execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        return int(found[0]) if found is not None else 0

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise SpoolError("the spool is closed")
        return self._connection


_FEW_RANGES: Final = 8


def _chosen(ids: Sequence[Range]) -> list[tuple[str, tuple[object, ...]]]:
    """Return conditions, and their values, that choose `ids` together."""
    if len(ids) <= _FEW_RANGES:
        return [("id BETWEEN ? AND ?", span) for span in ids]
    each = [number for first, last in ids for number in range(first, last + 1)]
    return [("id IN (SELECT value FROM json_each(?))", (json.dumps(each),))]


def _spans(text: str) -> list[Range]:
    """Return the ranges that an entry of the log names; none if it is damaged."""
    try:
        return [(int(first), int(last)) for first, last in json.loads(text)]
    except (ValueError, TypeError):
        return []


def _decoded(text: bytes) -> str:
    # What is damaged must not keep others from being read.
    return text.decode(errors="replace")


def _is_text(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def now() -> float:
    """Return the time of day, in seconds since the epoch: it has to mean something to the next process."""
    return time.time()
