"""Kafka as the relay's broker."""

from __future__ import annotations

import asyncio
import heapq
import math
import os
import ssl
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import attrs

from retailrocket_async import ConfigurationError
from retailrocket_async._runtime.setting_text import check_texts
from retailrocket_async._runtime.uncopyable import Uncopyable
from retailrocket_async.relay._address import split_url
from retailrocket_async.relay._kafka_cluster import ANSWER, KafkaCluster, aiokafka, send_all, send_each, start, stop
from retailrocket_async.relay._letter import letter_of, may_be_replayed, next_limit, raise_first
from retailrocket_async.relay._source import DeadLetter, Lag, Message
from retailrocket_async.relay._watermark import Watermark

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from typing import Self

_REBALANCE = 1.0
"""Seconds by which a fetch may outlast its wait while the group shares its partitions out anew."""

_SILENCE = 5.0
"""Seconds without a message after which the cluster is asked whether it is there, and has to answer."""

_MESSAGE_ID, _REASON = "retailrocket-message-id", "retailrocket-reason"
_SIZE, _SHA256 = "retailrocket-size", "retailrocket-sha256"

_LARGEST = 1024 * 1024 - 16 * 1024
"""Bytes of a dead letter's body at most: aiokafka's `max_request_size`, less what key, headers and batch take."""


@attrs.frozen
class _Place:
    """Where a message is: in which partition, at which offset, and in which of our readings of the partition."""

    partition: Any
    offset: int
    watermark: Watermark


