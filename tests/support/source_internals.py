"""Functions through which tests read or change private attributes of a relay's sources and of the shared limiter."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from retailrocket_async.redis import RedisLimiter
    from retailrocket_async.relay import DeadLetter, KafkaSource, Message, NatsSource, RedisStreamSource

# --- Redis Streams ---


def handed_out(source: RedisStreamSource) -> int:
    """Return how many entries the source has handed out and not settled yet."""
    return len(source._handed_out)


# --- NATS ---


def jetstream_of(source: NatsSource) -> Any:
    """Return the JetStream context of an open source."""
    return source._connection.jetstream


def servers_of(source: NatsSource) -> Any:
    """Return the servers that a source connects to."""
    return source._connection.servers


def replace_servers(source: NatsSource, wrap: Callable[[Any], Any]) -> None:
    """Pass the object that connects a source to its servers to `wrap`, and make the source use the returned object."""
    source._connection.servers = wrap(source._connection.servers)


def stream_of(source: NatsSource) -> str:
    """Return the name of a source's stream."""
    return source._stream


def dead_stream_of(source: NatsSource) -> str:
    """Return the name of a source's stream of dead letters."""
    return source._letters.name


async def keep_dead(source: NatsSource, dead: Sequence[tuple[Message, str]]) -> None:
    """Publish dead letters without settling their messages, like a source that is killed between the two steps."""
    await source._letters.keep(dead)


def replay_id(source: NatsSource, letter: DeadLetter) -> str:
    """Return the id under which a dead letter is published again."""
    return source._letters._replay_id(letter)


async def request_messages(source: NatsSource, most: int, wait: float) -> None:
    """Request messages from the server without fetching them, like a fetch that is cancelled after its request."""
    await source._inbox.request(most, wait)


def ignore_statuses(source: NatsSource) -> None:
    """Drop all answers of the server except messages, so that no request is reported to end; call before `open`."""
    inbox = source._inbox
    receive = inbox._receive

    async def messages_only(message: Any) -> None:
        if message.data:
            await receive(message)

    inbox._receive = messages_only  # type: ignore[method-assign]


def arrived(source: NatsSource) -> int:
    """Return how many messages have arrived and were not fetched yet."""
    return len(source._inbox.arrived)


def inbox_state(source: NatsSource) -> str:
    """Return how many messages a source holds and has requested, as text for the message of a failing test."""
    return f"{len(source._inbox.held)} held, {source._inbox.requested} requested"


async def without_flusher(connection: Any) -> asyncio.Task[None]:
    """Cancel the nats-py task that flushes a connection; return a task that waits for a flush, which never happens."""
    connection._flusher_task.cancel()
    await asyncio.wait({connection._flusher_task})
    connection._flusher_task = asyncio.create_task(asyncio.sleep(3600))
    flushing: asyncio.Task[None] = asyncio.create_task(connection._flush_pending(force_flush=True))
    return flushing


# --- Kafka ---


def cluster_of(source: KafkaSource) -> Any:
    """Return the object through which a source uses its Kafka cluster."""
    return source._cluster


def replace_cluster(source: KafkaSource, wrap: Callable[[Any], Any]) -> None:
    """Pass the cluster object of a source to `wrap`, and make the source use the returned object."""
    source._cluster = source._partitions._cluster = source._letters._cluster = wrap(source._cluster)


async def revoke(source: KafkaSource) -> None:
    """Call a source's listener as aiokafka does at the beginning of a rebalance."""
    await source._consumer._subscription.listener.on_partitions_revoked(set())


def consumer_of(source: KafkaSource) -> Any:
    """Return a source's consumer; None if the source has no consumer."""
    return source._consumer


def idle_time(source: KafkaSource) -> float:
    """Return the seconds since a source's consumer last polled."""
    seconds: float = source._consumer._subscription.fetcher_idle_time
    return seconds


async def committed_by(source: KafkaSource, partition: Any) -> int:
    """Return the offset that a source's group has committed for a partition; 0 if it has committed none."""
    found = await source._cluster.committed(source._group, {partition})
    return max(0, found[partition][0])


def owns(source: KafkaSource, message: Message) -> bool:
    """Return whether a message still belongs to a source and is not settled yet."""
    return source._partitions.has(message)


def knows(source: KafkaSource, partition: Any) -> bool:
    """Return whether a source has handed out messages of a partition, and so stores a watermark for the partition."""
    return source._partitions.watermark(partition) is not None


async def rebalance(source: KafkaSource, partitions: set[Any], consumer: Any, group: str) -> None:
    """Assign partitions to a source that, during this call only, uses `consumer` and the consumer group `group`."""
    own_consumer, own_group = source._consumer, source._partitions._group
    source._consumer, source._partitions._group = consumer, group
    await source.assigned(partitions)
    source._consumer, source._partitions._group = own_consumer, own_group


# --- the shared limiter ---


def has_reservation(limiter: RedisLimiter) -> bool:
    """Return whether the limiter has a reservation that no request has used yet."""
    return limiter._member is not None and limiter._member._reservation is not None


def age_reservation(limiter: RedisLimiter, seconds: float) -> None:
    """Move the time of the limiter's reservation into the past by `seconds`."""
    assert limiter._member is not None
    reservation = limiter._member._reservation
    assert reservation is not None
    limiter._member._reservation = reservation._replace(at=reservation.at - seconds)


def age_last_answer(limiter: RedisLimiter, seconds: float) -> None:
    """Move the time of the last answer from Redis into the past by `seconds`."""
    assert limiter._member is not None
    limiter._member._answered_at -= seconds
