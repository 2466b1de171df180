"""Adds a timestamp to events without one. The timestamp is the time at which the event's message was published."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import attrs

from retailrocket_async import Codec, CustomEvent

if TYPE_CHECKING:
    from retailrocket_async import View
    from retailrocket_async.relay._source import Message


class Timestamps:
    """Adds timestamps to envelopes whose events have no timestamp.

    Args:
        allow_custom: whether events of unknown names are accepted. Events of unknown names get no timestamp.
        allow_extra: whether unknown fields of documented events are accepted.
    """

    def __init__(self, *, allow_custom: bool, allow_extra: bool) -> None:
        self._codec = Codec()
        self._allow_custom = allow_custom
        self._allow_extra = allow_extra

    def envelope_of(self, message: Message) -> bytes:
        """Return the message's envelope. If the event has no timestamp, add the time of publication as timestamp.

        The time of the visitor's action is unknown, and the time of publication is closer to the action than the
        current time.
        """
        if b'"timestamp"' in message.body or message.published_at is None:
            return message.body
        # If the body is not a valid event, the body is returned unchanged, and the client reports the error. If the
        # producer chose the message's id, `published_at` may be an invalid time, and the body is returned unchanged.
        with suppress(ValueError, OverflowError, OSError):
            event = self._codec.decode(message.body, allow_custom=self._allow_custom, allow_extra=self._allow_extra)
            if not isinstance(event, CustomEvent):
                moment = datetime.fromtimestamp(message.published_at, UTC)
                return self._codec.encode(attrs.evolve(cast("View", event), timestamp=moment))
        return message.body
