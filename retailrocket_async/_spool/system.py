"""Collects the calls of a spool to the operating system in one class, so that tests can let these calls fail."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class System:
    """Calls the operating system; each method makes one call of `os`, `fcntl`, `time` or `pathlib`."""

    def stat(self, path: Path) -> os.stat_result:
        """Return the status of a file."""
        return path.stat()

    def fstat(self, file: int) -> os.stat_result:
        """Return the status of an open file."""
        return os.fstat(file)

    def statvfs(self, path: Path) -> os.statvfs_result:
        """Return the status of the file system that `path` is on."""
        return os.statvfs(path)

    def mkdir(self, path: Path, mode: int) -> None:
        """Make a directory."""
        path.mkdir(mode)

    def makedirs(self, path: Path) -> None:
        """Make a directory and missing parent directories; do nothing if the directory exists."""
        path.mkdir(parents=True, exist_ok=True)

    def open(self, path: Path, flags: int, mode: int) -> int:
        """Open a file; return its descriptor."""
        return os.open(path, flags, mode)

    def fchown(self, file: int, user: int, group: int) -> None:
        """Change the owner and the group of an open file."""
        os.fchown(file, user, group)

    def close(self, file: int) -> None:
        """Close an open file."""
        os.close(file)

    def flock(self, file: int, operation: int) -> None:
        """Lock or unlock an open file."""
        import fcntl  # noqa: PLC0415 - Windows has no `fcntl`

        fcntl.flock(file, operation)

    def touch(self, file: int) -> None:
        """Set the access time and the modification time of an open file to the present time."""
        os.utime(file)

    def replace(self, source: Path, target: Path) -> None:
        """Rename the file `source` to `target`; an existing file `target` is replaced."""
        source.replace(target)

    def read_text(self, path: Path) -> str:
        """Return the text of a file."""
        return path.read_text("utf-8", errors="replace")

    def sleep(self, seconds: float) -> None:
        """Block the calling thread for `seconds`."""
        time.sleep(seconds)


SYSTEM = System()
