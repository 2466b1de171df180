"""The lines of one input, from its bytes as they come: an event each, or the reason why not.

Two kinds of lines are known, and may stand side by side:

- an envelope begins with ``{``: ``{"view": {"sessionExternalId": "...", "productId": 1}}``;
- any other line is a row of the clickstream, once the clickstream's header has been read.

So a file of rejects, with envelopes of undelivered events next to rows that are to be mended below their header, is
an input like any other. Blank lines are skipped, as are a byte order mark and repeated headers (of files joined
together); a line may end in LF or CR LF.
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
"""Bytes. An event may be half as large; what is longer has no line breaks, or is no text."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OPENING_BRACE = ord("{")
_MAX_ENVELOPE = Batching().max_bytes - 2
_SURELY_SMALL = _MAX_ENVELOPE // 8
"""No JSON grows more than this when it is written again: a line shorter need not be measured."""


@attrs.frozen
class BadLine:
    """A line that is no event.

    Attributes:
        source: the name of its input.
        number: counted from 1.
        reason: why, as a sentence's end.
        raw: the line as it was, its end included; None where it was too long to keep, or could not be read.
        is_row: whether it needs the clickstream's header above it to be read again.
        ends_input: whether this is no line at all but an input that could not be read any further.
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
    """Reads the lines of one input.

    Args:
        source: its name, for messages.
        clickstream: reads its rows, if it has any.
        allow_custom: read an unknown event name as a `CustomEvent`.

    Attributes:
        source: the name of the input.
        number: of the line read last; 0 before the first.
    """

    def __init__(self, source: str, clickstream: Clickstream, *, allow_custom: bool) -> None:
        self.number = 0
        self.source = source
        self._row = clickstream.event
        codec = Codec()
        self._decode = codec.decode
        self._encode = codec.encode
        self._allow_custom = allow_custom
        self._below_header = False
        self._rest = bytearray()
        self._overlong = False

    def feed(self, data: bytes) -> Generator[Event | BadLine]:
        """Yield what the lines hold that end in `data`; keeps the beginning of the next one."""
        # Appended to, since a long line in small pieces would be copied once for each of them.
        self._rest += data
        if b"\n" in data:
            *lines, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
            for line in lines:
                found = self._read(line, b"\n")
                if found is not None:
                    yield found
        if len(self._rest) > MAX_LINE:
            # The rest of the line is read and forgotten: memory stays bounded, whatever it is.
            self._rest.clear()
            self._overlong = True

    def finish(self) -> Generator[Event | BadLine]:
        """Yield what the last line holds where it has no end."""
        rest, self._rest = bytes(self._rest), bytearray()
        found = self._read(rest, b"") if rest or self._overlong else None
        if found is not None:
            yield found

    def broken(self, reason: str) -> BadLine:
        """Return the entry for an input that could not be read further; its unfinished line is no line."""
        return BadLine(self.source, self.number + 1, reason, ends_input=True)

    def _read(self, line: bytes, end: bytes) -> Event | BadLine | None:
        self.number += 1
        if self._overlong or len(line) > MAX_LINE:
            self._overlong = False
            return BadLine(self.source, self.number, f"is longer than {MAX_LINE:,} bytes, and is not kept")
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
        event = self._decode(text, allow_custom=self._allow_custom)
        if len(text) > _SURELY_SMALL and len(self._encode(event)) > _MAX_ENVELOPE:
            rule = f"must be at most {_MAX_ENVELOPE} bytes of JSON"
            raise EventValidationError(event.event_name, "", rule)
        return event


def events_of(lines: Lines, chunk: Chunk) -> Iterator[Event | BadLine]:
    """Return what `chunk` holds, the next piece of the input that `lines` reads."""
    if chunk.data:
        return lines.feed(chunk.data)
    return lines.finish() if chunk.failure is None else iter([lines.broken(chunk.failure)])
