"""Turns the bytes of one input into events, one for each line, or into the reason why a line is not an event.

An input may mix two kinds of lines:

- a line that begins with ``{`` is an envelope, i.e. an event's name and fields as JSON:
  ``{"view": {"sessionExternalId": "...", "productId": 1}}``;
- any other line is a row of the clickstream, if the clickstream's header is somewhere above the line.

So a file of rejects can be sent like any other file: a file of rejects contains envelopes of undelivered events, and
bad rows below a header.
Blank lines, a byte order mark and repeated headers (of concatenated files) are skipped. Lines end in LF or CR LF.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from retailrocket_async import Batching, Codec, EventValidationError
from retailrocket_async.cli._clickstream import HEADER, Clickstream

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from retailrocket_async import Event
    from retailrocket_async.cli._reading import Chunk

MAX_LINE = 1024 * 1024
"""Largest line in bytes, twice the largest event. If a line is longer, the file has no line breaks or is a binary
file."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OPENING_BRACE = ord("{")
_MAX_ENVELOPE = Batching().max_bytes - 2
_SURELY_SMALL = _MAX_ENVELOPE // 8
"""The event of a line of at most this many bytes is surely small enough: encoding enlarges JSON at most eightfold."""


@attrs.frozen
class BadLine:
    """A line that is not an event, or the failure that ended an input.

    Attributes:
        source: the name of the line's input.
        number: the line's number, counted from 1.
        reason: why the line is not an event; contains neither the input's name nor the number.
        raw: the line with its line break; None if the line was too long to store, or could not be read.
        is_row: whether the line is a row of the clickstream, which must be written below the header.
        ends_input: whether this object is not a line, but says that the rest of the input could not be read.
    """

    source: str
    number: int
    reason: str
    raw: bytes | None = attrs.field(default=None, repr=False)
    is_row: bool = False
    ends_input: bool = False

    def __str__(self) -> str:
        return f"{self.source}:{self.number}: {self.reason}"


class Lines:
    """Parses the lines of one input.

    Args:
        source: the input's name, for messages.
        clickstream: parses rows of the clickstream.
        allow_custom: accept an unknown event name as a `CustomEvent`.
        allow_extra: accept unknown fields of a documented event as its `extra`.

    Attributes:
        source: the input's name.
        number: the number of the line that was parsed last; 0 before the first line.
    """

    def __init__(self, source: str, clickstream: Clickstream, *, allow_custom: bool, allow_extra: bool = False) -> None:
        self.number = 0
        self.source = source
        self._row = clickstream.event
        codec = Codec()
        self._decode = codec.decode
        self._encode = codec.encode
        self._allow_custom = allow_custom
        self._allow_extra = allow_extra
        self._below_header = False
        self._rest = bytearray()
        self._overlong = False

    def feed(self, data: bytes) -> Generator[Event | BadLine]:
        """Yield an event or a bad line for each line that ends in `data`; store the start of the next line."""
        # `_rest` is a bytearray. If it were `bytes`, each appended piece would copy the whole line so far.
        self._rest += data
        if b"\n" in data:
            *lines, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
            for line in lines:
                found = self._read(line, b"\n")
                if found is not None:
                    yield found
        if len(self._rest) > MAX_LINE:
            # The bytes of an overlong line are not stored, so that the memory stays limited.
            self._rest.clear()
            self._overlong = True

    def finish(self) -> Generator[Event | BadLine]:
        """Yield the event or the bad line for a last line that has no line break."""
        rest, self._rest = bytes(self._rest), bytearray()
        found = self._read(rest, b"") if rest or self._overlong else None
        if found is not None:
            yield found

    def broken(self, reason: str) -> BadLine:
        """Return a `BadLine` which says that the rest of the input cannot be read; drop the unfinished line."""
        return BadLine(self.source, self.number + 1, reason, ends_input=True)

    def _read(self, line: bytes, end: bytes) -> Event | BadLine | None:
        self.number += 1
        if self._overlong or len(line) > MAX_LINE:
            self._overlong = False
            return BadLine(
                self.source, self.number, f"is longer than {MAX_LINE:,} bytes, and is not written to the rejects"
            )
        if self.number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        text = line.strip()
        if not text or self._is_header(text):
            return None
        is_envelope = text[0] == _OPENING_BRACE
        try:
            if is_envelope:
                return self._sendable(text)
            if self._below_header:
                return self._row(text)
        except EventValidationError as error:
            return BadLine(self.source, self.number, str(error), line + end, is_row=not is_envelope)
        reason = f'is neither an envelope, e.g. {{"view": {{...}}}}, nor a row below {HEADER.decode()}'
        return BadLine(self.source, self.number, reason, line + end)

    def _is_header(self, text: bytes) -> bool:
        if text != HEADER:
            return False
        self._below_header = True
        return True

    def _sendable(self, text: bytes) -> Event:
        event = self._decode(text, allow_custom=self._allow_custom, allow_extra=self._allow_extra)
        if len(text) > _SURELY_SMALL and len(self._encode(event)) > _MAX_ENVELOPE:
            rule = f"must be at most {_MAX_ENVELOPE} bytes of JSON"
            raise EventValidationError(event.event_name, "", rule)
        return event


def events_of(lines: Lines, chunk: Chunk) -> Iterator[Event | BadLine]:
    """Return the events and bad lines of `chunk`, the next piece of the input that `lines` parses."""
    if chunk.data:
        return lines.feed(chunk.data)
    return lines.finish() if chunk.failure is None else iter([lines.broken(chunk.failure)])
