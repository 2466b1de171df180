"""The partitions that the consumer group has assigned to a source, and which of their messages are settled."""

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
        partition: the message's partition.
        offset: the message's offset in the partition.
        watermark: the partition's `Watermark` object when the message was read. If the partition has another
            `Watermark` object now, the partition was assigned to another relay meanwhile, or is read again from an
            earlier offset.
    """

    partition: Any
    offset: int
    watermark: Watermark


class Partitions:
    """Stores the partitions of one source, and for each partition a `Watermark`: which messages are settled.

    Args:
        cluster: the cluster.
        group: the consumer group.
    """

    def __init__(self, cluster: KafkaCluster, group: str) -> None:
        self._cluster = cluster
        self._group = group
        self._watermarks: dict[Any, Watermark] = {}
        # The error with which the last assignment failed; None if the last assignment succeeded.
        self._failure: str | None = None
        self._committing = asyncio.Lock()
        self._changed = asyncio.Event()

    def watermark(self, partition: Any) -> Watermark | None:
        """Return the `Watermark` that records which messages of a partition are settled; None if there is none yet."""
        return self._watermarks.get(partition)

    @property
    def pending(self) -> int:
        """The number of messages that were handed out and not settled."""
        return sum(watermark.pending for watermark in self._watermarks.values())

    def hand_out(self, record: Any) -> Message | None:
        """Return a record as a message, or None if an earlier reader of the partition has settled the message."""
        partition = aiokafka().TopicPartition(record.topic, record.partition)
        watermark = self._watermarks.get(partition)
        if watermark is None or record.offset < watermark.position:
            # Either this is the partition's first record, or the partition's log was truncated, and new messages have
            # the offsets of removed messages.
            watermark = self._watermarks[partition] = Watermark(record.offset)
        if not watermark.hand_out(record.offset):
            return None
        return Message(
            id=f"{record.partition}:{record.offset}",
            body=record.value or b"",
            deliveries=2 if record.offset < watermark.maybe_sent_below else 1,
            published_at=record.timestamp / 1000 if record.timestamp >= 0 else None,
            handle=Place(partition, record.offset, watermark),
        )

    def has(self, message: Message) -> bool:
        """Return whether a message's partition still belongs to this source, and the message is not settled."""
        place: Place = message.handle
        return self._watermarks.get(place.partition) is place.watermark and place.watermark.is_open(place.offset)

    def settle(self, messages: Iterable[Message]) -> None:
        """Record that messages are settled, that is, need no more work.

        The next `commit` sends the new offsets to the cluster.
        """
        for message in messages:
            message.handle.watermark.settle(message.handle.offset)
        self._changed.set()

    async def record_sending(self, messages: Iterable[Message], member: Callable[[], Any]) -> list[Message]:
        """Record in the cluster that messages are about to be sent; return those that belong to this source.

        Raises:
            ConnectionError: the cluster did not accept the record, e.g. during a rebalance.
        """
        ours = [message for message in messages if self.has(message)]
        for message in ours:
            message.handle.watermark.record_sending(message.handle.offset)
        counts = {message.handle.watermark: message.handle.watermark.changes for message in ours}
        await self.commit(member)
        if any(watermark.committed < count for watermark, count in counts.items()):
            raise ConnectionError("Kafka did not accept the commit before an event that must be sent at most once")
        return [message for message in ours if self.has(message)]

    async def commit(self, member: Callable[[], Any]) -> None:
        """Commit the offsets of partitions that have changed.

        Args:
            member: returns the source's consumer, or raises `ConnectionError` if the source is not connected.
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
            # During a rebalance the group refuses commits. The watermarks still record which messages are settled, so
            # the next call commits the offsets of the partitions that this source has then.
            with suppress(errors.CommitFailedError, errors.IllegalStateError):
                async with asyncio.timeout(ANSWER):
                    await member().commit(offsets)
                for watermark, count in counts.items():
                    watermark.committed = count
                    watermark.was_committed = True

    def forget(self) -> None:
        """Forget all partitions, because the source leaves the group."""
        self._watermarks.clear()
        self._changed.set()

    async def changed(self) -> None:
        """Wait until some messages are settled, or `wake` or `forget` is called."""
        self._changed.clear()
        await self._changed.wait()

    def wake(self) -> None:
        """Let `changed` return."""
        self._changed.set()

    async def assign(self, consumer: Any, partitions: set[Any]) -> None:
        """Take over the partitions that a rebalance has assigned.

        Partitions that the source lost are forgotten. In a partition that the source already had, reading continues at
        the current position; otherwise all unsettled messages would be read again whenever a relay joins or leaves the
        group. In a new partition, messages that the last owner has settled are skipped.

        Args:
            consumer: the source's consumer; None if the consumer was stopped.
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
                    # The topic or the group was removed and created again, so reading starts at the beginning.
                    del self._watermarks[partition]
                elif watermark is not None and offset <= watermark.position:
                    consumer.seek(partition, watermark.position)
                elif offset >= 0:
                    # Either the partition is new to this source, or another relay had the partition meanwhile and has
                    # settled more messages.
                    self._watermarks[partition] = Watermark(offset, note, was_committed=True)
        finally:
            consumer.resume(*(partitions & consumer.assignment()))

    def joined(self) -> None:
        """Forget the failure of an earlier assignment, because the source joins the group again."""
        self._failure = None

    def assignment_failed(self, error: BaseException) -> None:
        """Record that an assignment failed, so that `check` raises."""
        self._failure = f"{type(error).__name__}: {error}"

    def check(self) -> None:
        """Raise if the last assignment failed, because messages that were read afterwards may be settled already.

        Raises:
            ConnectionError: the committed offsets could not be read.
        """
        if self._failure is not None:
            raise ConnectionError(f"the committed offsets cannot be read: {self._failure}")