class KafkaSource(Uncopyable):
    """A relay's view of a Kafka topic, as a member of a consumer group.

    Any number of relays may share the group; each has partitions of its own. Messages of one partition are handed out
    in their order. What was handed out and not settled stays this relay's for as long as it is a member, which it
    shows by its heartbeats and by `extend`, so there is no lease. After it is gone, its partitions are read again from
    what was committed: from the oldest message that was not settled, those after it included, settled or not.

    The topic for dead letters must exist, or the cluster create topics by itself; with one partition it is in order.
    A dead letter is replayed or purged by committing an offset of the group ``"<group>-dead"``: it is passed over, and
    goes with the topic's retention. After a crash, or a failure of the cluster, a dead letter may be there twice, with
    the same `message_id`.

    A message's id is its partition and offset, e.g. ``"3:1742"``.

    Args:
        bootstrap_servers: brokers of one cluster, as ``"host:9092"``, or several of them.
        topic: where services publish to.
        group: the consumer group; default ``"relay"``.
        name: the client's id, by which brokers tell of it; default ``"relay"``.
        dead_topic: where dead letters go; default the name of the topic with ``"-dead"``.
        user, password: of SASL; default none.
        sasl: the mechanism, ``"PLAIN"`` (default), ``"SCRAM-SHA-256"`` or ``"SCRAM-SHA-512"``.
        tls: default None, no TLS.
        session_timeout: seconds without a heartbeat after which a relay is taken for dead, and its partitions are read
            by others; default 10. Brokers take 6 or more unless told otherwise.

    Raises:
        ConfigurationError: a value out of range, or ``aiokafka`` is not installed.
    """

    lease: float | None = None

    def __init__(  # noqa: PLR0913 - keywords, each with a default
        self,
        bootstrap_servers: str | Sequence[str],
        topic: str,
        group: str = "relay",
        *,
        name: str = "relay",
        dead_topic: str | None = None,
        user: str | None = None,
        password: str | None = None,
        sasl: str = "PLAIN",
        tls: ssl.SSLContext | None = None,
        session_timeout: float = 10.0,
    ) -> None:
        check_texts(topic=topic)
        check_texts(group=group, name=name, spaces=True)
        if not isinstance(session_timeout, int | float) or not 0.1 <= session_timeout <= 1800:
            raise ConfigurationError(f"session_timeout must be 0.1 to 1800 seconds, not {session_timeout!r}")
        self._cluster = KafkaCluster.of(bootstrap_servers, name, user=user, password=password, sasl=sasl, tls=tls)
        self._topic = topic
        self._group = group
        self._session = int(session_timeout * 1000)
        self._dead_topic = dead_topic or f"{topic}-dead"
        self._consumer: Any = None
        self._producer: Any = None
        self._failed = False
        self._producer_failed = False
        # What kept the last assignment of partitions from being understood.
        self._unassigned: str | None = None
        # When the cluster last answered, on the event loop's clock.
        self._heard_at = -math.inf
        self._watermarks: dict[Any, Watermark] = {}
        self._polling = asyncio.Lock()
        self._committing = asyncio.Lock()

    @classmethod
    def from_url(cls, url: str, *, name: str) -> Self:
        """Return a source for an address, e.g. ``kafka://kafka:9092/events?group=relay&dead=events-dead``.

        Args:
            url: ``kafka://`` or, over TLS, ``kafkas://``; several brokers with commas between them; the name of the
                topic. Behind the question mark ``group``, ``dead``, ``sasl`` and ``session_timeout`` (seconds), as the
                constructor takes them. User and password stand in the address or, better, in the environment:
                ``RETAILROCKET_RELAY_USER``, ``RETAILROCKET_RELAY_PASSWORD``.
            name: as the constructor takes it.

        Raises:
            ConfigurationError: an address that cannot work; the message does not show it.
        """
        rest, options = split_url(url, "group", "dead", "sasl", "session_timeout")
        parts = urlsplit(rest)
        if parts.scheme not in {"kafka", "kafkas"}:
            raise ConfigurationError("the source's address must begin with kafka:// or kafkas://")
        if parts.query or parts.fragment:
            raise ConfigurationError("the source's address has an option that Kafka has not")
        try:
            session_timeout = float(options.get("session_timeout", 10))
        except ValueError:
            raise ConfigurationError("in the source's address session_timeout must be seconds") from None
        account, _, servers = parts.netloc.rpartition("@")
        user, _, password = account.partition(":")
        return cls(
            servers,
            unquote(parts.path.removeprefix("/")),
            options.get("group", "relay"),
            name=name,
            dead_topic=options.get("dead"),
            user=unquote(user) or os.environ.get("RETAILROCKET_RELAY_USER"),
            password=unquote(password) or os.environ.get("RETAILROCKET_RELAY_PASSWORD"),
            sasl=options.get("sasl", "PLAIN"),
            tls=ssl.create_default_context() if parts.scheme == "kafkas" else None,
            session_timeout=session_timeout,
        )

    def __repr__(self) -> str:
        return f"KafkaSource({self._cluster.servers}, topic={self._topic!r}, group={self._group!r})"

    async def open(self) -> None:
        """Connect and join the group; once more, only what had failed is connected again."""
        if self._failed:
            await self._stop()
        if self._consumer is None:
            self._failed, self._unassigned = True, None
            await self._ensure_producer()
            self._consumer = self._cluster.consumer(
                self._group, session_timeout_ms=self._session, heartbeat_interval_ms=self._session // 3
            )
            await start(self._consumer)
            self._consumer.subscribe([self._topic], listener=_listener(self))
            self._heard_at = asyncio.get_running_loop().time()
        else:
            await self._ensure_producer()
            await self._ask_whether_it_is_there()
        self._failed = False

    async def _ensure_producer(self) -> None:
        """Start a producer, if there is none that works."""
        if self._producer_failed:
            await self._stop_producer()
        if self._producer is not None:
            return
        producer = self._cluster.producer()
        await start(producer)
        self._producer = producer
        # Here, and not with the first dead letter, it must be found out that its topic does not exist.
        async with asyncio.timeout(ANSWER):
            await producer.partitions_for(self._dead_topic)

    async def _stop_producer(self) -> None:
        producer, self._producer, self._producer_failed = self._producer, None, False
        if producer is not None:
            await stop(producer)

    async def _ask_whether_it_is_there(self) -> None:
        """Raise unless the cluster answers: aiokafka reconnects in the background, and tells nobody of it.

        Raises:
            ConnectionError: no broker has answered within `_SILENCE` seconds.
        """
        try:
            async with asyncio.timeout(_SILENCE):
                # With nothing to read from there is nothing else that a broker has to answer.
                await self._member()._client.fetch_all_metadata()  # noqa: SLF001 - `topics` keeps the result
        except (TimeoutError, aiokafka().errors.KafkaError) as error:
            raise ConnectionError(f"no broker of {self._cluster.servers} answers") from error
        self._heard_at = asyncio.get_running_loop().time()

    def _member(self) -> Any:
        """Return our consumer."""
        if self._consumer is None:
            raise ConnectionError(f"not connected to Kafka at {self._cluster.servers}")
        return self._consumer

    async def fetch(self, most: int, wait: float) -> Sequence[Message]:
        """Return 1 to `most` messages, each partition's in its order; none after `wait` seconds without any."""
        clock = asyncio.get_running_loop().time
        end = clock() + wait
        async with self._polling:
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(end + _REBALANCE):
                        while True:
                            left = max(0, int((end - clock()) * 1000))
                            found = await self._member().getmany(timeout_ms=left, max_records=most)
                            self._check_assignment()
                            messages = [self._hand_out(record) for records in found.values() for record in records]
                            if found:
                                self._heard_at = clock()
                            elif clock() >= self._heard_at + _SILENCE:
                                break
                            if any(messages) or not found:
                                return [message for message in messages if message is not None]
            except BaseException:
                self._failed = self._failed or not _is_cancelled()
                raise
            if clock() >= self._heard_at + _SILENCE:
                await self._ask_whether_it_is_there()
        return []

    def _hand_out(self, record: Any) -> Message | None:
        """Return a message; None for one that was settled before its partition was read again."""
        partition = aiokafka().TopicPartition(record.topic, record.partition)
        watermark = self._watermarks.get(partition)
        if watermark is None or record.offset < watermark.position:
            # Nothing was handed out yet; or the log was cut off, and the same offsets hold other messages now.
            watermark = self._watermarks[partition] = Watermark(record.offset)
        if not watermark.hand_out(record.offset):
            return None
        return Message(
            id=f"{record.partition}:{record.offset}",
            body=record.value or b"",
            published_at=record.timestamp / 1000 if record.timestamp >= 0 else None,
            handle=_Place(partition, record.offset, watermark),
        )

    async def settle(self, done: Sequence[Message], dead: Sequence[tuple[Message, str]]) -> None:
        """Take messages back for good: the dead are published to their topic first, then offsets are committed.

        Messages of partitions that another relay has by now are left to it.
        """
        open_ = [(message, reason) for message, reason in dead if self._has(message.handle)]
        if open_:
            await self._keep(open_)
        for message in [*done, *(message for message, _ in open_)]:
            message.handle.watermark.settle(message.handle.offset)
        await self._commit()

    async def _keep(self, dead: Sequence[tuple[Message, str]]) -> None:
        """Publish dead letters, with bodies as long as the cluster takes."""
        too_large = aiokafka().errors.MessageSizeTooLargeError
        left: list[tuple[Message, str]] = list(dead)
        limit = _LARGEST
        while left:
            await self._ensure_producer()
            try:
                async with asyncio.timeout(ANSWER):
                    answers = await send_each(
                        self._producer, self._dead_topic, [_letter(message, reason, limit) for message, reason in left]
                    )
                refused = [pair for pair, answer in zip(left, answers, strict=True) if isinstance(answer, too_large)]
                smaller = next_limit(limit, max((len(message.body) for message, _ in refused), default=0))
                if not refused or smaller is None:
                    raise_first(answers)
                # A cluster, or a topic, may take less than its client does.
                raise_first([answer for answer in answers if not isinstance(answer, too_large)])
            except BaseException:
                # It leaves a gap in its numbers, and would be refused from then on.
                self._producer_failed = True
                raise
            if not refused or smaller is None:
                return
            self._producer_failed = True
            left, limit = refused, smaller

    def _has(self, place: _Place) -> bool:
        """Return whether a message is still ours, and not settled."""
        return self._watermarks.get(place.partition) is place.watermark and place.watermark.is_open(place.offset)

    async def _commit(self) -> None:
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
            # A group that shares its partitions out anew takes no commits. What is settled stays settled here, and is
            # committed the next time, if the partition is still ours by then.
            with suppress(errors.CommitFailedError, errors.IllegalStateError):
                async with asyncio.timeout(ANSWER):
                    await self._member().commit(offsets)
                for watermark, count in counts.items():
                    watermark.committed = count
                    watermark.was_committed = True

    async def extend(self, messages: Sequence[Message]) -> None:  # noqa: ARG002 - what is ours stays ours
        """Show the group that this member is alive: poll, with everything paused, unless a fetch does so anyway.

        A member that polls nothing for five minutes would leave the group, and its partitions be read by others.
        """
        if not self._polling.locked():
            async with self._polling:
                consumer = self._member()
                paused = consumer.assignment()
                consumer.pause(*paused)
                try:
                    # While the group shares its partitions out anew there is nothing to show.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_REBALANCE):
                            await consumer.getmany(timeout_ms=0)
                finally:
                    consumer.resume(*(paused & consumer.assignment()))
            await self._ask_whether_it_is_there()
        await self._commit()

    async def release(self, messages: Sequence[Message]) -> None:  # noqa: ARG002
        """Commit what is settled; what is not is read again by whoever has the partitions next."""
        await self._commit()

    async def lag(self) -> Lag:
        """Return how far this relay is behind, in the partitions that it has; other relays tell of theirs."""
        async with asyncio.timeout(ANSWER):
            consumer = self._member()
            partitions = consumer.assignment()
            ends: dict[Any, int] = await consumer.end_offsets(list(partitions)) if partitions else {}
            waiting = 0
            for partition, end in ends.items():
                watermark = self._watermarks.get(partition)
                at = await consumer.position(partition) if watermark is None else watermark.position
                waiting += max(0, end - at)
        return Lag(waiting=waiting, pending=sum(watermark.pending for watermark in self._watermarks.values()))

    async def aclose(self) -> None:
        """Leave the group and disconnect."""
        self._watermarks.clear()
        await self._stop()

    async def _stop(self) -> None:
        consumer, self._consumer = self._consumer, None
        try:
            if consumer is not None:
                await stop(consumer)
        finally:
            await self._stop_producer()

    async def assigned(self, partitions: set[Any]) -> None:
        """Forget the partitions that were lost, and go on in the others without reading anything twice.

        In those that were kept, go on where we were, or every message in flight would be read again whenever a relay
        comes or goes; in new ones, after what whoever had them has settled.
        """
        consumer = self._consumer
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
                    # The topic, or the group, was removed and made anew: what is there is read from the beginning.
                    del self._watermarks[partition]
                elif watermark is not None and offset <= watermark.position:
                    consumer.seek(partition, watermark.position)
                elif offset >= 0:
                    # New; or another relay had it meanwhile, and has come further.
                    self._watermarks[partition] = Watermark(offset, note, was_committed=True)
        finally:
            consumer.resume(*(partitions & consumer.assignment()))

    def _check_assignment(self) -> None:
        if self._unassigned is not None:
            # Where to go on is not known: what was found may be in hand, or settled.
            raise ConnectionError(f"the committed offsets cannot be read: {self._unassigned}")

    def not_assigned(self, error: BaseException) -> None:
        """Have the next fetch fail, since it is not known where to go on in the partitions."""
        self._unassigned = f"{type(error).__name__}: {error}"

    async def list_dead(self, most: int) -> Sequence[DeadLetter]:
        """Return the oldest dead letters, `most` at most."""
        async with self._oldest_dead(most) as (letters, _):
            return letters

    async def replay_dead(self, most: int) -> int:
        """Publish the oldest dead letters again, each published before it is passed over; return how many.

        Those that were shortened are written to the end of their own topic, where they stay dead letters.
        """
        async with self._oldest_dead(most) as (letters, commit):
            whole: list[tuple[bytes, dict[str, bytes]]] = [
                (letter.body, {}) for letter in letters if may_be_replayed(letter)
            ]
            async with asyncio.timeout(ANSWER):
                await send_all(self._producer, self._topic, whole)
                await send_all(
                    self._producer,
                    self._dead_topic,
                    [(letter.body, _headers(letter)) for letter in letters if not may_be_replayed(letter)],
                )
            await commit()
            return len(whole)

    async def purge_dead(self, most: int) -> int:
        """Pass over the oldest dead letters for good; return how many."""
        async with self._oldest_dead(most) as (letters, commit):
            await commit()
            return len(letters)

    @asynccontextmanager
    async def _oldest_dead(self, most: int) -> AsyncGenerator[tuple[list[DeadLetter], Any]]:
        """Give the oldest dead letters, and what commits that they were seen to."""
        kafka = aiokafka()
        await self._ensure_producer()
        consumer = self._cluster.consumer(f"{self._group}-dead")
        await start(consumer)
        try:
            async with asyncio.timeout(ANSWER):
                numbers = await self._producer.partitions_for(self._dead_topic)
                partitions = [kafka.TopicPartition(self._dead_topic, number) for number in sorted(numbers)]
                consumer.assign(partitions)
                queues = [await _read(consumer, partition, most) for partition in partitions]
            # Each partition in its order, all together by time.
            records = list(islice(heapq.merge(*queues, key=lambda record: record.timestamp), most))
            offsets = {kafka.TopicPartition(record.topic, record.partition): record.offset + 1 for record in records}

            async def commit() -> None:
                if offsets:
                    async with asyncio.timeout(ANSWER):
                        await consumer.commit(offsets)

            yield [_dead_letter(record) for record in records], commit
        finally:
            await stop(consumer)


