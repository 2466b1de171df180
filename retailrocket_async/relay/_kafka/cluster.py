"""A Kafka cluster: stores its addresses and the account, and creates, starts and stops aiokafka's clients."""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING, Any

import attrs
import orjson

from retailrocket_async import ConfigurationError
from retailrocket_async._runtime.setting_text import check_texts
from retailrocket_async.relay._letter import raise_first
from retailrocket_async.relay._library_call import retrieve_error

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Mapping, Sequence

ANSWER = 10.0
"""Seconds to wait for an answer of the cluster."""

_LONGEST_KEY = 1024
"""Largest size of a message's key in bytes. No valid event has a longer `sessionExternalId`.

The size is limited because the key adds to the message's size, which Kafka limits.
"""

_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@attrs.frozen(kw_only=True)
class KafkaCluster:
    """Stores the brokers' addresses and the account, and creates aiokafka's clients for this cluster."""

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
        """Check the settings and return the cluster.

        Raises:
            ConfigurationError: a setting is invalid, or ``aiokafka`` is not installed.
        """
        aiokafka()
        joined = servers if isinstance(servers, str) else ",".join(servers)
        # aiokafka treats any text that it cannot parse as a host's name, so the text is checked here. A blank after a
        # comma is allowed, because aiokafka allows it.
        check_texts(bootstrap_servers=joined.replace(", ", ","))
        if "/" in joined or "@" in joined:
            raise ConfigurationError("bootstrap_servers must be 'host:port', or several of them")
        if sasl not in _MECHANISMS:
            raise ConfigurationError(f"sasl must be one of {', '.join(_MECHANISMS)}, not {sasl!r}")
        if (user is None) != (password is None):
            raise ConfigurationError("user and password must be given together")
        return cls(servers=joined, name=name, user=user, password=password, sasl=sasl, tls=tls)

    def options(self) -> dict[str, Any]:
        """Return the options that every client of aiokafka gets."""
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
        """Return a producer. All in-sync replicas confirm a message, and a retry does not write a message twice."""
        return aiokafka().AIOKafkaProducer(acks="all", enable_idempotence=True, **self.options())

    def consumer(self, group: str, **options: Any) -> Any:
        """Return a consumer that commits an offset only if `commit` is called.

        The consumer starts at the committed offset, or at the oldest message if no offset was committed. Messages of
        aborted transactions are skipped.
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
        """Return each partition's committed offset, and the note (a text) that was committed with the offset.

        The offset is -1 if no offset was committed.
        """
        admin = importlib.import_module("aiokafka.admin").AIOKafkaAdminClient(**self.options())
        await start(admin)
        try:
            return dict(await admin.list_consumer_group_offsets(group, partitions=list(partitions)))
        finally:
            await admin.close()


def _sticky() -> Any:
    """Return a new class that assigns partitions to the members of a group, and moves as few partitions as possible.

    aiokafka calls such a class an assignor, and stores the last assignment in the class itself, so every consumer needs
    a separate class.
    """
    assignor = importlib.import_module("aiokafka.coordinator.assignors.sticky.sticky_assignor").StickyPartitionAssignor
    return type("Sticky", (assignor,), {})


async def start(client: Any) -> None:
    """Start a client; if the start fails or is cancelled, close the client's connections."""
    starting = asyncio.ensure_future(client.start())
    try:
        await asyncio.shield(starting)
    except BaseException:
        # If `client.start()` were cancelled, connections would stay open. So this code waits until `client.start()`
        # returns, or raises because one of aiokafka's time-outs has passed.
        await asyncio.wait({starting})
        await (client.close() if hasattr(client, "close") else client.stop())
        raise


async def stop(client: Any) -> None:
    """Stop a client, and close its connections, even if this call is cancelled."""
    # `client.stop()` runs in a separate task, because it may raise the CancelledError of one of aiokafka's own tasks,
    # with some connections still open. This error must not look like a cancellation of this call.
    stopping = asyncio.ensure_future(client.stop())
    try:
        await asyncio.wait({stopping})
    finally:
        if not stopping.done():
            stopping.add_done_callback(retrieve_error)
            stopping.cancel()
            await _close_connections(client)
    if stopping.cancelled():
        await _close_connections(client)
    else:
        stopping.result()


async def _close_connections(client: Any) -> None:
    """Close the connections of a client whose `stop` was interrupted, because a second `stop` would do nothing."""
    # A producer has the attribute `client`, and a consumer has the attribute `_client`.
    await (client.client if hasattr(client, "client") else client._client).close()  # noqa: SLF001


async def send_all(producer: Any, topic: str, messages: Iterable[tuple[bytes, Mapping[str, bytes]]]) -> None:
    """Publish messages in order; return when the cluster has confirmed all of them, or raise the first error."""
    raise_first(await send_each(producer, topic, messages))


async def send_each(producer: Any, topic: str, messages: Iterable[tuple[bytes, Mapping[str, bytes]]]) -> list[Any]:
    """Publish messages in order; return for each message the cluster's answer or the exception."""
    sent: list[Any] = []
    for body, headers in messages:
        future = await producer.send(topic, body, key=visitor_of(body), headers=list(headers.items()))
        # If this call is cancelled, nothing awaits the future, and asyncio would log the future's error.
        future.add_done_callback(retrieve_error)
        sent.append(future)
    return await asyncio.gather(*sent, return_exceptions=True)


def visitor_of(envelope: bytes) -> bytes | None:
    """Return the `sessionExternalId` of an envelope's event, or None if the id is missing, too long or unreadable."""
    try:
        [event] = orjson.loads(envelope).values()
        key = str(event["sessionExternalId"]).encode()
        return key if len(key) <= _LONGEST_KEY else None
    except (ValueError, AttributeError, TypeError, KeyError, UnicodeError):
        return None


def aiokafka() -> Any:
    """Import ``aiokafka`` and return the module. The import is slow, so the module is imported only when needed.

    Raises:
        ConfigurationError: ``aiokafka`` is not installed.
    """
    try:
        return importlib.import_module("aiokafka")
    except ImportError:
        raise ConfigurationError(
            'Kafka needs aiokafka, which is not installed: pip install "retailrocket-async[kafka]"'
        ) from None
