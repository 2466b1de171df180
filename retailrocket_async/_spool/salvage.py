"""Reads the undamaged events of a damaged spool directly from the pages of its database file.

SQLite itself would stop at the first damaged page. The format of the file is described at
https://www.sqlite.org/fileformat2.html. Each page of rows states where its rows begin, so if one row is damaged, the
other rows can still be read. Free pages are skipped, because their rows were removed. No file is changed.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from retailrocket_async._spool.directory import DATABASE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

_PAGE: Final = 4096
"""Size of a page in bytes; a spool uses SQLite's default."""

_HEADER: Final = 100
"""Size in bytes of the header at the start of the database file."""

_ROWS: Final = 0x0D
"""The first byte of a page that holds rows."""

_MAP_ENTRIES: Final = _PAGE // 5
"""Number of pages that one page of the pointer map describes, with five bytes for each page. The pointer map states for
each page of the database what the page contains."""

_FREE: Final = 2
"""The first of the five bytes that describe a page in the pointer map has this value if the page is free."""

_MOST_BYTES: Final = 64 << 20
"""Largest size of a row in bytes; a row that states a larger size counts as damaged."""


class Row(NamedTuple):
    """A waiting event or a dead letter.

    Attributes:
        dead: whether the row is a dead letter.
        envelope: the JSON of the event; None if the row is damaged.
    """

    dead: bool
    envelope: bytes | None


def salvaged(directory: Path) -> Iterator[Row]:
    """Yield the waiting events and the dead letters of the spool in `directory`.

    The pages are read in the order of the lowest id on each page.

    Raises:
        OSError: the files cannot be read.
    """
    with (directory / DATABASE).open("rb") as database:
        log = _Log(directory / f"{DATABASE}-wal")
        try:
            yield from _Pages(database, log).rows()
        finally:
            log.close()


class _Log:
    """Reads SQLite's write-ahead log. The log contains committed pages that are not in the database file yet.

    Attributes:
        count: number of pages of the database after the last committed transaction in the log; None if the log contains
            no committed transaction.
    """

    def __init__(self, path: Path) -> None:
        self._at: dict[int, int] = {}
        self.count: int | None = None
        try:
            self._file: BinaryIO | None = path.open("rb")
        except FileNotFoundError:
            self._file = None
        if self._file is not None:
            self._index(self._file)

    def _index(self, file: BinaryIO) -> None:
        salt = file.read(32)[16:24]
        pending: dict[int, int] = {}
        while len(header := file.read(24)) == 24 and header[8:16] == salt:
            number, count = struct.unpack(">II", header[:8])
            pending[number] = file.tell()
            if file.seek(_PAGE, 1) and count:
                # A count above 0 marks the last page of a transaction, so this transaction is complete.
                self._at.update(pending)
                self.count = count
                pending = {}

    def page(self, number: int) -> bytes | None:
        """Return the page with this number, or None if the page is not in the log."""
        if self._file is None or number not in self._at:
            return None
        self._file.seek(self._at[number])
        return self._file.read(_PAGE)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class _Pages:
    """Reads the pages of a database: from the write-ahead log if the page is in the log, otherwise from the file."""

    def __init__(self, database: BinaryIO, log: _Log) -> None:
        self._database = database
        self._log = log
        self._count = log.count or database.seek(0, 2) // _PAGE

    def _page(self, number: int) -> bytes:
        page = self._log.page(number)
        if page is None:
            self._database.seek((number - 1) * _PAGE)
            page = self._database.read(_PAGE)
        return page.ljust(_PAGE, b"\0")

    def rows(self) -> Iterator[Row]:
        """Yield all events and dead letters; the pages are read in the order of the lowest id on each page."""
        found: list[tuple[int, int]] = []
        described, free = 0, b""
        for number in range(1, self._count + 1):
            if (number - 2) % (_MAP_ENTRIES + 1) == 0:
                # This page belongs to the pointer map, and states which of the following pages are free.
                described, free = number + 1, self._page(number)[0::5][:_MAP_ENTRIES]
                continue
            page = self._page(number)
            if page[0] == _ROWS and not (described and free[number - described] == _FREE):
                found.append((min((key for key, _ in self._cells(page)), default=0), number))
        for _, number in sorted(found):
            page = self._page(number)
            for _, row in self._cells(page):
                if row is not None:
                    yield row

    def _cells(self, page: bytes) -> Iterator[tuple[int, Row | None]]:
        """Yield the id and the content of each row of a page; the content is None if the row belongs to another table.

        If a row is damaged, its id is yielded as 0.
        """
        [count] = struct.unpack_from(">H", page, 3)
        for position in range(8, min(8 + 2 * count, _PAGE), 2):
            try:
                [at] = struct.unpack_from(">H", page, position)
                size, at = _varint(page, at)
                key, at = _varint(page, at)
                yield key, _row(self._content(page, at, size))
            except (IndexError, ValueError, struct.error):
                yield 0, Row(dead=False, envelope=None)

    def _content(self, page: bytes, at: int, size: int) -> bytes:
        """Return the content of a row; the content of a large row continues on other pages."""
        most = _PAGE - 35
        if size > _MOST_BYTES:
            raise ValueError(size)
        if size <= most:
            if at + size > _PAGE:
                raise ValueError(at)
            return page[at : at + size]
        least = (_PAGE - 12) * 32 // 255 - 23
        local = least + (size - least) % (_PAGE - 4)
        local = local if local <= most else least
        content = page[at : at + local]
        [following] = struct.unpack_from(">I", page, at + local)
        while len(content) < size:
            if not 1 <= following <= self._count:
                raise ValueError(following)
            page = self._page(following)
            [following] = struct.unpack_from(">I", page, 0)
            content += page[4 : 4 + size - len(content)]
        return content


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the integer at `at`, in SQLite's format of one to nine bytes, and the position after the integer."""
    value = 0
    for number in range(9):
        byte = data[at + number]
        if number == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + number + 1
    raise ValueError(at)


_SIZES: Final = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)
"""Item n is the size in bytes of a value of kind n in SQLite's format; kinds from 12 on are binary data and texts."""


def _row(content: bytes) -> Row | None:
    """Return the event or the dead letter with this content, or None if the row belongs to another table."""
    end, at = _varint(content, 0)
    kinds: list[int] = []
    while at < end:
        kind, at = _varint(content, at)
        kinds.append(kind)
    values: list[bytes] = []
    at = end
    for kind in kinds:
        size = _SIZES[kind] if kind < len(_SIZES) else (kind - 12) // 2
        values.append(content[at : at + size])
        at += size
    # The last column of both tables is the JSON. In the table of events, column 3 is the size of the JSON.
    is_event = len(kinds) == 4 and kinds[0] == 0 and kinds[2] < len(_SIZES)
    is_dead = len(kinds) == 6 and kinds[0] == 0
    if not is_event and not is_dead:
        return None
    body = values[-1]
    whole = at == len(content) and (is_dead or _integer(kinds[2], values[2]) == len(body))
    return Row(is_dead, body if whole and is_envelope(body) else None)


def _integer(kind: int, value: bytes) -> int:
    return kind - 8 if kind in (8, 9) else int.from_bytes(value, "big", signed=True)


def is_envelope(body: bytes) -> bool:
    """Return whether `body` is a JSON object. Every undamaged event is a JSON object."""
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False
