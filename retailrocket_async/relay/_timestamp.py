"""Gives an event without a timestamp the time at which its message was published."""

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
    """Adds timestamps to envelopes.

    Args:
        allow_custom: whether events of unknown names are decoded; they get no timestamp.
    """

    def __init__(self, *, allow_custom: bool) -> None:
        self._codec = Codec()
        self._allow_custom = allow_custom

    def envelope_of(self, message: Message) -> bytes:
        """Return the message's envelope, with the time of publication if its event has no timestamp.

        The time of the visitor's action is unknown. The time of publication is nearer to it than the present.
        """
        if b'"timestamp"' in message.body or message.published_at is None:
            return message.body
        # A producer with ids of its own may have given a time that does not exist. The client reports a body that is
        # no event.
        with suppress(ValueError, OverflowError, OSError):
            event = self._codec.decode(message.body, allow_custom=self._allow_custom)
            if not isinstance(event, CustomEvent):
                moment = datetime.fromtimestamp(message.published_at, UTC)
                return self._codec.encode(attrs.evolve(cast("View", event), timestamp=moment))
        return message.body
