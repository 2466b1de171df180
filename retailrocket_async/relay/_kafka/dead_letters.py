"""The dead letters of a Kafka source, which are stored in a separate topic."""

from __future__ import annotations

import asyncio
import heapq
from contextlib import asynccontextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from retailrocket_async.relay._kafka.cluster import ANSWER, KafkaCluster, aiokafka, send_all, send_each, start, stop
from retailrocket_async.relay._letter import LetterHeaders, may_be_replayed, publish_letters

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from retailrocket_async.relay._letter import Attempt
    from retailrocket_async.relay._source import DeadLetter, Message

_HEADERS = LetterHeaders("retailrocket-message-id", "retailrocket-reason", "retailrocket-size", "retailrocket-sha256")

_LARGEST = 1024 * 1024 - 16 * 1024
"""Largest body of a dead letter in bytes: aiokafka's `max_request_size` minus space for key, headers and batch."""


class KafkaDeadLetters:
    """Stores, lists, replays and purges dead letters in a Kafka topic.

    Args:
        cluster: the cluster.
        topic: the topic of dead letters.
        source_topic: the topic to which `replay` publishes dead letters.
        group: the consumer group whose committed offsets say which dead letters were replayed or purged: all letters
            below the committed offset of their partition.
    """

    def __init__(self, cluster: KafkaCluster, topic: str, *, source_topic: str, group: str) -> None:
        self._cluster = cluster
        self._topic = topic
        self._source_topic = source_topic
        self._group = group
        self._producer: Any = None
        self._producer_failed = False

    async def open(self) -> None:
        """Start a producer, unless a working producer is running, and check that the topic exists."""
        if self._producer_failed:
            await self.aclose()
        if self._producer is not None:
            return
        producer = self._cluster.producer()
        await start(producer)
        self._producer = producer
        # This call fails if the topic is missing, so the error is found now and not by the first dead letter.
        async with asyncio.timeout(ANSWER):
            await producer.partitions_for(self._topic)

    async def aclose(self) -> None:
        """Stop the producer."""
        producer, self._producer, self._producer_failed = self._producer, None, False
        if producer is not None:
            await stop(producer)

    async def keep(self, dead: Sequence[tuple[Message, str]]) -> None:
        """Publish messages to the topic of dead letters, each with its reason; shorten bodies that are too large."""
        try:
            await publish_letters(dead, _LARGEST, self._publish, _is_too_large)
        except BaseException:
            self._producer_failed = True
            raise

    async def _publish(self, attempts: Sequence[Attempt]) -> list[Any]:
        await self.open()
        async with asyncio.timeout(ANSWER):
            answers = await send_each(self._producer, self._topic, [_message(each) for each in attempts])
        # A refused message leaves a gap in the producer's sequence numbers, and the cluster would refuse all messages
        # after the gap. So the next `open` starts a new producer.
        self._producer_failed = any(_is_too_large(answer) for answer in answers)
        return answers

    async def oldest(self, most: int) -> Sequence[DeadLetter]:
        """Return the oldest dead letters, at most `most`."""
        async with self._oldest(most) as (letters, _):
            return letters

    async def replay(self, most: int) -> int:
        """Publish the oldest dead letters again, at most `most`, to the source's topic; return the number published.

        Then commit offsets, so that these letters are not listed again. Letters whose bodies were shortened are not
        published; they are moved to the end of the topic of dead letters.
        """
        async with self._oldest(most) as (letters, commit):
            whole: list[tuple[bytes, dict[str, bytes]]] = [
                (letter.body, {}) for letter in letters if may_be_replayed(letter)
            ]
            shortened = [
                (letter.body, _encoded(_HEADERS.write(letter, letter.message_id, letter.reason)))
                for letter in letters
                if not may_be_replayed(letter)
            ]
            async with asyncio.timeout(ANSWER):
                await send_all(self._producer, self._source_topic, whole)
                await send_all(self._producer, self._topic, shortened)
            await commit()
            return len(whole)

    async def purge(self, most: int) -> int:
        """Mark the oldest dead letters, at most `most`, as purged; return the number of letters marked.

        For each partition, the offset after the last purged letter is committed, so purged letters are not listed
        again.
        """
        async with self._oldest(most) as (letters, commit):
            await commit()
            return len(letters)

    @asynccontextmanager
    async def _oldest(self, most: int) -> AsyncGenerator[tuple[list[DeadLetter], Any]]:
        """Yield the oldest dead letters, and a function that marks these letters as replayed or purged.

        The function commits, for each partition, the offset after the last of these letters.
        """
        kafka = aiokafka()
        await self.open()
        consumer = self._cluster.consumer(self._group)
        await start(consumer)
        try:
            async with asyncio.timeout(ANSWER):
                numbers = await self._producer.partitions_for(self._topic)
                partitions = [kafka.TopicPartition(self._topic, number) for number in sorted(numbers)]
                consumer.assign(partitions)
                queues = [await _read(consumer, partition, most) for partition in partitions]
            # The letters of all partitions are merged by time. Letters of one partition stay in their order.
            records = list(islice(heapq.merge(*queues, key=lambda record: record.timestamp), most))
            offsets = {kafka.TopicPartition(record.topic, record.partition): record.offset + 1 for record in records}

            async def commit() -> None:
                if offsets:
                    async with asyncio.timeout(ANSWER):
                        await consumer.commit(offsets)

            yield [_dead_letter(record) for record in records], commit
        finally:
            await stop(consumer)


async def _read(consumer: Any, partition: Any, most: int) -> list[Any]:
    """Return the oldest messages of a partition, at most `most`, beginning at the committed offset."""
    end = (await consumer.end_offsets([partition]))[partition]
    found: list[Any] = []
    while len(found) < most and await consumer.position(partition) < end:
        records = await consumer.getmany(partition, timeout_ms=100, max_records=most - len(found))
        found += records.get(partition, [])
    return found


def _message(attempt: Attempt) -> tuple[bytes, dict[str, bytes]]:
    """Return the body and the headers of the letter to publish."""
    letter = attempt.letter
    return letter.body, _encoded(_HEADERS.write(letter, attempt.message.id, attempt.reason))


def _encoded(headers: Mapping[str, str]) -> dict[str, bytes]:
    return {name: value.encode(errors="replace") for name, value in headers.items()}


def _dead_letter(record: Any) -> DeadLetter:
    headers: dict[str, bytes] = dict(record.headers)
    return _HEADERS.read(
        {name: value.decode(errors="replace") for name, value in headers.items()},
        id_=f"{record.partition}:{record.offset}",
        body=record.value or b"",
        died_at=record.timestamp / 1000,
    )


def _is_too_large(answer: object) -> bool:
    """Return whether an answer refuses a letter as too large.

    A cluster may refuse a letter that aiokafka has accepted, because the topic's limit may be below aiokafka's limit.
    """
    return isinstance(answer, aiokafka().errors.MessageSizeTooLargeError)
