"""Finds the messages whose events must be sent at most once.

A broker hands out a message again if the relay ended before the message was settled. Nobody knows then whether the
event was sent. `RetryPolicy.at_most_once` names the events for which a loss is better than a duplicate, so such an
event is not sent again: its message becomes a dead letter.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from retailrocket_async import Codec, EventValidationError

if TYPE_CHECKING:
    from retailrocket_async.relay._source import Message


class AtMostOnce:
    """Tells which messages have events that must be sent at most once.

    Args:
        names: the names of these events.
        allow_custom: whether events of unknown names are delivered.
        allow_extra: whether unknown fields of documented events are delivered.
    """

    def __init__(self, names: frozenset[str], *, allow_custom: bool, allow_extra: bool) -> None:
        self.names = names
        self._codec = Codec()
        self._allow_custom = allow_custom
        self._allow_extra = allow_extra
        # Matches every body whose first key is one of the names, or contains an escape and so may be one of the names.
        alternatives = "|".join([*map(re.escape, sorted(names)), r'[^"]{0,300}\\.*'])
        self._candidate = re.compile(rf'\s*\{{\s*"(?:{alternatives})"'.encode(), re.DOTALL)

    def has(self, message: Message) -> bool:
        """Return whether the message is a valid event that must be sent at most once."""
        if not self.names or self._candidate.match(message.body) is None:
            return False
        try:
            event = self._codec.decode(message.body, allow_custom=self._allow_custom, allow_extra=self._allow_extra)
        except EventValidationError:
            return False
        return event.event_name in self.names

    def forbids(self, message: Message) -> bool:
        """Return whether an earlier delivery of the message may have sent its event, which must not be sent again."""
        return message.deliveries > 1 and self.has(message)
