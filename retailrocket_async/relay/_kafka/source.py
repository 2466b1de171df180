"""A relay's source on Kafka."""

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
"""Seconds by which a fetch may exceed its wait during a rebalance of the group."""

_SILENCE = 5.0
"""Seconds without a message after which the cluster must answer a request, or it counts as lost."""


class KafkaSource(Uncopyable):
    """A relay's view of a Kafka topic, as a member of a consumer group.

    Any number of relays may share the group; each has partitions of its own. Messages of one partition are handed out
    in their order. There is no lease: a message that was handed out and not settled belongs to this relay as long as
    the relay is a member of the group. Heartbeats and `extend` show that it is. After it has left, its partitions are
    read again from the committed offset: from the oldest message that was not settled.

    The topic for dead letters must exist, unless the cluster creates topics by itself. With one partition the dead
    letters are in order. To replay or purge a dead letter means to commit an offset of the group ``"<group>-dead"``
    behind it; the topic's retention removes it. After a crash, or a failure of the cluster, a dead letter may be there
    twice, with the same `message_id`.

    A message's id is its partition and offset, e.g. ``"3:1742"``.

    Args:
        bootstrap_servers: brokers of one cluster, as ``"host:9092"``, or several of them.
        topic: the topic that services publish to.
        group: the consumer group; default ``"relay"``.
        name: the client id that brokers show in their logs and metrics; default ``"relay"``.
        dead_topic: the topic of dead letters; default the name of the topic with ``"-dead"``.
        user, password: of SASL; default none.
        sasl: the mechanism, ``"PLAIN"`` (default), ``"SCRAM-SHA-256"`` or ``"SCRAM-SHA-512"``.
        tls: the TLS context; default None, no TLS.
        session_timeout: seconds without a heartbeat after which the group removes a relay, and other relays read its
            partitions; default 10. By default brokers accept 6 or more.

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
        self._partitions = Partitions(self._cluster, group)
        self._letters = KafkaDeadLetters(
            self._cluster, dead_topic or f"{topic}-dead", source_topic=topic, group=f"{group}-dead"
        )
        self._consumer: Any = None
        self._failed = False
        # When the cluster last answered, on the event loop's clock.
        self._answered_at = -math.inf
        self._polling = asyncio.Lock()

    @classmethod
    def from_url(cls, url: str, *, name: str) -> Self:
        """Return a source for an address, e.g. ``kafka://kafka:9092/events?group=relay&dead=events-dead``.

        Args:
            url: ``kafka://`` or, over TLS, ``kafkas://``; several brokers with commas between them; the name of the
                topic. Behind the question mark ``group``, ``dead``, ``sasl`` and ``session_timeout`` (seconds), as the
                constructor takes them. User and password are in the address or, better, in the environment:
                ``RETAILROCKET_RELAY_USER``, ``RETAILROCKET_RELAY_PASSWORD``.
            name: as the constructor takes it.

        Raises:
            ConfigurationError: an address that cannot work; the message does not show it.
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
        """Connect and join the group; if it is open already, connect again only what has failed."""
        if self._failed:
            await self._stop()
        if self._consumer is None:
            self._failed = True
            self._partitions.joined()
            await self._letters.open()
            self._consumer = self._cluster.consumer(
                self._group, session_timeout_ms=self._session, heartbeat_interval_ms=self._session // 3
            )
            await start(self._consumer)
            self._consumer.subscribe([self._topic], listener=_listener(self))
            self._answered_at = asyncio.get_running_loop().time()
        else:
            await self._letters.open()
            await self._check_cluster()
        self._failed = False

    async def _check_cluster(self) -> None:
        """Raise unless the cluster answers: aiokafka reconnects in the background, and reports nothing.

        Raises:
            ConnectionError: no broker has answered within `_SILENCE` seconds.
        """
        try:
            async with asyncio.timeout(_SILENCE):
                # If no partition is assigned, this is the only request that a broker must answer.
                await self._member()._client.fetch_all_metadata()  # noqa: SLF001 - `topics` may answer from a cache
        except (TimeoutError, aiokafka().errors.KafkaError) as error:
            raise ConnectionError(f"no broker of {self._cluster.servers} answers") from error
        self._answered_at = asyncio.get_running_loop().time()

    def _member(self) -> Any:
        """Return our consumer.

        Raises:
            ConnectionError: there is none.
        """
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
        """Acknowledge messages: the dead are published to their topic first, then offsets are committed.

        Messages in partitions that another relay has by now are left to that relay.
        """
        ours = [(message, reason) for message, reason in dead if self._partitions.has(message)]
        if ours:
            await self._letters.keep(ours)
        self._partitions.settle([*done, *(message for message, _ in ours)])
        await self._partitions.commit(self._member)

    async def extend(self, messages: Sequence[Message]) -> None:  # noqa: ARG002 - there is no lease
        """Poll with all partitions paused, unless a fetch polls anyway: so the group sees that this member is alive.

        Without a poll for five minutes a member leaves the group, and other members read its partitions.
        """
        if not self._polling.locked():
            async with self._polling:
                consumer = self._member()
                paused = consumer.assignment()
                consumer.pause(*paused)
                try:
                    # During a rebalance a poll takes longer, and is not needed.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_REBALANCE):
                            await consumer.getmany(timeout_ms=0)
                finally:
                    consumer.resume(*(paused & consumer.assignment()))
            await self._check_cluster()
        await self._partitions.commit(self._member)

    async def release(self, messages: Sequence[Message]) -> None:  # noqa: ARG002 - another member reads them again
        """Commit what is settled; the next owners of the partitions read the other messages again."""
        await self._partitions.commit(self._member)

    async def lag(self) -> Lag:
        """Return how far this relay is behind, in the partitions that it has; other relays report theirs."""
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
        try:
            if consumer is not None:
                await stop(consumer)
        finally:
            await self._letters.aclose()

    async def assigned(self, partitions: set[Any]) -> None:
        """Take over the partitions that a rebalance has assigned; aiokafka calls it."""
        try:
            await self._partitions.assign(self._consumer, partitions)
        except BaseException as error:
            if _is_cancelled():
                raise
            # The error would end the library's task that keeps this member in the group, and no message would come.
            self._partitions.assignment_failed(error)

    async def list_dead(self, most: int) -> Sequence[DeadLetter]:
        """Return the oldest dead letters, `most` at most."""
        return await self._letters.oldest(most)

    async def replay_dead(self, most: int) -> int:
        """Publish the oldest dead letters again, then commit the offset behind them; return how many.

        Those that were shortened are written again to the end of their own topic, where they stay dead letters.
        """
        return await self._letters.replay(most)

    async def purge_dead(self, most: int) -> int:
        """Commit the offset behind the oldest dead letters, so that they are not listed again; return how many."""
        return await self._letters.purge(most)


def _listener(source: KafkaSource) -> Any:
    """Return aiokafka's listener for a source; its class is made here, as its base class needs the library."""

    class Listener(aiokafka().ConsumerRebalanceListener):  # type: ignore[misc]
        def on_partitions_revoked(self, revoked: set[Any]) -> None:
            """Do nothing: which partitions are lost is known only when new ones are assigned."""

        async def on_partitions_assigned(self, assigned: set[Any]) -> None:
            await source.assigned(assigned)

    return Listener()


def _is_cancelled() -> bool:
    """Return whether the running task was cancelled, and not only a call that it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
