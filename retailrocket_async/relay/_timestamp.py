"""Adds a timestamp to events that have none: the time at which the message was published."""

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
    """Adds timestamps to envelopes whose events have none.

    Args:
        allow_custom: whether events of unknown names are accepted; they get no timestamp.
    """

    def __init__(self, *, allow_custom: bool) -> None:
        self._codec = Codec()
        self._allow_custom = allow_custom

    def envelope_of(self, message: Message) -> bytes:
        """Return the message's envelope; if its event has no timestamp, with the time of publication as timestamp.

        The time of the visitor's action is unknown, but the time of publication is nearer to it than the current time.
        """
        if b'"timestamp"' in message.body or message.published_at is None:
            return message.body
        # A body that is no valid event is returned unchanged: the client reports the error. `published_at` may be no
        # valid time either, if the producer chose the message's id.
        with suppress(ValueError, OverflowError, OSError):
            event = self._codec.decode(message.body, allow_custom=self._allow_custom)
            if not isinstance(event, CustomEvent):
                moment = datetime.fromtimestamp(message.published_at, UTC)
                return self._codec.encode(attrs.evolve(cast("View", event), timestamp=moment))
        return message.body
