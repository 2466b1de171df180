"""The partitions that the consumer group has assigned to a source, and how far each may be committed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs

from retailrocket_async.relay._kafka.cluster import ANSWER, KafkaCluster, aiokafka
from retailrocket_async.relay._kafka.watermark import Watermark
from retailrocket_async.relay._source import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@attrs.frozen
class Place:
    """Identifies a message.

    Attributes:
        partition: its partition.
        offset: its offset there.
        watermark: the watermark of the partition when the message was read; another one means that it was read again.
    """

    partition: Any
    offset: int
    watermark: Watermark


class Partitions:
    """The partitions of one source, each with its watermark.

    Args:
        cluster: the cluster.
        group: the consumer group.
    """

    def __init__(self, cluster: KafkaCluster, group: str) -> None:
        self._cluster = cluster
        self._group = group
        self._watermarks: dict[Any, Watermark] = {}
        # The error that kept the last assignment from being handled.
        self._failure: str | None = None
        self._committing = asyncio.Lock()

    def watermark(self, partition: Any) -> Watermark | None:
        """Return the watermark of a partition; None if no message of it was read."""
        return self._watermarks.get(partition)

    @property
    def pending(self) -> int:
        """How many messages were handed out and not settled."""
        return sum(watermark.pending for watermark in self._watermarks.values())

    def hand_out(self, record: Any) -> Message | None:
        """Return a record as a message; None if it was settled before its partition was read again."""
        partition = aiokafka().TopicPartition(record.topic, record.partition)
        watermark = self._watermarks.get(partition)
        if watermark is None or record.offset < watermark.position:
            # The first record. Or the log was truncated, and the same offsets hold other messages now.
            watermark = self._watermarks[partition] = Watermark(record.offset)
        if not watermark.hand_out(record.offset):
            return None
        return Message(
            id=f"{record.partition}:{record.offset}",
            body=record.value or b"",
            published_at=record.timestamp / 1000 if record.timestamp >= 0 else None,
            handle=Place(partition, record.offset, watermark),
        )

    def has(self, message: Message) -> bool:
        """Return whether a message still belongs to this source, and is not settled."""
        place: Place = message.handle
        return self._watermarks.get(place.partition) is place.watermark and place.watermark.is_open(place.offset)

    def settle(self, messages: Iterable[Message]) -> None:
        """Record that messages are settled; `commit` makes it known to the cluster."""
        for message in messages:
            message.handle.watermark.settle(message.handle.offset)

    async def commit(self, member: Callable[[], Any]) -> None:
        """Commit the offsets of partitions that have changed.

        Args:
            member: returns the source's consumer, or raises `ConnectionError` if there is none.
        """
        errors = aiokafka().errors
        async with self._committing:
            changed = {
                partition: watermark
                for partition, watermark in self._watermarks.items()
                if watermark.changes > watermark.committed
            }
            if not changed:
                return
            counts = {watermark: watermark.changes for watermark in changed.values()}
            offsets = {partition: (watermark.settled_below, watermark.note) for partition, watermark in changed.items()}
            # During a rebalance the group takes no commits. The watermarks keep what is settled, and the next call
            # commits it, if the partition still belongs to this source.
            with suppress(errors.CommitFailedError, errors.IllegalStateError):
                async with asyncio.timeout(ANSWER):
                    await member().commit(offsets)
                for watermark, count in counts.items():
                    watermark.committed = count
                    watermark.was_committed = True

    def forget(self) -> None:
        """Forget all partitions: the source leaves the group."""
        self._watermarks.clear()

    async def assign(self, consumer: Any, partitions: set[Any]) -> None:
        """Take over the partitions that a rebalance has assigned.

        Lost partitions are forgotten. A kept partition continues at its position: otherwise every message in flight
        would be read again whenever a relay joins or leaves. A new partition continues behind the messages that its
        last owner has settled.

        Args:
            consumer: the source's consumer; None if it has been stopped.
            partitions: all partitions that the source has now.
        """
        for partition in self._watermarks.keys() - partitions:
            del self._watermarks[partition]
        if not partitions or consumer is None:
            return
        consumer.pause(*partitions)
        try:
            committed = await self._cluster.committed(self._group, partitions)
            for partition, (offset, note) in committed.items():
                watermark = self._watermarks.get(partition)
                if watermark is not None and offset < 0 and watermark.was_committed:
                    # The topic, or the group, was removed and created again: it is read from the beginning.
                    del self._watermarks[partition]
                elif watermark is not None and offset <= watermark.position:
                    consumer.seek(partition, watermark.position)
                elif offset >= 0:
                    # A new partition; or another relay had it meanwhile, and settled more.
                    self._watermarks[partition] = Watermark(offset, note, was_committed=True)
        finally:
            consumer.resume(*(partitions & consumer.assignment()))

    def joined(self) -> None:
        """Forget an earlier failure: the source joins the group anew."""
        self._failure = None

    def assignment_failed(self, error: BaseException) -> None:
        """Record that an assignment could not be handled, so that `check` raises."""
        self._failure = f"{type(error).__name__}: {error}"

    def check(self) -> None:
        """Raise if the last assignment could not be handled: the messages that were read may be settled already.

        Raises:
            ConnectionError: the committed offsets could not be read.
        """
        if self._failure is not None:
            raise ConnectionError(f"the committed offsets cannot be read: {self._failure}")
