"""The events that wait in a spool: added in groups, read in the order of their ids.

Each statement handles many rows at once, because Python releases and takes its global lock for every step of a
statement. If the event loop's thread is busy, each step costs up to 5 ms.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, NamedTuple

from retailrocket_async._spool.failures import damaged
from retailrocket_async._spool.id_ranges import conditions, ranges, size_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from retailrocket_async._spool.database import Database
    from retailrocket_async._spool.id_ranges import Range


class Rows(NamedTuple):
    """Waiting events, oldest first, as columns of equal length.

    Attributes:
        ids: their ids, rising.
        at: when each was added, in seconds since the epoch.
        bodies: the JSON of each.
    """

    ids: list[int]
    at: list[float]
    bodies: list[bytes]


class EventTable:
    """The waiting events of a spool.

    Args:
        database: the open database; the writing methods need a transaction of it.
        directory: the directory of the spool, for errors.

    Attributes:
        damaged: ids of damaged events that the last `read` left out.
    """

    def __init__(self, database: Database, directory: Path) -> None:
        self._database = database
        self._directory = directory
        self.damaged: list[int] = []

    # --- writing, in a transaction ------------------------------------------------------------------------------------

    def append(self, envelopes: Iterable[bytes], at: float) -> int:
        """Add events; return the id of the last. Their ids follow one another.

        Args:
            envelopes: the JSON of each event.
            at: when they were tracked, in seconds since the epoch.
        """
        connection = self._database.connection
        connection.execute(
            "INSERT INTO event (at, size, body) SELECT ?, length(CAST(value AS BLOB)), value"
            " FROM json_each(CAST(? AS TEXT))",
            (at, b"[%b]" % b",".join(envelopes)),
        )
        [last] = connection.execute("SELECT last_insert_rowid()").fetchone()
        return int(last)

    def remove(self, ids: Sequence[Range]) -> None:
        """Remove events; ids that do not wait are ignored."""
        for condition, values in conditions(ids):
            self._database.connection.execute(f"DELETE FROM event WHERE {condition}", values)  # noqa: S608 - ours

    def mark_read(self, last: int) -> None:
        """Record that events up to the id `last` may be in flight to the API; 0 for none."""
        self._database.connection.execute("INSERT OR REPLACE INTO meta VALUES ('read_to', ?)", (last,))

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, after: int, most: int, most_bytes: int) -> Rows:
        """Return the oldest events after an id: at least one if one waits, within both bounds otherwise.

        Events whose JSON is damaged are left out; `damaged` holds their ids.

        Args:
            after: the id after which to begin.
            most: number of events to return at most.
            most_bytes: bytes of their JSON to return at most.
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
        connection = self._database.connection
        with self._database.explained():
            # The column `size` stands before `body`, so that SQLite reads no body here.
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
            self._database.damaged()
            raise damaged(self._directory, "ids out of order")
        # JSON on one line has no line feed, and a number has no comma.
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

    def read_to(self) -> int:
        """Return the id up to which events may be in flight to the API, or may have been when a process died."""
        with self._database.explained():
            found = self._database.connection.execute("SELECT value FROM meta WHERE name = 'read_to'").fetchone()
            return int(found[0]) if found is not None else 0

    def oldest(self, after: int, count: int) -> list[tuple[str, list[int]]]:
        """Return the `count` oldest events after an id as pairs: an event name, and the ids of this name."""
        found = self._database.connection.execute(
            "SELECT substr(body, 3, instr(substr(body, 3), '\"') - 1) AS name, json_group_array(id)"
            " FROM (SELECT id, body FROM event WHERE id > ? ORDER BY id LIMIT ?) GROUP BY name",
            (after, count),
        )
        return [(name, json.loads(ids)) for name, ids in found]

    def still_waiting(self, ids: Sequence[Range]) -> Sequence[Range]:
        """Return the ids among `ids` whose events still wait; nearly always these are all of them."""
        connection = self._database.connection
        count = sum(
            connection.execute(f"SELECT count(*) FROM event WHERE {condition}", values).fetchone()[0]  # noqa: S608 - ours
            for condition, values in conditions(ids)
        )
        if count == size_of(ids):
            return ids
        found: list[int] = []
        for condition, values in conditions(ids):
            text = connection.execute(f"SELECT json_group_array(id) FROM event WHERE {condition}", values).fetchone()[0]  # noqa: S608 - ours
            found += json.loads(text)
        return ranges(found)

    def waiting_between(self, first: int, last: int) -> list[int]:
        """Return the ids from `first` to `last` that wait."""
        with self._database.explained():
            text = self._database.connection.execute(
                "SELECT json_group_array(id) FROM event WHERE id BETWEEN ? AND ?", (first, last)
            ).fetchone()[0]
        return list(json.loads(text))

    def holds(self, last: int, count: int, at: float) -> bool:
        """Return whether the group of `count` events that ends with the id `last` is in the file, added at `at`."""
        found = self._database.connection.execute(
            "SELECT count(*) FROM event WHERE id BETWEEN ? AND ? AND at = ?", (last - count + 1, last, at)
        )
        return bool(found.fetchone()[0])

    def count(self) -> int:
        """Return the number of waiting events; the time grows with their number."""
        with self._database.explained():
            [waiting] = self._database.connection.execute("SELECT count(*) FROM event").fetchone()
        return int(waiting)


def _is_text(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
