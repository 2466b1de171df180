"""Where a spool is: its directory and the rights of it, and what goes wrong there, as errors that say what to do."""

from __future__ import annotations

import os
import sqlite3
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from retailrocket_async._errors import SpoolError
from retailrocket_async._spool.file_lock import LockTimeoutError, exists, open_private

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from retailrocket_async._spool.system import System

DATABASE: Final = "events.db"


class SpoolFileFullError(SpoolError):
    """There is no room for a transaction."""


class SpoolBusyError(SpoolError):
    """Another process has held the lock for too long."""


class SpoolGoneError(SpoolError):
    """The file that was opened is not at its path any more: what is written to it would be on no disk."""


class SpoolDamagedError(SpoolError):
    """The file's content is damaged."""


class LeadLostError(SpoolError):
    """Another process sends in the place of this one, which was stopped for too long."""


def damaged(directory: Path, finding: object) -> SpoolDamagedError:
    """Return the error for a damaged file; `finding` is SQLite's sentence."""
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
    """SendSlot what SQLite and the system raise into an error of ours that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        # The lowest byte is the kind, the others say more.
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
        said = error.strerror or type(error).__name__
        raise SpoolError(f"the spool in {directory} cannot be used: {said}") from None
    except (ValueError, MemoryError, RecursionError) as error:
        # A path that the system cannot take, or a moment without memory.
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        raise SpoolError(f"the spool in {directory} cannot be used: {said}") from None


def prepare(directory: Path, system: System, *, create: bool) -> None:
    """Check the directory, and make it and the database file for this user alone if `create` says so."""
    with explained(directory):
        if create:
            system.makedirs(directory.parent)
            with suppress(FileExistsError):
                system.mkdir(directory, 0o700)
        found = system.stat(directory)
        mode = found.st_mode
        if found.st_uid != os.geteuid() != 0:
            raise SpoolError(f"the spool in {directory} belongs to another user")
        if mode & 0o077:
            raise SpoolError(
                f"the spool in {directory} could be read by others (mode {mode & 0o777:o}): chmod 700, or name a"
                " directory that is not there yet"
            )
        if (kind := _network_file_system(directory, system)) is not None:
            raise SpoolError(f"the spool in {directory} would be on {kind}: locks need a file system of this host")
        # Made here for its mode; SQLite gives its other files the same one. An existing one is not opened: closing
        # it would drop this process's locks on it.
        if create and not exists(directory / DATABASE, system):
            with suppress(FileExistsError):
                system.close(open_private(directory / DATABASE, os.O_CREAT | os.O_EXCL | os.O_RDWR, system))


_NETWORK: Final = frozenset(
    {"afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs"}
    | {"lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"}
)


def _network_file_system(directory: Path, system: System) -> str | None:
    """Return the kind of network file system that `directory` is on; None if it is on none that is recognised."""
    try:
        lines = system.read_text(Path("/proc/self/mountinfo")).splitlines()
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
