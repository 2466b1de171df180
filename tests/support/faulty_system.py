"""Fakes of the operating system and the database for a spool, whose calls fail on demand.

Every call goes through `Faults.call`, which records the call. A test chooses the call that fails, and whether all later
calls fail as well.
"""

from __future__ import annotations

import errno
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

from retailrocket_async._spool.system import System

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Fault(BaseException):
    """An error of a type that the package does not expect."""


class Faults:
    """Records all calls, and decides which call fails.

    Args:
        at: the number of the call that fails, counted from 0; None (default) if no call fails.
        lasting: whether every later call fails, too, until `clear` is called.
        foreign: whether a failing call raises `Fault` instead of an error that this call may really raise.
        after: whether a failing call does its work before it raises.
    """

    def __init__(
        self, at: int | None = None, *, lasting: bool = False, foreign: bool = False, after: bool = False
    ) -> None:
        self.calls: list[str] = []
        self._at = at
        self._lasting = lasting
        self._foreign = foreign
        self._after = after
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Let all further calls succeed."""
        self._at = None

    def call(self, name: str, detail: object, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Record the call, and call `function`, or raise an error if this call is chosen to fail."""
        with self._lock:
            number = len(self.calls)
            self.calls.append(f"{name} {detail}")
            fails = self._at is not None and (number == self._at or (self._lasting and number > self._at))
        # A close that fails still closes first, as a real close does, and raises only afterwards.
        if fails and not self._after and name not in ("connection.close", "close"):
            raise self._error(name)
        result = function(*arguments, **named)
        if fails:
            raise self._error(name)
        return result

    def _error(self, name: str) -> BaseException:
        if self._foreign:
            return Fault(name)
        if name.startswith(("connection", "cursor")):
            return sqlite3.OperationalError("disk I/O error")
        return OSError(errno.EIO, "Input/output error")


class FaultySystem(System):
    """Makes the spool's calls to the operating system; every call goes through `faults`."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_"):
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            detail = arguments[-1] if name == "flock" else getattr(arguments[0], "name", "") if arguments else ""
            return self._faults.call(name, detail, found, *arguments, **named)

        return call


class FaultyConnection:
    """A connection to a database whose calls go through `faults`."""

    def __init__(self, faults: Faults, real: sqlite3.Connection) -> None:
        self._faults = faults
        self._real = real

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open. Reading this attribute never fails."""
        return self._real.in_transaction

    @property
    def text_factory(self) -> Any:
        """The function that converts the bytes of a text column."""
        return self._real.text_factory

    @text_factory.setter
    def text_factory(self, value: Any) -> None:
        self._real.text_factory = value

    def execute(self, sql: str, *values: Any) -> FaultyCursor:
        """Execute an SQL statement."""
        cursor = self._faults.call("connection.execute", sql, self._real.execute, sql, *values)
        return FaultyCursor(self._faults, cursor, sql)

    def executescript(self, sql: str) -> FaultyCursor:
        """Execute several SQL statements."""
        cursor = self._faults.call("connection.executescript", sql, self._real.executescript, sql)
        return FaultyCursor(self._faults, cursor, sql)

    def close(self) -> None:
        """Close the connection."""
        self._faults.call("connection.close", "", self._real.close)


class FaultyCursor:
    """The result of an SQL statement; fetching rows goes through `faults`."""

    def __init__(self, faults: Faults, real: sqlite3.Cursor, sql: str) -> None:
        self._faults = faults
        self._real = real
        self._sql = sql

    @property
    def rowcount(self) -> int:
        """The number of rows that the statement has changed."""
        return self._real.rowcount

    def fetchone(self) -> Any:
        """Return the next row."""
        return self._faults.call("cursor.fetchone", self._sql, self._real.fetchone)

    def fetchall(self) -> Any:
        """Return all rows."""
        return self._faults.call("cursor.fetchall", self._sql, self._real.fetchall)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchall())


def connector(faults: Faults) -> Callable[..., Any]:
    """Return a function that opens connections whose calls go through `faults`."""

    def connect(*arguments: Any, **named: Any) -> FaultyConnection:
        made: list[sqlite3.Connection] = []

        def open_database(*arguments: Any, **named: Any) -> sqlite3.Connection:
            made.append(sqlite3.connect(*arguments, **named))
            return made[-1]

        try:
            real = faults.call("connect", "", open_database, *arguments, **named)
        except BaseException:
            # The caller gets no connection, so the opened connection has to be closed here.
            for connection in made:
                connection.close()
            raise
        return FaultyConnection(faults, real)

    return connect
