"""The relay: takes events that services publish to a broker, and delivers them.

The broker keeps every message until its event has an outcome, so whatever stops a relay loses nothing; an event
may be delivered twice. Brokers are behind one protocol, `Source`.
"""

from __future__ import annotations

from retailrocket_async.relay._memory import MemorySource, MemoryStream
from retailrocket_async.relay._publish import Publisher, publish_envelopes
from retailrocket_async.relay._source import DeadLetter, DeadLetters, Lag, Message, Source

__all__ = [
    "DeadLetter",
    "DeadLetters",
    "Lag",
    "MemorySource",
    "MemoryStream",
    "Message",
    "Publisher",
    "Source",
    "publish_envelopes",
]
