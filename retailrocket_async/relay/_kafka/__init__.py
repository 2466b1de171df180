"""Kafka: a relay's source, and a publisher."""

from __future__ import annotations

from retailrocket_async.relay._kafka.source import KafkaSource
from retailrocket_async.relay._kafka.topic import KafkaTopic

__all__ = ["KafkaSource", "KafkaTopic"]
