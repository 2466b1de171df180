"""The log of outcomes in a spool: the process that sends writes it, and every process reads the outcomes of its events.

An entry is kept for ten minutes. A process that reads later finds a gap in the numbers of the entries.
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
"""Number of entries that are read at a time."""

_KEPT: Final = 600.0
"""Seconds for which an entry is kept, so that the process that tracked the events reads it."""


class LogEntry(NamedTuple):
    """The outcome of some events.

    Attributes:
        seq: the number of the entry; numbers follow one another.
        ids: the events; empty if the entry is damaged.
        outcome: the text that `decode_outcome` reads.
    """

    seq: int
    ids: list[Range]
    outcome: str


class OutcomeLog:
    """The log of outcomes.

    Args:
        database: the open database; `add` needs a transaction of it.

    Attributes:
        part: entries that `after` returns at most; fewer mean the end of the log.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._trimmed_at = 0.0
        self.part = _PART

    def add(self, ids: Sequence[Range], outcome: str, now: float) -> None:
        """Add an entry unless `ids` is empty, and now and then remove old entries.

        Args:
            ids: the events.
            outcome: the text that `decode_outcome` reads.
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
        """Return the entries after the number `seq`, oldest first, `part` of them at most."""
        with self._database.explained():
            text = self._database.connection.execute(
                "SELECT json_group_array(json_array(seq, ids, outcome)) FROM"
                " (SELECT seq, ids, outcome FROM settled WHERE seq > ? ORDER BY seq LIMIT ?)",
                (seq, self.part),
            ).fetchone()[0]
        return [LogEntry(seq, decode_ranges(ids), outcome) for seq, ids, outcome in json.loads(text)]

    def last(self) -> int:
        """Return the number of the last entry that was added; 0 if there was none."""
        with self._database.explained():
            found = self._database.connection.execute(
                "SELECT seq FROM sqlite_sequence WHERE name = 'settled'"
            ).fetchone()
        return int(found[0]) if found is not None else 0
