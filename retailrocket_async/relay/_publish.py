"""Publishes events for a relay to deliver: the producer's side."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from retailrocket_async import Codec, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from retailrocket_async import Event

_BATCH = 500
"""Messages published in one round trip."""


@runtime_checkable
class Publisher(Protocol):
    """Publishes envelopes to a broker: a Redis stream, a Kafka topic, a NATS subject."""

    async def publish(self, envelopes: Sequence[bytes]) -> None:
        """Publish envelopes in order, one message each; return when the broker has confirmed all of them.

        If it raises, any number of them may have been published.
        """
        ...


async def publish_envelopes(
    publisher: Publisher, events: Iterable[Event | bytes], *, codec: Codec | None = None, batch: int = _BATCH
) -> int:
    """Publish events for a relay to deliver; return how many.

    Args:
        publisher: takes the envelopes, e.g. ``RedisStream(redis, "events")``.
        events: events, or envelopes that are encoded already, e.g. ``b'{"view":{...}}'``; any iterable, read as it is
            needed. Envelopes are published as they are: the relay judges them.
        codec: encodes the events; default `Codec()`.
        batch: messages in one round trip, 1 or more; default 500.

    Raises:
        ConfigurationError: `batch` is out of range.
        EventValidationError: something in `events` is no event; what came before its batch is published.
        Exception: whatever the broker's library raises; the batches before are published, and any part of this one.
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
