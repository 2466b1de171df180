"""The errors of a spool: one class for each kind of failure that the spool's own code handles differently.

All classes are subclasses of `SpoolError`, the only one of these classes that users of the package know. Errors of
SQLite and of the system are translated here into sentences that say what happened, to which spool, and what to do.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from retailrocket_async._errors import SpoolError
from retailrocket_async._spool.file_lock import LockTimeoutError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


class SpoolFileFullError(SpoolError):
    """The file or its disk has no space for a transaction."""


class SpoolBusyError(SpoolError):
    """Another process has held the write lock for longer than this process waits."""


class SpoolGoneError(SpoolError):
    """The open file is not at its path any more, so events that are written to the open file are lost."""


class SpoolDamagedError(SpoolError):
    """The content of the file is damaged."""


class LeaseLostError(SpoolError):
    """This process was stopped for too long, so another process took the lease and sends the events now."""


def damaged(directory: Path, finding: object) -> SpoolDamagedError:
    """Return the error for a damaged file; `finding` is SQLite's sentence about the damage."""
    return SpoolDamagedError(
        f"the spool in {directory} is damaged ({finding}): stop its processes, save what can be read with"
        f" 'retailrocket-async spool export {directory} --output events.ndjson', and move the directory away"
    )


def gone(directory: Path) -> SpoolGoneError:
    """Return the error for a spool whose file is not at its path any more."""
    return SpoolGoneError(
        f"the spool in {directory} was removed or replaced while it was open: put the directory back, or restart"
        " the process to begin with an empty spool"
    )


@contextmanager
def explained(directory: Path) -> Generator[None]:
    """Translate errors of SQLite and of the system in the block into a `SpoolError` that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        # The lowest byte of SQLite's error code is the kind of error; the other bytes only give details.
        code = getattr(error, "sqlite_errorcode", None)
        kind = code & 0xFF if isinstance(code, int) else None
        if kind == sqlite3.SQLITE_FULL:
            raise SpoolFileFullError(f"the spool in {directory} has no room for more") from None
        if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise damaged(directory, error) from None
        raise SpoolError(f"the spool in {directory} cannot be used: {error}") from None
    except LockTimeoutError as error:
        raise SpoolBusyError(f"the spool in {directory} cannot be used: {error.strerror}") from None
    except OSError as error:
        cause = error.strerror or type(error).__name__
        raise SpoolError(f"the spool in {directory} cannot be used: {cause}") from None
    except (ValueError, MemoryError, RecursionError) as error:
        # For example, the path is not valid on this system, or there is not enough memory at this moment.
        cause = f"{type(error).__name__}: {error}".rstrip(": ")
        raise SpoolError(f"the spool in {directory} cannot be used: {cause}") from None


def without_frames(error: BaseException) -> SpoolError:
    """Remove the traceback from an error, because its frames hold SQL statements, which keep the file open.

    Return the error. If the error is not a `SpoolError`, return a `SpoolError` that names the type of the error.
    """
    if not isinstance(error, SpoolError):
        return SpoolError(f"the spool cannot be used: {type(error).__name__}: {error}".rstrip(": "))
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error
