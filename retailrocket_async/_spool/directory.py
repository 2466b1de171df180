"""Creates and checks the directory of a spool, which must be private to this user and on a local file system."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from retailrocket_async._errors import SpoolError
from retailrocket_async._spool.failures import explained
from retailrocket_async._spool.file_lock import exists, open_private

if TYPE_CHECKING:
    from collections.abc import Iterable

    from retailrocket_async._spool.system import System

DATABASE: Final = "events.db"
"""The name of the database file."""

_NETWORK: Final = frozenset(
    {"afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs"}
    | {"lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"}
)
"""Names that Linux gives to network file systems. File locks on these file systems do not work between hosts."""


def prepare(directory: Path, system: System, *, create: bool) -> None:
    """Check the directory. If `create` is true, also create the directory and the database file, for this user only.

    Raises:
        SpoolError: the directory is missing, belongs to another user, can be read by other users, or is on a network
            file system.
    """
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
        # The database file is created here, so that only this user can read the file. SQLite gives the same mode to its
        # other files. An existing file is not opened here, because to close the file again would release all locks that
        # this process has on the file.
        if create and not exists(directory / DATABASE, system):
            with suppress(FileExistsError):
                system.close(open_private(directory / DATABASE, os.O_CREAT | os.O_EXCL | os.O_RDWR, system))


def _network_file_system(directory: Path, system: System) -> str | None:
    """Return the kind of network file system that `directory` is on, or None if no known kind is found."""
    try:
        lines = system.read_text(Path("/proc/self/mountinfo")).splitlines()
    except OSError:
        return None
    return network_mount(lines, directory.resolve())


def network_mount(lines: Iterable[str], path: Path) -> str | None:
    """Return the kind of network file system that `path` is on, or None if `path` is not on a network file system.

    Args:
        lines: Linux's list of mounts, ``/proc/self/mountinfo``.
        path: an absolute path.
    """
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
