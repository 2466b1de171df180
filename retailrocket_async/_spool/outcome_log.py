"""Stores outcomes in the database of a spool, so that each process can read the outcomes of its own events.

The process that sends the events adds the entries. An entry is removed after ten minutes. A process that has not read
the entry by then notices a gap in the numbers of the entries.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from retailrocket_async._spool.id_ranges import decode_ranges, encode_ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retailrocket_async._spool.database import Database
    from retailrocket_async._spool.id_ranges import Range

_PART: Final = 1000
"""Largest number of entries that one call of `after` returns."""

_KEPT: Final = 600.0
"""Seconds for which an entry is kept; the process that tracked the events should read the entry within this time."""


class LogEntry(NamedTuple):
    """An entry of the log: the outcome of some events.

    Attributes:
        seq: the number of the entry; entries are numbered consecutively.
        ids: the ids of the events; empty if the entry is damaged.
        outcome: the outcome, as text that `decode_outcome` reads.
    """

    seq: int
    ids: list[Range]
    outcome: str


class OutcomeLog:
    """Adds entries to the log of outcomes, and reads entries.

    Args:
        database: the open database; call `add` only in a transaction of this database.

    Attributes:
        part: largest number of entries that `after` returns. If `after` returns fewer, the log has no further entries.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._trimmed_at = 0.0
        self.part = _PART

    def add(self, ids: Sequence[Range], outcome: str, now: float) -> None:
        """Add an entry unless `ids` is empty; every few seconds, also remove old entries.

        Args:
            ids: the ids of the events.
            outcome: their outcome, as text that `decode_outcome` reads.
            now: the time, in seconds since the epoch.
        """
        connection = self._database.connection
        if ids:
            connection.execute(
                "INSERT INTO settled (at, ids, outcome) VALUES (?, ?, ?)", (now, encode_ranges(ids), outcome)
            )
        if now - self._trimmed_at > _KEPT / 100:
            self._trimmed_at = now
            connection.execute("DELETE FROM settled WHERE at < ?", (now - _KEPT,))

    def after(self, seq: int) -> list[LogEntry]:
        """Return at most `part` entries whose numbers are above `seq`, oldest first."""
        with self._database.explained():
            text = self._database.connection.execute(
                "SELECT json_group_array(json_array(seq, ids, outcome)) FROM"
                " (SELECT seq, ids, outcome FROM settled WHERE seq > ? ORDER BY seq LIMIT ?)",
                (seq, self.part),
            ).fetchone()[0]
        return [LogEntry(seq, decode_ranges(ids), outcome) for seq, ids, outcome in json.loads(text)]

    def last(self) -> int:
        """Return the number of the entry that was added last; 0 if no entry was ever added."""
        with self._database.explained():
            found = self._database.connection.execute(
                "SELECT seq FROM sqlite_sequence WHERE name = 'settled'"
            ).fetchone()
        return int(found[0]) if found is not None else 0
