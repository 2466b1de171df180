"""Publishes envelopes to a Redis stream, and checks that a Redis client can be used for streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from retailrocket_async import ConfigurationError
from retailrocket_async._runtime.extras import needing
from retailrocket_async._runtime.setting_text import check_texts
from retailrocket_async._runtime.uncopyable import Uncopyable

with needing("redis"):
    from redis.asyncio import Redis, RedisCluster

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

NO_CLUSTER = (
    "a relay does not read from a Redis Cluster, nor from one of its nodes: keep the stream on a Redis of its own, "
    "with Sentinel if it has to survive its host"
)


class RedisStream(Uncopyable):
    """Publishes envelopes to a Redis stream. Implements `Publisher`.

    Args:
        redis: a `redis.asyncio.Redis`; this class never closes the client.
        stream: the stream's key.
        max_len: approximate largest number of entries in the stream, 1 or more; default None: no limit. Redis removes
            the oldest entries without notice, even if they were not delivered. So events are lost if more than
            `max_len` entries wait for delivery. Use `max_len` only to protect the server's memory, with a value far
            above the number of entries that an outage can add. To remove delivered entries use `delete_settled` of
            `RedisStreamSource`.

    Raises:
        ConfigurationError: a value is out of range.
    """

    def __init__(self, redis: Redis, stream: str, *, max_len: int | None = None) -> None:
        check_texts(spaces=True, stream=stream)
        check_client(redis)
        if max_len is not None and (type(max_len) is not int or max_len < 1):
            raise ConfigurationError(f"max_len must be None or an int of 1 or more, not {max_len!r}")
        self._redis = cast("Any", redis)
        self._head = ("XADD", stream, *(("MAXLEN", "~", max_len) if max_len is not None else ()), "*", "envelope")

    async def publish(self, envelopes: Sequence[bytes]) -> None:
        """Publish envelopes in order, one entry per envelope, in one round trip."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for envelope in envelopes:
                pipe.execute_command(*self._head, envelope)
            await pipe.execute()


def check_client(redis: object) -> None:
    """Check that `redis` is a client of a single server.

    Raises:
        ConfigurationError: `redis` is a client of a Redis Cluster, or not a `redis.asyncio.Redis`.
    """
    if isinstance(redis, RedisCluster):
        raise ConfigurationError(NO_CLUSTER)
    if not isinstance(redis, Redis):
        raise ConfigurationError(f"redis must be a redis.asyncio.Redis, not {type(redis).__name__}")
