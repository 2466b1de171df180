"""Uses the relay's public API. This file is never run; mypy and pyright check its types in strict mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, assert_type

from retailrocket_async import AsyncTrackingClient, Buffer, View
from retailrocket_async.relay import (
    DeadLetter,
    DeadLetters,
    Lag,
    MemorySource,
    MemoryStream,
    Message,
    Publisher,
    RedisStream,
    RedisStreamSource,
    Relay,
    RelaySettings,
    RelayStats,
    Source,
    publish_envelopes,
    serving_health,
    source_from_url,
)

if TYPE_CHECKING:
    from redis.asyncio import Redis


class Own:
    """A caller's own source, which satisfies the protocol `Source`."""

    lease: float | None = None

    async def open(self) -> None:
        """Do nothing."""

    async def fetch(self, most: int, wait: float) -> Sequence[Message]:
        """Return one message."""
        return [Message(id=f"{most}", body=b"{}", published_at=wait)]

    async def settle(self, done: Sequence[Message], dead: Sequence[tuple[Message, str]]) -> None:
        """Do nothing."""

    async def extend(self, messages: Sequence[Message]) -> None:
        """Do nothing."""

    async def release(self, messages: Sequence[Message]) -> None:
        """Do nothing."""

    async def lag(self) -> Lag:
        """Return a lag without numbers."""
        return Lag()

    async def aclose(self) -> None:
        """Do nothing."""


async def relay(client: AsyncTrackingClient, redis: Redis) -> None:
    """Create every kind of source, and read the statistics of a relay."""
    memory: Source = MemorySource(MemoryStream(), name="relay-1", lease=60)
    streams: Source = RedisStreamSource(redis, stream="events", group="relay", name="relay-1", delete_settled=True)
    by_url: Source = RedisStreamSource.from_url("redis://redis/0?stream=events", name="relay-1")
    for source in (memory, streams, by_url, Own(), source_from_url("nats://nats/events", name="relay-1")):
        relay = Relay(
            source, client, batch=500, window=6_000, window_bytes=2**20, grace=25, allow_custom=True, allow_extra=True
        )
        async with serving_health(relay, client, "127.0.0.1", 0) as root:
            assert_type(root, str)
            assert_type(await relay.run(), bool)
        relay.stop()
        assert_type(relay.unready, str | None)
        assert_type(relay.stats(), RelayStats)
        assert_type(relay.stats().dead, Mapping[str, int])
        assert_type(await relay.lag(), Lag)


async def dead_letters(source: DeadLetters) -> None:
    """Use the methods for dead letters."""
    assert_type(await source.list_dead(10), Sequence[DeadLetter])
    assert_type(await source.replay_dead(10), int)
    assert_type(await source.purge_dead(10), int)


async def publish(redis: Redis, view: View) -> None:
    """Publish events and envelopes."""
    publishers: list[Publisher] = [MemoryStream(), RedisStream(redis, "events", max_len=10**7)]
    for publisher in publishers:
        assert_type(await publish_envelopes(publisher, [view, b"{}"], batch=100), int)


def settings() -> None:
    """Pass some settings of a relay process."""
    assert_type(RelaySettings(source="redis://redis/0?stream=events", rate=0).buffer, Buffer)
