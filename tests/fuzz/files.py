"""Fuzz targets for the input files of the command `send`: their bytes, their lines, their rows."""

from __future__ import annotations

import copy
import gzip
import io
from pathlib import Path
from typing import TYPE_CHECKING, cast

from retailrocket_async import Event, EventValidationError
from retailrocket_async.cli._clickstream import HEADER, Clickstream
from retailrocket_async.cli._lines import MAX_LINE, BadLine, Lines
from retailrocket_async.cli._reading import Source
from tests.fuzz import draw as drawn
from tests.fuzz.draw import Draw
from tests.fuzz.oracle import brief, sound

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import BinaryIO

_MAX_ENVELOPE = 512 * 1024 - 2
_CHUNK = 64 * 1024
_CHECKED = 100
"""The number of lines of an input that are checked one by one."""


def lines(data: bytes) -> None:
    """Read the lines of an input, whole and in pieces; the first byte chooses the size of the pieces."""
    draw = Draw(data)
    step = (1, 7, 4096, _CHUNK)[draw.byte() % 4]
    text = draw.rest()
    if step == 1:
        text = text[:_CHUNK]
    pieces = [text[at : at + step] for at in range(0, len(text), step)]
    for allow_custom in (False, True):
        whole = _found_in([text], allow_custom=allow_custom)
        assert list(map(_told, whole)) == list(map(_told, _found_in(pieces, allow_custom=allow_custom)))
        for found in whole[:_CHECKED]:
            if isinstance(found, BadLine):
                _check_bad(found, allow_custom=allow_custom)
            else:
                assert len(sound(found)) <= _MAX_ENVELOPE + 7, "no batch could hold it"


def lines_drawn(data: bytes) -> None:
    """Read lines that `Draw` makes from the bytes; most of these lines are nearly valid."""
    draw = Draw(data)
    kinds: list[Callable[[], bytes]] = [lambda: drawn.envelope(draw), lambda: _row(draw), draw.bytes, lambda: HEADER]
    made = [draw.pick(kinds)() for _ in range(1 + draw.byte() % 6)]
    lines(b"\x03" + draw.pick([b"", b"\xef\xbb\xbf"]) + draw.pick([b"\n", b"\r\n"]).join(made))


# The readers are made once, because making a reader takes longer than reading a line.
_READERS = [Lines("in", Clickstream(9.9, 2), allow_custom=allow_custom) for allow_custom in (False, True)]


def _found_in(pieces: list[bytes], *, allow_custom: bool) -> list[Event | BadLine]:
    reader = copy.copy(_READERS[allow_custom])
    reader._rest = bytearray()
    found = [found for piece in pieces for found in reader.feed(piece)]
    return [*found, *reader.finish()]


def _told(found: Event | BadLine) -> object:
    # A line without a timestamp gets the current time, so two readings of it differ. Only the names are compared.
    return found if isinstance(found, BadLine) else found.event_name


def _check_bad(bad: BadLine, *, allow_custom: bool) -> None:
    brief(bad)
    if bad.raw is None:
        return
    assert len(bad.raw) <= MAX_LINE + 1
    # The command writes bad lines to a rejects file, below a header line. If this file is read, the line must be bad
    # again, and must again be a row or not a row.
    above = HEADER + b"\n" if bad.is_row else b"\n"
    [again] = _found_in([above + bad.raw], allow_custom=allow_custom)
    assert isinstance(again, BadLine)
    assert bad.is_row == again.is_row


def _row(draw: Draw) -> bytes:
    columns = [
        draw.pick([b"1430622120563", b"0", b"253402300800000", b"9" * 20, b'"1"', b'"1,2"']),
        draw.pick([b"7", b"", b'""', b"a" * 51, b"\xff"]),
        draw.pick([b"view", b"addtocart", b"transaction", b"buy", b"vi\x00ew"]),
        draw.pick([b"1", b"-1", b"9223372036854775808", "٣".encode(), b"1_0"]),
        draw.pick([b"", b"4000", b'"', b'"a""b"', b"\r", b"x" * 51]),
    ]
    for _ in range(draw.byte() % 3):
        columns[draw.byte() % len(columns)] = draw.bytes()
    return b",".join(columns)


def row(data: bytes) -> None:
    """Read one row of the clickstream data set."""
    try:
        event = Clickstream(9.9, 2).event(data)
    except EventValidationError as error:
        brief(error)
    else:
        sound(event)


class _Dripping(io.BytesIO):
    """A file in memory from which each read returns at most `step` bytes, as from a slow pipe."""

    step = 1

    def read(self, size: int | None = -1) -> bytes:
        return super().read(self.step if size is None or size < 0 else min(size, self.step))


class _Stored(Source):
    """A `Source` that reads `data` from memory, at most `step` bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__(Path("-"))
        self._pipe = _Dripping(data)
        self._pipe.step = step

    def _opened(self) -> AbstractContextManager[BinaryIO]:
        return cast("AbstractContextManager[BinaryIO]", self._pipe)


def source(data: bytes) -> None:
    """Read a file that is plain or gzipped, and intact or damaged; the first bytes of `data` choose which."""
    draw = Draw(data)
    step = draw.pick([_CHUNK, 1, 7])
    kind = draw.byte() % 4
    at, junk = draw.byte(), draw.bytes()
    content = draw.rest()
    stored = content if kind == 0 else gzip.compress(content, 1, mtime=0)
    if kind == 2:
        stored = stored[:at] + junk + stored[at + 1 :]
    elif kind == 3:
        stored += stored[:at] + junk
    *chunks, last = _Stored(stored, step if len(stored) < _CHUNK else _CHUNK).chunks()
    assert b"" == last.data
    assert all(0 < len(chunk.data) <= _CHUNK and chunk.failure is None for chunk in chunks)
    if kind == 1 or (kind == 0 and not content.startswith(b"\x1f\x8b")):
        assert (content, None) == (b"".join(chunk.data for chunk in chunks), last.failure)
        assert last.position == len(stored)
    brief(last.failure)
