"""The file of rejects: bad lines and undelivered events, in a form that `send` accepts again.

Undelivered events are written as envelopes, one JSON line each. Bad lines are written as they were read, to be
corrected by hand. The clickstream's header is written above the first bad row, so that `send` can parse the rows.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from retailrocket_async.cli._clickstream import HEADER
from retailrocket_async.cli._terminal import fail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from io import BufferedWriter
    from pathlib import Path
    from types import TracebackType

    from retailrocket_async.cli._lines import BadLine


class Rejects:
    """Writes the file of rejects.

    The file is opened before any event is sent, so that the command stops early if the file cannot be written. A file
    that is not empty is never overwritten, because it may contain the rejects of an earlier run. If there are no
    rejects, the new file is removed.

    Args:
        path: the file; None to write no file.

    Attributes:
        lines: how many lines were written.
        failure: why the file is incomplete; None if the file is complete.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.lines = 0
        self.failure: str | None = None
        self._created = path is not None and not os.path.exists(path)  # noqa: PTH110 - raises nothing
        self._has_header = False
        self._file: BufferedWriter | None = None if path is None else _opened(path)

    def add_bad(self, bad: BadLine) -> None:
        """Write a bad line as it was read."""
        if bad.raw is None:
            return
        if bad.is_row and not self._has_header:
            self._has_header = True
            self._write(HEADER + b"\n")
        self._write(bad.raw if bad.raw.endswith(b"\n") else bad.raw + b"\n")
        self.lines += 1

    def add_undelivered(self, envelopes: Iterable[bytes]) -> None:
        """Write the envelopes of events that were not delivered."""
        for envelope in envelopes:
            self._write(envelope + b"\n")
            self.lines += 1
        if self._file is not None:
            self._trying(self._file.flush)

    def close(self) -> None:
        """Close the file, and remove the file if this object created it and wrote nothing."""
        if self._file is not None:
            self._trying(self._file.close)
        if self._created and not self.lines and self.path is not None:
            self.path.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        file = self._file
        if file is not None and self.failure is None:
            self._trying(lambda: file.write(data))

    def _trying(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            # The delivery of events goes on, although the file of rejects is incomplete now; the report says so.
            self.failure = self.failure or error.strerror or type(error).__name__

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _opened(path: Path) -> BufferedWriter:
    try:
        if path.is_file() and path.stat().st_size:
            fail(f"{path} is not empty, and may hold the rejects of an earlier run: name another file")
        # Only the owner may read the file, because events contain personal data. O_EXCL is not used, because the path
        # may be a pipe.
        return open(path, "wb", opener=_private)
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