class KafkaTopic(Uncopyable):
    """Publishes envelopes to a Kafka topic, those of one visitor to one partition, so that they stay in order.

    The message's key is the event's ``sessionExternalId``; a producer of another language should do the same.

    Args:
        bootstrap_servers: brokers of one cluster, as ``"host:9092"``, or several of them.
        topic: where to.
        user, password, sasl, tls: as for `KafkaSource`.

    Raises:
        ConfigurationError: a value out of range, or ``aiokafka`` is not installed.
    """

    def __init__(  # noqa: PLR0913 - keywords, each with a default
        self,
        bootstrap_servers: str | Sequence[str],
        topic: str,
        *,
        user: str | None = None,
        password: str | None = None,
        sasl: str = "PLAIN",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        check_texts(topic=topic)
        self._cluster = KafkaCluster.of(
            bootstrap_servers, "publisher", user=user, password=password, sasl=sasl, tls=tls
        )
        self._topic = topic
        self._producer: Any = None

    async def __aenter__(self) -> Self:
        producer = self._cluster.producer()
        await start(producer)
        self._producer = producer
        return self

    async def __aexit__(self, *_: object) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop(producer)

    async def publish(self, envelopes: Sequence[bytes]) -> None:
        """Publish envelopes, each visitor's in order; return when all replicas in sync have them."""
        if self._producer is None:
            raise RuntimeError("a KafkaTopic publishes inside `async with`")
        await send_all(self._producer, self._topic, [(envelope, {}) for envelope in envelopes])


def _listener(source: KafkaSource) -> Any:
    """Return what aiokafka tells of the partitions that a source has; its base class is there only with the library."""

    class Listener(aiokafka().ConsumerRebalanceListener):  # type: ignore[misc]
        def on_partitions_revoked(self, revoked: set[Any]) -> None:
            """Nothing: before new ones are assigned it is not known which are lost."""

        async def on_partitions_assigned(self, assigned: set[Any]) -> None:
            try:
                await source.assigned(assigned)
            except BaseException as error:
                if _is_cancelled():
                    raise
                # It would end the library's task that keeps this member in the group, and nothing would come any more.
                source.not_assigned(error)

    return Listener()


def _is_cancelled() -> bool:
    """Return whether the running task was cancelled, and not a call that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _read(consumer: Any, partition: Any, most: int) -> list[Any]:
    """Return the messages of a partition from what is committed on, `most` at most."""
    end = (await consumer.end_offsets([partition]))[partition]
    found: list[Any] = []
    while len(found) < most and await consumer.position(partition) < end:
        records = await consumer.getmany(partition, timeout_ms=100, max_records=most - len(found))
        found += records.get(partition, [])
    return found


def _letter(message: Message, reason: str, limit: int) -> tuple[bytes, dict[str, bytes]]:
    """Return the value and the headers of a dead letter whose body has `limit` bytes at most."""
    letter = letter_of(message, limit)
    headers = {_MESSAGE_ID: message.id.encode(), _REASON: reason.encode(errors="replace")}
    if letter.size is not None:
        headers |= {_SIZE: b"%d" % letter.size, _SHA256: letter.sha256.encode()}
    return letter.body, headers


def _headers(letter: DeadLetter) -> dict[str, bytes]:
    """Return the headers of a shortened dead letter that is written once more."""
    return {
        _MESSAGE_ID: letter.message_id.encode(),
        _REASON: letter.reason.encode(),
        _SIZE: b"%d" % (letter.size or 0),
        _SHA256: letter.sha256.encode(),
    }


def _dead_letter(record: Any) -> DeadLetter:
    headers: dict[str, bytes] = dict(record.headers)
    return DeadLetter(
        id=f"{record.partition}:{record.offset}",
        message_id=headers.get(_MESSAGE_ID, b"").decode(errors="replace"),
        body=record.value or b"",
        reason=headers.get(_REASON, b"").decode(errors="replace"),
        died_at=record.timestamp / 1000,
        size=int(headers[_SIZE]) if _SIZE in headers else None,
        sha256=headers.get(_SHA256, b"").decode(errors="replace"),
    )
