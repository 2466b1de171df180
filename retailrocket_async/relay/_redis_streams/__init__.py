"""Redis Streams: a relay's source, and a publisher."""

from __future__ import annotations

from retailrocket_async.relay._redis_streams.source import RedisStreamSource
from retailrocket_async.relay._redis_streams.stream import RedisStream

__all__ = ["RedisStream", "RedisStreamSource"]
