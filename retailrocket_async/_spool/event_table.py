"""The table of the events that wait in a spool. Events are added in groups, and read in the order of their ids.

Each SQL statement returns many events in a single row, because reading many rows is slow: for every row, Python
releases its global interpreter lock (GIL) and takes the GIL again, which lasts up to 5 ms if the event loop's thread is
busy.
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
    """Waiting events, oldest first: one list for each column, all of the same length.

    Attributes:
        ids: the ids of the events, in ascending order.
        at: when each event was added, in seconds since the epoch.
        bodies: the JSON of each event.
    """

    ids: list[int]
    at: list[float]
    bodies: list[bytes]


class EventTable:
    """Adds, reads and removes the waiting events of a spool: the events that have no outcome yet.

    Args:
        database: the open database; the writing methods must be called in a transaction of this database.
        directory: the directory of the spool, for error messages.

    Attributes:
        damaged: ids of the damaged events that the last call of `read` left out.
    """

    def __init__(self, database: Database, directory: Path) -> None:
        self._database = database
        self._directory = directory
        self.damaged: list[int] = []

    # --- writing, in a transaction ------------------------------------------------------------------------------------

    def append(self, envelopes: Iterable[bytes], at: float) -> int:
        """Add events with consecutive ids; return the id of the last event.

        Args:
            envelopes: the JSON of each event.
            at: when the events were tracked, in seconds since the epoch.
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
        """Remove the events with these ids; an id without a waiting event is ignored."""
        for condition, values in conditions(ids):
            self._database.connection.execute(f"DELETE FROM event WHERE {condition}", values)  # noqa: S608 - no user input

    def mark_read(self, last: int) -> None:
        """Record in the file that events with ids up to `last` may be in flight to the API.

        If `last` is 0, no event is in flight.
        """
        self._database.connection.execute("INSERT OR REPLACE INTO meta VALUES ('read_to', ?)", (last,))

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, after: int, most: int, most_bytes: int) -> Rows:
        """Return the oldest waiting events whose ids are greater than `after`.

        Damaged events are left out; afterwards the attribute `damaged` contains the ids of the damaged events.

        Args:
            after: the id after which to begin.
            most: largest number of events to return.
            most_bytes: largest number of bytes of JSON to return. An event that is larger is returned alone.
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
        """Read the oldest events whose ids are greater than `after`; see `read` for the arguments.

        Return the undamaged events among these events, and the id of the last event that was read. Return None if no
        event has an id greater than `after`.
        """
        connection = self._database.connection
        with self._database.explained():
            # In each row, SQLite stores the column `size` before the column `body`, so this statement need not read the
            # bodies.
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
        # These separators are safe: JSON on one line contains no line feed, and a number contains no comma.
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
        """Return the id that `mark_read` recorded last, or 0 if no id was recorded.

        Events up to this id may be in flight, or may have been sent by a process that has died since.
        """
        with self._database.explained():
            found = self._database.connection.execute("SELECT value FROM meta WHERE name = 'read_to'").fetchone()
            return int(found[0]) if found is not None else 0

    def oldest(self, after: int, count: int) -> list[tuple[str, list[int]]]:
        """Return the ids of the oldest events whose ids are greater than `after`, grouped by event name.

        At most `count` events are returned. Each pair has an event name and the ids of the events with this name.
        """
        found = self._database.connection.execute(
            "SELECT substr(body, 3, instr(substr(body, 3), '\"') - 1) AS name, json_group_array(id)"
            " FROM (SELECT id, body FROM event WHERE id > ? ORDER BY id LIMIT ?) GROUP BY name",
            (after, count),
        )
        return [(name, json.loads(ids)) for name, ids in found]

    def still_waiting(self, ids: Sequence[Range]) -> Sequence[Range]:
        """Return the ids among `ids` whose events still wait.

        Nearly always all of these events still wait. The method therefore counts the events first, and reads the ids
        only if some events are missing.
        """
        connection = self._database.connection
        count = sum(
            connection.execute(f"SELECT count(*) FROM event WHERE {condition}", values).fetchone()[0]  # noqa: S608 - no user input
            for condition, values in conditions(ids)
        )
        if count == size_of(ids):
            return ids
        found: list[int] = []
        for condition, values in conditions(ids):
            text = connection.execute(f"SELECT json_group_array(id) FROM event WHERE {condition}", values).fetchone()[0]  # noqa: S608 - no user input
            found += json.loads(text)
        return ranges(found)

    def waiting_between(self, first: int, last: int) -> list[int]:
        """Return the ids of the waiting events from the id `first` to the id `last`, both included."""
        with self._database.explained():
            text = self._database.connection.execute(
                "SELECT json_group_array(id) FROM event WHERE id BETWEEN ? AND ?", (first, last)
            ).fetchone()[0]
        return list(json.loads(text))

    def holds(self, last: int, count: int, at: float) -> bool:
        """Return whether the file contains the events that a certain call of `append` has added.

        Args:
            last: the id of the last of these events.
            count: the number of these events.
            at: the time that was passed to `append`, in seconds since the epoch.
        """
        found = self._database.connection.execute(
            "SELECT count(*) FROM event WHERE id BETWEEN ? AND ? AND at = ?", (last - count + 1, last, at)
        )
        return bool(found.fetchone()[0])

    def count(self) -> int:
        """Return the number of waiting events. The duration grows with the number, because every event is counted."""
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
