"""The dead letters of a spool: events that were not delivered.

A dead letter stays in the spool until a user replays or purges the dead letter. Dead letters that are too old are
removed, and if there are too many dead letters, the oldest are removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from retailrocket_async._outcome import Abandoned, Dropped, Rejected
from retailrocket_async._spool.id_ranges import conditions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retailrocket_async._outcome import Outcome
    from retailrocket_async._spool.database import Database
    from retailrocket_async._spool.id_ranges import Range


class DeadRows(NamedTuple):
    """Dead letters, oldest event first: one list for each column, all of the same length.

    Attributes:
        ids: the ids that the events had before they became dead letters.
        at: when each event was tracked, in seconds since the epoch.
        died_at: when each event became a dead letter, in seconds since the epoch.
        reasons: why each event became a dead letter, in a few words; see `reason_of`.
        maybe_recorded: whether the API may have recorded each event.
        bodies: the JSON of each event.
    """

    ids: list[int]
    at: list[float]
    died_at: list[float]
    reasons: list[str]
    maybe_recorded: list[bool]
    bodies: list[bytes]


class DeadLetters:
    """Adds, reads, replays and removes the dead letters of a spool.

    Args:
        database: the open database; the writing methods must be called in a transaction of this database.
        most: largest number of dead letters to keep; if there are more, the oldest are removed.
        max_age: seconds after which a dead letter is removed.
    """

    def __init__(self, database: Database, *, most: int, max_age: float) -> None:
        self._database = database
        self._most = most
        self._max_age = max_age

    def add(self, ids: Sequence[Range], reason: str, now: float, *, maybe_recorded: bool) -> None:
        """Copy waiting events to the table of dead letters; then remove dead letters that are too old or too many.

        Args:
            ids: the ids of the events.
            reason: why the events were not delivered.
            now: the time, in seconds since the epoch.
            maybe_recorded: whether the API may have recorded the events.
        """
        connection = self._database.connection
        for condition, values in conditions(ids):
            connection.execute(
                "INSERT OR IGNORE INTO dead (id, at, died_at, reason, maybe_recorded, body)"  # noqa: S608 - no user input
                f" SELECT id, at, ?, ?, ?, body FROM event WHERE {condition}",
                (now, reason, maybe_recorded, *values),
            )
        connection.execute("DELETE FROM dead WHERE died_at < ?", (now - self._max_age,))
        connection.execute(
            "DELETE FROM dead WHERE id <= (SELECT id FROM dead ORDER BY id DESC LIMIT 1 OFFSET ?)", (self._most,)
        )

    def replay(self, most: int, at: float) -> int:
        """Turn dead letters back into waiting events, which are sent again; return how many were turned back.

        The events that became dead letters first are turned back first.

        Args:
            most: largest number of dead letters to turn back.
            at: the new time of tracking of these events, in seconds since the epoch.
        """
        connection = self._database.connection
        oldest = "SELECT id FROM dead ORDER BY died_at, id LIMIT ?"
        connection.execute(
            "INSERT INTO event (at, size, body) SELECT ?, length(CAST(body AS BLOB)), body FROM dead"  # noqa: S608 - no user input
            f" WHERE id IN ({oldest}) ORDER BY died_at, id",
            (at, most),
        )
        return connection.execute(f"DELETE FROM dead WHERE id IN ({oldest})", (most,)).rowcount  # noqa: S608 - no user input

    def purge(self) -> int:
        """Delete all dead letters; return how many were deleted."""
        return self._database.connection.execute("DELETE FROM dead").rowcount

    def read(self, after: int, most: int) -> DeadRows:
        """Return up to `most` dead letters whose ids are greater than `after`, lowest id first."""
        with self._database.explained():
            found = self._database.connection.execute(
                "SELECT id, at, died_at, reason, maybe_recorded, CAST(body AS BLOB) FROM dead WHERE id > ?"
                " ORDER BY id LIMIT ?",
                (after, most),
            ).fetchall()
        columns = [list(column) for column in zip(*found, strict=True)] or [[] for _ in range(6)]
        ids, at, died_at, reasons, maybe, bodies = columns
        return DeadRows(ids, at, died_at, reasons, [bool(each) for each in maybe], bodies)

    def counts(self) -> dict[str, int]:
        """Read all dead letters, and return their number for each reason, the most frequent reason first."""
        with self._database.explained():
            reasons = self._database.connection.execute(
                "SELECT reason, count(*) FROM dead GROUP BY reason ORDER BY 2 DESC"
            )
            return dict(reasons.fetchall())


def reason_of(outcome: Outcome) -> str:
    """Return why events with this outcome became dead letters, in a few words, e.g. ``"rejected: HTTP 400"``."""
    match outcome:
        case Rejected(status=status):
            return f"rejected: HTTP {status}"
        case Abandoned(reason=reason, status=None, failure=failure):
            return f"{reason}: {failure}" if failure else reason
        case Abandoned(reason=reason, status=status):
            return f"{reason}: HTTP {status}"
        case Dropped(reason=reason):
            return reason
        case _:
            return type(outcome).__name__.lower()
