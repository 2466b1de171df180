"""`RedisStreamSource` and `RedisStream`, on a real redis-server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from retailrocket_async.relay import Publisher, RedisStream, RedisStreamSource
from tests.contracts.source import SourceContract
from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

pytestmark = pytest.mark.needs_server("redis-server")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """One server for all tests; each has a stream of its own in an empty database."""
    with RedisServer() as server:
        yield server


@pytest.fixture
async def redis(server: RedisServer) -> AsyncIterator[Redis]:
    """A client of the server, whose database is empty."""
    redis: Any = Redis.from_url(server.url)
    await redis.flushall()
    yield redis
    await redis.aclose()


class TestRedisStreamSource(SourceContract):
    """The contract of every source."""

    lease = 0.6

    @pytest.fixture(autouse=True)
    def _redis(self, server: RedisServer, redis: Redis) -> None:
        self.server = server
        self.stream = RedisStream(redis, "events")

    async def make(self, name: str = "relay-1", lease: float | None = None) -> RedisStreamSource:
        """Return a source of this test's stream."""
        options = f"stream=events&group=relay&lease={lease or self.lease}"
        return RedisStreamSource.from_url(f"{self.server.url}?{options}", name=name)

    async def publish(self, bodies: Sequence[bytes]) -> None:
        """Publish to this test's stream."""
        await self.stream.publish(bodies)


def test_a_stream_is_a_publisher(redis: Redis) -> None:
    """A Redis stream takes envelopes as every broker does."""
    assert isinstance(RedisStream(redis, "events"), Publisher)
