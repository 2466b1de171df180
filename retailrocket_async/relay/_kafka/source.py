"""The source of a relay that reads from Kafka."""

from __future__ import annotations

import asyncio
import math
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from retailrocket_async import ConfigurationError
from retailrocket_async._runtime.setting_text import check_texts
from retailrocket_async._runtime.uncopyable import Uncopyable
from retailrocket_async.relay._address import Address, account_of_environment
from retailrocket_async.relay._kafka.cluster import ANSWER, KafkaCluster, aiokafka, start, stop
from retailrocket_async.relay._kafka.dead_letters import KafkaDeadLetters
from retailrocket_async.relay._kafka.partitions import Partitions
from retailrocket_async.relay._source import DeadLetter, Lag, Message

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

_REBALANCE = 1.0
"""Seconds that a fetch may take in addition to `wait`, because a poll takes longer during a rebalance of the group."""

_SILENCE = 5.0
"""Seconds without a message after which a request checks that the cluster answers; also the request's time-out."""


class KafkaSource(Uncopyable):
    """Reads messages from a Kafka topic as a member of a consumer group.

    Any number of relays may share the group; each relay gets some of the partitions. Messages of one partition are
    handed out in order. There are no leases: a message that was handed out belongs to this relay as long as the relay
    is a member of the group. The relay stays a member through heartbeats and calls of `extend`. After the relay has
    left the group, other members read its partitions again, from the oldest message that was not settled.

    When the group assigns the partitions anew, because a relay joins or leaves, the relay first waits until the
    messages that were handed out are settled, for at most `session_timeout` seconds. So the next owner of a partition
    sends no event of a visitor while this relay still does.

    The topic for dead letters must exist, unless the cluster creates topics by itself. If the topic has one partition,
    the dead letters are in order. To mark dead letters as replayed or purged, the source commits the offset after the
    last of these letters for the consumer group ``"<group>-dead"``. Kafka deletes a letter when the topic's retention
    time is over. After a crash, or a failure of the cluster, a dead letter may be stored twice, with the same
    `message_id`.

    A message's id is its partition and offset, e.g. ``"3:1742"``.

    Args:
        bootstrap_servers: brokers of one cluster, as ``"host:9092"``, or several of them.
        topic: the topic to read, to which services publish.
        group: the consumer group; default ``"relay"``.
        name: the client id that brokers show in their logs and metrics; default ``"relay"``.
        dead_topic: the topic of dead letters; default ``"<topic>-dead"``.
        user, password: the account for SASL; default None, no SASL.
        sasl: the SASL mechanism: ``"PLAIN"`` (default), ``"SCRAM-SHA-256"`` or ``"SCRAM-SHA-512"``.
        tls: the TLS context; default None, no TLS.
        session_timeout: seconds without a heartbeat after which the group removes this relay, and other relays read its
            partitions; default 10. Brokers accept 6 or more in their default configuration.

    Raises:
        ConfigurationError: a value is out of range, or ``aiokafka`` is not installed.
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
        self._partitions = Partitions(self._cluster, group)
        self._letters = KafkaDeadLetters(
            self._cluster, dead_topic or f"{topic}-dead", source_topic=topic, group=f"{group}-dead"
        )
        self._consumer: Any = None
        self._failed = False
        # Time of the cluster's last answer, in seconds of the event loop's clock.
        self._answered_at = -math.inf
        self._polling = asyncio.Lock()

    @classmethod
    def from_url(cls, url: str, *, name: str) -> Self:
        """Return a source for an address, e.g. ``kafka://kafka:9092/events?group=relay&dead=events-dead``.

        Args:
            url: the address: ``kafka://`` or, with TLS, ``kafkas://``; one or more brokers, separated by commas; the
                topic's name. Options after the question mark: ``group``, ``dead`` (the argument `dead_topic`),
                ``sasl`` and ``session_timeout`` (seconds). User and password are read from the address or, better,
                from the environment variables ``RETAILROCKET_RELAY_USER`` and ``RETAILROCKET_RELAY_PASSWORD``.
            name: see the constructor.

        Raises:
            ConfigurationError: the address is invalid. The error's message does not show the address.
        """
        address = Address.parse(url, "group", "dead", "sasl", "session_timeout")
        parts = address.split("Kafka")
        if parts.scheme not in {"kafka", "kafkas"}:
            raise ConfigurationError("the source's address must begin with kafka:// or kafkas://")
        account, _, servers = parts.netloc.rpartition("@")
        user, _, password = account.partition(":")
        default_user, default_password = account_of_environment()
        return cls(
            servers,
            unquote(parts.path.removeprefix("/")),
            address.options.get("group", "relay"),
            name=name,
            dead_topic=address.options.get("dead"),
            user=unquote(user) or default_user,
            password=unquote(password) or default_password,
            sasl=address.options.get("sasl", "PLAIN"),
            tls=ssl.create_default_context() if parts.scheme == "kafkas" else None,
            session_timeout=address.seconds("session_timeout", 10),
        )

    def __repr__(self) -> str:
        return f"KafkaSource({self._cluster.servers}, topic={self._topic!r}, group={self._group!r})"

    async def open(self) -> None:
        """Connect and join the group. If the source is already open, only failed connections are made again."""
        if self._failed:
            await self._stop()
        if self._consumer is None:
            self._failed = True
            self._partitions.joined()
            await self._letters.open()
            self._consumer = self._cluster.consumer(
                self._group,
                session_timeout_ms=self._session,
                heartbeat_interval_ms=self._session // 3,
                # Leaves time to join again after `revoked`.
                rebalance_timeout_ms=2 * self._session,
            )
            await start(self._consumer)
            self._consumer.subscribe([self._topic], listener=_listener(self))
            self._answered_at = asyncio.get_running_loop().time()
        else:
            await self._letters.open()
            await self._check_cluster()
        self._failed = False

    async def _check_cluster(self) -> None:
        """Check that the cluster answers a request. aiokafka does not report a lost connection, but tries to reconnect.

        Raises:
            ConnectionError: no broker answers within `_SILENCE` seconds.
        """
        try:
            async with asyncio.timeout(_SILENCE):
                # The cluster answers a request for metadata even if no partition is assigned to this source.
                await self._member()._client.fetch_all_metadata()  # noqa: SLF001 - `topics` may answer from a cache
        except (TimeoutError, aiokafka().errors.KafkaError) as error:
            raise ConnectionError(f"no broker of {self._cluster.servers} answers") from error
        self._answered_at = asyncio.get_running_loop().time()

    def _member(self) -> Any:
        """Return aiokafka's consumer.

        Raises:
            ConnectionError: the source is not connected.
        """
        if self._consumer is None:
            raise ConnectionError(f"not connected to Kafka at {self._cluster.servers}")
        return self._consumer

    async def fetch(self, most: int, wait: float) -> Sequence[Message]:
        """Return 1 to `most` messages, in order within each partition, or an empty list after `wait` seconds."""
        clock = asyncio.get_running_loop().time
        end = clock() + wait
        async with self._polling:
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(end + _REBALANCE):
                        while True:
                            left = max(0, int((end - clock()) * 1000))
                            found = await self._member().getmany(timeout_ms=left, max_records=most)
                            self._partitions.check()
                            records = [record for some in found.values() for record in some]
                            messages = [self._partitions.hand_out(record) for record in records]
                            if found:
                                self._answered_at = clock()
                            elif clock() >= self._answered_at + _SILENCE:
                                break
                            if any(messages) or not found:
                                return [message for message in messages if message is not None]
            except BaseException:
                self._failed = self._failed or not _is_cancelled()
                raise
            if clock() >= self._answered_at + _SILENCE:
                await self._check_cluster()
        return []

    async def settle(self, done: Sequence[Message], dead: Sequence[tuple[Message, str]]) -> None:
        """Publish the dead letters, then commit the offsets of all settled messages.

        Messages are skipped if their partition belongs to another relay now, because the other relay reads and settles
        these messages.
        """
        ours = [(message, reason) for message, reason in dead if self._partitions.has(message)]
        if ours:
            await self._letters.keep(ours)
        self._partitions.settle([*done, *(message for message, _ in ours)])
        await self._partitions.commit(self._member)

    async def record_sending(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Commit a note that messages are about to be sent; return the messages whose partitions are still assigned.

        Kafka does not count how often a message was handed out. With the note, the next reader of the partition knows
        that these messages, and those before them, may have been sent.
        """
        return await self._partitions.record_sending(messages, self._member)

    async def extend(self, messages: Sequence[Message]) -> None:  # noqa: ARG002 - there is no lease
        """Poll the cluster without reading messages, so that this relay stays a member of the group.

        A member that does not poll for five minutes leaves the group, and other members read its partitions. If a fetch
        is running, this method does nothing, because the fetch polls.
        """
        if not self._polling.locked():
            async with self._polling:
                consumer = self._member()
                paused = consumer.assignment()
                consumer.pause(*paused)
                try:
                    # A poll takes longer during a rebalance, and is not needed then, so the time-out is ignored.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_REBALANCE):
                            await consumer.getmany(timeout_ms=0)
                finally:
                    consumer.resume(*(paused & consumer.assignment()))
            await self._check_cluster()
        await self._partitions.commit(self._member)

    async def release(self, messages: Sequence[Message]) -> None:  # noqa: ARG002 - another member reads them again
        """Commit the offsets of settled messages. The next owners of the partitions read unsettled messages again."""
        await self._partitions.commit(self._member)

    async def lag(self) -> Lag:
        """Return how many messages are not settled in the partitions that are assigned to this relay."""
        async with asyncio.timeout(ANSWER):
            consumer = self._member()
            partitions = consumer.assignment()
            ends: dict[Any, int] = await consumer.end_offsets(list(partitions)) if partitions else {}
            waiting = 0
            for partition, end in ends.items():
                watermark = self._partitions.watermark(partition)
                position = await consumer.position(partition) if watermark is None else watermark.position
                waiting += max(0, end - position)
        return Lag(waiting=waiting, pending=self._partitions.pending)

    async def aclose(self) -> None:
        """Leave the group and disconnect."""
        self._partitions.forget()
        await self._stop()

    async def _stop(self) -> None:
        consumer, self._consumer = self._consumer, None
        self._partitions.wake()
        try:
            if consumer is not None:
                await stop(consumer)
        finally:
            await self._letters.aclose()

    async def revoked(self) -> None:
        """Wait until all messages that were handed out are settled, for at most the session time-out.

        aiokafka's listener calls this method at the beginning of a rebalance, before other relays get partitions of
        this source. Until the rebalance is over, aiokafka hands out no messages.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self._session / 1000):
                while self._partitions.pending and self._consumer is not None:
                    await self._partitions.changed()

    async def assigned(self, partitions: set[Any]) -> None:
        """Take over the partitions that a rebalance has assigned. aiokafka's listener calls this method."""
        try:
            await self._partitions.assign(self._consumer, partitions)
        except BaseException as error:
            if _is_cancelled():
                raise
            # The error is not raised here, because an error would end aiokafka's task that keeps this member in the
            # group, and no further messages would arrive. The next `fetch` raises an error instead.
            self._partitions.assignment_failed(error)

    async def list_dead(self, most: int) -> Sequence[DeadLetter]:
        """Return the oldest dead letters, at most `most`."""
        return await self._letters.oldest(most)

    async def replay_dead(self, most: int) -> int:
        """Publish the oldest dead letters again, at most `most`, to the source's topic; return the number published.

        Then commit offsets, so that these letters are not listed again. Letters whose bodies were shortened are not
        published; they are moved to the end of the topic of dead letters.
        """
        return await self._letters.replay(most)

    async def purge_dead(self, most: int) -> int:
        """Mark the oldest dead letters, at most `most`, as purged; return the number of letters marked.

        Purged letters are not listed again. Kafka deletes the letters when the topic's retention time is over.
        """
        return await self._letters.purge(most)


def _listener(source: KafkaSource) -> Any:
    """Return a listener that notifies a source of rebalances.

    The class is defined in the function, because its base class exists only if ``aiokafka`` is installed.
    """

    class Listener(aiokafka().ConsumerRebalanceListener):  # type: ignore[misc]
        async def on_partitions_revoked(self, revoked: set[Any]) -> None:  # noqa: ARG002 - aiokafka's signature
            # `Partitions.assign` finds out which partitions were lost.
            await source.revoked()

        async def on_partitions_assigned(self, assigned: set[Any]) -> None:
            await source.assigned(assigned)

    return Listener()


def _is_cancelled() -> bool:
    """Return whether the current task was cancelled.

    A CancelledError alone does not show this, because aiokafka may raise CancelledError although the task was not
    cancelled.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
