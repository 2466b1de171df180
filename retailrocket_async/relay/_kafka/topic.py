"""Publishes envelopes to Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retailrocket_async._runtime.setting_text import check_texts
from retailrocket_async._runtime.uncopyable import Uncopyable
from retailrocket_async.relay._kafka.cluster import KafkaCluster, send_all, start, stop

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence
    from typing import Self


class KafkaTopic(Uncopyable):
    """Publishes envelopes to a Kafka topic; use it with `async with`.

    A message's key is the event's ``sessionExternalId``, so all events of a visitor are in one partition and stay in
    order. Producers in other languages should use the same key.

    Args:
        bootstrap_servers: brokers of one cluster, as ``"host:9092"``, or several of them.
        topic: the topic to publish to.
        user, password, sasl, tls: see `KafkaSource`.

    Raises:
        ConfigurationError: a value is out of range, or ``aiokafka`` is not installed.
    """

    def __init__(  # noqa: PLR0913 - keywords, each with a default
        self,
        bootstrap_servers: str | Sequence[str],
        topic: str,
        *,
        user: str | None = None,
        password: str | None = None,
        sasl: str = "PLAIN",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        check_texts(topic=topic)
        self._cluster = KafkaCluster.of(
            bootstrap_servers, "publisher", user=user, password=password, sasl=sasl, tls=tls
        )
        self._topic = topic
        self._producer: Any = None

    async def __aenter__(self) -> Self:
        producer = self._cluster.producer()
        await start(producer)
        self._producer = producer
        return self

    async def __aexit__(self, *_: object) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop(producer)

    async def publish(self, envelopes: Sequence[bytes]) -> None:
        """Publish envelopes, in order for each visitor; return when all in-sync replicas have stored the messages."""
        if self._producer is None:
            raise RuntimeError("a KafkaTopic publishes inside `async with`")
        await send_all(self._producer, self._topic, [(envelope, {}) for envelope in envelopes])
