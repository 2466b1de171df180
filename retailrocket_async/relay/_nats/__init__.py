"""NATS JetStream: a relay's source, and a publisher."""

from __future__ import annotations

from retailrocket_async.relay._nats.source import NatsSource
from retailrocket_async.relay._nats.subject import NatsSubject

__all__ = ["NatsSource", "NatsSubject"]
