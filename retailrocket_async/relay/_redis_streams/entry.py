"""Converts an entry of a Redis stream, as the server sends it, to a message."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

from retailrocket_async.relay._source import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

Entry: TypeAlias = "Sequence[Any]"
"""An entry: first its id, then a list in which each field's name is followed by the field's value.

If the entry was removed from the stream, the second item is None in place of the list.
"""

_FIRST_MOMENT = 10**12
"""Lowest time at the beginning of an entry's id that is used as time of publication, in milliseconds since the epoch.

The value is in the year 2001. If the time is lower, the id does not come from the server's clock.
"""


def message_of(id_: bytes, fields: Sequence[bytes], deliveries: int) -> Message:
    """Return the message that an entry of a Redis stream contains."""
    body = fields[1] if fields[0] == b"envelope" else _body_of(fields)
    milliseconds = int(id_.partition(b"-")[0])
    published_at = milliseconds / 1000 if milliseconds >= _FIRST_MOMENT else None
    return Message(id=id_.decode(), body=body, deliveries=deliveries, published_at=published_at, handle=id_)


def _body_of(fields: Sequence[bytes]) -> bytes:
    """Return the body of an entry whose first field is not the envelope."""
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    for name in (b"envelope", b"data"):
        if name in named:
            return named[name]
    # The entry has no envelope, so return JSON that shows all fields. The relay refuses this JSON, because it is no
    # event, and stores it as a dead letter.
    shown = {_shown(name): _shown(value) for name, value in named.items()}
    return json.dumps({"neither envelope nor data": shown}).encode()


def _shown(value: bytes) -> str:
    return value.decode(errors="backslashreplace")
