"""A Kafka cluster: who we are there, and what producers and consumers of ours have in common."""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING, Any

import attrs
import orjson

from retailrocket_async import ConfigurationError
from retailrocket_async._runtime.setting_text import check_texts
from retailrocket_async.relay._letter import raise_first

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Mapping, Sequence

ANSWER = 10.0
"""Seconds within which the cluster must confirm what it is told."""

_LONGEST_KEY = 1024
"""Bytes of a message's key at most: it counts in the message's size. No event has a longer `sessionExternalId`."""

_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@attrs.frozen(kw_only=True)
class KafkaCluster:
    """Where Kafka is, and who we are there."""

    servers: str
    name: str
    user: str | None
    password: str | None = attrs.field(repr=False)
    sasl: str
    tls: ssl.SSLContext | None = attrs.field(repr=False)

    @classmethod
    def of(  # noqa: PLR0913 - keywords
        cls,
        servers: str | Sequence[str],
        name: str,
        *,
        user: str | None,
        password: str | None,
        sasl: str,
        tls: ssl.SSLContext | None,
    ) -> KafkaCluster:
        """Check the settings, and that the library is there."""
        aiokafka()
        joined = servers if isinstance(servers, str) else ",".join(servers)
        # aiokafka takes blanks around a comma; what it cannot read it takes for the name of a host.
        check_texts(bootstrap_servers=joined.replace(", ", ","))
        if "/" in joined or "@" in joined:
            raise ConfigurationError("bootstrap_servers must be 'host:port', or several of them")
        if sasl not in _MECHANISMS:
            raise ConfigurationError(f"sasl must be one of {', '.join(_MECHANISMS)}, not {sasl!r}")
        if (user is None) != (password is None):
            raise ConfigurationError("user and password must be given together")
        return cls(servers=joined, name=name, user=user, password=password, sasl=sasl, tls=tls)

    def options(self) -> dict[str, Any]:
        """Return what every client of aiokafka is told."""
        protocol = ("SASL_" if self.user else "") + ("SSL" if self.tls else "PLAINTEXT")
        sasl = {
            "sasl_mechanism": self.sasl,
            "sasl_plain_username": self.user,
            "sasl_plain_password": self.password,
        }
        return {
            "bootstrap_servers": self.servers,
            "client_id": self.name,
            "security_protocol": protocol,
            "ssl_context": self.tls,
            "request_timeout_ms": int(ANSWER * 1000),
            **(sasl if self.user else {}),
        }

    def producer(self) -> Any:
        """Return a producer whose messages are confirmed by all replicas in sync, and written once however retried."""
        return aiokafka().AIOKafkaProducer(acks="all", enable_idempotence=True, **self.options())

    def consumer(self, group: str, **options: Any) -> Any:
        """Return a consumer that starts at what is committed, or at the oldest message, and commits nothing itself.

        It reads no message of a transaction that was aborted.
        """
        return aiokafka().AIOKafkaConsumer(
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            partition_assignment_strategy=[_sticky()],
            **self.options(),
            **options,
        )

    async def committed(self, group: str, partitions: set[Any]) -> dict[Any, tuple[int, str]]:
        """Return what a group has committed for partitions, and the note beside it; -1 where there is nothing."""
        admin = importlib.import_module("aiokafka.admin").AIOKafkaAdminClient(**self.options())
        await start(admin)
        try:
            return dict(await admin.list_consumer_group_offsets(group, partitions=list(partitions)))
        finally:
            await admin.close()


def _sticky() -> Any:
    """Return what shares partitions out anew and leaves as many as it can with whoever has them.

    The library keeps what it remembers with the class, so each consumer has one of its own.
    """
    assignor = importlib.import_module("aiokafka.coordinator.assignors.sticky.sticky_assignor").StickyPartitionAssignor
    return type("Sticky", (assignor,), {})


async def start(client: Any) -> None:
    """Start a client, and leave nothing behind where it cannot be started."""
    starting = asyncio.ensure_future(client.start())
    try:
        await asyncio.shield(starting)
    except BaseException:
        # Cancelled in the midst of it, it would leave connections open; it has time-outs of its own.
        await asyncio.wait({starting})
        await (client.close() if hasattr(client, "close") else client.stop())
        raise


async def stop(client: Any) -> None:
    """Stop a client, and leave no connection behind."""
    # In a task of its own: aiokafka may raise its own tasks' CancelledError before it has closed its connections.
    stopping = asyncio.ensure_future(client.stop())
    try:
        await asyncio.wait({stopping})
    finally:
        stopping.cancel()
    if stopping.cancelled():
        await client._client.close()  # noqa: SLF001 - `stop` does nothing the second time
    else:
        stopping.result()


async def send_all(producer: Any, topic: str, messages: Iterable[tuple[bytes, Mapping[str, bytes]]]) -> None:
    """Publish messages in order, and return when all are confirmed; raise the first failure."""
    raise_first(await send_each(producer, topic, messages))


async def send_each(producer: Any, topic: str, messages: Iterable[tuple[bytes, Mapping[str, bytes]]]) -> list[Any]:
    """Publish messages in order; return what the cluster answered to each, or the failure."""
    sent: list[Any] = []
    for body, headers in messages:
        future = await producer.send(topic, body, key=_visitor(body), headers=list(headers.items()))
        future.add_done_callback(_seen)
        sent.append(future)
    return await asyncio.gather(*sent, return_exceptions=True)


def _seen(sent: asyncio.Future[Any]) -> None:
    """Look at a failure, which is raised to whoever waits for it, or nobody waits for it any more."""
    if not sent.cancelled():
        sent.exception()


def _visitor(envelope: bytes) -> bytes | None:
    """Return the visitor of an envelope's event; None if there is none, which is for the relay to judge."""
    try:
        [event] = orjson.loads(envelope).values()
        key = str(event["sessionExternalId"]).encode()
        return key if len(key) <= _LONGEST_KEY else None
    except (ValueError, AttributeError, TypeError, KeyError, UnicodeError):
        return None


def aiokafka() -> Any:
    """Return the library, which is heavy, and needed by nobody else."""
    try:
        return importlib.import_module("aiokafka")
    except ImportError:
        raise ConfigurationError(
            'Kafka needs aiokafka, which is not installed: pip install "retailrocket-async[kafka]"'
        ) from None
