"""Publishes events to a broker, from which a relay delivers them."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from retailrocket_async import Codec, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from retailrocket_async import Event

_BATCH = 500
"""Default number of messages that are published in one round trip."""


@runtime_checkable
class Publisher(Protocol):
    """Publishes envelopes to a broker: a Redis stream, a Kafka topic, a NATS subject."""

    async def publish(self, envelopes: Sequence[bytes]) -> None:
        """Publish envelopes in order, one message per envelope; return when the broker has confirmed all messages.

        If the method raises, any number of the envelopes may have been published.
        """
        ...


async def publish_envelopes(
    publisher: Publisher, events: Iterable[Event | bytes], *, codec: Codec | None = None, batch: int = _BATCH
) -> int:
    """Publish events to a broker, from which a relay delivers them; return the number of published events.

    Args:
        publisher: the broker to publish to, e.g. ``RedisStream(redis, "events")``.
        events: events, or encoded envelopes, e.g. ``b'{"view":{...}}'``; any iterable, read batch by batch. Envelopes
            are published unchecked; the relay checks the envelopes.
        codec: encodes the events; default `Codec()`.
        batch: messages in one round trip, 1 or more; default 500.

    Raises:
        ConfigurationError: `batch` is out of range.
        EventValidationError: an element of `events` is not a valid event. The batches before the element's batch are
            published.
        Exception: an error of the broker's library. The earlier batches are published, and possibly a part of the batch
            in which the error occurred.
    """
    if type(batch) is not int or batch < 1:
        raise ConfigurationError(f"batch must be an int of 1 or more, not {batch!r}")
    encode = (codec or Codec()).encode
    encoded: Iterator[bytes] = (event if isinstance(event, bytes) else encode(event) for event in events)
    published = 0
    while envelopes := list(islice(encoded, batch)):
        await publisher.publish(envelopes)
        published += len(envelopes)
    return published
