"""The relay: reads events that services publish to a broker, and delivers them to the API.

The broker stores every message until the message's event has an outcome. So no event is lost if a relay stops or
crashes, but an event may be delivered twice. The relay calls every broker through the protocol `Source`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retailrocket_async._runtime.exports import publish
from retailrocket_async.relay._address import source_from_url, without_secrets
from retailrocket_async.relay._memory import MemorySource, MemoryStream
from retailrocket_async.relay._publish import Publisher, publish_envelopes
from retailrocket_async.relay._relay import Relay
from retailrocket_async.relay._settings import RelaySettings
from retailrocket_async.relay._source import DeadLetter, DeadLetters, Lag, Message, RecordsSending, Source
from retailrocket_async.relay._stats import RelayStats

if TYPE_CHECKING:
    from retailrocket_async.relay._health import health_app, serving_health
    from retailrocket_async.relay._kafka import KafkaSource, KafkaTopic
    from retailrocket_async.relay._nats import NatsSource, NatsSubject
    from retailrocket_async.relay._redis_streams import RedisStream, RedisStreamSource

__all__ = [
    "DeadLetter",
    "DeadLetters",
    "KafkaSource",
    "KafkaTopic",
    "Lag",
    "MemorySource",
    "MemoryStream",
    "Message",
    "NatsSource",
    "NatsSubject",
    "Publisher",
    "RecordsSending",
    "RedisStream",
    "RedisStreamSource",
    "Relay",
    "RelaySettings",
    "RelayStats",
    "Source",
    "health_app",
    "publish_envelopes",
    "serving_health",
    "source_from_url",
    "without_secrets",
]

publish(globals())

_LAZY = {
    "KafkaSource": "_kafka",
    "KafkaTopic": "_kafka",
    "NatsSource": "_nats",
    "NatsSubject": "_nats",
    "RedisStream": "_redis_streams",
    "RedisStreamSource": "_redis_streams",
    "health_app": "_health",
    "serving_health": "_health",
}
"""Maps each name that needs an extra to the module that defines the name. The module and the extra's library are
imported when the name is first used."""


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a class or a function
    if name in _LAZY:
        from importlib import import_module  # noqa: PLC0415

        found = getattr(import_module(f"retailrocket_async.relay.{_LAZY[name]}"), name)
        found.__module__ = __name__
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
